package metrics

import (
	"context"
	"net/netip"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/netdriver/netdriver/dataplane/balance"
	"github.com/netdriver/netdriver/store"
	"github.com/netdriver/netdriver/vxlan"
)

// services reads the state of a swarm's services, and what clients here have sent to them, when somebody scrapes.
type services struct {
	src Sources

	count, backends, flows, bytes *prometheus.Desc
}

func newServices(src Sources) *services {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(namespace+"_"+name, help, labels, nil)
	}
	return &services{
		src: src,
		count: desc("services",
			"Services of a swarm in the networks that this node has, by whether a task takes new connections (yes, no; idle: it is scaled to 0).",
			"network", "ready"),
		backends: desc("service_backends", "Tasks of these services, by state (ready, draining, no endpoint).",
			"network", "state"),
		flows: desc("service_flows_total",
			"Flows that clients on this node began to a task through its service's virtual address.",
			"network", "service", "address"),
		bytes: desc("service_sent_bytes_total", "Bytes, with Ethernet headers, that went to a task in these flows.",
			"network", "service", "address"),
	}
}

// Describe implements prometheus.Collector.
func (s *services) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{s.count, s.backends, s.flows, s.bytes} {
		ch <- d
	}
}

// served is a network with services: their names by id, and how many of them and their tasks are in which state.
type served struct {
	vni      vxlan.VNI
	names    map[string]string
	ready    map[string]int
	backends map[string]int
}

// Collect implements prometheus.Collector.
func (s *services) Collect(ch chan<- prometheus.Metric) {
	for network, n := range s.read() {
		for ready, count := range n.ready {
			gauge(ch, s.count, count, network, ready)
		}
		for state, count := range n.backends {
			gauge(ch, s.backends, count, network, state)
		}
		counts, err := s.src.Plane.Counts(context.Background(), n.vni)
		if err != nil {
			continue // this kernel cannot balance, which inspect tells
		}
		s.sent(ch, network, n, counts)
	}
}

// read counts what the mirror has.
func (s *services) read() map[string]served {
	out := map[string]served{}
	s.src.Mirror.Read(func(r *store.Records) {
		for network, all := range r.Services {
			if len(all) == 0 {
				continue
			}
			n := served{
				vni: r.Networks[network].VNI, names: map[string]string{}, ready: map[string]int{"yes": 0, "no": 0, "idle": 0},
				backends: map[string]int{store.BackendReady: 0, store.BackendDraining: 0, store.BackendAbsent: 0},
			}
			holders := store.ByAddress(r.Endpoints[network])
			for id, service := range all {
				n.names[id] = service.Name
				ready := "no"
				if service.Idle {
					ready = "idle"
				}
				for _, b := range service.Backends {
					state, _ := b.State(holders)
					n.backends[state]++
					if state == store.BackendReady {
						ready = "yes"
					}
				}
				n.ready[ready]++
			}
			out[network] = n
		}
	})
	return out
}

// sent tells what went to each backend. An address that has moved to another MAC is one backend all the same.
func (s *services) sent(ch chan<- prometheus.Metric, network string, n served, counts []balance.Count) {
	type destination struct {
		service string
		address netip.Addr
	}
	flows, bytes := map[destination]uint64{}, map[destination]uint64{}
	for _, c := range counts {
		if name, known := n.names[c.Service]; known {
			flows[destination{name, c.Address}] += c.Flows
			bytes[destination{name, c.Address}] += c.Bytes
		}
	}
	for at, v := range flows {
		labels := []string{network, at.service, at.address.String()}
		ch <- prometheus.MustNewConstMetric(s.flows, prometheus.CounterValue, float64(v), labels...)
		ch <- prometheus.MustNewConstMetric(s.bytes, prometheus.CounterValue, float64(bytes[at]), labels...)
	}
}
