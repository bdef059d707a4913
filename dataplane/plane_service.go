package dataplane

import (
	"context"
	"fmt"

	"github.com/netdriver/netdriver/dataplane/balance"
	"github.com/netdriver/netdriver/dataplane/guard"
	"github.com/netdriver/netdriver/vxlan"
)

// possible returns want as this kernel can have it, with what follows from it: without services if they cannot be
// balanced here. Everything else works without them, and so do names that lead to the tasks themselves.
func (p *Plane) possible(want Network) Network {
	if len(want.Services) > 0 {
		if err := p.kernel.Balances(); err != nil {
			p.warned.Do(func() {
				p.log.Warn("services' virtual addresses do not work on this node; the names of their tasks do (tasks.NAME, "+
					"or endpoint mode dnsrr)", "error", err)
			})
			want.Services = nil
		}
	}
	if err := p.kernel.Guards(); err != nil && want.Guard.Table {
		p.warnedGuard.Do(func() {
			p.log.Warn("containers on this node can use each other's addresses: nothing judges what they send", "error", err)
		})
		want.Guard = guard.Network{}
	}
	return want.balanced()
}

// Balances says why services cannot be balanced on this node; nil if they can. The error wraps balance.ErrUnsupported.
func (p *Plane) Balances() error { return p.kernel.Balances() }

// Guards says why containers' ports cannot be guarded on this node; nil if they can. The error wraps
// guard.ErrUnsupported.
func (p *Plane) Guards() error { return p.kernel.Guards() }

// Drops returns what the packet filter dropped at the local ports of a network, sorted by port.
func (p *Plane) Drops(ctx context.Context, v vxlan.VNI) ([]guard.Drops, error) {
	drops, err := p.kernel.Drops(ctx, v)
	if err != nil {
		return nil, fmt.Errorf("read the counters of the packet filter: %w", err)
	}
	return drops, nil
}

// Refusals tells of some of the frames that the packet filter drops, and at which local port, until ctx ends.
func (p *Plane) Refusals(ctx context.Context, f func(port string, r guard.Refusal)) error {
	return p.kernel.Refusals(ctx, f)
}

// Counts returns what clients on this node have sent to the backends of a network's services, sorted by address. It is
// empty if nothing is balanced.
func (p *Plane) Counts(ctx context.Context, v vxlan.VNI) ([]balance.Count, error) {
	counts, err := p.kernel.Counts(ctx, v)
	if err != nil {
		return nil, fmt.Errorf("read the counters of balancing: %w", err)
	}
	return counts, nil
}
