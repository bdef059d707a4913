package diag

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netdriver/netdriver/dataplane/balance"
	"github.com/netdriver/netdriver/store"
	"github.com/netdriver/netdriver/vxlan"
)

// serve publishes a service web with a VIP and the tasks of the given endpoints' addresses, as all nodes have seen.
func (c *testCluster) serve(backends ...store.Backend) {
	c.t.Helper()
	c.publish(store.Service{Backends: backends})
}

// publish completes and publishes a service.
func (c *testCluster) publish(s store.Service) {
	c.t.Helper()
	s.ID, s.Name, s.Network, s.VIPs = "s1", "web", "my-net", []netip.Addr{netip.MustParseAddr("10.10.0.99")}
	c.put(store.Put(store.ServiceKey("my-net", s.ID), store.Encode(s)))
	for i := range 3 {
		c.status(i+1, store.Status{Applied: map[string]int64{"my-net": c.revision}})
	}
}

// task is the backend with the address of endpoint i.
func task(name string, i int, draining bool) store.Backend {
	return store.Backend{
		Task: strings.ReplaceAll(name, ".", ""), Name: name, Addresses: endpointRecord(i, 1).Addrs(), Draining: draining,
	}
}

func TestAServiceShowsWhereItsTasksAreAndInWhatState(t *testing.T) {
	c := newCluster(t)
	c.serve(task("web.10", 3, true), task("web.9", 2, false), task("web.11", 200, false))
	r := c.report()
	if r.Verdict != Healthy || r.ServiceCount != 1 {
		t.Errorf("verdict %s, %d services, reasons %+v", r.Verdict, r.ServiceCount, r.Reasons)
	}
	e2, e3 := endpointRecord(2, 1), endpointRecord(3, 2)
	want := []Service{{
		ID: "s1", Name: "web", VIPs: []netip.Addr{netip.MustParseAddr("10.10.0.99")}, Ready: 1, Backends: []Backend{
			{Task: "web9", Name: "web.9", Addresses: e2.Addrs(), State: "ready", Node: "node1", Endpoint: e2.ID},
			{Task: "web10", Name: "web.10", Addresses: e3.Addrs(), State: "draining", Node: "node2", Endpoint: e3.ID},
			{Task: "web11", Name: "web.11", Addresses: endpointRecord(200, 1).Addrs(), State: "no endpoint"},
		},
	}}
	if diff := cmp.Diff(want, r.Services, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("services (-want +got):\n%s", diff)
	}
}

func TestWhatClientsHereSentToABackendIsCounted(t *testing.T) {
	c := newCluster(t)
	c.serve(task("web.1", 2, false), task("web.2", 3, false))
	if b := c.report().Services[0].Backends; b[0].Sent != nil {
		t.Errorf("nothing is counted: %+v", b[0].Sent)
	}
	count := func(service string, i int, mac byte, flows uint64) balance.Count {
		return balance.Count{
			Backend: balance.Backend{Service: service, Address: endpointRecord(i, 1).Addrs()[0], MAC: vxlan.MAC{2, mac}},
			Flows:   flows, Packets: 10 * flows, Bytes: 1000 * flows,
		}
	}
	c.node.counts = []balance.Count{count("s1", 2, 1, 3), count("s1", 2, 2, 4), count("s2", 2, 1, 100)}
	b := c.report().Services[0].Backends
	if b[0].Sent == nil || *b[0].Sent != (Sent{7, 70, 7000}) || b[1].Sent != nil {
		t.Errorf("web.1 %+v, web.2 %+v, want both MACs of web.1 together and nothing else", b[0].Sent, b[1].Sent)
	}
}

func TestAServiceWithoutAHealthyBackendIsADegradation(t *testing.T) {
	for cause, backends := range map[string][]store.Backend{
		"service web has no healthy backend": nil,
		"service web has no healthy backend: 2 tasks without endpoint, 1 draining": {
			task("web.1", 200, false), task("web.2", 201, true), task("web.3", 2, true),
		},
	} {
		c := newCluster(t)
		c.serve(backends...)
		r := c.report()
		expect(t, r, Degraded, "service web", cause)
		all, err := c.d.Networks(t.Context())
		if err != nil || all.Networks[0].Verdict != Degraded || all.Networks[0].ServiceCount != 1 || all.Networks[0].Services != nil {
			t.Errorf("summary %+v, error %v: want the same verdict, without the services", all, err)
		}
	}
}

// What nobody wants is missed by nobody.
func TestAServiceThatIsScaledToZeroIsHealthy(t *testing.T) {
	c := newCluster(t)
	c.publish(store.Service{Idle: true})
	if r := c.report(); r.Verdict != Healthy || !r.Services[0].Idle {
		t.Errorf("verdict %s, reasons %+v, services %+v", r.Verdict, r.Reasons, r.Services)
	}
}

func TestANodeThatHasNotAppliedANewServiceIsBehind(t *testing.T) {
	t.Parallel() // it waits
	c := newCluster(t)
	c.serve(task("web.1", 2, false))
	c.status(3, store.Status{Applied: map[string]int64{"my-net": c.revision - 1}})
	expect(t, c.report(), Degraded, "node3", "has applied revision")
}

func TestANodeThatCannotBalanceIsToldOnceThereIsAVirtualAddress(t *testing.T) {
	c := newCluster(t)
	say := func(node string) {
		c.put(store.PutAlive(store.EngineKey(node), store.Encode(store.Engine{
			Node: node, Role: store.RoleWorker, Version: "20.10.24", Unbalanced: "no BPF",
		})))
	}
	say("node2")
	if r := c.report(); r.Verdict != Healthy || r.Peers[1].Role != store.RoleWorker || r.Peers[0].Role != "" {
		t.Errorf("without services: verdict %s, peers %+v", r.Verdict, r.Peers)
	}
	c.serve(task("web.1", 2, false))
	r := c.report()
	expect(t, r, Degraded, "node2", "containers on node2 cannot reach services by their virtual addresses: no BPF")
	if remedy := r.Reasons[0].Remedy; len(r.Reasons) != 1 || !strings.Contains(remedy, "tasks.NAME") || !strings.Contains(remedy, "dnsrr") {
		t.Errorf("reasons %+v", r.Reasons)
	}
	nodes, err := c.d.Nodes(t.Context())
	if err != nil || nodes.Nodes[1].Unbalanced != "no BPF" || nodes.Nodes[1].Role != "worker" || nodes.Nodes[1].Docker != "20.10.24" {
		t.Errorf("nodes %+v, error %v", nodes, err)
	}
}

func TestEndpointsHaveTheNamesThatAnyNodePublished(t *testing.T) {
	c := newCluster(t)
	id := endpointRecord(3, 2).ID
	n := store.Name{Network: "my-net", Endpoint: id, Container: "web.1.x", ContainerID: "c1", Service: "web", Task: "web.1.x"}
	c.put(store.Put(store.NameKey("my-net", id), store.Encode(n)))
	c.put(store.Put(store.NameKey("my-net", "e00002"), []byte("damaged")))
	r := c.report()
	if e := r.Endpoints[1]; e.Container != "web.1.x" || e.ContainerID != "c1" || e.Service != "web" || e.Task != "web.1.x" {
		t.Errorf("endpoint %+v", e)
	}
	if e := r.Endpoints[0]; e.Container != "" || r.Verdict != Healthy {
		t.Errorf("endpoint %+v, verdict %s: a name that cannot be read is only missing", e, r.Verdict)
	}
}

// rename gives my-net and a second network the names that Docker has for them.
func (c *testCluster) rename(change func(mine, second *store.Network)) {
	c.t.Helper()
	kv, err := c.mem.Get(c.t.Context(), store.NetworkKey("my-net"))
	if err != nil {
		c.t.Fatal(err)
	}
	mine, err := store.Decode[store.Network](kv)
	if err != nil {
		c.t.Fatal(err)
	}
	second := store.Network{Name: "second", Mode: store.ModeOverlay, VNI: 5000, Port: 4789, MTU: 1450}
	change(&mine, &second)
	for _, nw := range []store.Network{mine, second} {
		c.put(store.Put(store.NetworkKey(nw.Name), store.Encode(nw)))
	}
	for i := range 3 {
		c.status(i+1, store.Status{Applied: map[string]int64{"my-net": c.revision}})
	}
}

func TestANetworkIsFoundByItsNameInDocker(t *testing.T) {
	c := newCluster(t)
	c.rename(func(mine, second *store.Network) {
		for i := range mine.Members {
			mine.Members[i].DockerID, mine.Members[i].Name = mine.Members[i].Node, "blue"
		}
		second.Swarm, second.SwarmName = "d9", "green"
	})
	for name, want := range map[string]string{"blue": "my-net", "green": "second", "my-net": "my-net"} {
		if r, err := c.d.Network(t.Context(), name); r.Network != want || err != nil {
			t.Errorf("%s: network %q, error %v, want %s", name, r.Network, err, want)
		}
	}
	_, err := c.d.Network(t.Context(), "red")
	if err == nil || !strings.Contains(err.Error(), "my-net (blue), second (green)") {
		t.Errorf("error %v, want both names of each", err)
	}
}

// Two hosts may call different networks by one name: what this node's users mean is this node's.
func TestANameInDockerIsThisNodesOrElseMustBeTheOnlyOne(t *testing.T) {
	c := newCluster(t)
	c.rename(func(mine, second *store.Network) {
		mine.Members = []store.Member{{Node: "node1", DockerID: "d1", Name: "web"}, {Node: "node2", DockerID: "d2", Name: "db"}}
		second.Members = []store.Member{{Node: "node2", DockerID: "d3", Name: "web"}, {Node: "node3", DockerID: "d4", Name: "db"}}
	})
	if r, err := c.d.Network(t.Context(), "web"); r.Network != "my-net" || err != nil {
		t.Errorf("web: network %q, error %v, want this node's", r.Network, err)
	}
	if r, err := c.d.Network(t.Context(), "db"); err == nil || !strings.Contains(err.Error(), "my-net, second") {
		t.Errorf("db: network %q, error %v, want both", r.Network, err)
	}
}
