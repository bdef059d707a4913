package driver

import (
	"context"
	"net/netip"
	"reflect"
	"slices"
	"sync"

	"github.com/netdriver/netdriver/dataplane/firewall"
	"github.com/netdriver/netdriver/store"
	"github.com/netdriver/netdriver/vxlan"
)

// Filter is what the driver needs of the host's packet filter; *firewall.Filter is the real one.
type Filter interface {
	Apply(ctx context.Context, s firewall.Ruleset) ([]firewall.Op, error)
}

// admission says who may send VXLAN packets to this node: the nodes that have a record, from the moment they have it and
// before they know of this one's networks. It is pure; its lists are sorted.
func admission(me site, networks map[string]store.Network, nodes map[string]store.Node) firewall.Underlay {
	u := firewall.Underlay{Device: me.underlay, VNIs: map[uint16][]vxlan.VNI{}}
	for _, n := range nodes {
		u.Nodes = append(u.Nodes, n.VTEP)
	}
	for _, nw := range networks {
		if isMember(nw, me.node) && nw.Mode == store.ModeOverlay {
			u.VNIs[nw.Port] = append(u.VNIs[nw.Port], nw.VNI)
		}
	}
	slices.SortFunc(u.Nodes, func(a, b netip.Addr) int { return a.Compare(b) })
	for _, vnis := range u.VNIs {
		slices.Sort(vnis)
	}
	return u
}

// admitted is what the packet filter was told last.
type admitted struct {
	mu    sync.Mutex
	known bool
	last  firewall.Underlay
}

// admit tells the packet filter who may send here, before a network's device can receive. A filter that fails says so by
// itself, and goes on trying; that a container cannot start would be no protection.
func (d *Driver) admit(ctx context.Context) {
	if d.cfg.Filter == nil || !d.cfg.Mirror.Synced("") {
		return
	}
	d.admitted.mu.Lock()
	defer d.admitted.mu.Unlock()
	var want firewall.Underlay
	d.cfg.Mirror.Read(func(r *store.Records) { want = admission(d.site, r.Networks, r.Nodes) })
	want.Bridges = d.bridges.renamed()
	if d.admitted.known && reflect.DeepEqual(want, d.admitted.last) {
		return
	}
	ops, err := d.cfg.Filter.Apply(ctx, want.Ruleset())
	if err != nil {
		d.log.Error("cannot tell the packet filter who may send VXLAN packets here", "error", err)
		return
	}
	d.admitted.known, d.admitted.last = true, want
	if len(ops) > 0 {
		d.log.Info("VXLAN packets are accepted", "from", len(want.Nodes), "operations", len(ops))
	}
}
