package driver

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/netdriver/netdriver/dataplane"
	"github.com/netdriver/netdriver/dataplane/guard"
	"github.com/netdriver/netdriver/store"
	"github.com/netdriver/netdriver/vxlan"
)

func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }
func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// equal lets cmp compare addresses, whose fields are hidden.
func equal() cmp.Option { return cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}) }

// three is a network with members on three nodes, one endpoint each.
func three() (site, store.Network, map[string]store.Node, map[string]store.Endpoint) {
	me := site{node: "n1", vtep: addr("192.0.2.1"), underlay: "eth0"}
	nw := store.Network{
		Name: "web", Mode: store.ModeOverlay, VNI: 4097, Port: 4789, MTU: 1450, Subnets: []netip.Prefix{prefix("10.10.0.0/24")},
		Members: []store.Member{{Node: "n1", DockerID: "d1"}, {Node: "n2", DockerID: "d2"}, {Node: "n3", DockerID: "d3"}},
	}
	nodes := map[string]store.Node{}
	endpoints := map[string]store.Endpoint{}
	for i, n := range []string{"n1", "n2", "n3"} {
		nodes[n] = store.Node{Name: n, VTEP: addr(fmt.Sprintf("192.0.2.%d", i+1))}
		endpoints["e"+n] = endpoint("e"+n, n, fmt.Sprintf("10.10.0.%d/24", i+2), store.PhaseJoined)
	}
	return me, nw, nodes, endpoints
}

func endpoint(id, node, cidr, phase string) store.Endpoint {
	p := prefix(cidr)
	return store.Endpoint{ID: id, Network: "web", Node: node, IPv4: p, MAC: vxlan.MACFor(p.Addr()), Phase: phase}
}

func TestDesiredHasAPortForEachLocalEndpointAndThreeEntriesForEachRemoteOne(t *testing.T) {
	me, nw, nodes, endpoints := three()
	mac := func(n byte) vxlan.MAC { return vxlan.MAC{0x02, 0x42, 10, 10, 0, n} }
	want := dataplane.Network{
		Name: "web", VNI: 4097,
		Bridge: dataplane.Bridge{Present: true, MTU: 1450, Up: true},
		VXLAN: dataplane.VXLAN{
			Present: true, Local: addr("192.0.2.1"), Underlay: "eth0", Port: 4789, MTU: 1450, Up: true, Enslaved: true,
		},
		Ports: []dataplane.Port{{Endpoint: "en1", MAC: mac(2), MTU: 1450, Up: true, Enslaved: true, Adopt: true}},
		FDB: []dataplane.FDBEntry{
			{VTEP: addr("192.0.2.2")}, {VTEP: addr("192.0.2.3")},
			{MAC: mac(3)}, {MAC: mac(3), VTEP: addr("192.0.2.2")},
			{MAC: mac(4)}, {MAC: mac(4), VTEP: addr("192.0.2.3")},
			{MAC: mac(2), Port: "en1"},
		},
		Neighbours: []dataplane.Neighbour{
			{Address: addr("10.10.0.2"), MAC: mac(2)}, {Address: addr("10.10.0.3"), MAC: mac(3)}, {Address: addr("10.10.0.4"), MAC: mac(4)},
		},
		Guard: guard.Network{
			Table: true, Ports: []guard.Port{{Name: "ndpen1"}},
			Sources: []guard.Source{{Port: "ndpen1", MAC: mac(2), Address: addr("10.10.0.2")}},
		},
	}
	if diff := cmp.Diff(want, desired(me, nw, nodes, endpoints, nil), equal()); diff != "" {
		t.Errorf("desired (-want +got):\n%s", diff)
	}
}

func TestDesiredIsNothingOnANodeThatIsNoMember(t *testing.T) {
	me, nw, nodes, endpoints := three()
	me.node = "n9"
	if diff := cmp.Diff(dataplane.Network{}, desired(me, nw, nodes, endpoints, nil), equal()); diff != "" {
		t.Errorf("desired (-want +got):\n%s", diff)
	}
}

func TestDesiredMakesAnInterfaceOnlyUntilDockerHasIt(t *testing.T) {
	me, nw, nodes, endpoints := three()
	for phase, adopt := range map[string]bool{store.PhaseCreated: false, store.PhaseJoined: true} {
		endpoints["en1"] = endpoint("en1", "n1", "10.10.0.2/24", phase)
		if got := desired(me, nw, nodes, endpoints, nil).Ports[0].Adopt; got != adopt {
			t.Errorf("phase %s: adopt is %v, want %v", phase, got, adopt)
		}
	}
}

func TestDesiredSendsNothingToANodeWithoutUsableVTEP(t *testing.T) {
	for what, vtep := range map[string]netip.Addr{"unknown": {}, "my own": addr("192.0.2.1"), "other family": addr("2001:db8::2")} {
		me, nw, nodes, endpoints := three()
		if delete(nodes, "n2"); vtep.IsValid() {
			nodes["n2"] = store.Node{Name: "n2", VTEP: vtep}
		}
		got := desired(me, nw, nodes, endpoints, nil)
		if n := len(got.FDB); n != 4 { // flood and two entries of n3, the local port
			t.Errorf("%s: %d FDB entries, want 4: %v", what, n, got.FDB)
		}
	}
}

func TestDesiredFollowsANodeThatMoves(t *testing.T) {
	me, nw, nodes, endpoints := three()
	nodes["n2"] = store.Node{Name: "n2", VTEP: addr("192.0.2.77")}
	for _, e := range desired(me, nw, nodes, endpoints, nil).FDB {
		if e.VTEP == addr("192.0.2.2") {
			t.Errorf("%v still goes to the old address", e)
		}
	}
}

// TestDesiredIsAFunctionOfTheRecords: whatever the order in which maps are walked, equal records give equal, sorted
// states without duplicates, and every endpoint's addresses can be resolved.
func TestDesiredIsAFunctionOfTheRecords(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		me, nw, nodes, _ := three()
		endpoints := map[string]store.Endpoint{}
		for i := range rapid.IntRange(0, 40).Draw(t, "endpoints") {
			node := rapid.SampledFrom([]string{"n1", "n2", "n3", "gone"}).Draw(t, "node")
			id := fmt.Sprintf("e%d", i)
			host := i + 2
			if rapid.Bool().Draw(t, "sameAddress") {
				host = 2
			}
			e := endpoint(id, node, fmt.Sprintf("10.10.0.%d/24", host), store.PhaseCreated)
			e.MAC = vxlan.MAC{2, 0, 0, 0, 0, byte(i)}
			e.Created = time.Unix(int64(rapid.IntRange(0, 3).Draw(t, "created")), 0)
			if rapid.Bool().Draw(t, "sameMAC") {
				e.MAC = vxlan.MAC{2}
			}
			endpoints[id] = e
		}
		got := desired(me, nw, nodes, endpoints, nil)
		if diff := cmp.Diff(got, desired(me, nw, nodes, endpoints, nil), equal()); diff != "" {
			t.Fatalf("two runs differ:\n%s", diff)
		}
		if err := got.Check(); err != nil { // sorted, without duplicates, possible
			t.Fatalf("%v: %+v", err, got)
		}
	})
}

// A task that Swarm starts anew may have the address of one on a lost node, whose record is still there.
func TestOfTwoEndpointsWithOneAddressTheNewerIsFound(t *testing.T) {
	me, nw, nodes, _ := three()
	old := endpoint("a", "n2", "10.10.0.7/24", store.PhaseJoined)
	next := endpoint("b", "n3", "10.10.0.7/24", store.PhaseJoined)
	old.MAC, next.MAC, next.Created = vxlan.MAC{2, 1}, vxlan.MAC{2, 2}, old.Created.Add(time.Minute)
	got := desired(me, nw, nodes, map[string]store.Endpoint{"a": old, "b": next}, nil).Neighbours
	if len(got) != 1 || got[0].MAC != next.MAC {
		t.Errorf("neighbours %v, want the newer endpoint's MAC %s alone", got, next.MAC)
	}
}
