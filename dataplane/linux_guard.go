//go:build linux

package dataplane

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/netdriver/netdriver/dataplane/guard"
	"github.com/netdriver/netdriver/internal/netlink"
	"github.com/netdriver/netdriver/vxlan"
)

// Guards implements Kernel.
func (l *Linux) Guards() error { return l.unguarded }

// guard makes the table, or collects a change of it.
func (r *run) guard(op Op) error {
	if r.l.table == nil {
		return r.l.unguarded
	}
	if op.Verb == MakeGuard {
		return r.l.table.Make()
	}
	r.guards = append(r.guards, op)
	return nil
}

// flushGuards makes the collected changes of the table.
func (r *run) flushGuards() {
	if len(r.guards) == 0 {
		return
	}
	changes := make([]guard.Change, len(r.guards))
	for i, op := range r.guards {
		changes[i] = op.Guard
	}
	for i, err := range r.l.table.Run(changes) {
		if err != nil {
			r.fail(r.guards[i], err)
		}
	}
	r.guards = nil
}

// readGuards adds to the networks what the table has of them: of the one with that VNI, or of all if it is 0. What is
// left of a network that has nothing else is found too.
func (r *reader) readGuards(only vxlan.VNI) error {
	if r.l.table == nil {
		return nil
	}
	ports := map[string]vxlan.VNI{}
	for _, o := range r.owners {
		ports[o.name] = o.vni
	}
	nets, intact, err := r.l.table.Read(func(port string) (vxlan.VNI, bool) { v, ok := ports[port]; return v, ok })
	if err != nil {
		return fmt.Errorf("read the packet filter: %w", err)
	}
	for v, n := range nets {
		if only != 0 && v != only {
			continue
		}
		if r.nets[v] == nil {
			r.nets[v] = &Network{VNI: v}
		}
		r.nets[v].Guard = *n
	}
	for _, n := range r.nets {
		n.Guard.Table = intact
	}
	return nil
}

// Drops implements Kernel.
func (l *Linux) Drops(_ context.Context, v vxlan.VNI) ([]guard.Drops, error) {
	ports, err := l.portsOf(v)
	if err != nil {
		return nil, err
	}
	all := map[string]guard.Drops{}
	if l.table != nil {
		if all, err = l.table.Drops(); err != nil {
			return nil, err
		}
	}
	slow := l.tooFast(ports)
	var out []guard.Drops
	for _, p := range ports {
		d, counted := all[p.name]
		n, limited := slow[p.name]
		if d.Port, d.TooFast = p.name, n; counted || limited {
			out = append(out, d)
		}
	}
	slices.SortFunc(out, func(a, b guard.Drops) int { return cmp.Compare(a.Port, b.Port) })
	return out, nil
}

// watchTable tells when others change the table, until ctx ends.
func (l *Linux) watchTable(ctx context.Context, send func(Event)) {
	if l.table == nil {
		return
	}
	if err := l.table.Follow(ctx, func() { send(Event{Guard: true}) }); err != nil {
		l.log.Error("changes of the packet filter are seen only when everything is checked", "error", err)
	}
}

// Refusals implements Kernel.
func (l *Linux) Refusals(ctx context.Context, f func(port string, r guard.Refusal)) error {
	if l.table == nil {
		return l.unguarded
	}
	return l.table.Refusals(ctx, func(r guard.Refusal) {
		link, err := linkAt(l.read, int32(r.Port), func(*netlink.Message) {})
		if err == nil { // else it is gone meanwhile
			f(link.name, r)
		}
	})
}
