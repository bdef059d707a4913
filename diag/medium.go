package diag

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/netdriver/netdriver/dataplane"
	"github.com/netdriver/netdriver/store"
)

// receipts are the repairs of both data planes, oldest first.
func (d *Diagnosis) receipts(nw store.Network) []dataplane.Receipt {
	out := slices.Clone(d.src.Plane.Receipts(nw.VNI))
	if d.src.LAN != nil {
		for _, r := range d.src.LAN.Receipts(nw.Name) {
			out = append(out, dataplane.Receipt{Time: r.Time, Network: nw.Name, Op: r.Op, Took: r.Took, Error: r.Error})
		}
	}
	slices.SortStableFunc(out, func(a, b dataplane.Receipt) int { return a.Time.Compare(b.Time) })
	return out
}

// readConflicts reads which addresses of a network in a LAN are used outside the cluster.
func (d *Diagnosis) readConflicts(ctx context.Context, f *facts) error {
	if !f.network.OnLAN() {
		return nil
	}
	cs, err := list(ctx, d.src.Store, store.NetworkConflicts(f.network.Name), f.bad,
		func(_ store.KV, c store.Conflict) (netip.Addr, store.Conflict) { return c.Address, c })
	f.conflicts = slices.SortedFunc(maps.Values(cs), func(a, b store.Conflict) int { return a.Address.Compare(b.Address) })
	return err
}

func (f facts) aboutConflicts() (out []Reason) {
	for _, c := range f.conflicts {
		out = append(out, reason(Degraded, c.Address.String(),
			"give that device another address, or keep this one from containers: --aux-address, or --ip-range without it",
			"address %s of the network is used in the LAN by %s, outside the cluster; node %s found it at %s", c.Address, c.MAC,
			c.Node, c.Seen.Format("15:04:05")))
	}
	return out
}

// medium tells how the network is carried, if not by VXLAN.
func (f facts) medium() Medium {
	nw := f.network
	return Medium{Parent: nw.LAN.Parent, Submode: nw.LAN.Submode, HostAccess: nw.HostAccess}
}

// mtuOf explains a network's MTU.
func (f facts) mtuOf() MTU {
	if cmp.Or(f.network.Mode, store.ModeOverlay) == store.ModeOverlay {
		return mtu(f.network.Network, f.me)
	}
	m := MTU{MTU: f.network.MTU, Derived: fmt.Sprintf("%d, nothing is put around packets", f.network.MTU)}
	return m
}
