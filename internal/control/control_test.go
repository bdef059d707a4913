package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/netdriver/netdriver/diag"
	"github.com/netdriver/netdriver/store"
	"github.com/netdriver/netdriver/vxlan"
)

// reporter has one network.
type reporter struct{}

func network() diag.NetworkReport {
	return diag.NetworkReport{
		Schema: diag.Schema, Network: "my-net", Verdict: diag.Degraded,
		Reasons: []diag.Reason{{Verdict: diag.Degraded, Cause: "c", Place: "p", Remedy: "r"}},
		Node:    "node1", Member: true, Mode: store.ModeOverlay, VNI: 7, Port: 4789,
		Subnets: []diag.Subnet{{Subnet: netip.MustParsePrefix("2001:db8::/64"), Usable: 1<<64 - 1, Used: 2}},
		Peers:   []diag.Peer{{Node: "node1", Address: netip.MustParseAddr("192.0.2.1"), State: diag.StateLocal}},
		Endpoints: []diag.Endpoint{{
			ID: "e1", Node: "node1", Addresses: []netip.Addr{netip.MustParseAddr("2001:db8::2")},
			MAC: vxlan.MAC{2, 0, 0, 0, 0, 1}, SeenBy: -1,
		}},
		Data: diag.Data{Source: diag.SourceStore, Taken: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)},
	}
}

func (reporter) Network(_ context.Context, name string) (diag.NetworkReport, error) {
	switch name {
	case "my-net":
		return network(), nil
	case "away":
		return diag.NetworkReport{}, fmt.Errorf("read: %w", store.ErrUnavailable)
	}
	return diag.NetworkReport{}, fmt.Errorf("%w %q: the cluster has my-net", diag.ErrNoNetwork, name)
}

func (reporter) Networks(context.Context) (diag.NetworksReport, error) {
	return diag.NetworksReport{Schema: diag.Schema, Networks: []diag.NetworkReport{network()}}, nil
}

func (reporter) Nodes(context.Context) (diag.NodesReport, error) {
	return diag.NodesReport{Schema: diag.Schema, Nodes: []diag.Node{{Name: "node1"}}}, nil
}

func (reporter) Check(_ context.Context, peer string) (diag.CheckReport, error) {
	return diag.CheckReport{Schema: diag.CheckSchema, Node: "node1", Verdict: diag.Degraded, Findings: []diag.Finding{
		{Check: "peers", Severity: diag.Degraded, Place: peer, Cause: "c", Evidence: []string{"e"}, Remedy: "r"},
	}, Checks: []diag.CheckRow{{Name: "peers", Looks: "frames", Verdict: diag.Degraded}}}, nil
}

func (reporter) Trace(_ context.Context, a diag.Ask) (diag.Trace, error) {
	if a.Source == "" {
		return diag.Trace{}, diag.ErrNoSource
	}
	return diag.Trace{Schema: diag.TraceSchema, Verdict: diag.Failed, Network: a.Network, Source: diag.Party{Name: a.Source},
		Destination: diag.Party{Name: a.Destination}}, nil
}

func (reporter) Diff(_ context.Context, network string) (diag.DiffReport, error) {
	return diag.DiffReport{Schema: diag.DiffSchema, Node: "node1", Networks: []diag.NetworkDiff{
		{Network: network, Commands: []string{"ip link set ndb1 up"}},
	}}, nil
}

func (reporter) Traffic(context.Context, string) (diag.Traffic, error) {
	return diag.Traffic{Schema: diag.TrafficSchema, Node: "node1"}, nil
}

func (reporter) Health(context.Context) diag.Health {
	return diag.Health{Schema: diag.Schema, Node: "node1"}
}

// serve serves a real socket until the test ends.
func serve(t *testing.T) *Client {
	t.Helper()
	path := SocketPath(t.TempDir())
	if err := os.WriteFile(path, nil, 0o644); err != nil { // what a killed daemon left
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- NewServer(reporter{}, slog.New(slog.DiscardHandler)).Serve(ctx, path) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("after its end: %v", err)
		}
		if _, err := os.Stat(path); err == nil {
			t.Error("the socket is left behind")
		}
	})
	for range 1000 {
		if conn, err := net.Dial("unix", path); err == nil {
			conn.Close()
			return NewClient(path)
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatal("nobody serves the socket")
	return nil
}

func TestReportsArriveAsTheyWereMade(t *testing.T) {
	c := serve(t)
	got, err := c.Network(t.Context(), "my-net")
	if diff := cmp.Diff(network(), got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
		cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); err != nil || diff != "" {
		t.Errorf("error %v (-want +got):\n%s", err, diff)
	}
	if all, err := c.Networks(t.Context()); err != nil || len(all.Networks) != 1 {
		t.Errorf("networks %+v, error %v", all, err)
	}
	if nodes, err := c.Nodes(t.Context()); err != nil || len(nodes.Nodes) != 1 {
		t.Errorf("nodes %+v, error %v", nodes, err)
	}
	if h, err := c.Health(t.Context()); err != nil || h.Node != "node1" {
		t.Errorf("health %+v, error %v", h, err)
	}
}

func TestTheSocketIsForRootOnly(t *testing.T) {
	info, err := os.Stat(serve(t).socket.Path())
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, error %v; want 0600", info.Mode(), err)
	}
}

func TestAnUnknownNetworkIsA404WithTheKnownOnes(t *testing.T) {
	_, err := serve(t).Network(t.Context(), "we/b")
	if err == nil || !strings.Contains(err.Error(), `"we/b"`) || !strings.Contains(err.Error(), "my-net") {
		t.Errorf("error %v, want both names", err)
	}
	h := NewServer(reporter{}, slog.New(slog.DiscardHandler))
	for _, c := range []struct {
		method, path string
		status       int
	}{
		{http.MethodGet, "/v1/networks/my-net", http.StatusOK},
		{http.MethodGet, "/v1/networks/web", http.StatusNotFound},
		{http.MethodGet, "/v1/networks/away", http.StatusServiceUnavailable},
		{http.MethodGet, "/v2", http.StatusNotFound},
		{http.MethodPost, "/v1/nodes", http.StatusNotFound},
	} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(c.method, c.path, nil))
		isError := strings.HasPrefix(w.Body.String(), `{"error":"`)
		if w.Code != c.status || isError == (c.status == http.StatusOK) {
			t.Errorf("%s %s: status %d, want %d: %s", c.method, c.path, w.Code, c.status, w.Body)
		}
	}
}

func TestWithoutADaemonTheClientSaysHowToStartIt(t *testing.T) {
	missing := SocketPath(t.TempDir())
	stale := SocketPath(t.TempDir())
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	for what, path := range map[string]string{"missing": missing, "stale": stale} {
		_, err := NewClient(path).Nodes(t.Context())
		if !errors.Is(err, ErrNotRunning) || !strings.Contains(err.Error(), path) ||
			!strings.Contains(err.Error(), "netdriver run") {
			t.Errorf("%s socket: error %v", what, err)
		}
	}
}
