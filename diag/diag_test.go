package diag

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/dataplane"
	"github.com/netdriver/netdriver/dataplane/balance"
	"github.com/netdriver/netdriver/dataplane/firewall"
	"github.com/netdriver/netdriver/dataplane/guard"
	"github.com/netdriver/netdriver/store"
	"github.com/netdriver/netdriver/vxlan"
)

// fakeNode is this node's kernel and driver.
type fakeNode struct {
	present  []dataplane.Network
	receipts []dataplane.Receipt
	plan     []string
	planErr  error
	problems map[string]error
	counts   []balance.Count
	drops    []guard.Drops
}

func (f *fakeNode) Present(context.Context) ([]dataplane.Network, error) { return f.present, nil }
func (f *fakeNode) Receipts(vxlan.VNI) []dataplane.Receipt               { return f.receipts }
func (f *fakeNode) Diff(context.Context, string) ([]string, error)       { return f.plan, f.planErr }
func (f *fakeNode) Counts(context.Context, vxlan.VNI) ([]balance.Count, error) {
	if f.counts == nil {
		return nil, balance.ErrUnsupported
	}
	return f.counts, nil
}
func (f *fakeNode) Drops(context.Context, vxlan.VNI) ([]guard.Drops, error) { return f.drops, nil }
func (f *fakeNode) Problems() map[string]error                              { return f.problems }

// testCluster is a store with a network my-net on three nodes, seen from node1.
type testCluster struct {
	t        *testing.T
	mem      *store.Memory
	mirror   *store.Mirror
	node     *fakeNode
	d        *Diagnosis
	revision int64
}

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func nodeRecord(i int) store.Node {
	return store.Node{
		Name: fmt.Sprintf("node%d", i), ID: fmt.Sprintf("id%d", i), VTEP: netip.AddrFrom4([4]byte{192, 0, 2, byte(10 + i)}),
		UnderlayMTU: 1500, Version: "v1", Started: start,
	}
}

func endpointRecord(i, node int) store.Endpoint {
	a := netip.AddrFrom4([4]byte{10, 10, byte(i >> 8), byte(i)})
	return store.Endpoint{
		ID: fmt.Sprintf(
			"e%05d",
			i,
		), Network: "my-net", Node: fmt.Sprintf("node%d", node), DockerID: "d1", IPv4: netip.PrefixFrom(a, 16),
		MAC: vxlan.MACFor(a), Phase: store.PhaseJoined, Created: start,
	}
}

func newCluster(t *testing.T) *testCluster {
	t.Helper()
	mem := store.NewMemory()
	c := &testCluster{t: t, mem: mem, mirror: store.NewMirror(mem, slog.New(slog.DiscardHandler)), node: &fakeNode{}}
	subnet := netip.MustParsePrefix("10.10.0.0/16")
	nw := store.Network{
		Name: "my-net", Mode: store.ModeOverlay, VNI: 4097, Port: 4789, MTU: 1450, Subnets: []netip.Prefix{subnet},
		Creator: "node1", Created: start,
	}
	for i := range 3 {
		n := nodeRecord(i + 1)
		nw.Members = append(nw.Members, store.Member{Node: n.Name, DockerID: "d1", Since: start})
		c.put(store.Put(store.NodeKey(n.Name), store.Encode(n)), store.PutAlive(store.AliveKey(n.Name), []byte(n.ID)))
		e := endpointRecord(i+2, i+1)
		c.put(store.Put(store.EndpointKey("my-net", e.ID), store.Encode(e)), c.lease(e.IPv4.Addr(), store.LeaseEndpoint))
	}
	gateway := netip.MustParseAddr("10.10.0.1")
	c.put(
		store.Put(store.NetworkKey("my-net"), store.Encode(nw)),
		c.lease(gateway, store.LeaseGateway),
		store.Put(
			store.PoolKey(subnet),
			store.Encode(store.Pool{Subnet: subnet, Gateway: gateway, Network: "my-net", Creator: "node1"}),
		),
	)
	for i := range 3 {
		c.status(i+1, store.Status{Applied: map[string]int64{"my-net": c.revision}})
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	c.mirror.Follow("my-net")
	go func() { _ = c.mirror.Run(ctx); close(done) }()
	t.Cleanup(func() { cancel(); <-done })
	if err := c.mirror.WaitSynced(t.Context(), "my-net"); err != nil {
		t.Fatal(err)
	}
	c.d = New(Sources{
		Store: mem, Mirror: c.mirror, Plane: c.node, Driver: c.node, Node: nodeRecord(1),
		Now: func() time.Time { return start.Add(time.Hour) },
	})
	return c
}

func (c *testCluster) put(ops ...store.Op) int64 {
	c.t.Helper()
	rev, err := c.mem.Commit(c.t.Context(), nil, ops...)
	if err != nil {
		c.t.Fatal(err)
	}
	c.revision = rev
	return rev
}

func (c *testCluster) lease(a netip.Addr, kind string) store.Op {
	l := store.Lease{Address: a, Kind: kind, Node: "node1", Created: start}
	return store.Put(store.LeaseKey(netip.MustParsePrefix("10.10.0.0/16"), a), store.Encode(l))
}

func (c *testCluster) status(node int, st store.Status) {
	c.t.Helper()
	rev := c.revision
	st.Updated = start.Add(time.Minute)
	c.put(store.Put(store.StatusKey(fmt.Sprintf("node%d", node)), store.Encode(st)))
	c.revision = rev // a status is no record of the network
}

func (c *testCluster) report() NetworkReport {
	c.t.Helper()
	r, err := c.d.Network(c.t.Context(), "my-net")
	if err != nil {
		c.t.Fatal(err)
	}
	return r
}

// expect fails unless the report has that verdict, with a reason at place that says cause and a remedy.
func expect(t *testing.T, r NetworkReport, v Verdict, place, cause string) {
	t.Helper()
	if r.Verdict != v {
		t.Errorf("verdict %s, want %s: %+v", r.Verdict, v, r.Reasons)
	}
	for _, reason := range r.Reasons {
		if strings.Contains(reason.Place, place) && strings.Contains(reason.Cause, cause) && reason.Remedy != "" {
			return
		}
	}
	t.Errorf("no reason at %s that says %q: %+v", place, cause, r.Reasons)
}

func TestANetworkThatIsAsWantedEverywhereIsHealthy(t *testing.T) {
	r := newCluster(t).report()
	if r.Verdict != Healthy || len(r.Reasons) != 0 || !r.Kernel.InSync || r.Data.Source != SourceStore {
		t.Errorf("verdict %s, kernel %+v, data %+v, reasons %+v", r.Verdict, r.Kernel, r.Data, r.Reasons)
	}
	if s := r.Subnets[0]; s.Used != 3 || s.Reserved != 1 || s.Usable != 65534 || s.First.String() != "10.10.0.2" ||
		s.Last.String() != "10.10.0.4" {
		t.Errorf("subnet %+v", s)
	}
	if r.MTU.Derived != "1450 = 1500 underlay − 50 VXLAN" {
		t.Errorf("MTU %+v", r.MTU)
	}
	for _, e := range r.Endpoints {
		if e.SeenBy != 3 || e.Members != 3 {
			t.Errorf("endpoint %s is seen by %d of %d, want 3 of 3", e.ID, e.SeenBy, e.Members)
		}
	}
}

func TestANodeWhoseDaemonIsAwayIsDown(t *testing.T) {
	c := newCluster(t)
	c.put(store.Delete(store.AliveKey("node2")))
	r := c.report()
	expect(t, r, Degraded, "node2 (192.0.2.12)", "its 1 endpoint may")
	if r.Peers[1].State != StateDown || r.Peers[0].State != StateLocal || r.Peers[2].State != StateOK {
		t.Errorf("peers %+v", r.Peers)
	}
}

// A host that was set up anew under the name of another has another id: its life is not the record's.
func TestANodeIsNotAliveByAnotherOnesConnection(t *testing.T) {
	c := newCluster(t)
	c.put(store.PutAlive(store.AliveKey("node2"), []byte("other")))
	expect(t, c.report(), Degraded, "node2", "not connected")
}

func TestANodeThatHasNotAppliedTheNewestEndpointIsBehindAndDoesNotSeeIt(t *testing.T) {
	t.Parallel() // it waits
	c := newCluster(t)
	e := endpointRecord(9, 1)
	rev := c.put(store.Put(store.EndpointKey("my-net", e.ID), store.Encode(e)))
	for _, node := range []int{1, 2} {
		c.status(node, store.Status{Applied: map[string]int64{"my-net": rev}})
	}
	r := c.report()
	expect(t, r, Degraded, "node3", "has applied revision")
	if last := r.Endpoints[3]; last.SeenBy != 2 || r.Endpoints[0].SeenBy != 3 {
		t.Errorf("the new endpoint is seen by %d, want 2; the old one by %d, want 3", last.SeenBy, r.Endpoints[0].SeenBy)
	}
}

func TestANodeThatIsAboutToSayWhatItAppliedIsNotCalledBehind(t *testing.T) {
	t.Parallel() // it waits
	c := newCluster(t)
	e := endpointRecord(9, 1)
	rev := c.put(store.Put(store.EndpointKey("my-net", e.ID), store.Encode(e)))
	done := make(chan struct{})
	go func() {
		defer close(done)
		time.Sleep(askAgainIn / 2)
		for _, node := range []int{1, 2, 3} {
			c.status(node, store.Status{Applied: map[string]int64{"my-net": rev}})
		}
	}()
	r := c.report()
	<-done
	if r.Verdict != Healthy {
		t.Errorf("verdict %s: %+v", r.Verdict, r.Reasons)
	}
}

func TestAProblemOfThisNodeIsAFailureAndOneOfAnotherADegradation(t *testing.T) {
	c := newCluster(t)
	c.status(
		2,
		store.Status{Applied: map[string]int64{"my-net": c.revision}, Problems: map[string]string{"my-net": "VNI is in use"}},
	)
	expect(t, c.report(), Degraded, "node2", "node2 reports: VNI is in use")
	c.node.problems = map[string]error{"my-net": errors.New("no such device"), "other": errors.New("not mine")}
	expect(t, c.report(), Failed, "node1", "no such device")
}

func TestAKernelThatDiffersIsADegradationWithTheFirstRepair(t *testing.T) {
	c := newCluster(t)
	c.node.plan = []string{"ip link set ndb1001 up", "bridge fdb add"}
	r := c.report()
	expect(t, r, Degraded, "node1", "2 places, first: ip link set ndb1001 up")
	if r.Kernel.InSync || r.Kernel.Differing != 2 {
		t.Errorf("kernel %+v", r.Kernel)
	}
	c.node.plan, c.node.planErr = nil, errors.New("netlink receive: no buffer")
	expect(t, c.report(), Unknown, "node1", "no buffer")
}

func TestRepairsAreShown(t *testing.T) {
	c := newCluster(t)
	c.node.receipts = []dataplane.Receipt{
		{Time: start, Network: "my-net", Op: "bridge fdb replace", Took: 12 * time.Millisecond},
	}
	d := c.report().Kernel.Drifts
	if len(d) != 1 || d[0].Command != "bridge fdb replace" || d[0].Seconds != 0.012 {
		t.Errorf("drifts %+v", d)
	}
}

func TestAPeerWithATooSmallUnderlayIsToldWithBothRemedies(t *testing.T) {
	c := newCluster(t)
	n := nodeRecord(3)
	n.UnderlayMTU = 1400
	c.put(store.Put(store.NodeKey(n.Name), store.Encode(n)))
	r := c.report()
	expect(t, r, Degraded, "node3", "underlay MTU of 1400, packets of this network need 1500")
	if !strings.Contains(r.Reasons[0].Remedy, "mtu=1350") {
		t.Errorf("remedy %q", r.Reasons[0].Remedy)
	}
}

func TestARecordOfALaterVersionIsAReason(t *testing.T) {
	c := newCluster(t)
	key := store.EndpointKey("my-net", "later")
	c.put(store.Put(key, []byte(`{"v":3,"r":{}}`)))
	expect(t, c.report(), Degraded, key, "version 3")
}

func TestWithoutTheStoreTheMirrorAnswersInTime(t *testing.T) {
	t.Parallel() // it waits
	c := newCluster(t)
	c.mem.SetAvailable(false)
	begin := time.Now()
	r := c.report()
	if took := time.Since(begin); took > 3*time.Second {
		t.Errorf("it took %s, want at most 3 s", took)
	}
	expect(t, r, Degraded, "node1", "the store cannot be asked")
	if r.Data.Source != SourceMirror || r.EndpointCount != 3 || r.Peers[1].State != StateUnknown ||
		r.Endpoints[0].SeenBy != -1 {
		t.Errorf("data %+v, %d endpoints, peers %+v", r.Data, r.EndpointCount, r.Peers)
	}
	if !r.Kernel.InSync {
		t.Error("the kernel was not compared")
	}
}

// A daemon that was restarted while the store is away knows its devices only.
func TestWithoutStoreAndMirrorTheKernelAnswers(t *testing.T) {
	t.Parallel() // it waits
	c := newCluster(t)
	c.mem.SetAvailable(false)
	c.node.present = []dataplane.Network{
		{Name: "my-net", VNI: 4097, Bridge: dataplane.Bridge{MTU: 1450}, Ports: []dataplane.Port{{Endpoint: "e1"}}},
	}
	src := c.d.src
	src.Mirror = store.NewMirror(c.mem, slog.New(slog.DiscardHandler))
	d := New(src)
	r, err := d.Network(t.Context(), "my-net")
	if err != nil {
		t.Fatal(err)
	}
	expect(t, r, Unknown, "node1", "have not been read")
	if r.Data.Source != SourceKernel || r.VNI != 4097 || len(r.Endpoints) != 1 {
		t.Errorf("report %+v", r)
	}
	if _, err := d.Network(t.Context(), "other"); !errors.Is(err, store.ErrUnavailable) || errors.Is(err, ErrNoNetwork) {
		t.Errorf("a network that may exist: error %v, want unavailable", err)
	}
}

func TestAnUnknownNetworkIsToldWithTheKnownOnes(t *testing.T) {
	_, err := newCluster(t).d.Network(t.Context(), "web")
	if !errors.Is(err, ErrNoNetwork) || !strings.Contains(err.Error(), "my-net") {
		t.Errorf("error %v, want the names", err)
	}
}

func TestNetworksAndNodesAreSummarised(t *testing.T) {
	c := newCluster(t)
	c.put(store.Delete(store.AliveKey("node3")))
	all, err := c.d.Networks(t.Context())
	if err != nil || len(all.Networks) != 1 || all.Networks[0].Verdict != Degraded || all.Networks[0].EndpointCount != 3 {
		t.Errorf("networks %+v, error %v", all, err)
	}
	if len(all.Networks[0].Endpoints) != 0 {
		t.Error("the summary has endpoints")
	}
	nodes, err := c.d.Nodes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var states []string
	for _, n := range nodes.Nodes {
		states = append(states, n.Name+" "+n.State)
		if n.Networks != 1 {
			t.Errorf("%s has %d networks, want 1", n.Name, n.Networks)
		}
	}
	if got := strings.Join(states, ", "); got != "node1 local, node2 ok, node3 DOWN" {
		t.Errorf("nodes: %s", got)
	}
}

func TestHealthTellsWhetherTheStoreAnswers(t *testing.T) {
	t.Parallel() // it waits
	c := newCluster(t)
	if h := c.d.Health(t.Context()); h.Store != "" || h.Node != "node1" {
		t.Errorf("health %+v", h)
	}
	c.mem.SetAvailable(false)
	if h := c.d.Health(t.Context()); h.Store == "" {
		t.Error("a store that is away is not told")
	}
}

func TestAFullSubnetIsADegradation(t *testing.T) {
	f := facts{
		network: network{
			Network: store.Network{Name: "n", MTU: 1450, Subnets: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/30")}},
		},
	}
	f.counts = map[netip.Prefix]uint64{f.network.Subnets[0]: 1}
	if r := judge(f); r.Verdict != Healthy {
		t.Errorf("half full: verdict %s: %+v", r.Verdict, r.Reasons)
	}
	f.counts[f.network.Subnets[0]] = 2
	expect(t, judge(f), Degraded, "10.0.0.0/30", "full: 2 of 2")
}

func TestTenThousandEndpointsAreReportedWithinASecond(t *testing.T) {
	c := newCluster(t)
	var last int64
	var backends []store.Backend
	for i := 10; i < 10010; i += 40 {
		var ops []store.Op
		for j := i; j < min(i+40, 10010); j++ {
			e := endpointRecord(j, 1+j%3)
			ops = append(
				ops,
				store.Put(store.EndpointKey("my-net", e.ID), store.Encode(e)),
				c.lease(e.IPv4.Addr(), store.LeaseEndpoint),
				store.Put(store.NameKey("my-net", e.ID), store.Encode(store.Name{
					Network: "my-net", Endpoint: e.ID, Container: fmt.Sprintf("web.%d.x81nqk3v5s7bqz0xk9f2l4m6p", j), Service: "web",
				})),
			)
			backends = append(backends, task(fmt.Sprintf("web.%d", j), j, false))
		}
		last = c.put(ops...)
	}
	c.serve(backends[:2000]...)
	if err := c.mirror.Wait(t.Context(), store.NetworkEndpoints("my-net"), last); err != nil {
		t.Fatal(err)
	}
	begin := cpuTime(t)
	r := c.report()
	took := cpuTime(t) - begin
	if r.EndpointCount != 10003 || r.Services[0].Ready != 2000 || took > slowdown*time.Second {
		t.Errorf("%d endpoints took %s of CPU, want 10003 with a service of 2000 within 1 s", r.EndpointCount, took)
	}
	t.Logf("10,003 endpoints, a service of 2,000 tasks: %s of CPU", took)
}

// cpuTime is what this process has used: the time of a busy machine says nothing.
func cpuTime(t *testing.T) time.Duration {
	t.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// fakeFilter is this node's packet filter.
type fakeFilter struct {
	counts  map[string]firewall.Count
	problem error
}

func (f fakeFilter) Kind() string   { return "nftables" }
func (f fakeFilter) Problem() error { return f.problem }
func (f fakeFilter) Receipts() []firewall.Receipt {
	return []firewall.Receipt{{Time: start, Op: "nft add"}}
}
func (f fakeFilter) Counts(context.Context, string) (map[string]firewall.Count, error) {
	return f.counts, nil
}

func TestWhatThePacketFilterDropsIsShown(t *testing.T) {
	c := newCluster(t)
	c.d.src.Filter = fakeFilter{counts: map[string]firewall.Count{"stranger": {Packets: 6}, "container": {Packets: 2}}}
	r := c.report()
	if a := r.Admission; a == nil || a.Strangers != 6 || a.Containers != 2 || a.Filter != "nftables" || len(a.Drifts) != 1 {
		t.Errorf("admission %+v", a)
	}
	if r.Verdict != Healthy {
		t.Errorf("dropped packets are nothing wrong with the network: %v", r.Reasons)
	}
	c.d.src.Filter = fakeFilter{problem: unix.ENOMEM}
	if r := c.report(); r.Verdict != Degraded || !strings.Contains(r.Reasons[0].Cause, unix.ENOMEM.Error()) {
		t.Errorf("a filter that fails: %s %v", r.Verdict, r.Reasons)
	}
	c.d.src.Filter, c.d.src.Unfiltered = nil, "no nf_tables"
	if r := c.report(); r.Verdict != Degraded || !strings.Contains(r.Reasons[0].Remedy, "UDP port 4789") {
		t.Errorf("no filter: %s %v", r.Verdict, r.Reasons)
	}
}
