package metrics

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"

	"github.com/netdriver/netdriver/dataplane"
	"github.com/netdriver/netdriver/dataplane/balance"
	"github.com/netdriver/netdriver/dataplane/firewall"
	"github.com/netdriver/netdriver/dataplane/guard"
	"github.com/netdriver/netdriver/dataplane/lan"
	"github.com/netdriver/netdriver/driver"
	"github.com/netdriver/netdriver/store"
	"github.com/netdriver/netdriver/vxlan"
)

var update = flag.Bool("update", false, "write docs/metrics.md")

// counters is a data plane that has done something.
type counters struct{}

func (counters) Counters() dataplane.Counters {
	return dataplane.Counters{Reads: 11, Ops: 12, Failures: 13, Drift: 14}
}

func (counters) Counts(_ context.Context, vni vxlan.VNI) ([]balance.Count, error) {
	if vni != 7 {
		return nil, balance.ErrUnsupported
	}
	to := balance.Backend{Service: "s1", Address: netip.MustParseAddr("10.10.0.2"), MAC: vxlan.MAC{2, 1}}
	moved, gone := to, to
	moved.MAC, gone.Service = vxlan.MAC{2, 2}, "gone"
	return []balance.Count{
		{Backend: to, Flows: 5, Bytes: 500}, {Backend: moved, Flows: 1, Bytes: 50}, {Backend: gone, Flows: 9, Bytes: 9},
	}, nil
}

func (counters) Drops(_ context.Context, vni vxlan.VNI) ([]guard.Drops, error) {
	if vni != 7 {
		return nil, guard.ErrUnsupported
	}
	return []guard.Drops{{Port: dataplane.PortName("e0"), Spoofed: 21, Denied: 22, TooFast: 23}, {Port: "another", Spoofed: 1}}, nil
}

// hosts is a data plane of the host's own networks, and its packet filter.
type hosts struct{}

func (hosts) Counters() lan.Counters {
	return lan.Counters{Reads: 31, Ops: 32, Failures: 33, Drift: 34}
}

func (hosts) Drift() uint64 { return 35 }

func (hosts) Totals(context.Context) (map[string]firewall.Count, error) {
	return map[string]firewall.Count{"underlay-stranger": {Packets: 6}}, nil
}

// pairs is an encryption with one peer, and one that is blocked.
type pairs struct{}

func (pairs) Protection(context.Context) (store.Protection, error) {
	return store.Protection{
		Epoch: 7, Drops: store.ProtectionDrops{PlainIn: 1, FilterOut: 2, Forged: 3},
		Pairs: []store.Pair{
			{Peer: "node2", SAs: []store.SA{
				{SPI: 256, Packets: 10, Bytes: 1000}, {SPI: 257, In: true, Packets: 5, Bytes: 500, Forged: 1},
				{SPI: 258, In: true, Packets: 6, Bytes: 600, Replayed: 1, Late: 1},
			}},
			{Peer: "node3", Blocked: "away"},
		},
	}, nil
}

// daemon is the metrics of a node1 that has a network web with one endpoint of its own and two of node2's, has seen
// some calls, and knows a network that is elsewhere.
func daemon(t *testing.T) (*Metrics, *store.Memory) {
	t.Helper()
	mem := store.NewMemory()
	subnet := netip.MustParsePrefix("10.10.0.0/24")
	put := func(ops ...store.Op) int64 {
		rev, err := mem.Commit(t.Context(), nil, ops...)
		if err != nil {
			t.Fatal(err)
		}
		return rev
	}
	for i, node := range []string{"node1", "node2", "node2"} {
		a := netip.AddrFrom4([4]byte{10, 10, 0, byte(i + 2)})
		e := store.Endpoint{
			ID: fmt.Sprintf(
				"e%d",
				i,
			), Network: "web", Node: node, IPv4: netip.PrefixFrom(a, 24), MAC: vxlan.MACFor(a), Phase: store.PhaseJoined,
		}
		put(store.Put(store.EndpointKey("web", e.ID), store.Encode(e)),
			store.Put(store.LeaseKey(subnet, a), store.Encode(store.Lease{Address: a, Kind: store.LeaseEndpoint, Node: node})))
	}
	members := map[string][]store.Member{"web": {{Node: "node1"}, {Node: "node2"}}, "other": {{Node: "node2"}}}
	for name, members := range members {
		put(store.Put(store.NetworkKey(name), store.Encode(store.Network{
			Name: name, Mode: store.ModeOverlay, VNI: 7, Port: 4789, MTU: 1450, Members: members,
		})))
	}
	put(store.Put(store.ServiceKey("web", "s1"), store.Encode(store.Service{
		ID: "s1", Name: "front", Network: "web", VIPs: []netip.Addr{netip.MustParseAddr("10.10.0.99")},
		Backends: []store.Backend{
			{Task: "t1", Addresses: []netip.Addr{netip.MustParseAddr("10.10.0.2")}},
			{Task: "t2", Addresses: []netip.Addr{netip.MustParseAddr("10.10.0.3")}, Draining: true},
			{Task: "t3", Addresses: []netip.Addr{netip.MustParseAddr("10.10.0.200")}},
		},
	})), store.Put(store.ServiceKey("web", "s2"), store.Encode(store.Service{ID: "s2", Name: "broken", Network: "web"})),
		store.Put(store.ServiceKey("web", "s3"), store.Encode(store.Service{ID: "s3", Name: "idle", Network: "web", Idle: true})))
	put(store.Put(store.PoolKey(subnet), store.Encode(store.Pool{Subnet: subnet, Network: "web"})))
	for i, name := range []string{"node1", "node2"} {
		put(
			store.Put(
				store.NodeKey(name),
				store.Encode(store.Node{Name: name, ID: name, VTEP: netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)})}),
			),
		)
	}
	put(store.PutAlive(store.AliveKey("node1"), []byte("node1")))
	mirror := follow(t, mem)
	put(
		store.Put(
			store.StatusKey("node1"),
			store.Encode(store.Status{Applied: map[string]int64{"web": mirror.Revision("web") - 2}}),
		),
	)
	put(store.Put(store.StatusKey("node11"), store.Encode(store.Status{Applied: map[string]int64{"web": 1}})))

	m := New(Sources{Store: mem, Mirror: mirror, Plane: counters{}, LAN: hosts{}, Filter: hosts{}, Encryption: pairs{}, Node: "node1", Version: "v1.2.3"})
	m.ObserveCall("NetworkDriver.Join", nil, 3*time.Millisecond)
	m.ObserveCall("NetworkDriver.Join", errors.New("no"), time.Second)
	m.ObserveReconciliation(
		driver.Reconciliation{
			Network: "web",
			Took:    time.Millisecond,
			Ops:     []dataplane.Op{{Verb: dataplane.PutFDB}, {Verb: dataplane.PutFDB}, {Verb: dataplane.AddPort}},
		},
	)
	m.ObserveReconciliation(driver.Reconciliation{Network: "web", Took: time.Millisecond, Err: errors.New("no")})
	return m, mem
}

// follow returns a mirror that has read everything.
func follow(t *testing.T, mem *store.Memory) *store.Mirror {
	t.Helper()
	mirror := store.NewMirror(mem, slog.New(slog.DiscardHandler))
	mirror.Follow("web")
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { _ = mirror.Run(ctx); close(done) }()
	t.Cleanup(func() { cancel(); <-done })
	if err := mirror.WaitSynced(t.Context(), "web"); err != nil {
		t.Fatal(err)
	}
	return mirror
}

// scrape returns the lines that a scraper gets, over TCP.
func scrape(t *testing.T, m *Metrics) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.serve(ctx, l, slog.New(slog.DiscardHandler)) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("after its end: %v", err)
		}
	}()
	res, err := http.Get("http://" + l.Addr().String() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("status %s, error %v", res.Status, err)
	}
	return string(body)
}

func TestAScrapeTellsWhatTheDaemonDidAndKnows(t *testing.T) {
	m, _ := daemon(t)
	got := scrape(t, m)
	for _, want := range []string{
		`netdriver_plugin_calls_total{method="NetworkDriver.Join",result="ok"} 1`,
		`netdriver_plugin_calls_total{method="NetworkDriver.Join",result="error"} 1`,
		`netdriver_plugin_call_duration_seconds_count{method="NetworkDriver.Join"} 2`,
		`netdriver_reconcile_duration_seconds_count{result="ok"} 1`,
		`netdriver_reconcile_duration_seconds_count{result="error"} 1`,
		`netdriver_kernel_operations_total{kind="put_fdb"} 2`,
		`netdriver_kernel_operations_total{kind="add_port"} 1`,
		`netdriver_kernel_reads_total{plane="overlay"} 11`, `netdriver_kernel_reads_total{plane="host"} 31`,
		`netdriver_kernel_changes_total{plane="host"} 32`, `netdriver_kernel_failures_total{plane="host"} 33`,
		`netdriver_drift_repairs_total{plane="host"} 34`, `netdriver_drift_repairs_total{plane="filter"} 35`,
		`netdriver_dropped_frames_total{endpoint="e0",network="web",reason="spoofed"} 21`,
		`netdriver_dropped_frames_total{endpoint="e0",network="web",reason="denied"} 22`,
		`netdriver_dropped_frames_total{endpoint="e0",network="web",reason="too_fast"} 23`,
		`netdriver_filter_dropped_packets_total{counter="underlay-stranger"} 6`, `netdriver_address_conflicts 0`,
		`netdriver_kernel_changes_total{plane="overlay"} 12`,
		`netdriver_kernel_failures_total{plane="overlay"} 13`,
		`netdriver_drift_repairs_total{plane="overlay"} 14`,
		`netdriver_networks{place="here"} 1`,
		`netdriver_networks{place="elsewhere"} 1`,
		`netdriver_endpoints{network="web",place="local"} 1`,
		`netdriver_endpoints{network="web",place="remote"} 2`,
		`netdriver_nodes{state="known"} 2`,
		`netdriver_nodes{state="alive"} 1`,
		`netdriver_pool_leases{pool="10.10.0.0/24"} 3`,
		`netdriver_pool_usable_addresses{pool="10.10.0.0/24"} 254`,
		`netdriver_network_lag_revisions{network="web"} 2`,
		`netdriver_store_up 1`,
		`netdriver_services{network="web",ready="yes"} 1`,
		`netdriver_services{network="web",ready="no"} 1`,
		`netdriver_services{network="web",ready="idle"} 1`,
		`netdriver_service_backends{network="web",state="ready"} 1`,
		`netdriver_service_backends{network="web",state="draining"} 1`,
		`netdriver_service_backends{network="web",state="no endpoint"} 1`,
		`netdriver_service_flows_total{address="10.10.0.2",network="web",service="front"} 6`,
		`netdriver_service_sent_bytes_total{address="10.10.0.2",network="web",service="front"} 550`,
		`netdriver_encryption_pairs{state="open"} 1`,
		`netdriver_encryption_pairs{state="blocked"} 1`,
		`netdriver_encryption_epoch 7`,
		`netdriver_encryption_dropped_packets{reason="plain_in"} 1`,
		`netdriver_encryption_dropped_packets{reason="filter_out"} 2`,
		`netdriver_encryption_sa_bytes{direction="in",peer="node2"} 1100`,
		`netdriver_encryption_sa_packets{direction="out",peer="node2"} 10`,
		`netdriver_encryption_sa_replayed_packets{peer="node2"} 2`,
		`netdriver_encryption_sa_forged_packets{peer="node2"} 1`,
		`netdriver_build_info{goversion="go`,
		`process_resident_memory_bytes`,
	} {
		if !strings.Contains(got, want) {
			t.Errorf("the scrape has no %s", want)
		}
	}
	if strings.Contains(got, `service="gone"`) || strings.Contains(got, "} 9\n") {
		t.Error("a service that is gone is counted")
	}
	if strings.Contains(got, `network="other"`) {
		t.Error("a network that is elsewhere has revisions or endpoints")
	}
}

func TestAScrapeWorksWithoutTheStore(t *testing.T) {
	m, mem := daemon(t)
	mem.SetAvailable(false)
	begin := time.Now()
	got := scrape(t, m)
	if !strings.Contains(got, "netdriver_store_up 0") ||
		!strings.Contains(got, `netdriver_endpoints{network="web",place="remote"} 2`) {
		t.Errorf("store_up is not 0, or what the node knows is missing:\n%s", got)
	}
	if took := time.Since(begin); took > 3*time.Second {
		t.Errorf("it took %s", took)
	}
}

func TestNamesFollowPrometheusConventions(t *testing.T) {
	m, _ := daemon(t)
	problems, err := testutil.GatherAndLint(m.registry)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

func TestEveryOperationOfTheKernelHasAKind(t *testing.T) {
	for v := dataplane.AddBridge; v <= dataplane.DelLink; v++ {
		if kind(v) == "other" {
			t.Errorf("verb %d has none", v)
		}
	}
	if kind(0) != "other" {
		t.Error("no verb has a kind")
	}
}

func TestAnAddressThatCannotBeServedIsToldWithTheSetting(t *testing.T) {
	m, _ := daemon(t)
	err := m.Serve(t.Context(), "192.0.2.200:1", slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(err.Error(), "--metrics") {
		t.Errorf("error %v, want the remedy", err)
	}
}

func TestTheDocumentListsEveryMetric(t *testing.T) {
	const path = "../../docs/metrics.md"
	m, _ := daemon(t)
	want := document(t, m)
	if *update {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("%s is not made from the registry; go test ./internal/metrics -update (-want +got):\n%s", path, diff)
	}
}

// document is the text of docs/metrics.md.
func document(t *testing.T, m *Metrics) string {
	t.Helper()
	families, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	b.WriteString("# Metrics\n\n" +
		"`netdriver run --metrics :9472` serves these at `/metrics`, besides those of the Go runtime\n" +
		"(`go_…`) and the process (`process_…`). What needs the store is left out while it is away;\n" +
		"`netdriver_store_up` is 0 then.\n\n| metric | type | labels | what |\n|---|---|---|---|\n")
	for _, f := range families {
		if strings.HasPrefix(f.GetName(), namespace+"_") {
			kind := strings.ToLower(f.GetType().String())
			fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", f.GetName(), kind, labels(f), f.GetHelp())
		}
	}
	b.WriteString("\nThree files in `deploy/` use them: `prometheus.yml` has a job that scrapes them, `netdriver.rules.yml` alerts, each with what it\n" +
		"means and the command that finds the cause, and `grafana.json` is a dashboard: import it and choose your Prometheus.\n")
	return b.String()
}

func labels(f *dto.MetricFamily) string {
	var names []string
	for _, l := range f.GetMetric()[0].GetLabel() {
		names = append(names, "`"+l.GetName()+"`")
	}
	return strings.Join(names, ", ")
}
