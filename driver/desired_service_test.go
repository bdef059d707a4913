package driver

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netdriver/netdriver/dataplane"
	"github.com/netdriver/netdriver/store"
	"github.com/netdriver/netdriver/vxlan"
)

// task is a backend whose name and id are one.
func task(id string, draining bool, address string) store.Backend {
	return store.Backend{Task: id, Name: id, Addresses: []netip.Addr{netip.MustParseAddr(address)}, Draining: draining}
}

func TestAServiceIsBalancedOverTheTasksThatHaveAnEndpoint(t *testing.T) {
	local := store.Endpoint{ID: "e1", Node: "n1", IPv4: prefix("10.10.0.3/24"), MAC: vxlan.MAC{2, 0, 0, 0, 0, 3}}
	remote := store.Endpoint{ID: "e2", Node: "n2", IPv4: prefix("10.10.0.4/24"), MAC: vxlan.MAC{2, 0, 0, 0, 0, 4}}
	endpoints := map[string]store.Endpoint{"e1": local, "e2": remote}
	vip := netip.MustParseAddr("10.10.0.2")
	services := map[string]store.Service{
		"s1": {ID: "s1", VIPs: []netip.Addr{vip}, Backends: []store.Backend{
			task("t2", false, "10.10.0.4"), task("t1", true, "10.10.0.3"), task("t3", false, "10.10.0.5"),
		}},
		"s0": {ID: "s0", Backends: []store.Backend{task("t9", false, "10.10.0.3")}}, // dnsrr
	}
	want := []dataplane.Service{{ID: "s1", VIPs: []netip.Addr{vip}, Backends: []dataplane.Backend{
		{Address: local.IPv4.Addr(), MAC: local.MAC, Port: "e1", Draining: true},
		{Address: remote.IPv4.Addr(), MAC: remote.MAC},
	}}}
	if diff := cmp.Diff(want, balanced(site{node: "n1"}, services, endpoints), equal()); diff != "" {
		t.Errorf("services (-want +got):\n%s", diff)
	}
}

// A service without tasks is balanced over nothing, which refuses its clients at once; left out, they would wait.
func TestAServiceWithoutTasksKeepsItsVIP(t *testing.T) {
	services := map[string]store.Service{"s1": {ID: "s1", VIPs: []netip.Addr{netip.MustParseAddr("10.10.0.2")}}}
	if got := balanced(site{node: "n1"}, services, nil); len(got) != 1 || len(got[0].Backends) != 0 {
		t.Errorf("services %v", got)
	}
}

func TestAnAddressIsOneBackendWhicheverTasksNameIt(t *testing.T) {
	endpoints := map[string]store.Endpoint{"e1": {ID: "e1", Node: "n2", IPv4: prefix("10.10.0.3/24"), MAC: vxlan.MAC{2}}}
	services := map[string]store.Service{"s1": {ID: "s1", VIPs: []netip.Addr{netip.MustParseAddr("10.10.0.2")}, Backends: []store.Backend{
		task("old", true, "10.10.0.3"), task("new", false, "10.10.0.3"),
	}}}
	got := balanced(site{node: "n1"}, services, endpoints)[0].Backends
	if len(got) != 1 || got[0].Draining {
		t.Errorf("backends %v, want the new task alone", got)
	}
}
