package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/netdriver/netdriver/dataplane"
	"github.com/netdriver/netdriver/dataplane/guard"
	"github.com/netdriver/netdriver/vxlan"
)

const (
	// guardedEndpoints are in one network, half of them on each of the two nodes; guardRules are its rules.
	guardedEndpoints = 1000
	guardRules       = 100
	guardGroups      = 20
	// guardPort is the one that rules open between the measured containers.
	guardPort = 5432
)

// guarding compares what a packet costs in a network with many endpoints and rules with what it costs in one with a container
// per node and no rules, and that with what it would cost if nothing was judged, which no option makes so.
func guarding(ctx context.Context, b *bench) ([]Result, error) {
	var beds [3]*testbed
	for i, protect := range []func(context.Context, *node, *node) error{nil, guardAlone, guardMany} {
		bed, err := newTestbed(ctx, filepath.Join(b.dir, fmt.Sprint("guard", i)), inClear())
		if err != nil {
			return nil, err
		}
		defer bed.remove()
		for k, n := range bed.nodes {
			n.container.port = guardPort
			if protect == nil {
				continue
			}
			if err := protect(ctx, n, bed.nodes[1-k]); err != nil {
				return nil, fmt.Errorf("guard node %d: %w", k+1, err)
			}
		}
		beds[i] = bed
	}
	cost := func(bed *testbed) func() (float64, error) {
		return func() (float64, error) {
			from, to := bed.nodes[0], bed.nodes[1]
			return udpCost(from.container, to.container, to.ours, udpPackets)
		}
	}
	latency := func(bed *testbed) func() (float64, error) {
		return func() (float64, error) {
			from, to := bed.nodes[0], bed.nodes[1]
			times, err := requestResponse(from.container, to.container, to.ours, to.ours, transactions, 0)
			return times.percentile(5), err
		}
	}
	many := fmt.Sprintf("with %d endpoints and %d rules", guardedEndpoints, guardRules)
	var results []Result
	var errs []error
	for _, m := range []struct {
		what       string
		one, other func() (float64, error)
		target     float64
	}{
		{"UDP, CPU time per packet " + many + " ÷ that with 1 endpoint and no rules", cost(beds[2]), cost(beds[1]), 1.05},
		{"TCP request and response of 1 byte, p5 of the latency, " + many + " ÷ that with 1 endpoint and no rules",
			latency(beds[2]), latency(beds[1]), 1.05},
		{"UDP, CPU time per packet with 1 endpoint and no rules ÷ that without anti-spoofing (for information)", cost(beds[1]), cost(beds[0]), 0},
	} {
		ours, theirs, err := inTurns(ctx, 2*b.rounds, m.one, m.other)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		r, err := ratioResult(m.what, ours, theirs, "µs", m.target)
		results, errs = append(results, r), append(errs, err)
	}
	return results, errors.Join(errs...)
}

// port is the node's container's.
func (n *node) port() dataplane.Port { return n.want.Ports[0] }

// guardAlone lets only the container's own frames pass.
func guardAlone(ctx context.Context, n, _ *node) error {
	n.want.Guard.Table = true
	n.want.Guard.AddEndpoint(guard.Port{Name: dataplane.PortName(n.port().Endpoint)}, n.mac, n.ours)
	n.want.Guard.Sort()
	_, err := n.plane.Apply(ctx, n.want)
	return err
}

// guardMany adds endpoints here and on the other node, in groups, and rules between these. What the measured containers
// send each other is allowed by one of them.
func guardMany(ctx context.Context, n, peer *node) error {
	here, there := uint32(n.vtep.As4()[3]), uint32(peer.vtep.As4()[3]) // the measured containers are in groups 1 and 2
	g := guard.Network{Table: true, Policy: guard.Policy{Classes: groupsWithRules(), Members: []guard.Member{
		{Address: n.ours, Class: 2 * here}, {Address: peer.ours, Class: 2 * there},
	}}}
	g.AddEndpoint(guard.Port{Name: dataplane.PortName(n.port().Endpoint), Class: className(int(here))}, n.mac, n.ours)
	for i := range guardedEndpoints - 2 {
		address := netip.AddrFrom4([4]byte{10, 8, byte(1 + i>>8), byte(i)})
		mac, group := vxlan.MACFor(address), 1+i%guardGroups
		g.Policy.Members = append(g.Policy.Members, guard.Member{Address: address, Class: uint32(2 * group)})
		n.want.Neighbours = append(n.want.Neighbours, dataplane.Neighbour{Address: address, MAC: mac})
		if uint32(1+i%2) != here {
			n.want.FDB = append(n.want.FDB, dataplane.FDBEntry{MAC: mac}, dataplane.FDBEntry{MAC: mac, VTEP: peer.vtep})
			continue
		}
		id := fmt.Sprintf("%04x00000000", i)
		n.want.Ports = append(n.want.Ports, dataplane.Port{Endpoint: id, MAC: mac, MTU: overlayMTU, Up: true, Enslaved: true})
		n.want.FDB = append(n.want.FDB, dataplane.FDBEntry{MAC: mac, Port: id})
		g.AddEndpoint(guard.Port{Name: dataplane.PortName(id), Class: className(group)}, mac, address)
	}
	switch os.Getenv("VARIANT") {
	case "nopolicy":
		g.Policy = guard.Policy{}
		for i := range g.Ports {
			g.Ports[i].Class = ""
		}
	case "fewmembers":
		g.Policy.Members = g.Policy.Members[:2]
	case "fewrules":
		g.Policy.Classes = groupsFew()
	}
	g.Sort()
	n.want.Guard = g
	n.want.Sort()
	_, err := n.plane.Apply(ctx, n.want)
	return err
}

func className(group int) string { return fmt.Sprintf("g%02d", group) }

// groupsWithRules are the classes that follow from the rules, each of which opens a port between two groups.
func groupsWithRules() []guard.Class {
	classes := make([]guard.Class, guardGroups+1)
	for i := range classes {
		classes[i].Name = className(i)
	}
	allow := func(from, to int, proto uint8, first, last uint16) {
		s := guard.Span{FirstProto: proto, LastProto: proto, First: first, Last: last}
		s.Peer = uint32(2 * from)
		classes[to].Admits = append(classes[to].Admits, s)
		s.Peer = uint32(2 * to)
		classes[from].Reaches = append(classes[from].Reaches, s)
	}
	const tcp, udp = 6, 17
	allow(1, 2, udp, guardPort, guardPort)
	allow(1, 2, tcp, guardPort, guardPort)
	for i := range guardRules - 2 {
		from, to := 1+i%guardGroups, 1+(i*7+3)%guardGroups
		port := uint16(5000 + 10*i)
		allow(from, to, tcp, port, port)
	}
	return classes
}

func groupsFew() []guard.Class {
	all := groupsWithRules()
	for i := range all {
		all[i].Admits = all[i].Admits[:min(1, len(all[i].Admits))]
		all[i].Reaches = all[i].Reaches[:min(1, len(all[i].Reaches))]
	}
	return all
}
