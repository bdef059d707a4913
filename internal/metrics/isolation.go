package metrics

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/netdriver/netdriver/dataplane"
	"github.com/netdriver/netdriver/dataplane/firewall"
	"github.com/netdriver/netdriver/store"
	"github.com/netdriver/netdriver/vxlan"
)

// Filter is what is counted in the host's packet filter; *firewall.Filter is the real one.
type Filter interface {
	// Totals are what our rules there have matched, by their names.
	Totals(ctx context.Context) (map[string]firewall.Count, error)
	// Drift is how many operations repaired what others had changed.
	Drift() uint64
}

// isolation reads what was dropped when somebody scrapes.
type isolation struct {
	src Sources

	frames, packets *prometheus.Desc
}

func newIsolation(src Sources) *isolation {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(namespace+"_"+name, help, labels, nil)
	}
	return &isolation{
		src: src,
		frames: desc("dropped_frames_total", "Frames dropped at this node's endpoints: sent with an address that is not the endpoint's "+
			"own (spoofed), for it and allowed by no rule (denied), above its rate (too_fast).", "network", "endpoint", "reason"),
		packets: desc("filter_dropped_packets_total", "Packets that a rule of netdriver's in the host's packet filter has dropped, by the rule's "+
			"counter.", "counter"),
	}
}

// Describe implements prometheus.Collector.
func (i *isolation) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{i.frames, i.packets} {
		ch <- d
	}
}

// Collect implements prometheus.Collector. What this kernel cannot count is left out.
func (i *isolation) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), askStore)
	defer cancel()
	networks := map[string]vxlan.VNI{}
	ports := map[string]string{} // endpoints here by their device
	i.src.Mirror.Read(func(r *store.Records) {
		for name, all := range r.Endpoints {
			for id, e := range all {
				if e.Node == i.src.Node && r.Networks[name].VNI != 0 {
					networks[name], ports[dataplane.PortName(id)] = r.Networks[name].VNI, id
				}
			}
		}
	})
	count := func(d *prometheus.Desc, n uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
	}
	for name, vni := range networks {
		drops, err := i.src.Plane.Drops(ctx, vni)
		if err != nil {
			continue
		}
		for _, d := range drops {
			if id, known := ports[d.Port]; known {
				for reason, n := range map[string]uint64{"spoofed": d.Spoofed, "denied": d.Denied, "too_fast": d.TooFast} {
					count(i.frames, n, name, id, reason)
				}
			}
		}
	}
	if i.src.Filter == nil {
		return
	}
	totals, err := i.src.Filter.Totals(ctx)
	if err != nil {
		return
	}
	for name, c := range totals {
		count(i.packets, c.Packets, name)
	}
}
