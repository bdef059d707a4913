package driver

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/netdriver/netdriver/dataplane/guard"
	"github.com/netdriver/netdriver/policy"
	"github.com/netdriver/netdriver/store"
)

// judge says who may speak to whom in a network: the classes that follow from its rules, and who is in which. It is pure,
// and all nodes number the classes alike.
type judge struct {
	rules   []policy.Rule
	isolate bool
	groups  []string // sorted; group i of these has number i+1, none has 0
	// served are the addresses of services' backends, if they matter.
	served map[netip.Addr]bool
}

// newJudge returns nil if nothing is denied in the network.
func newJudge(nw store.Network, services map[string]store.Service) *judge {
	if !nw.Judged() {
		return nil
	}
	rules, _ := policy.FromStrings(nw.Allow) // checked when the record was made; else all is denied
	j := &judge{rules: rules, isolate: nw.Isolate, groups: policy.Groups(rules), served: map[netip.Addr]bool{}}
	if nw.Isolate {
		for _, s := range services {
			for _, b := range s.Backends {
				for _, a := range b.Addresses {
					j.served[a] = true
				}
			}
		}
	}
	return j
}

const (
	noGroup = "0" // no group has such a name, since they begin with a letter
	// openSuffix ends the names of classes of services' backends in an isolated network, and of the node's own endpoints:
	// everybody reaches them.
	openSuffix = ".open"
)

// class returns the class of an endpoint, and its number.
func (j *judge) class(e store.Endpoint) (string, uint32) {
	group := 0
	if i, found := slices.BinarySearch(j.groups, e.Group); found {
		group = i + 1
	}
	open := j.isolate && (e.Host || slices.ContainsFunc(e.Addrs(), func(a netip.Addr) bool { return j.served[a] }))
	return j.name(group, open), number(group, open)
}

func number(group int, open bool) uint32 {
	if open {
		return uint32(2*group + 1)
	}
	return uint32(2 * group)
}

func (j *judge) name(group int, open bool) string {
	name := noGroup
	if group > 0 {
		name = j.groups[group-1]
	}
	if open {
		name += openSuffix
	}
	return name
}

// kinds are whether classes of services' backends exist.
func (j *judge) kinds() []bool {
	if j.isolate {
		return []bool{false, true}
	}
	return []bool{false}
}

// classes returns all that endpoints can be in, whether there is one or not: so none comes or goes with an endpoint.
func (j *judge) classes() []guard.Class {
	pairs := j.pairs()
	var out []guard.Class
	for group := range len(j.groups) + 1 {
		for _, open := range j.kinds() {
			out = append(out, guard.Class{Name: j.name(group, open)})
		}
	}
	index := func(number uint32) *guard.Class {
		if j.isolate {
			return &out[number]
		}
		return &out[number/2]
	}
	for pair, spans := range pairs {
		for _, s := range merged(spans) {
			s.Peer = pair.from
			index(pair.to).Admits = append(index(pair.to).Admits, s)
			s.Peer = pair.to
			index(pair.from).Reaches = append(index(pair.from).Reaches, s)
		}
	}
	return out
}

type pair struct{ from, to uint32 }

// pairs lists what is allowed from each class to each.
func (j *judge) pairs() map[pair][]guard.Span {
	all := map[pair][]guard.Span{}
	for _, r := range j.rules {
		for _, from := range j.side(r.From) {
			for _, to := range j.side(r.To) {
				all[pair{from, to}] = append(all[pair{from, to}], spansOf(r)...)
			}
		}
	}
	if !j.isolate {
		return all
	}
	for from := range len(j.groups) + 1 {
		for to := range len(j.groups) + 1 {
			for _, open := range j.kinds() {
				p := pair{number(from, open), number(to, true)}
				all[p] = append(all[p], spansOf(policy.Rule{})...)
			}
		}
	}
	return all
}

// side lists the classes that one side of a rule means.
func (j *judge) side(group string) (out []uint32) {
	for i := range len(j.groups) + 1 {
		if group != policy.Any && (i == 0 || j.groups[i-1] != group) {
			continue
		}
		for _, open := range j.kinds() {
			out = append(out, number(i, open))
		}
	}
	return out
}

// spansOf says what a rule allows as protocol numbers and ports.
func spansOf(r policy.Rule) []guard.Span {
	of := func(first, last uint8) guard.Span {
		s := guard.Span{FirstProto: first, LastProto: last, First: r.First, Last: r.Last}
		if r.Last == 0 {
			s.First, s.Last = 0, 65535
		}
		return s
	}
	switch r.Proto {
	case policy.TCP:
		return []guard.Span{of(6, 6)}
	case policy.UDP:
		return []guard.Span{of(17, 17)}
	case policy.ICMP:
		return []guard.Span{of(1, 1), of(58, 58)}
	}
	return []guard.Span{of(0, 255)}
}

// merged returns the spans without what others contain; those of one protocol are joined. The kernel refuses ranges that
// overlap.
func merged(spans []guard.Span) []guard.Span {
	for _, s := range spans {
		if s.LastProto == 255 {
			return []guard.Span{s}
		}
	}
	slices.SortFunc(spans, func(a, b guard.Span) int {
		return cmp.Or(cmp.Compare(a.FirstProto, b.FirstProto), cmp.Compare(a.First, b.First))
	})
	var out []guard.Span
	for _, s := range spans {
		if last := len(out) - 1; last >= 0 && out[last].FirstProto == s.FirstProto && int(s.First) <= int(out[last].Last)+1 {
			out[last].Last = max(out[last].Last, s.Last)
			continue
		}
		out = append(out, s)
	}
	return out
}

// members returns the class of every address that has another than none.
func (j *judge) members(endpoints map[string]store.Endpoint) []guard.Member {
	classes := make(map[netip.Addr]uint32, len(endpoints))
	for _, e := range endpoints {
		_, n := j.class(e)
		for _, a := range e.Addrs() {
			if _, twice := classes[a]; twice {
				n = 0 // for a moment two endpoints have it: neither has its rights
			}
			classes[a] = n
		}
	}
	var out []guard.Member
	for a, n := range classes {
		if n != 0 {
			out = append(out, guard.Member{Address: a, Class: n})
		}
	}
	return out
}
