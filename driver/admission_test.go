package driver

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netdriver/netdriver/dataplane"
	"github.com/netdriver/netdriver/dataplane/firewall"
	"github.com/netdriver/netdriver/store"
	"github.com/netdriver/netdriver/vxlan"
)

func TestNodesWithARecordAreAcceptedForNetworksThatAreHere(t *testing.T) {
	me, nw, nodes, _ := three()
	other, elsewhere, lan := nw, nw, nw
	other.Name, other.VNI, other.Port = "other", 5000, 4790
	elsewhere.Name, elsewhere.VNI, elsewhere.Members = "elsewhere", 5001, nw.Members[1:]
	lan.Name, lan.VNI, lan.Mode = "lan", 5002, "macvlan"
	got := admission(me, map[string]store.Network{"web": nw, "other": other, "elsewhere": elsewhere, "lan": lan}, nodes)
	want := firewall.Underlay{
		Device: "eth0", Nodes: []netip.Addr{addr("192.0.2.1"), addr("192.0.2.2"), addr("192.0.2.3")},
		VNIs: map[uint16][]vxlan.VNI{4789: {4097}, 4790: {5000}},
	}
	if d := cmp.Diff(want, got, equal()); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	if err := got.Ruleset().Check(); err != nil {
		t.Error(err)
	}
}

// The packet filter knows a network before its device is there, and a node before its first entry.
func TestTheFilterIsToldBeforeTheDevicesAreMade(t *testing.T) {
	mem := store.NewMemory()
	a := newHost(t, mem, "n1", "192.0.2.1")
	var devices, entries, late atomic.Int64
	a.kernel.FailOn = func(op dataplane.Op) error {
		switch {
		case op.Verb == dataplane.AddVXLAN:
			devices.Add(1)
			if !a.accepts("underlay-vnis-4789", fmt.Sprintf("%#x", uint32(op.VNI))) {
				late.Add(1)
			}
		case op.Verb == dataplane.PutFDB && op.VTEP.IsValid():
			entries.Add(1)
			if !a.accepts("underlay-nodes4", op.VTEP.String()) {
				late.Add(1)
			}
		}
		return nil
	}
	an, err := a.createNetwork("d1", "10.10.0.0/24")
	if err != nil {
		t.Fatal(err)
	}
	b := newHost(t, mem, "n2", "192.0.2.2")
	if _, err := b.createNetwork("d2", "10.10.0.0/24"); err != nil {
		t.Fatal(err)
	}
	a.eventually("an entry for the other node", func() error {
		if entries.Load() == 0 || devices.Load() == 0 {
			return errors.New("none")
		}
		return nil
	})
	if n := late.Load(); n > 0 {
		t.Errorf("%d devices or entries were made before the filter knew of them", n)
	}
	if err := a.removeNetwork(an); err != nil {
		t.Fatal(err)
	}
	if have, _ := a.filter.Read(t.Context()); len(have.Chains)+len(have.Sets) > 0 {
		t.Errorf("without networks there are rules: %v", have)
	}
}

// accepts says whether a set of the host's packet filter has an element.
func (h *host) accepts(set, element string) bool {
	have, err := h.filter.Read(context.Background())
	return err == nil && slices.ContainsFunc(have.Sets, func(s firewall.CompiledSet) bool {
		return s.Name == set && slices.Contains(s.Elements, element)
	})
}
