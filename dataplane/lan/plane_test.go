package lan

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"
)

// running is a Plane on a fake host, and what it says has drifted.
func running(t *testing.T) (*Fake, *Plane) {
	t.Helper()
	f := NewFake(Interface{Name: "eth1", MTU: 1500, Up: true, Running: true, Ethernet: true})
	p := NewPlane(f, quiet)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- p.Run(ctx) }()
	for !f.changes.Heard() {
		time.Sleep(time.Millisecond)
	}
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return f, p
}

func (p *Plane) must(t *testing.T, want Network) []Op {
	t.Helper()
	ops, err := p.Apply(t.Context(), want)
	if err != nil {
		t.Fatal(err)
	}
	return ops
}

// drift waits for news of a network.
func drift(t *testing.T, p *Plane, name string) {
	t.Helper()
	for {
		select {
		case got := <-p.Drifted():
			if got == name {
				return
			}
		case <-time.After(5 * time.Second):
			t.Fatalf("nothing was said of network %s", name)
		}
	}
}

func TestWhatIsRemovedFromAContainerIsMissedRepairedAnnouncedAndRecorded(t *testing.T) {
	f, p := running(t)
	want := onLAN(macvlanPort(1, "eth1"))
	p.must(t, want)
	box := sandboxOf(1)
	if err := f.Move(endpointID(1), box); err != nil {
		t.Fatal(err)
	}
	want.Ports[0].Sandbox = box
	p.must(t, want)
	f.Break(endpointID(1))
	drift(t, p, "lan")
	p.must(t, want)
	if got := f.Inside(box); !slices.Contains(got, endpointID(1)) {
		t.Errorf("the container has %v", got)
	}
	if told := f.Told(); len(told) != 1 || told[0].Sandbox != box {
		t.Errorf("announced: %+v", told)
	}
	if rs := p.Receipts("lan"); len(rs) != 1 || !strings.Contains(rs[0].Op, "netns "+box) {
		t.Errorf("receipts %+v", rs)
	}
}

func TestOurOwnChangesAreNoDrift(t *testing.T) {
	_, p := running(t)
	p.must(t, withSeat(onLAN(macvlanPort(1, "eth1")), 1))
	p.must(t, withSeat(onLAN()))
	p.must(t, onLAN(macvlanPort(2, "eth1")))
	select {
	case name := <-p.Drifted():
		t.Errorf("%s is said to have drifted", name)
	case <-time.After(3 * settleTime):
	}
	if rs := p.Receipts("lan"); len(rs) > 0 {
		t.Errorf("receipts %+v", rs)
	}
}

func TestAChangeOfTheParentMakesTheNetworkBeTriedAgain(t *testing.T) {
	f, p := running(t)
	p.must(t, onLAN(macvlanPort(1, "eth1")))
	f.Set(Interface{Name: "eth1", MTU: 1500, Ethernet: true})
	drift(t, p, "lan")
	p.Fail("other")
	f.Set(Interface{Name: "eth2", MTU: 1500, Ethernet: true})
	drift(t, p, "other")
}

func TestAVLANStaysAsLongAsAnotherNetworkNeedsIt(t *testing.T) {
	f, p := running(t)
	first, second := onVLAN(1), onVLAN(2)
	second.Name = "second"
	p.must(t, first)
	p.must(t, second)
	if err := p.Remove(t.Context(), "lan", []string{"eth1.10"}); err != nil {
		t.Fatal(err)
	}
	have := func() string {
		is, err := f.Interfaces(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, i := range is {
			names = append(names, i.Name)
		}
		return strings.Join(names, " ")
	}
	if got := have(); got != "eth1 eth1.10 "+PortName(endpointID(2)) {
		t.Errorf("after the first network: %s", got)
	}
	if err := p.Remove(t.Context(), "second", nil); err != nil {
		t.Fatal(err)
	}
	if got := have(); got != "eth1" {
		t.Errorf("after the last network: %s", got)
	}
}

func TestASweepRemovesWhatNoRecordWantsAndNothingElse(t *testing.T) {
	f := NewFake(Interface{Name: "eth1", MTU: 1500, Up: true, Running: true, Ethernet: true},
		Interface{Name: "eth1.20", MTU: 1500, Kind: "vlan", VLANParent: "eth1", VLANID: 20, Ethernet: true})
	before := NewPlane(f, quiet)
	before.must(t, onVLAN(1))
	before.must(t, bridged(2))
	p := NewPlane(f, quiet) // a fresh daemon
	if err := p.Sweep(t.Context(), func(name string) bool { return name == "apps" }, nil); err != nil {
		t.Fatal(err)
	}
	is, err := f.Interfaces(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, i := range is {
		names = append(names, i.Name)
	}
	want := []string{"eth1", "eth1.20", BridgeName("apps"), PortName(endpointID(2)), pairName(endpointID(2))}
	slices.Sort(want)
	if !slices.Equal(names, want) {
		t.Errorf("the host has %v, want %v", names, want)
	}
}
