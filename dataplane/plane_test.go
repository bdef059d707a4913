//go:build linux

package dataplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/netdriver/netdriver/vxlan"
)

// follow runs the plane and applies want again whenever the network has drifted, as the driver does.
func follow(t *testing.T, p *Plane, want Network) {
	t.Helper()
	background(t, p.Run)
	background(t, func(ctx context.Context) error {
		for {
			select {
			case <-p.Drifted():
				if _, err := p.Apply(ctx, want); err != nil && ctx.Err() == nil {
					t.Errorf("repair: %v", err)
				}
			case <-ctx.Done():
				return nil
			}
		}
	})
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	within(t, time.Second, what, ok)
}

func within(t *testing.T, patience time.Duration, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Errorf("not within %v: %s", patience, what)
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func TestWhatOthersChangeIsRepairedWithinASecond(t *testing.T) {
	n := newTestNet("192.0.2.1").local(1, 2).peer("192.0.2.2", 3, 4).network()
	n.Neighbours = append(n.Neighbours, Neighbour{netip.MustParseAddr("fd00::3"), endpointMAC(3)})
	port, mac := PortName(endpointID(1)), endpointMAC(3).String()
	// In each command B, X, P, M stand for bridge, VXLAN device, a port and a remote MAC.
	tests := []struct{ do, repair string }{
		{"bridge fdb del M dev X dst 192.0.2.2 self", "bridge fdb replace M dev X dst 192.0.2.2 self permanent"},
		{"bridge fdb replace M dev X dst 192.0.2.66 self permanent",
			"bridge fdb replace M dev X dst 192.0.2.2 self permanent"},
		{"bridge fdb add 02:00:00:00:00:66 dev X dst 192.0.2.66 self permanent",
			"bridge fdb del 02:00:00:00:00:66 dev X dst 192.0.2.66 self"},
		{"bridge fdb del M dev X master", "bridge fdb replace M dev X master static"},
		{"bridge fdb replace M dev X master dynamic", "bridge fdb replace M dev X master static"},
		{"bridge fdb replace M dev P master static", "bridge fdb replace M dev X master static"},
		{"bridge fdb del 00:00:00:00:00:00 dev X dst 192.0.2.2 self",
			"bridge fdb append 00:00:00:00:00:00 dev X dst 192.0.2.2 self permanent"},
		{"bridge fdb append 00:00:00:00:00:00 dev X dst 192.0.2.66 self",
			"bridge fdb del 00:00:00:00:00:00 dev X dst 192.0.2.66 self"},
		{"ip neigh del 10.0.0.3 dev B", "ip neigh replace 10.0.0.3 lladdr M dev B nud permanent"},
		{"ip neigh replace 10.0.0.3 lladdr M dev B nud stale", "ip neigh replace 10.0.0.3 lladdr M dev B nud permanent"},
		{"ip neigh replace 10.0.0.66 lladdr M dev B nud permanent", "ip neigh del 10.0.0.66 dev B"},
		{"ip neigh del fd00::3 dev B", "ip neigh replace fd00::3 lladdr M dev B nud permanent"},
		{"ip neigh flush dev B nud permanent", "ip neigh replace 10.0.0.3 lladdr M dev B nud permanent"},
		{"ip link set P nomaster", "ip link set P master B"},
		{"ip link set X nomaster", "ip link set X master B"},
		{"bridge link set dev P learning on", "bridge link set dev P learning off"},
		{"bridge link set dev X neigh_suppress off", "bridge link set dev X learning off neigh_suppress on"},
		{"ip link set P mtu 1400", "ip link set P mtu 1450"},
		{"ip link set B mtu 1400", "ip link set B mtu 1450"},
		{"ip link set X mtu 1400", "ip link set X mtu 1450"},
		{"ip link set P down", "ip link set P up"},
		{"ip link set X down", "ip link set X up"},
		{"ip link set B down", "ip link set B up"},
		{"ip link set B address 02:00:00:00:00:77", "ip neigh replace 10.0.0.3 lladdr M dev B nud permanent"},
		{"ip link del X", "ip -n host link add X"},
		{"ip link del B", "ip link add B"},
		{"ip link del P", "ip link add P"},
	}
	names := strings.NewReplacer("B", BridgeName(testVNI), "X", VXLANName(testVNI), "P", port, "M", mac)
	h := newHost(t)
	p := NewPlane(h.kernel, quiet())
	if _, err := p.Apply(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	follow(t, p, n)
	for _, tt := range tests {
		t.Run(tt.do, func(t *testing.T) {
			before := p.Drift(testVNI)
			h.in(t, "ip link add other type bridge")
			h.in(t, words(names, tt.do))
			eventually(t, "a repair", func() bool { return p.Drift(testVNI) > before })
			var got []string
			for _, r := range p.Receipts(testVNI) {
				got = append(got, r.Op)
			}
			repair := words(names, tt.repair)
			eventually(t, "the wanted state", func() bool {
				now, err := h.kernel.ReadNetwork(t.Context(), testVNI)
				return err == nil && cmp.Equal(n.asRead(), now, equal())
			})
			if !strings.Contains(strings.Join(got, "\n"), repair) {
				t.Errorf("no receipt with %q among\n%s", repair, strings.Join(got, "\n"))
			}
			h.in(t, "ip link del other") // fails if it is gone
		})
	}
}

// words replaces the words of a command that stand alone.
func words(names *strings.Replacer, command string) string {
	f := strings.Fields(command)
	for i := range f {
		if len(f[i]) == 1 {
			f[i] = names.Replace(f[i])
		}
	}
	return strings.Join(f, " ")
}

// TestOurOwnChangesAreNotDrift: nothing is read again and nothing is receipted while the plane changes the network.
func TestOurOwnChangesAreNotDrift(t *testing.T) {
	kernels(t, func(t *testing.T, k Kernel) {
		p := NewPlane(k, quiet())
		background(t, p.Run)
		background(t, func(ctx context.Context) error {
			select {
			case v := <-p.Drifted():
				return fmt.Errorf("network %d has drifted", v)
			case <-ctx.Done():
				return nil
			}
		})
		time.Sleep(20 * time.Millisecond) // until it listens
		for i := range 15 {
			vtep := []string{"192.0.2.1", "192.0.2.8"}[i/5%2]
			n := newTestNet(vtep).local(i%3+1).peer(fmt.Sprintf("192.0.2.%d", 20+i%4), 10, 11, 12+i).network()
			if _, err := p.Apply(t.Context(), n); err != nil {
				t.Fatal(err)
			}
			expect(t, k, n)
		}
		time.Sleep(5 * settleTime)
		if c := p.Counters(); c.Reads != 1 || c.Drift != 0 {
			t.Errorf("%d reads and %d repairs, want the first read only", c.Reads, c.Drift)
		}
	})
}

func TestLostEventsMakeEveryNetworkRead(t *testing.T) {
	f := NewFake()
	p := NewPlane(f, quiet())
	n := newTestNet("192.0.2.1").local(1).peer("192.0.2.2", 3).network()
	if _, err := p.Apply(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	// Nobody follows events yet, so this is missed.
	f.Change(testVNI, func(n *Network) { n.Neighbours = nil })
	if ops, _ := p.Apply(t.Context(), n); len(ops) > 0 {
		t.Fatalf("a missed change was noticed without reading: %v", ops)
	}
	follow(t, p, n)
	eventually(t, "that the plane listens", f.events.Heard)
	f.LoseEvents()
	eventually(t, "a repair", func() bool { return p.Drift(testVNI) == 2 })
	expect(t, f, n)
}

func TestRefreshFindsWhatEventsDidNotTell(t *testing.T) {
	f := NewFake()
	p := NewPlane(f, quiet())
	n := newTestNet("192.0.2.1").local(1).network()
	for _, change := range []func(*Network){nil, func(n *Network) { n.Bridge.Up = false }} {
		if change != nil {
			f.Change(testVNI, change)
			p.Refresh(testVNI)
		}
		if _, err := p.Apply(t.Context(), n); err != nil {
			t.Fatal(err)
		}
	}
	rs := p.Receipts(testVNI)
	if len(rs) != 1 || rs[0].Op != "ip link set ndb100001 up" || rs[0].Network != "web" {
		t.Errorf("receipts %+v, want the one of the bridge", rs)
	}
}

func TestFailedApplyIsFinishedByTheNextWithoutReceipt(t *testing.T) {
	n := newTestNet("192.0.2.1").local(1).peer("192.0.2.2", 3).network()
	ops := plan(Network{}, n)
	broken := errors.New("broken")
	for i := range ops {
		f := NewFake()
		f.FailOn = func(op Op) error {
			if op == ops[i] {
				return broken
			}
			return nil
		}
		p := NewPlane(f, quiet())
		if _, err := p.Apply(t.Context(), n); !errors.Is(err, broken) {
			t.Fatalf("operation %s: got %v", ops[i], err)
		}
		f.FailOn = nil
		if _, err := p.Apply(t.Context(), n); err != nil {
			t.Fatal(err)
		}
		expect(t, f, n)
		if rs := p.Receipts(testVNI); len(rs) > 0 {
			t.Errorf("after failure of %s: receipts %+v", ops[i], rs)
		}
	}
}

// TestKilledDaemonIsContinued: it dies after any operation; a fresh one finishes, or removes.
func TestKilledDaemonIsContinued(t *testing.T) {
	n := newTestNet("192.0.2.1").local(1).peer("192.0.2.2", 3).network()
	ops := plan(Network{}, n)
	for i := range len(ops) + 1 {
		f := NewFake()
		mustRun(t, f, ops[:i])
		if _, err := NewPlane(f, quiet()).Apply(t.Context(), n); err != nil {
			t.Fatalf("after %d operations: %v", i, err)
		}
		expect(t, f, n)
		f = NewFake()
		mustRun(t, f, ops[:i])
		if err := NewPlane(f, quiet()).Remove(t.Context(), testVNI); err != nil {
			t.Fatalf("after %d operations: %v", i, err)
		}
		expect(t, f, Network{})
	}
}

func TestPlaneReachesAnyWantedSequence(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := NewFake()
		p := NewPlane(f, quiet())
		for _, want := range rapid.SliceOfN(anyNetwork(), 1, 5).Draw(t, "wants") {
			if _, err := p.Apply(t.Context(), want); err != nil {
				t.Fatal(err)
			}
			if rapid.Bool().Draw(t, "disturb") {
				disturb(t, f, want)
				p.Refresh(testVNI)
				if _, err := p.Apply(t.Context(), want); err != nil {
					t.Fatal(err)
				}
			}
			got, _ := f.ReadNetwork(t.Context(), testVNI)
			if diff := cmp.Diff(want.asRead(), got, equal()); diff != "" {
				t.Fatalf("(-want +got):\n%s", diff)
			}
			if again, err := p.Apply(t.Context(), want); len(again) > 0 || err != nil {
				t.Fatalf("again: %v %v", again, err)
			}
		}
	})
}

// TestNetworksAreAppliedSideBySide is for the race detector as well.
func TestNetworksAreAppliedSideBySide(t *testing.T) {
	kernels(t, func(t *testing.T, k Kernel) {
		p := NewPlane(k, quiet())
		background(t, p.Run)
		var wg sync.WaitGroup
		for i := range 6 {
			wg.Go(func() {
				n := newTestNet("192.0.2.1")
				n.VNI, n.Name = vxlan.VNI(1000+i), fmt.Sprint("net", i)
				want := n.local(10*i+1, 10*i+2).peer("192.0.2.2", 10*i+3).network()
				for range 2 {
					if _, err := p.Apply(t.Context(), want); err != nil {
						t.Error(err)
					}
					p.Refresh(n.VNI)
				}
				if i%2 == 1 {
					if err := p.Remove(t.Context(), n.VNI); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		all, err := p.Present(t.Context())
		var names []string
		for _, n := range all {
			names = append(names, n.Name)
		}
		if diff := cmp.Diff([]string{"net0", "net2", "net4"}, names); diff != "" || err != nil {
			t.Errorf("%v, present (-want +got):\n%s", err, diff)
		}
	})
}

func TestAliveAdoptedPortIsRepairedAndAMissingOneIsNotMade(t *testing.T) {
	kernels(t, func(t *testing.T, k Kernel) {
		n := newTestNet("192.0.2.1").local(1, 2).network()
		if err := k.Run(t.Context(), plan(Network{}, newTestNet("192.0.2.1").local(1).network())); err != nil {
			t.Fatal(err)
		}
		ours := []Op{{Verb: SetMTU, VNI: testVNI, Device: PortName(endpointID(1)), Endpoint: endpointID(1), MTU: 1400}}
		if err := k.Run(t.Context(), ours); err != nil {
			t.Fatal(err)
		}
		n.Ports[0].Adopt, n.Ports[1].Adopt = true, true
		p := NewPlane(k, quiet())
		if _, err := p.Apply(t.Context(), n); err != nil {
			t.Fatal(err)
		}
		want := newTestNet("192.0.2.1").local(1).network()
		want.Neighbours = n.Neighbours
		expect(t, k, want)
	})
}
