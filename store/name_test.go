package store

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// A label of a container can hold what a terminal would obey.
func TestANameThatCannotBeShownIsRefused(t *testing.T) {
	good := Name{Network: "web", Endpoint: "e1", Container: "db", Service: "web", Task: "web.1.x"}
	if _, err := Decode[Name](KV{Key: "k", Value: Encode(good)}); err != nil {
		t.Fatal(err)
	}
	for what, spoil := range map[string]func(*Name){
		"container": func(n *Name) { n.Container = "\x1b[2J" },
		"service":   func(n *Name) { n.Service = "a\nb" },
		"task":      func(n *Name) { n.Task = " " },
		"endpoint":  func(n *Name) { n.Endpoint = "" },
	} {
		bad := good
		spoil(&bad)
		if _, err := Decode[Name](KV{Key: "k", Value: Encode(bad)}); err == nil {
			t.Errorf("%s: %+v is read", what, bad)
		}
	}
}

func TestABackendIsReadyOnlyWithAnEndpoint(t *testing.T) {
	a, b := netip.MustParseAddr("10.10.0.5"), netip.MustParseAddr("10.10.0.6")
	holders := ByAddress(map[string]Endpoint{
		"e2": {ID: "e2", IPv4: netip.PrefixFrom(a, 24)}, "e1": {ID: "e1", IPv4: netip.PrefixFrom(a, 24)},
	})
	for want, backend := range map[string]Backend{
		BackendReady:    {Addresses: []netip.Addr{b, a}},
		BackendDraining: {Addresses: []netip.Addr{a}, Draining: true},
		BackendAbsent:   {Addresses: []netip.Addr{b}},
	} {
		state, e := backend.State(holders)
		if state != want || (state == BackendAbsent) != (e.ID == "") {
			t.Errorf("%+v is %s at %q, want %s", backend, state, e.ID, want)
		}
		if e.ID != "" && e.ID != "e1" {
			t.Errorf("of two endpoints with one address %s is taken, want e1 on every node", e.ID)
		}
	}
}

func TestANetworkHasTheNamesThatDockerGivesIt(t *testing.T) {
	nw := Network{Swarm: "d1", SwarmName: "my-net", Members: []Member{
		{Node: "n1", DockerID: "d1"}, {Node: "n1", DockerID: "d2", Name: "second"}, {Node: "n2", DockerID: "d3"},
	}}
	if diff := cmp.Diff(map[string]string{"d1": "my-net", "d2": "second"}, nw.DockerNames()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
