package metrics

import (
	"context"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/netdriver/netdriver/store"
)

// askStore bounds what a scrape waits for the store: Prometheus gives up after 10 s by default.
const askStore = time.Second

// state reads the present state when somebody scrapes, so that nothing is counted twice and nothing goes stale.
type state struct {
	src Sources

	networks, endpoints, nodes    *prometheus.Desc
	wanted, applied, lag          *prometheus.Desc
	storeUp, storeRevision        *prometheus.Desc
	leases, usable, conflicts     *prometheus.Desc
	reads, runs, failures, drifts *prometheus.Desc
}

func newState(src Sources) *state {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(namespace+"_"+name, help, labels, nil)
	}
	return &state{
		src:      src,
		networks: desc("networks", "Networks of the cluster, by whether this node has them (here, elsewhere).", "place"),
		endpoints: desc(
			"endpoints",
			"Endpoints of the networks that this node has, by where they are (local, remote).",
			"network",
			"place",
		),
		nodes: desc(
			"nodes",
			"Nodes of the cluster: known ones, and those of them whose daemon is connected to the store (alive).",
			"state",
		),
		wanted: desc(
			"network_wanted_revision",
			"Revision of the store at which a network of this node last changed.",
			"network",
		),
		applied: desc(
			"network_applied_revision",
			"Revision up to which this node's kernel agrees with a network's records, as published.",
			"network",
		),
		lag: desc(
			"network_lag_revisions",
			"Wanted revision minus applied one: 0 in a network that is up to date.",
			"network",
		),
		storeUp:       desc("store_up", "1 if the store answers, else 0."),
		storeRevision: desc("store_revision", "The store's present revision."),
		leases:        desc("pool_leases", "Leased addresses of a pool, reserved ones included.", "pool"),
		usable:        desc("pool_usable_addresses", "Addresses of a pool that can be leased.", "pool"),
		conflicts:     desc("address_conflicts", "Addresses of the cluster's networks that somebody outside the cluster was found to have."),
		reads: desc("kernel_reads_total", "Networks read from the kernel, by data plane (overlay; host: macvlan, ipvlan, bridges of one "+
			"host, and the host's own places).", "plane"),
		runs:     desc("kernel_changes_total", "Operations run on the kernel, removals of whole networks included, by data plane.", "plane"),
		failures: desc("kernel_failures_total", "Attempts to change the kernel in which an operation failed, by data plane.", "plane"),
		drifts: desc("drift_repairs_total", "Operations that repaired what something else had changed, by data plane; filter is the host's "+
			"packet filter.", "plane"),
	}
}

// Describe implements prometheus.Collector.
func (s *state) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		s.networks, s.endpoints, s.nodes, s.wanted, s.applied, s.lag, s.storeUp, s.storeRevision, s.leases, s.usable, s.reads, s.runs,
		s.failures, s.drifts, s.conflicts,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (s *state) Collect(ch chan<- prometheus.Metric) {
	c := s.src.Plane.Counters()
	s.totals(ch, "overlay", c.Reads, c.Ops, c.Failures, c.Drift)
	if s.src.LAN != nil {
		c := s.src.LAN.Counters()
		s.totals(ch, "host", c.Reads, c.Ops, c.Failures, c.Drift)
	}
	if s.src.Filter != nil {
		ch <- prometheus.MustNewConstMetric(s.drifts, prometheus.CounterValue, float64(s.src.Filter.Drift()), "filter")
	}
	here, pools := s.records(ch)
	ctx, cancel := context.WithTimeout(context.Background(), askStore)
	defer cancel()
	s.fromStore(ctx, ch, here, pools)
}

// totals tells what a data plane has done.
func (s *state) totals(ch chan<- prometheus.Metric, plane string, reads, runs, failures, drifts uint64) {
	for d, v := range map[*prometheus.Desc]uint64{s.reads: reads, s.runs: runs, s.failures: failures, s.drifts: drifts} {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), plane)
	}
}

func gauge[N int | int64 | uint64](ch chan<- prometheus.Metric, d *prometheus.Desc, v N, labels ...string) {
	ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v), labels...)
}

// records counts what the mirror has. It returns the networks that this node has, and all pools.
func (s *state) records(ch chan<- prometheus.Metric) (here []string, pools []netip.Prefix) {
	type count struct{ local, remote int }
	endpoints := map[string]count{}
	var all, nodes, alive int
	s.src.Mirror.Read(func(r *store.Records) {
		all, nodes = len(r.Networks), len(r.Nodes)
		for name, n := range r.Nodes {
			if id, ok := r.Alive[name]; ok && id == n.ID {
				alive++
			}
		}
		for p := range r.Pools {
			pools = append(pools, p)
		}
		for name, nw := range r.Networks {
			if !s.has(nw) {
				continue
			}
			here = append(here, name)
			var c count
			for _, e := range r.Endpoints[name] {
				if e.Node == s.src.Node {
					c.local++
				} else {
					c.remote++
				}
			}
			endpoints[name] = c
		}
	})
	gauge(ch, s.networks, len(here), "here")
	gauge(ch, s.networks, all-len(here), "elsewhere")
	gauge(ch, s.nodes, nodes, "known")
	gauge(ch, s.nodes, alive, "alive")
	for name, c := range endpoints {
		gauge(ch, s.endpoints, c.local, name, "local")
		gauge(ch, s.endpoints, c.remote, name, "remote")
	}
	return here, pools
}

// has says whether this node is a member.
func (s *state) has(nw store.Network) bool {
	for _, m := range nw.Members {
		if m.Node == s.src.Node {
			return true
		}
	}
	return false
}

// fromStore tells what only the store knows; without it there is nothing but store_up 0.
func (s *state) fromStore(ctx context.Context, ch chan<- prometheus.Metric, here []string, pools []netip.Prefix) {
	kvs, revision, err := s.src.Store.List(ctx, store.StatusKey(s.src.Node))
	if err != nil {
		gauge(ch, s.storeUp, 0)
		return
	}
	gauge(ch, s.storeUp, 1)
	gauge(ch, s.storeRevision, revision)
	for _, p := range pools {
		if n, err := s.src.Store.Count(ctx, store.PoolLeases(p)); err == nil {
			gauge(ch, s.leases, n, p.String())
			gauge(ch, s.usable, store.Usable(p), p.String())
		}
	}
	if n, err := s.src.Store.Count(ctx, store.ConflictPrefix); err == nil {
		gauge(ch, s.conflicts, n)
	}
	var status store.Status
	for _, kv := range kvs {
		if st, err := store.Decode[store.Status](kv); err == nil && kv.Key == store.StatusKey(s.src.Node) {
			status = st
		}
	}
	for _, name := range here {
		wanted, applied := s.src.Mirror.Revision(name), status.Applied[name]
		gauge(ch, s.wanted, wanted, name)
		gauge(ch, s.applied, applied, name)
		gauge(ch, s.lag, max(0, wanted-applied), name)
	}
}
