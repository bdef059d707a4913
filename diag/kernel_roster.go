package diag

import (
	"context"
	"net/netip"
	"slices"

	"github.com/netdriver/netdriver/dataplane"
	"github.com/netdriver/netdriver/diag/host"
	"github.com/netdriver/netdriver/store"
)

// kernelRoster is who is in this node's networks as its devices and entries tell, when no record can be read: local
// endpoints with their ids, those elsewhere by address, MAC and VTEP, which stands for their node's name.
func (d *Diagnosis) kernelRoster(ctx context.Context, c *cluster) []facts {
	if !dataplane.Exists(d.src.Site.RunDir) {
		return nil
	}
	present, err := d.src.Plane.Present(ctx)
	if err != nil {
		return nil
	}
	ours, err := host.Open(dataplane.NamespaceIn(d.src.Site.RunDir))
	if err != nil {
		return nil
	}
	defer ours.Close()
	me := d.src.Node
	if c.nodes == nil {
		c.nodes = map[string]store.Node{}
	}
	c.nodes[me.Name] = me
	var out []facts
	for _, n := range present {
		nw := network{Network: store.Network{
			Name: n.Name, Mode: store.ModeOverlay, VNI: n.VNI, Port: n.VXLAN.Port, MTU: n.Bridge.MTU, Members: []store.Member{{Node: me.Name}},
		}}
		f := facts{me: me, network: nw, leases: map[netip.Prefix][]store.Lease{}}
		for _, p := range n.Ports {
			if e, found := localEndpoint(ours, n.Name, me.Name, p); found {
				f.endpoints = append(f.endpoints, endpoint{e, 0})
			}
		}
		for _, e := range farEndpoints(n, f.endpoints) {
			c.nodes[e.Node] = store.Node{Name: e.Node, VTEP: netip.MustParseAddr(e.Node)}
			f.endpoints = append(f.endpoints, endpoint{e, 0})
		}
		out = append(out, f)
	}
	for i := range out {
		out[i].cluster = *c
	}
	return out
}

// localEndpoint reads an endpoint's addresses from its container.
func localEndpoint(ours *host.Space, network, node string, p dataplane.Port) (store.Endpoint, bool) {
	e := store.Endpoint{ID: p.Endpoint, Network: network, Node: node}
	l, there := ours.Link(dataplane.PortName(p.Endpoint))
	if !there {
		return e, false
	}
	c, err := ours.Peer(l)
	if err != nil {
		return e, false
	}
	defer c.Close()
	e.MAC = c.Device.MAC
	for _, a := range c.Addresses {
		switch {
		case a.Addr().Is4():
			e.IPv4 = a
		case !a.Addr().IsLinkLocalUnicast():
			e.IPv6 = a
		}
	}
	return e, len(e.Addrs()) > 0
}

// farEndpoints are those that the bridge's neighbours and the VXLAN device's entries tell of.
func farEndpoints(n dataplane.Network, local []endpoint) []store.Endpoint {
	var out []store.Endpoint
	for _, x := range n.Neighbours {
		if slices.ContainsFunc(local, func(e endpoint) bool { return e.MAC == x.MAC }) {
			continue
		}
		i := slices.IndexFunc(n.FDB, func(e dataplane.FDBEntry) bool { return e.MAC == x.MAC && e.VTEP.IsValid() })
		if i < 0 {
			continue
		}
		e := store.Endpoint{Network: n.Name, Node: n.FDB[i].VTEP.String(), MAC: x.MAC}
		whole := netip.PrefixFrom(x.Address, x.Address.BitLen())
		if x.Address.Is4() {
			e.IPv4 = whole
		} else {
			e.IPv6 = whole
		}
		out = append(out, e)
	}
	return out
}
