package dataplane

import (
	"context"

	"github.com/netdriver/netdriver/dataplane/guard"
	"github.com/netdriver/netdriver/vxlan"
)

// Unguarded makes the kernel one without a packet filter.
func (f *Fake) Unguarded() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.unguarded = true
}

// Guards implements Kernel.
func (f *Fake) Guards() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.unguarded {
		return guard.ErrUnsupported
	}
	return nil
}

// Drops implements Kernel: every port is counted, and nothing was dropped.
func (f *Fake) Drops(_ context.Context, v vxlan.VNI) ([]guard.Drops, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []guard.Drops
	if n := f.nets[v]; n != nil {
		for _, p := range n.Guard.Ports {
			out = append(out, guard.Drops{Port: p.Name})
		}
	}
	return out, nil
}

// guard changes the table, which all networks share.
func (f *Fake) guard(n *Network, op Op) error {
	if f.unguarded {
		return guard.ErrUnsupported
	}
	n.Guard.Table = f.table
	if err := n.Guard.Apply(op.Guard); err != nil {
		return err
	}
	f.setTable(n.Guard.Table)
	return nil
}

// setTable says whether the table is there. Without it all that was in it is gone.
func (f *Fake) setTable(there bool) {
	f.table = there
	for _, n := range f.nets {
		if n.Guard.Table = there; !there {
			n.Guard = guard.Network{}
		}
	}
}

// DropTable deletes the packet filter's table behind the data plane's back.
func (f *Fake) DropTable() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.setTable(false)
	f.events.Send(Event{Guard: true})
}

// limit limits a port that is there.
func (n *Network) limit(op Op) {
	for i := range n.Ports {
		if n.Ports[i].Endpoint == op.Endpoint {
			n.Ports[i].Limit = op.Limit
		}
	}
}

// Refusals implements Kernel: nothing is dropped.
func (f *Fake) Refusals(context.Context, func(string, guard.Refusal)) error { return nil }
