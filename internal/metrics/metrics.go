// Package metrics counts what the daemon does and serves it to Prometheus, from a registry of its own. docs/metrics.md
// is made from it.
package metrics

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/netdriver/netdriver/dataplane"
	"github.com/netdriver/netdriver/dataplane/balance"
	"github.com/netdriver/netdriver/dataplane/guard"
	"github.com/netdriver/netdriver/dataplane/lan"
	"github.com/netdriver/netdriver/driver"
	"github.com/netdriver/netdriver/store"
	"github.com/netdriver/netdriver/vxlan"
)

const (
	namespace = "netdriver"
	// headerTimeout is what a scraper may take to send its request.
	headerTimeout = 5 * time.Second
)

// Sources is what is looked at when somebody scrapes.
type Sources struct {
	Store  store.Store
	Mirror *store.Mirror
	Plane  Plane
	// LAN, Filter and Encryption may be nil.
	LAN        LAN
	Filter     Filter
	Encryption Encryption
	// Node is this node's name, Version the program's.
	Node, Version string
}

// Plane is what is counted in the data plane; *dataplane.Plane is the real one.
type Plane interface {
	Counters() dataplane.Counters
	Counts(ctx context.Context, vni vxlan.VNI) ([]balance.Count, error)
	Drops(ctx context.Context, vni vxlan.VNI) ([]guard.Drops, error)
}

// LAN is what is counted in the data plane of the host's own networks; *lan.Plane is the real one.
type LAN interface {
	Counters() lan.Counters
}

// Metrics is one daemon's registry and the counters that the daemon feeds.
type Metrics struct {
	registry *prometheus.Registry

	calls       *prometheus.CounterVec
	callTime    *prometheus.HistogramVec
	reconciles  *prometheus.HistogramVec
	operations  *prometheus.CounterVec
	lastSuccess prometheus.Gauge
}

// New makes the metrics of a daemon.
func New(src Sources) *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Name: "plugin_calls_total", Help: "Docker's calls by method and result (ok, error).",
		}, []string{"method", "result"}),
		callTime: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: namespace, Name: "plugin_call_duration_seconds", Help: "How long Docker's calls took, by method.",
			Buckets: prometheus.ExponentialBuckets(.0005, 2, 16), // 0.5 ms to 16 s; a call ends after 25 s
		}, []string{"method"}),
		reconciles: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: namespace, Name: "reconcile_duration_seconds",
			Help:    "How long it took to make the kernel as wanted, per network and pass.",
			Buckets: prometheus.ExponentialBuckets(.0001, 4, 9), // 0.1 ms to 6.5 s
		}, []string{"result"}),
		operations: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Name: "kernel_operations_total",
			Help: "Changes made to the kernel while reconciling, by kind.",
		}, []string{"kind"}),
		lastSuccess: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: namespace, Name: "reconcile_last_success_timestamp_seconds",
			Help: "When a network was last found or made as wanted.",
		}),
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Namespace: namespace, Name: "build_info", Help: "1, with the program's version.",
		ConstLabels: prometheus.Labels{"version": src.Version, "goversion": runtime.Version()},
	})
	build.Set(1)
	m.registry.MustRegister(m.calls, m.callTime, m.reconciles, m.operations, m.lastSuccess, build,
		newState(src), newServices(src), newIsolation(src), newEncryption(src), collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// ObserveCall counts one of Docker's calls.
func (m *Metrics) ObserveCall(method string, err error, took time.Duration) {
	m.calls.WithLabelValues(method, result(err)).Inc()
	m.callTime.WithLabelValues(method).Observe(took.Seconds())
}

// ObserveReconciliation counts one pass of the driver over a network.
func (m *Metrics) ObserveReconciliation(r driver.Reconciliation) {
	m.reconciles.WithLabelValues(result(r.Err)).Observe(r.Took.Seconds())
	for _, op := range r.Ops {
		m.operations.WithLabelValues(kind(op.Verb)).Inc()
	}
	if r.Err == nil {
		m.lastSuccess.SetToCurrentTime()
	}
}

func result(err error) string {
	if err != nil {
		return "error"
	}
	return "ok"
}

// kind names a verb as a label.
func kind(v dataplane.Verb) string {
	names := map[dataplane.Verb]string{
		dataplane.AddBridge: "add_bridge", dataplane.AddVXLAN: "add_vxlan", dataplane.AddPort: "add_port",
		dataplane.SetMaster: "set_master",
		dataplane.SetFlags:  "set_flags", dataplane.SetMTU: "set_mtu", dataplane.SetUp: "set_up", dataplane.PutFDB: "put_fdb",
		dataplane.PutNeighbour: "put_neighbour", dataplane.Announce: "announce",
		dataplane.PutBackend: "put_backend", dataplane.PutVIP: "put_vip", dataplane.Attach: "attach",
		dataplane.DelVIP: "del_vip", dataplane.DelBackend: "del_backend", dataplane.Detach: "detach",
		dataplane.DelFDB: "del_fdb", dataplane.DelNeighbour: "del_neighbour",
		dataplane.DelLink: "del_link", dataplane.MakeGuard: "make_guard", dataplane.PutGuard: "put_guard",
		dataplane.DelGuard: "del_guard", dataplane.SetRate: "set_rate", dataplane.DelRate: "del_rate",
	}
	if name, ok := names[v]; ok {
		return name
	}
	return "other"
}

// Handler serves the metrics.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}

// Serve serves /metrics at addr until ctx ends; the error is nil then.
func (m *Metrics) Serve(ctx context.Context, addr string, log *slog.Logger) error {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	if err != nil {
		return fmt.Errorf("serve metrics: %w; choose another address with --metrics", err)
	}
	log.Info("serving metrics", "url", "http://"+l.Addr().String()+"/metrics")
	return m.serve(ctx, l, log)
}

func (m *Metrics) serve(ctx context.Context, l net.Listener, log *slog.Logger) error {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", m.Handler())
	srv := &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: headerTimeout,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve metrics: %w", err)
	}
	return nil
}
