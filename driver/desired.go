package driver

import (
	"cmp"
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"

	"github.com/netdriver/netdriver/dataplane"
	"github.com/netdriver/netdriver/dataplane/guard"
	"github.com/netdriver/netdriver/dataplane/rate"
	"github.com/netdriver/netdriver/store"
)

// site is this node as the data plane sees it.
type site struct {
	node     string
	vtep     netip.Addr
	underlay string
}

// desired says what this node's kernel should hold of one network: nothing, if the node is no member. It is pure: equal
// records give equal states. The entries are made in the order that dataplane.Network has them in: the flood list,
// remote endpoints by MAC, local ones by id.
func desired(
	me site, nw store.Network, nodes map[string]store.Node, endpoints map[string]store.Endpoint,
	services map[string]store.Service,
) dataplane.Network {
	if !isMember(nw, me.node) {
		return dataplane.Network{}
	}
	out := dataplane.Network{
		Name:   nw.Name,
		VNI:    nw.VNI,
		Bridge: dataplane.Bridge{Present: true, MTU: nw.MTU, Up: true},
		VXLAN: dataplane.VXLAN{
			Present: true, Local: me.vtep, Underlay: me.underlay, Port: nw.Port, MTU: nw.MTU, Up: true, Enslaved: true,
		},
		FDB:        append(make([]dataplane.FDBEntry, 0, len(nw.Members)+2*len(endpoints)), flood(me, nw, nodes)...),
		Neighbours: make([]dataplane.Neighbour, 0, len(endpoints)),
		Guard:      guard.Network{Table: true},
	}
	var local []store.Endpoint
	for _, k := range distinct(endpoints) {
		e := endpoints[k.id]
		if e.Node == me.node {
			local = append(local, e)
		} else if vtep, ok := peerVTEP(me, nodes, e.Node); ok {
			addRemote(&out, e, vtep)
		}
	}
	slices.SortFunc(local, func(a, b store.Endpoint) int { return cmp.Compare(a.ID, b.ID) })
	j := newJudge(nw, services)
	for _, e := range local {
		addLocal(&out, e, limitOf(nw, e))
		out.Guard.AddEndpoint(guardedPort(j, e), e.MAC, e.Addrs()...)
	}
	if j != nil {
		out.Guard.Policy = guard.Policy{Classes: j.classes(), Members: j.members(endpoints)}
	}
	out.Guard.Sort()
	out.Services = balanced(me, services, endpoints)
	slices.SortFunc(out.Neighbours, func(a, b dataplane.Neighbour) int { return a.Address.Compare(b.Address) })
	out.Neighbours = resolved(out.Neighbours, endpoints)
	return out
}

// resolved leaves each address one neighbour: for a moment, or until a lost node returns, two endpoints may have one. Such
// a state would be impossible, and all of the network would wait for it.
func resolved(sorted []dataplane.Neighbour, endpoints map[string]store.Endpoint) []dataplane.Neighbour {
	twice := map[netip.Addr]bool{}
	for i, n := range sorted[min(1, len(sorted)):] {
		if n.Address == sorted[i].Address {
			twice[n.Address] = true
		}
	}
	if len(twice) == 0 {
		return sorted
	}
	holders := store.ByAddress(endpoints)
	return slices.DeleteFunc(sorted, func(n dataplane.Neighbour) bool {
		return twice[n.Address] && holders[n.Address].MAC != n.MAC
	})
}

// addLocal adds an endpoint of this node: its port, where the bridge finds its MAC, and its addresses.
func addLocal(out *dataplane.Network, e store.Endpoint, limit rate.Limit) {
	out.Ports = append(out.Ports, dataplane.Port{
		Endpoint: e.ID, MAC: e.MAC, MTU: out.Bridge.MTU, Up: true, Enslaved: true, Adopt: e.Phase == store.PhaseJoined,
		Limit: limit,
	})
	out.FDB = append(out.FDB, dataplane.FDBEntry{MAC: e.MAC, Port: e.ID})
	addNeighbours(out, e)
}

// guardedPort is a local endpoint's port as the packet filter knows it.
func guardedPort(j *judge, e store.Endpoint) guard.Port {
	p := guard.Port{Name: dataplane.PortName(e.ID)}
	if j != nil {
		p.Class, _ = j.class(e)
	}
	return p
}

// addRemote adds an endpoint of another node: behind the VXLAN device in the bridge's table, at vtep in the device's
// own.
func addRemote(out *dataplane.Network, e store.Endpoint, vtep netip.Addr) {
	out.FDB = append(out.FDB, dataplane.FDBEntry{MAC: e.MAC}, dataplane.FDBEntry{MAC: e.MAC, VTEP: vtep})
	addNeighbours(out, e)
}

// addNeighbours lets the bridge answer ARP and ND for an endpoint.
func addNeighbours(out *dataplane.Network, e store.Endpoint) {
	for _, a := range e.Addrs() {
		out.Neighbours = append(out.Neighbours, dataplane.Neighbour{Address: a, MAC: e.MAC})
	}
}

// flood lists the VTEPs that broadcast, unknown and multicast frames go to: every other member's.
func flood(me site, nw store.Network, nodes map[string]store.Node) []dataplane.FDBEntry {
	vteps := map[netip.Addr]bool{}
	for _, m := range nw.Members {
		if vtep, ok := peerVTEP(me, nodes, m.Node); ok {
			vteps[vtep] = true
		}
	}
	var out []dataplane.FDBEntry
	for _, vtep := range slices.SortedFunc(maps.Keys(vteps), netip.Addr.Compare) {
		out = append(out, dataplane.FDBEntry{VTEP: vtep})
	}
	return out
}

// peerVTEP returns where packets for a node go. A node that is unknown (its record has not arrived yet), that claims
// this node's own address, or whose address is of the other family has none.
func peerVTEP(me site, nodes map[string]store.Node, node string) (netip.Addr, bool) {
	n, ok := nodes[node]
	if !ok || node == me.node || n.VTEP == me.vtep || n.VTEP.Is4() != me.vtep.Is4() {
		return netip.Addr{}, false
	}
	return n.VTEP, true
}

// macID is an endpoint's id with its MAC as a number, whose order is that of the bytes. Whole endpoints would be slow
// to sort: there may be 10,000, at every change.
type macID struct {
	mac uint64
	id  string
}

// distinct returns the endpoints in order of MAC. Claims in the store keep MACs distinct; should two records ever have
// one all the same, the one with the lower id is used everywhere, so that nodes agree and no plan swings to and fro.
func distinct(endpoints map[string]store.Endpoint) []macID {
	keys := make([]macID, 0, len(endpoints))
	for id, e := range endpoints {
		var b [8]byte
		copy(b[2:], e.MAC[:])
		keys = append(keys, macID{binary.BigEndian.Uint64(b[:]), id})
	}
	slices.SortFunc(keys, func(a, b macID) int { return cmp.Or(cmp.Compare(a.mac, b.mac), cmp.Compare(a.id, b.id)) })
	return slices.CompactFunc(keys, func(a, b macID) bool { return a.mac == b.mac })
}

// isMember says whether a node has a Docker network that stands for nw.
func isMember(nw store.Network, node string) bool {
	return slices.ContainsFunc(nw.Members, func(m store.Member) bool { return m.Node == node })
}
