package diag

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/netdriver/netdriver/dataplane"
	"github.com/netdriver/netdriver/diag/host"
	"github.com/netdriver/netdriver/store"
)

// ErrNoNode is wrapped by the error about a node that the cluster does not have.
var ErrNoNode = errors.New("no such node")

// TrafficSchema names the version of the counters' JSON.
const TrafficSchema = "netdriver.traffic/v1"

// Traffic is what went through this node's part of its overlays since their devices were made: who asks twice knows the rate.
type Traffic struct {
	Schema   string           `json:"schema"`
	Node     string           `json:"node"`
	Networks []NetworkTraffic `json:"networks"`
	Data     Data             `json:"data"`
}

// NetworkTraffic is that of one network.
type NetworkTraffic struct {
	Network string `json:"network"`
	// Peers is what this node exchanged with all others, without the headers of VXLAN and what is below.
	Peers Flow `json:"peers"`
	// Endpoints are this node's, by id.
	Endpoints []EndpointTraffic `json:"endpoints"`
}

// EndpointTraffic is what one container sent and received.
type EndpointTraffic struct {
	ID string `json:"id"`
	Flow
}

// Flow counts frames, and their bytes with Ethernet headers, in both directions.
type Flow struct {
	Sent          uint64 `json:"sent"`
	SentBytes     uint64 `json:"sentBytes"`
	Received      uint64 `json:"received"`
	ReceivedBytes uint64 `json:"receivedBytes"`
}

// reversed is the flow as the other end of the device counts it.
func (f Flow) reversed() Flow { return Flow{f.Received, f.ReceivedBytes, f.Sent, f.SentBytes} }

// Traffic reads a node's counters, this one's if node is empty: from the kernel and this node's copy of the records only.
// Another one's daemon is asked. The error wraps ErrNoNode for one that the cluster does not have.
func (d *Diagnosis) Traffic(ctx context.Context, node string) (Traffic, error) {
	if node != "" && node != d.src.Node.Name {
		return d.trafficOf(ctx, node)
	}
	t := Traffic{Schema: TrafficSchema, Node: d.src.Node.Name, Networks: []NetworkTraffic{}}
	if !dataplane.Exists(d.src.Site.RunDir) {
		return t, errors.New("netdriver's network namespace is not there: start the daemon: `netdriver run`")
	}
	space, err := host.Open(dataplane.NamespaceIn(d.src.Site.RunDir))
	if err != nil {
		return t, err
	}
	defer space.Close()
	links, err := space.Links()
	if err != nil {
		return t, err
	}
	t.Data = Data{SourceKernel, d.src.Now()}
	d.src.Mirror.Read(func(r *store.Records) { t.Networks = traffic(r, t.Node, links) })
	return t, nil
}

// trafficOf asks another node.
func (d *Diagnosis) trafficOf(ctx context.Context, name string) (Traffic, error) {
	var node store.Node
	var known bool
	d.src.Mirror.Read(func(r *store.Records) { node, known = r.Nodes[name] })
	switch {
	case !known:
		return Traffic{}, fmt.Errorf("%w %q: see `netdriver nodes`", ErrNoNode, name)
	case d.src.Peers == nil:
		return Traffic{}, errNoPeers
	}
	return d.src.Peers.Traffic(ctx, node)
}

// traffic finds the devices of a node's networks among links.
func traffic(r *store.Records, node string, links []host.Link) []NetworkTraffic {
	flows := make(map[string]Flow, len(links))
	for _, l := range links {
		flows[l.Name] = Flow{l.Sent, l.SentBytes, l.Received, l.ReceivedBytes}
	}
	out := []NetworkTraffic{}
	for _, name := range slices.Sorted(maps.Keys(r.Networks)) {
		nw := r.Networks[name]
		if nw.Mode != store.ModeOverlay || !slices.Contains(members(nw), node) {
			continue
		}
		t := NetworkTraffic{Network: name, Peers: flows[dataplane.VXLANName(nw.VNI)], Endpoints: []EndpointTraffic{}}
		for _, id := range slices.Sorted(maps.Keys(r.Endpoints[name])) {
			if f, there := flows[dataplane.PortName(id)]; there && r.Endpoints[name][id].Node == node {
				t.Endpoints = append(t.Endpoints, EndpointTraffic{id, f.reversed()})
			}
		}
		out = append(out, t)
	}
	return out
}
