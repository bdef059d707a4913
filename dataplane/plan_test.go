package dataplane

import (
	"context"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/netdriver/netdriver/vxlan"
)

var update = flag.Bool("update", false, "write the golden files anew")

// equal compares networks as values; an empty slice is as good as none.
func equal() cmp.Options {
	return cmp.Options{cmpopts.EquateEmpty(), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })}
}

const testVNI vxlan.VNI = 0x100001

func endpointID(i int) string { return fmt.Sprintf("%010x%054x", i, i) }

func endpointMAC(i int) vxlan.MAC {
	return vxlan.MAC{2, 0x42, 10, byte(i >> 16), byte(i >> 8), byte(i)}
}

func endpointIP(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
}

// testNet builds the wanted network "web" on the VTEP local.
type testNet struct{ Network }

func newTestNet(local string) *testNet {
	return &testNet{Network{
		Name: "web", VNI: testVNI,
		Bridge: Bridge{Present: true, MTU: 1450, Up: true},
		VXLAN: VXLAN{Present: true, Local: netip.MustParseAddr(local), Underlay: "eth0", Port: vxlan.DefaultPort,
			MTU: 1450, Up: true, Enslaved: true},
	}}
}

func (n *testNet) local(ids ...int) *testNet {
	for _, i := range ids {
		n.Ports = append(n.Ports,
			Port{Endpoint: endpointID(i), MAC: endpointMAC(i), MTU: n.Bridge.MTU, Up: true, Enslaved: true})
		n.FDB = append(n.FDB, FDBEntry{MAC: endpointMAC(i), Port: endpointID(i)})
		n.neighbour(i)
	}
	return n
}

func (n *testNet) peer(vtep string, ids ...int) *testNet {
	to := netip.MustParseAddr(vtep)
	n.FDB = append(n.FDB, FDBEntry{VTEP: to})
	for _, i := range ids {
		n.FDB = append(n.FDB, FDBEntry{MAC: endpointMAC(i), VTEP: to}, FDBEntry{MAC: endpointMAC(i)})
		n.neighbour(i)
	}
	return n
}

func (n *testNet) neighbour(i int) {
	n.Neighbours = append(n.Neighbours, Neighbour{endpointIP(i), endpointMAC(i)})
}

func (n *testNet) network() Network {
	n.Sort()
	return n.clone()
}

// with returns a copy of n after change.
func with(n Network, change func(*Network)) Network {
	c := n.clone()
	change(&c)
	c.Sort()
	return c
}

func TestPlanPrintsTheCommandsAnEngineerWouldType(t *testing.T) {
	full := newTestNet("192.0.2.1").local(1, 2).peer("192.0.2.2", 3, 4).peer("192.0.2.3", 5).network()
	there := full.asRead()
	tests := []struct {
		name       string
		have, want Network
	}{
		{"create", Network{}, full},
		{"add-endpoint", there,
			newTestNet("192.0.2.1").local(1, 2, 6).peer("192.0.2.2", 3, 4, 7).peer("192.0.2.3", 5).network()},
		{"remove-endpoint", there,
			newTestNet("192.0.2.1").local(1).peer("192.0.2.2", 3).peer("192.0.2.3", 5).network()},
		{"peer-moves", there,
			newTestNet("192.0.2.1").local(1, 2).peer("192.0.2.9", 3, 4).peer("192.0.2.3", 5).network()},
		{"endpoint-moves-here", there,
			newTestNet("192.0.2.1").local(1, 2, 3).peer("192.0.2.2", 4).peer("192.0.2.3", 5).network()},
		{"own-vtep-moves", there,
			newTestNet("192.0.2.8").local(1, 2).peer("192.0.2.2", 3, 4).peer("192.0.2.3", 5).network()},
		{"attribute-drift", with(there, func(n *Network) {
			n.Bridge.MTU, n.VXLAN.MTU, n.VXLAN.Up, n.Ports[0].MTU = 1400, 1400, false, 1400
		}), full},
		{"port-removed-from-bridge", with(there, func(n *Network) {
			n.Ports[0].Enslaved = false
			n.FDB = slices.DeleteFunc(n.FDB, func(e FDBEntry) bool { return e.Port == endpointID(1) })
		}), full},
		{"adopted-port-is-not-made", with(there, func(n *Network) {
			n.Ports = n.Ports[1:]
			n.FDB = slices.DeleteFunc(n.FDB, func(e FDBEntry) bool { return e.Port == endpointID(1) })
		}), with(full, func(n *Network) { n.Ports[0].Adopt = true })},
		{"bridge-lost", with(there, func(n *Network) {
			n.Bridge, n.Neighbours, n.VXLAN.Enslaved = Bridge{}, nil, false
			n.Ports[0].Enslaved, n.Ports[1].Enslaved = false, false
		}), full},
		{"remove", there, Network{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var b strings.Builder
			for _, op := range plan(tt.have, tt.want) {
				fmt.Fprintln(&b, op)
			}
			golden(t, tt.name, b.String())
		})
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("plan differs from %s (-want +got):\n%s", file, diff)
	}
}

// anyNetwork draws wanted networks that share endpoints, MACs and VTEPs, so that plans between two of them move things.
func anyNetwork() *rapid.Generator[Network] {
	return rapid.Custom(func(t *rapid.T) Network {
		n := newTestNet(rapid.SampledFrom([]string{"192.0.2.1", "192.0.2.8"}).Draw(t, "local"))
		n.Bridge.MTU = rapid.SampledFrom([]int{1400, 1450}).Draw(t, "mtu")
		n.VXLAN.MTU = n.Bridge.MTU
		peers := []string{"", "192.0.2.2", "192.0.2.3", "192.0.2.4"} // "" is here
		at := map[string][]int{}
		for i := range 8 {
			if rapid.Bool().Draw(t, "exists") {
				p := rapid.SampledFrom(peers).Draw(t, "place")
				at[p] = append(at[p], i+1)
			}
		}
		n.local(at[""]...)
		for _, p := range peers[1:] {
			if len(at[p]) > 0 {
				n.peer(p, at[p]...)
			}
		}
		return n.network()
	})
}

// TestPlanLeadsFromAnyNetworkToAnyOther also disturbs the start, as another program could.
func TestPlanLeadsFromAnyNetworkToAnyOther(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := anyNetwork().Draw(t, "a"), anyNetwork().Draw(t, "b")
		f := NewFake()
		mustRun(t, f, plan(Network{}, a))
		if rapid.Bool().Draw(t, "disturb") {
			disturb(t, f, a)
		}
		have, _ := f.ReadNetwork(t.Context(), testVNI)
		ops := plan(have, b)
		mustRun(t, f, ops)
		got, _ := f.ReadNetwork(t.Context(), testVNI)
		if diff := cmp.Diff(b.asRead(), got, equal()); diff != "" {
			t.Fatalf("plan:\n%v\nleads elsewhere (-want +got):\n%s", ops, diff)
		}
		if again := plan(got, b); len(again) > 0 {
			t.Fatalf("plan of what is wanted already: %v", again)
		}
		mustRun(t, f, plan(got, Network{}))
		if left, _ := f.Read(t.Context()); len(left) > 0 {
			t.Fatalf("left after removal: %+v", left)
		}
	})
}

func mustRun(t interface{ Fatal(...any) }, f *Fake, ops []Op) {
	if err := f.Run(context.Background(), ops); err != nil {
		t.Fatal(err)
	}
}

// disturb removes a device or an entry, or adds an entry.
func disturb(t *rapid.T, f *Fake, n Network) {
	op := Op{VNI: n.VNI}
	switch rapid.IntRange(0, 3).Draw(t, "disturbance") {
	case 0:
		op.Verb, op.Device = DelLink, VXLANName(n.VNI)
	case 1:
		op.Verb, op.Device = DelLink, BridgeName(n.VNI)
	case 2:
		op.Verb, op.Device = PutFDB, VXLANName(n.VNI)
		op.MAC, op.VTEP = endpointMAC(3), netip.MustParseAddr("192.0.2.77")
	case 3:
		if len(n.Neighbours) > 0 {
			op = Op{Verb: DelNeighbour, VNI: n.VNI, Device: BridgeName(n.VNI), Address: n.Neighbours[0].Address}
		} else {
			op.Verb, op.Device = DelLink, BridgeName(n.VNI)
		}
	}
	mustRun(t, f, []Op{op})
}

func TestPlanIsMinimal(t *testing.T) {
	a := newTestNet("192.0.2.1").local(1, 2).peer("192.0.2.2", 3, 4).network()
	b := newTestNet("192.0.2.1").local(1, 2).peer("192.0.2.2", 3, 4, 5).network()
	if got := plan(a.asRead(), b); len(got) != 4 {
		t.Errorf("one remote endpoint more takes %d operations, want its three entries and its announcement: %v", len(got), got)
	}
	if got := plan(b.asRead(), a); len(got) != 3 {
		t.Errorf("one remote endpoint less takes %d operations, want its three entries: %v", len(got), got)
	}
}

func TestImpossibleNetworksAreRefused(t *testing.T) {
	ok := newTestNet("192.0.2.1").local(1, 2).peer("192.0.2.2", 3).network()
	if err := ok.Check(); err != nil {
		t.Fatalf("possible network: %v", err)
	}
	tests := []struct {
		name   string
		break_ func(*Network)
		want   string
	}{
		{"ids alike", func(n *Network) {
			twin := endpointID(1)[:63] + "f"
			n.Ports = append(n.Ports, Port{Endpoint: twin})
		}, "begin with the same 10 characters"},
		{"no VNI", func(n *Network) { n.VNI = 0 }, "VNI 0"},
		{"no bridge", func(n *Network) { n.Bridge = Bridge{} }, "without a bridge"},
		{"entry on no port", func(n *Network) {
			n.FDB = append(n.FDB, FDBEntry{MAC: endpointMAC(9), Port: "x"})
		}, "has no port"},
		{"MAC twice", func(n *Network) {
			n.FDB = append(n.FDB, FDBEntry{MAC: endpointMAC(3), VTEP: netip.MustParseAddr("192.0.2.3")})
		}, "in two places"},
		{"MAC here and there", func(n *Network) {
			n.FDB = append(n.FDB, FDBEntry{MAC: endpointMAC(1)})
		}, "in two places"},
		{"MAC on two ports", func(n *Network) {
			n.FDB = append(n.FDB, FDBEntry{MAC: endpointMAC(1), Port: endpointID(2)})
		}, "in two places"},
		{"IP versions mixed", func(n *Network) {
			n.FDB = append(n.FDB, FDBEntry{VTEP: netip.MustParseAddr("2001:db8::1")})
		}, "same IP version"},
		{"IPv6 on a small MTU", func(n *Network) {
			n.Bridge.MTU = 1279
			n.Neighbours = append(n.Neighbours, Neighbour{netip.MustParseAddr("2001:db8::1"), endpointMAC(1)})
		}, "at least 1280"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := with(ok, tt.break_).Check()
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want an error with %q", err, tt.want)
			}
		})
	}
}
