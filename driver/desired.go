package driver

import (
	"bytes"
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"github.com/netdriver/netdriver/dataplane"
	"github.com/netdriver/netdriver/store"
	"github.com/netdriver/netdriver/vxlan"
)

// site is this node as the data plane sees it.
type site struct {
	node     string
	vtep     netip.Addr
	underlay string
}

// desired says what this node's kernel should hold of one network: nothing, if the node is no member. It is pure: equal
// records give equal states.
func desired(me site, nw store.Network, nodes map[string]store.Node, endpoints map[string]store.Endpoint) dataplane.Network {
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
		FDB:        flood(me, nw, nodes),
		Neighbours: make([]dataplane.Neighbour, 0, len(endpoints)),
	}
	for _, e := range distinct(endpoints) {
		if e.Node == me.node {
			addLocal(&out, e)
		} else if vtep, ok := peerVTEP(me, nodes, e.Node); ok {
			addRemote(&out, e, vtep)
		}
	}
	slices.SortFunc(out.Ports, func(a, b dataplane.Port) int { return cmp.Compare(a.Endpoint, b.Endpoint) })
	slices.SortFunc(out.FDB, compareFDB)
	slices.SortFunc(out.Neighbours, func(a, b dataplane.Neighbour) int { return a.Address.Compare(b.Address) })
	return out
}

// addLocal adds an endpoint of this node: its port, where the bridge finds its MAC, and its addresses.
func addLocal(out *dataplane.Network, e store.Endpoint) {
	out.Ports = append(out.Ports, dataplane.Port{
		Endpoint: e.ID, MAC: e.MAC, MTU: out.Bridge.MTU, Up: true, Enslaved: true, Adopt: e.Phase == store.PhaseJoined,
	})
	out.FDB = append(out.FDB, dataplane.FDBEntry{MAC: e.MAC, Port: e.ID})
	addNeighbours(out, e)
}

// addRemote adds an endpoint of another node: behind the VXLAN device in the bridge's table, at vtep in the device's own.
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
	for vtep := range maps.Keys(vteps) {
		out = append(out, dataplane.FDBEntry{VTEP: vtep})
	}
	return out
}

// peerVTEP returns where packets for a node go. A node that is unknown (its record has not arrived yet), that claims this
// node's own address, or whose address is of the other family has none.
func peerVTEP(me site, nodes map[string]store.Node, node string) (netip.Addr, bool) {
	n, ok := nodes[node]
	if !ok || node == me.node || n.VTEP == me.vtep || n.VTEP.Is4() != me.vtep.Is4() {
		return netip.Addr{}, false
	}
	return n.VTEP, true
}

// distinct returns the endpoints in order of MAC. Claims in the store keep MACs distinct; should two records ever have
// one all the same, the one with the lower id is used everywhere, so that nodes agree and no plan swings to and fro.
func distinct(endpoints map[string]store.Endpoint) []store.Endpoint {
	es := slices.SortedFunc(maps.Values(endpoints), func(a, b store.Endpoint) int {
		return cmp.Or(bytes.Compare(a.MAC[:], b.MAC[:]), cmp.Compare(a.ID, b.ID))
	})
	return slices.CompactFunc(es, func(a, b store.Endpoint) bool { return a.MAC == b.MAC })
}

// isMember says whether a node has a Docker network that stands for nw.
func isMember(nw store.Network, node string) bool {
	return slices.ContainsFunc(nw.Members, func(m store.Member) bool { return m.Node == node })
}

// compareFDB is the order of dataplane.Network.FDB.
func compareFDB(a, b dataplane.FDBEntry) int {
	return cmp.Or(cmp.Compare(a.Port, b.Port), compareMAC(a.MAC, b.MAC), a.VTEP.Compare(b.VTEP))
}

func compareMAC(a, b vxlan.MAC) int { return bytes.Compare(a[:], b[:]) }
