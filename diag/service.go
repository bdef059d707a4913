package diag

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/netdriver/netdriver/store"
)

// readServices reads a network's services, and the names of its endpoints if names is set.
func (d *Diagnosis) readServices(ctx context.Context, f *facts, names bool) error {
	ss, err := list(ctx, d.src.Store, store.NetworkServices(f.network.Name), f.bad,
		func(kv store.KV, s store.Service) (string, service) { return s.ID, service{s, kv.Modified} })
	if err != nil {
		return err
	}
	f.services = slices.Collect(maps.Values(ss))
	if !names {
		return nil
	}
	// A name that cannot be read is missing in a table, which is nothing to complain of.
	f.names, err = list(ctx, d.src.Store, store.NetworkNames(f.network.Name), map[string]error{},
		func(_ store.KV, n store.Name) (string, store.Name) { return n.Endpoint, n })
	return err
}

// destination is a backend of a service, as the data plane counts.
type destination struct {
	service string
	address netip.Addr
}

// sent returns what clients on this node have sent to the backends of a network. Counters that cannot be read are only
// missing: whether the kernel is as wanted is judged elsewhere.
func (d *Diagnosis) sent(ctx context.Context, nw network, services bool) map[destination]Sent {
	if !services {
		return nil
	}
	counts, err := d.src.Plane.Counts(ctx, nw.VNI)
	if err != nil {
		return nil
	}
	out := make(map[destination]Sent, len(counts))
	for _, c := range counts {
		at := destination{c.Service, c.Address} // an address may have moved to another MAC meanwhile: both are counted
		out[at] = out[at].plus(Sent{c.Flows, c.Packets, c.Bytes})
	}
	return out
}

func (s Sent) plus(o Sent) Sent {
	return Sent{s.Flows + o.Flows, s.Packets + o.Packets, s.Bytes + o.Bytes}
}

// sentTo returns what was sent to a backend of a service, nil if nothing was counted for it here.
func (f facts) sentTo(service string, addresses []netip.Addr) *Sent {
	var sum *Sent
	for _, a := range addresses {
		if s, counted := f.sent[destination{service, a}]; counted {
			if sum == nil {
				sum = &Sent{}
			}
			*sum = sum.plus(s)
		}
	}
	return sum
}

// serviceRows returns the services by name, each with its backends by name.
func (f facts) serviceRows() []Service {
	if len(f.services) == 0 {
		return nil
	}
	endpoints := make(map[string]store.Endpoint, len(f.endpoints))
	for _, e := range f.endpoints {
		endpoints[e.ID] = e.Endpoint
	}
	holders := store.ByAddress(endpoints)
	var out []Service
	for _, s := range f.services {
		row := Service{ID: s.ID, Name: s.Name, Idle: s.Idle, VIPs: s.VIPs}
		for _, b := range s.Backends {
			state, at := b.State(holders)
			if state == store.BackendReady {
				row.Ready++
			}
			row.Backends = append(row.Backends, Backend{
				Task: b.Task, Name: b.Name, Addresses: b.Addresses, State: state, Node: at.Node, Endpoint: at.ID,
				Sent: f.sentTo(s.ID, b.Addresses),
			})
		}
		slices.SortFunc(row.Backends, func(a, b Backend) int {
			// Slots are numbers: web.9 comes before web.10.
			return cmp.Or(cmp.Compare(len(a.Name), len(b.Name)), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Task, b.Task))
		})
		out = append(out, row)
	}
	slices.SortFunc(out, func(a, b Service) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID)) })
	return out
}

// aboutServices tells of services that nothing answers for, and of nodes whose containers cannot reach any by its VIP.
func (f facts) aboutServices(r NetworkReport) []Reason {
	var out []Reason
	virtual := false
	for _, s := range r.Services {
		virtual = virtual || len(s.VIPs) > 0
		if s.Ready > 0 || s.Idle {
			continue
		}
		out = append(out, reason(Degraded, "service "+s.Name,
			fmt.Sprintf("see `docker service ps %s` on a manager", s.Name),
			"service %s has no healthy backend%s", s.Name, unhealthy(s)))
	}
	if !virtual {
		return out
	}
	for _, p := range r.Peers {
		if why := f.engines[p.Node].Unbalanced; why != "" {
			out = append(out, reason(Degraded, p.Node,
				"let its containers use tasks.NAME instead of NAME, or make services with --endpoint-mode dnsrr; both work there",
				"containers on %s cannot reach services by their virtual addresses: %s", p.Node, why))
		}
	}
	return out
}

// unhealthy says what a service has instead of healthy backends.
func unhealthy(s Service) string {
	counts := map[string]int{}
	for _, b := range s.Backends {
		counts[b.State]++
	}
	var parts []string
	if n := counts[store.BackendAbsent]; n > 0 {
		parts = append(parts, count(n, "task")+" without endpoint")
	}
	if n := counts[store.BackendDraining]; n > 0 {
		parts = append(parts, fmt.Sprintf("%d draining", n))
	}
	if len(parts) == 0 {
		return ""
	}
	return ": " + strings.Join(parts, ", ")
}

// docker returns the network's Docker networks by name. Those of one host have an id of their own each.
func (n network) docker() []DockerNetwork {
	byID := map[string]*DockerNetwork{}
	for id, name := range n.DockerNames() {
		byID[id] = &DockerNetwork{Name: name, ID: id, Swarm: id == n.Swarm}
	}
	for _, m := range n.Members {
		if d := byID[m.DockerID]; d != nil {
			d.Nodes = append(d.Nodes, m.Node)
		}
	}
	var out []DockerNetwork
	for _, d := range byID {
		slices.Sort(d.Nodes)
		out = append(out, *d)
	}
	slices.SortFunc(out, func(a, b DockerNetwork) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID))
	})
	return out
}

// called returns the network that Docker calls by a name: on this node, or else on any. The error names those that are
// called so if there are several.
func (c cluster) called(name, me string) (network, bool, error) {
	var here, anywhere []string
	for _, nw := range c.networks {
		for _, d := range nw.docker() {
			if d.Name != name {
				continue
			}
			anywhere = append(anywhere, nw.Name)
			if d.Swarm || slices.Contains(d.Nodes, me) {
				here = append(here, nw.Name)
			}
		}
	}
	for _, names := range [][]string{here, anywhere} {
		slices.Sort(names)
		switch names = slices.Compact(names); len(names) {
		case 0:
		case 1:
			return c.networks[names[0]], true, nil
		default:
			return network{}, false, fmt.Errorf("network %q is Docker's name for several: use one of %s",
				name, strings.Join(names, ", "))
		}
	}
	return network{}, false, nil
}

// allNames lists the cluster's networks, each with what Docker calls it if that is something else.
func (c cluster) allNames() []string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(c.networks)) {
		var others []string
		for _, d := range c.networks[name].docker() {
			if d.Name != name && !slices.Contains(others, d.Name) {
				others = append(others, d.Name)
			}
		}
		if len(others) > 0 {
			name += " (" + strings.Join(others, ", ") + ")"
		}
		out = append(out, name)
	}
	return out
}
