package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/netdriver/netdriver/diag"
	"github.com/netdriver/netdriver/internal/golden"
	"github.com/netdriver/netdriver/store"
	"github.com/netdriver/netdriver/vxlan"
)

var now = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func plain() painter { return painter{now: now} }

func endpoints(n int) []diag.Endpoint {
	var out []diag.Endpoint
	for i := range n {
		a := netip.AddrFrom4([4]byte{10, 10, byte((i + 2) >> 8), byte(i + 2)})
		out = append(out, diag.Endpoint{
			ID: fmt.Sprintf(
				"%04x91c0ffee%052x",
				i,
				i,
			), Node: fmt.Sprintf("node%d", i%3+1), Addresses: []netip.Addr{a}, MAC: vxlan.MACFor(a),
			Phase: store.PhaseJoined, Created: now.Add(-time.Duration(i) * time.Minute), SeenBy: 3, Members: 3,
		})
	}
	return out
}

func healthy() diag.NetworkReport {
	r := diag.NetworkReport{
		Schema: diag.Schema, Network: "my-net", Verdict: diag.Healthy, Reasons: []diag.Reason{}, Node: "node1", Member: true,
		Mode: store.ModeOverlay, VNI: 1048577, Port: 4789,
		Subnets: []diag.Subnet{
			{
				Subnet: netip.MustParsePrefix(
					"10.10.0.0/16",
				), Gateway: netip.MustParseAddr("10.10.0.1"), Usable: 65534, Used: 3, Reserved: 2,
				First: netip.MustParseAddr("10.10.0.2"), Last: netip.MustParseAddr("10.10.0.4"),
			},
			{Subnet: netip.MustParsePrefix("2001:db8::/64"), Usable: 1<<64 - 1},
		},
		MTU:       diag.MTU{MTU: 1450, Underlay: 1500, Overhead: 50, Derived: "1450 = 1500 underlay − 50 VXLAN"},
		Kernel:    diag.Kernel{Checked: true, InSync: true},
		Admission: &diag.Admission{Filter: "nftables", Strangers: 6},
		Revision:  diag.Revision{Applied: 8841, Wanted: 8841, Store: 8850},
		Peers: []diag.Peer{
			{
				Node:        "node1",
				Address:     netip.MustParseAddr("192.0.2.11"),
				State:       diag.StateLocal,
				Applied:     8841,
				UnderlayMTU: 1500,
				Endpoints:   1,
				LastStatus:  now.Add(-time.Hour),
			},
			{
				Node:        "node2",
				Address:     netip.MustParseAddr("192.0.2.12"),
				State:       diag.StateOK,
				Applied:     8841,
				UnderlayMTU: 1500,
				Endpoints:   1,
				LastStatus:  now.Add(-time.Second),
			},
			{
				Node:        "node3",
				Address:     netip.MustParseAddr("192.0.2.13"),
				State:       diag.StateOK,
				Applied:     8844,
				UnderlayMTU: 9000,
				Endpoints:   1,
				LastStatus:  now.Add(-72 * time.Hour),
			},
		},
		Endpoints: endpoints(
			3,
		), EndpointCount: 3, Data: diag.Data{Source: diag.SourceStore, Taken: now.Add(-200 * time.Millisecond)},
	}
	return r
}

// swarmed is a network with two services: one whose rolling update is under way, and one that is down.
func swarmed() diag.NetworkReport {
	r := healthy()
	r.Network, r.Verdict, r.ServiceCount = "net-4f0c2a9d1e77", diag.Degraded, 3
	r.DockerNetworks = []diag.DockerNetwork{{Name: "my-net", ID: "4f0c2a9d1e77", Swarm: true, Nodes: []string{"node1", "node2", "node3"}}}
	for i, role := range []string{store.RoleLeader, store.RoleManager, store.RoleWorker} {
		r.Peers[i].Role = role
	}
	backend := func(i int, state string) diag.Backend {
		b := diag.Backend{
			Task: fmt.Sprintf("t%d", i), Name: fmt.Sprintf("web.%d", i), State: state,
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 10, 0, byte(i + 1)})},
		}
		if state != store.BackendAbsent {
			e := &r.Endpoints[i-1]
			e.Service, e.Task = "web", fmt.Sprintf("web.%d.x81nqk3v5s7bqz0xk9f2l4m6p", i)
			e.Container = e.Task
			b.Node, b.Endpoint, b.Sent = e.Node, e.ID, &diag.Sent{Flows: 1234, Packets: 98765, Bytes: 1 << 30}
		}
		return b
	}
	r.Endpoints[2].Container = "a-container-with-a-name-that-is-too-long-for-a-table"
	r.Services = []diag.Service{
		{ID: "s2", Name: "api", VIPs: []netip.Addr{netip.MustParseAddr("10.10.0.9")}, Backends: []diag.Backend{backend(4, store.BackendAbsent)}},
		{ID: "s3", Name: "db"},
		{
			ID: "s1", Name: "web", Ready: 1, VIPs: []netip.Addr{netip.MustParseAddr("10.10.0.8"), netip.MustParseAddr("2001:db8::8")},
			Backends: []diag.Backend{backend(1, store.BackendReady), backend(2, store.BackendDraining)},
		},
	}
	r.Services[0].Backends[0].Name = "api.1"
	r.Reasons = []diag.Reason{{
		Verdict: diag.Degraded, Place: "service api", Cause: "service api has no healthy backend: 1 task without endpoint",
		Remedy: "see `docker service ps api` on a manager",
	}}
	return r
}

func degraded() diag.NetworkReport {
	r := healthy()
	r.Verdict, r.Internal = diag.Degraded, true
	r.Peers[1].State, r.Peers[1].Applied = diag.StateDown, 8790
	r.Reasons = []diag.Reason{{
		Verdict: diag.Degraded, Place: "node2 (192.0.2.12)",
		Cause:  "node2 is not connected to the store; its 1 endpoint may be unreachable",
		Remedy: "start its host or its `netdriver run`; if they run, check its way to the store",
	}}
	r.Kernel.Drifts = []diag.Drift{
		{
			Time:    now.Add(-3 * time.Hour),
			Command: "bridge fdb replace 02:42:0a:0a:00:07 dev ndx100001 dst 192.0.2.12 self permanent",
			Seconds: .012,
		},
	}
	r.Endpoints[2].SeenBy = 2
	return r
}

func failed() diag.NetworkReport {
	r := healthy()
	r.Verdict = diag.Failed
	r.Kernel = diag.Kernel{
		Checked:     true,
		Differing:   2,
		Differences: []string{"ip link add ndb100001", "ip link set ndb100001 up"},
	}
	r.Revision.Applied = 8800
	r.Reasons = []diag.Reason{
		{
			Verdict: diag.Failed,
			Place:   "node1",
			Cause:   "make network my-net on this node: create ndx100001: VNI is in use",
			Remedy:  "remove the other device",
		},
		{Verdict: diag.Degraded, Place: "node3", Cause: "node3 reports: no such device", Remedy: "see its log"},
	}
	return r
}

func unknown() diag.NetworkReport {
	return diag.NetworkReport{
		Schema: diag.Schema, Network: "my-net", Verdict: diag.Unknown, Node: "node1", Member: true, Mode: store.ModeOverlay,
		VNI: 1048577, Port: 4789,
		MTU: diag.MTU{Derived: "1450 = 1500 underlay − 50 VXLAN"}, Data: diag.Data{Source: diag.SourceKernel, Taken: now},
		Reasons: []diag.Reason{
			{
				Verdict: diag.Unknown,
				Place:   "node1",
				Cause:   "the cluster's records have not been read",
				Remedy:  "check the store",
			},
		},
		Endpoints: []diag.Endpoint{{ID: "e1", Node: "node1", SeenBy: -1}}, EndpointCount: 1,
	}
}

func empty() diag.NetworkReport {
	r := healthy()
	r.Endpoints, r.EndpointCount, r.Member, r.Peers = nil, 0, false, r.Peers[1:]
	return r
}

func TestNetworksAreReadable(t *testing.T) {
	many := healthy()
	many.Endpoints, many.EndpointCount = endpoints(200), 200
	for i := range many.Endpoints {
		many.Endpoints[i].Container = fmt.Sprintf("project_app_%d", i+1)
	}
	for name, r := range map[string]diag.NetworkReport{
		"healthy": healthy(), "degraded": degraded(), "failed": failed(), "unknown": unknown(), "empty": empty(), "200": many,
		"swarm": swarmed(),
	} {
		golden.Compare(t, "inspect-"+name+".txt", plain().network(r))
	}
}

func TestTheVerdictIsOnTheFirstLine(t *testing.T) {
	for _, r := range []diag.NetworkReport{healthy(), degraded(), failed(), unknown(), empty(), swarmed()} {
		first, _, _ := strings.Cut(plain().network(r), "\n")
		if !strings.Contains(first, strings.ToUpper(string(r.Verdict))) {
			t.Errorf("first line %q does not say %s", first, r.Verdict)
		}
	}
}

func TestALongListOfEndpointsIsCutAndSaysSo(t *testing.T) {
	r := healthy()
	r.Endpoints = endpoints(201)
	got := plain().network(r)
	if !strings.HasSuffix(got, "… and 1 more (-o json shows all)\n") || strings.Count(got, "10.10.") != 200+4 {
		t.Errorf(
			"%d addresses, want 200 endpoints' and 4 of the subnet; it ends: %s",
			strings.Count(got, "10.10."),
			got[len(got)-60:],
		)
	}
}

func TestBackendsAreCutLikeEndpoints(t *testing.T) {
	r := swarmed()
	for range 300 {
		r.Services[2].Backends = append(r.Services[2].Backends, r.Services[2].Backends[0])
	}
	if got := plain().network(r); !strings.Contains(got, "\n… and 104 more (-o json shows all)\n") {
		t.Errorf("304 rows, and it does not say how many are missing:\n%s", got)
	}
}

func TestPlainNetworksAreNamedWithTheirNodes(t *testing.T) {
	r := healthy()
	for want, networks := range map[string][]diag.DockerNetwork{
		"":     {{Name: "my-net", ID: "d1", Nodes: []string{"node1"}}, {Name: "my-net", ID: "d2", Nodes: []string{"node2"}}},
		"blue": {{Name: "blue", ID: "d1", Nodes: []string{"node1"}}},
		"blue on node1, node2 · red on node3": {
			{Name: "blue", ID: "d1", Nodes: []string{"node2"}}, {Name: "blue", ID: "d2", Nodes: []string{"node1"}},
			{Name: "red", ID: "d3", Nodes: []string{"node3"}},
		},
	} {
		r.DockerNetworks = networks
		if got := dockerNames(r); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestListsAreReadable(t *testing.T) {
	golden.Compare(
		t,
		"networks.txt",
		plain().networks(diag.NetworksReport{Networks: []diag.NetworkReport{degraded(), failed(), healthy(), swarmed()}}),
	)
	golden.Compare(t, "networks-none.txt", plain().networks(diag.NetworksReport{}))
	golden.Compare(t, "nodes.txt", plain().nodes(diag.NodesReport{Nodes: []diag.Node{
		{
			Name:        "node1",
			VTEP:        netip.MustParseAddr("192.0.2.11"),
			UnderlayMTU: 1500,
			State:       diag.StateLocal,
			Version:     "v1.0.0",
			Started:     now.Add(-time.Hour),
			Networks:    2,
			Role:        store.RoleLeader,
			Docker:      "20.10.24",
			LastStatus:  now,
		},
		{
			Name:        "node2",
			VTEP:        netip.MustParseAddr("2001:db8::2"),
			UnderlayMTU: 9000,
			State:       diag.StateDown,
			Started:     now.Add(-72 * time.Hour),
			Problems:    map[string]string{"my-net": "x"},
		},
	}}))
}

func TestTheJSONIsStable(t *testing.T) {
	var b bytes.Buffer
	for name, report := range map[string]diag.NetworkReport{"inspect.json": degraded(), "inspect-swarm.json": swarmed()} {
		b.Reset()
		if err := writeJSON(&b, report); err != nil {
			t.Fatal(err)
		}
		golden.Compare(t, name, b.String())
		var back diag.NetworkReport
		if err := json.Unmarshal(b.Bytes(), &back); err != nil || back.EndpointCount != 3 {
			t.Errorf("it cannot be read back: %v", err)
		}
	}
}

func TestColoursAreOnlyForTerminals(t *testing.T) {
	if s := plain().network(degraded()); strings.Contains(s, "\x1b") {
		t.Error("escapes without colour")
	}
	coloured := painter{colour: true, now: now}.network(degraded())
	if !strings.Contains(coloured, "\x1b[31mDOWN\x1b[0m") || !strings.Contains(coloured, "\x1b[33mDEGRADED\x1b[0m") {
		t.Errorf("no colours in\n%s", coloured)
	}
	for _, escape := range []string{"\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[0m"} {
		coloured = strings.ReplaceAll(coloured, escape, "")
	}
	if diff := cmp.Diff(plain().network(degraded()), coloured); diff != "" {
		t.Errorf("colours change the layout (-plain +coloured):\n%s", diff)
	}
}

func TestAgesHaveOneUnit(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0 ms", 12 * time.Millisecond: "12 ms", 200 * time.Millisecond: "0.2 s", 41 * time.Second: "41 s",
		22 * time.Minute: "22 m",
		3 * time.Hour:    "3 h", 100 * time.Hour: "4 d",
	} {
		if got := span(d); got != want {
			t.Errorf("%s: %q, want %q", d, got, want)
		}
	}
}
