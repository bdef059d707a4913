package diag

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/netdriver/netdriver/dataplane"
	"github.com/netdriver/netdriver/store"
	"github.com/netdriver/netdriver/vxlan"
)

// maxDifferences is how many commands a report shows: whoever sees a hundred wants the cause, not the rest.
const maxDifferences = 100

// judge turns facts into a report. It is pure.
func judge(f facts) NetworkReport {
	nw := f.network
	r := NetworkReport{
		Schema: Schema, Network: nw.Name, Node: f.me.Name, Member: slices.Contains(members(nw.Network), f.me.Name),
		Mode: nw.Mode, VNI: nw.VNI, Port: nw.Port, Internal: nw.Internal, Subnets: f.subnets(), MTU: f.mtuOf(), Medium: f.medium(),
		Revision: Revision{Applied: f.statuses[f.me.Name].Applied[nw.Name], Wanted: f.wanted(), Store: f.revision},
		Peers:    f.peers(), Endpoints: f.rows(), EndpointCount: len(f.endpoints), Data: f.data(),
		DockerNetworks: f.network.docker(), Services: f.serviceRows(), ServiceCount: len(f.services), Isolation: f.isolation(),
	}
	r.Kernel = f.kernel(r.Member)
	r.Encryption = f.encryption()
	if r.Member && r.Mode == store.ModeOverlay {
		r.Admission, r.Unheard = f.admission, f.unheard
	}
	r.Reasons = f.reasons(r)
	r.Verdict = Healthy
	for _, x := range r.Reasons {
		r.Verdict = worse(r.Verdict, x.Verdict)
	}
	return r
}

// wanted is the revision of the network's last record. Removed records leave no trace, so a node may have applied more.
func (f facts) wanted() int64 {
	rev := f.network.modified
	for _, e := range f.endpoints {
		rev = max(rev, e.modified)
	}
	for _, s := range f.services {
		rev = max(rev, s.modified)
	}
	return rev
}

func (f facts) peers() []Peer {
	out := []Peer{}
	wanted := f.wanted()
	counts := map[string]int{}
	for _, e := range f.endpoints {
		counts[e.Node]++
	}
	for _, name := range members(f.network.Network) {
		n, st := f.nodes[name], f.statuses[name]
		p := Peer{
			Node: name, Address: n.VTEP, State: f.liveness(f.me.Name, name), Applied: st.Applied[f.network.Name],
			UnderlayMTU: n.UnderlayMTU, Role: f.engines[name].Role,
			Endpoints: counts[name], Problem: st.Problems[f.network.Name], LastStatus: st.Updated,
		}
		if p.State == StateOK && p.Applied < wanted {
			p.State = StateBehind
		}
		out = append(out, p)
	}
	return out
}

// rows returns the endpoints by address.
func (f facts) rows() []Endpoint {
	nodes := members(f.network.Network)
	out := make([]Endpoint, 0, len(f.endpoints))
	for _, e := range f.endpoints {
		n := f.names[e.ID]
		row := Endpoint{
			ID: e.ID, Container: n.Container, Host: e.Host, ContainerID: n.ContainerID, Service: n.Service, Task: n.Task,
			Node: e.Node, Addresses: e.Addrs(), MAC: e.MAC, Phase: e.Phase, Created: e.Created,
			SeenBy: -1, Members: len(nodes), Group: e.Group, Rate: e.Rate, Drops: f.dropsOf(e.Endpoint),
		}
		if f.err == nil {
			row.SeenBy = 0
			for _, n := range nodes {
				if f.statuses[n].Applied[f.network.Name] >= e.modified {
					row.SeenBy++
				}
			}
		}
		out = append(out, row)
	}
	slices.SortFunc(out, func(a, b Endpoint) int {
		return cmp.Or(slices.CompareFunc(a.Addresses, b.Addresses, netip.Addr.Compare), cmp.Compare(a.ID, b.ID))
	})
	return out
}

func (f facts) subnets() []Subnet {
	out := []Subnet{}
	for _, p := range f.network.Subnets {
		s := Subnet{Subnet: p, Gateway: f.pools[p].Gateway, Usable: store.Usable(p), Used: f.counts[p]}
		if ls := f.leases[p]; len(ls) > 0 {
			s.Used = 0
			for _, l := range ls {
				s.count(l)
			}
		}
		if f.err != nil {
			s.Used = f.addressesIn(p)
		}
		out = append(out, s)
	}
	return out
}

// count adds one lease.
func (s *Subnet) count(l store.Lease) {
	if l.Kind != store.LeaseEndpoint {
		s.Reserved++
		return
	}
	s.Used++
	if !s.First.IsValid() || l.Address.Less(s.First) {
		s.First = l.Address
	}
	if s.Last.Less(l.Address) {
		s.Last = l.Address
	}
}

// addressesIn counts the endpoints' addresses in p: what is known of leases without the store.
func (f facts) addressesIn(p netip.Prefix) uint64 {
	var n uint64
	for _, e := range f.endpoints {
		for _, a := range e.Addrs() {
			if p.Contains(a) {
				n++
			}
		}
	}
	return n
}

// mtu explains a network's MTU by this node's underlay.
func mtu(nw store.Network, me store.Node) MTU {
	n := nw.MTU
	m := MTU{MTU: n, Underlay: me.UnderlayMTU, Overhead: overhead(nw, me)}
	parts := fmt.Sprintf("%d VXLAN", vxlan.Overhead(me.VTEP))
	if nw.Encrypted {
		parts += fmt.Sprintf(" − %d ESP", m.Overhead-vxlan.Overhead(me.VTEP))
	}
	if n == m.Underlay-m.Overhead {
		m.Derived = fmt.Sprintf("%d = %d underlay − %s", n, m.Underlay, parts)
	} else {
		m.Derived = fmt.Sprintf("%d chosen; %d underlay − %s allows %d here", n, m.Underlay, parts, m.Underlay-m.Overhead)
	}
	return m
}

func (f facts) kernel(member bool) Kernel {
	k := Kernel{Checked: member && f.planErr == nil, Differing: len(f.plan), Drifts: drifts(f.receipts)}
	k.InSync = k.Checked && len(f.plan) == 0
	k.Differences = f.plan[:min(len(f.plan), maxDifferences)]
	return k
}

func drifts(receipts []dataplane.Receipt) []Drift {
	var out []Drift
	for _, r := range receipts {
		out = append(out, Drift{Time: r.Time, Command: r.Op, Seconds: r.Took.Seconds(), Error: r.Error})
	}
	return out
}
