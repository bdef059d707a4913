//go:build e2e

package page

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/netdriver/netdriver/diag"
	"github.com/netdriver/netdriver/internal/control"
	"github.com/netdriver/netdriver/internal/page"
	"github.com/netdriver/netdriver/store"
	"github.com/netdriver/netdriver/vxlan"
)

// fake is a cluster that is made up. It answers as a daemon does.
type fake struct {
	mu       sync.Mutex
	networks []diag.NetworkReport // with endpoints
	nodes    []diag.Node
	checks   diag.CheckReport
	away     error // the store is not to be asked
	begin    time.Time
}

var _ control.Reporter = (*fake)(nil)

// nodeName is the i-th node's; the first one is the one that all is seen from.
func nodeName(i int) string { return fmt.Sprintf("node%d", i+1) }

// newFake makes a healthy cluster. Each network has a number of endpoints on the nodes that member says.
func newFake(nodes, networks int, endpoints func(network int) int, member func(network, node int) bool) *fake {
	f := &fake{begin: time.Now()}
	for i := range nodes {
		f.nodes = append(f.nodes, diag.Node{
			Name: nodeName(i), ID: fmt.Sprint(i), VTEP: netip.AddrFrom4([4]byte{192, 0, 2 + byte(i/250), byte(1 + i%250)}), UnderlayMTU: 1500,
			Version: "v1.2.3", Docker: "20.10.24", State: diag.StateOK, Started: f.begin.Add(-3 * time.Hour), LastStatus: f.begin,
		})
	}
	f.nodes[0].State, f.nodes[0].Role = diag.StateLocal, "leader"
	for k := range networks {
		f.networks = append(f.networks, f.network(k, endpoints(k), member))
	}
	return f
}

// network makes one network and its endpoints.
func (f *fake) network(k, endpoints int, member func(network, node int) bool) diag.NetworkReport {
	names := []string{"web", "database", "monitoring", "queue", "cache", "my-net"}
	name := names[k%len(names)]
	if k >= len(names) {
		name = fmt.Sprintf("%s-%d", name, k/len(names)+1)
	}
	subnet := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 10 + byte(k), 0, 0}), 16)
	n := diag.NetworkReport{
		Schema: diag.Schema, Network: name, Verdict: diag.Healthy, Reasons: []diag.Reason{}, Node: nodeName(0), Mode: store.ModeOverlay,
		VNI: vxlan.VNI(4097 + k), Port: 4789, MTU: diag.MTU{MTU: 1450, Underlay: 1500, Overhead: 50, Derived: "1450 = 1500 underlay − 50 VXLAN"},
		Subnets: []diag.Subnet{{
			Subnet: subnet, Gateway: subnet.Addr().Next(), Usable: 65534, Used: uint64(endpoints), Reserved: 2,
		}},
		Kernel: diag.Kernel{Checked: true, InSync: true}, EndpointCount: endpoints, Revision: diag.Revision{Applied: 8841, Wanted: 8841, Store: 9000},
		Admission: &diag.Admission{Filter: "nftables"},
	}
	var members []int
	for i := range f.nodes {
		if member(k, i) {
			members = append(members, i)
		}
	}
	n.Member = len(members) > 0 && members[0] == 0
	counts := map[int]int{}
	for i := range endpoints {
		on := members[(i*7)%len(members)]
		counts[on]++
		a := netip.AddrFrom4([4]byte{10, 10 + byte(k), byte((i + 2) >> 8), byte(i + 2)})
		n.Endpoints = append(n.Endpoints, diag.Endpoint{
			ID: fmt.Sprintf("%04x%08x", k, i), Container: fmt.Sprintf("%s.%d", name, i+1), Node: nodeName(on), Addresses: []netip.Addr{a},
			MAC: vxlan.MACFor(a), Phase: store.PhaseJoined, Created: f.begin, SeenBy: len(members), Members: len(members),
		})
	}
	for _, i := range members {
		n.Peers = append(n.Peers, diag.Peer{
			Node: nodeName(i), Address: f.nodes[i].VTEP, State: f.nodes[i].State, Applied: 8841, UnderlayMTU: 1500, Endpoints: counts[i], LastStatus: f.begin,
		})
		f.nodes[i].Networks++
	}
	return n
}

// fault is one thing that is wrong at a node, which is in that state then.
func (f *fake) fault(network int, verdict diag.Verdict, node int, state, cause, remedy string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := &f.networks[network]
	if n.Verdict != diag.Failed {
		n.Verdict = verdict
	}
	n.Reasons = append(n.Reasons, diag.Reason{Verdict: verdict, Cause: cause, Place: fmt.Sprintf("%s (%s)", nodeName(node), f.nodes[node].VTEP), Remedy: remedy})
	if state == "" {
		return
	}
	f.nodes[node].State = state
	n.Peers = append([]diag.Peer{}, n.Peers...)
	for i := range n.Peers {
		if n.Peers[i].Node == nodeName(node) {
			n.Peers[i].State = state
		}
	}
}

// down lets a node die in all networks.
func (f *fake) down(node int) {
	for k := range f.networks {
		for _, p := range f.networks[k].Peers {
			if p.Node == nodeName(node) {
				f.fault(k, diag.Degraded, node, diag.StateDown,
					fmt.Sprintf("%s is not connected to the store; its %d endpoints may be unreachable", p.Node, p.Endpoints),
					"start its host or its `netdriver run`; if they run, check its way to the store")
			}
		}
	}
}

func (f *fake) data() diag.Data { return diag.Data{Source: diag.SourceStore, Taken: time.Now()} }

func (f *fake) Network(_ context.Context, name string) (diag.NetworkReport, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, n := range f.networks {
		if n.Network == name {
			n.Data = f.data()
			return n, nil
		}
	}
	return diag.NetworkReport{}, fmt.Errorf("%w %q", diag.ErrNoNetwork, name)
}

func (f *fake) Networks(context.Context) (diag.NetworksReport, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := diag.NetworksReport{Schema: diag.Schema, Networks: []diag.NetworkReport{}, Data: f.data()}
	if f.away != nil {
		return r, f.away
	}
	for _, n := range f.networks {
		n.Endpoints, n.Services = nil, nil
		r.Networks = append(r.Networks, n)
	}
	return r, nil
}

func (f *fake) Nodes(context.Context) (diag.NodesReport, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return diag.NodesReport{Schema: diag.Schema, Nodes: append([]diag.Node{}, f.nodes...), Data: f.data()}, f.away
}

func (f *fake) Health(context.Context) diag.Health {
	return diag.Health{Schema: diag.Schema, Node: nodeName(0), Version: "v1.2.3"}
}

func (f *fake) Check(context.Context, string) (diag.CheckReport, error) { return f.checks, nil }

func (f *fake) Trace(context.Context, diag.Ask) (diag.Trace, error) { return diag.Trace{}, nil }

func (f *fake) Diff(context.Context, string) (diag.DiffReport, error) { return diag.DiffReport{}, nil }

// Traffic counts evenly, in each network and at each endpoint of the node.
func (f *fake) Traffic(_ context.Context, node string) (diag.Traffic, error) {
	if node == "" {
		node = nodeName(0)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	t := diag.Traffic{Schema: diag.TrafficSchema, Node: node, Networks: []diag.NetworkTraffic{}, Data: f.data()}
	seconds := t.Data.Taken.Sub(f.begin).Seconds()
	for k, n := range f.networks {
		flow := func(part float64) diag.Flow {
			bytes := uint64(part * seconds * 125e3 * float64(k+1))
			return diag.Flow{Sent: bytes / 1000, SentBytes: bytes, Received: bytes / 1200, ReceivedBytes: bytes / 3}
		}
		row := diag.NetworkTraffic{Network: n.Network, Peers: flow(1), Endpoints: []diag.EndpointTraffic{}}
		for _, e := range n.Endpoints {
			if e.Node == node {
				row.Endpoints = append(row.Endpoints, diag.EndpointTraffic{ID: e.ID, Flow: flow(.2)})
			}
		}
		t.Networks = append(t.Networks, row)
	}
	return t, nil
}

// handler is the page about a cluster, as a daemon serves it.
func (f *fake) handler() http.Handler {
	quiet := slog.New(slog.DiscardHandler)
	return (&page.Server{Reports: control.NewServer(f, quiet), Log: quiet}).Handler()
}

// serve serves the page until the test ends, and returns its address.
func (f *fake) serve(t *testing.T) string {
	t.Helper()
	web := httptest.NewServer(f.handler())
	t.Cleanup(web.Close)
	return web.URL + "/"
}
