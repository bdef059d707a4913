package main

import (
	"context"
	"log/slog"
	"sync"

	"github.com/netdriver/netdriver/dataplane/firewall"
	"github.com/netdriver/netdriver/diag"
	"github.com/netdriver/netdriver/driver"
	"github.com/netdriver/netdriver/internal/metrics"
)

// hostFilter is the host's packet filter. Without one netdriver runs all the same, and says what that means.
type hostFilter struct {
	kernel firewall.Kernel
	filter *firewall.Filter // nil if there is none
	lack   string           // why there is none
	// passage is Docker's own filter of forwarded packets, the old one, in which alone they can be let pass; nil if the host
	// has none.
	passage *passage
}

// passage is a filter that nothing is followed of before it has a rule: whoever has no bridge networks is spared it.
type passage struct {
	*firewall.Filter
	kernel firewall.Kernel
	used   chan struct{}
	once   sync.Once
}

func openPassage(log *slog.Logger) *passage {
	kernel, err := firewall.OpenIPTables("", false)
	if err != nil {
		log.Debug("no iptables: nobody drops what bridge networks forward", "error", err)
		return nil
	}
	return &passage{Filter: firewall.New(kernel, log), kernel: kernel, used: make(chan struct{})}
}

// Apply implements driver.Filter.
func (p *passage) Apply(ctx context.Context, s firewall.Ruleset) ([]firewall.Op, error) {
	if len(s.Chains) > 0 {
		p.once.Do(func() { close(p.used) })
	}
	return p.Filter.Apply(ctx, s)
}

// Run follows the filter as soon as it is used.
func (p *passage) Run(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-p.used:
	}
	return p.Filter.Run(ctx)
}

func openFilter(ctx context.Context, log *slog.Logger) hostFilter {
	kernel, err := firewall.Open(ctx, "")
	if err != nil {
		log.Warn("VXLAN packets are accepted from anybody, and no network can be encrypted", "error", err)
		return hostFilter{lack: err.Error()}
	}
	log.Info("the host has a packet filter", "kind", kernel.Name())
	return hostFilter{kernel: kernel, filter: firewall.New(kernel, log), passage: openPassage(log)}
}

// close leaves the rules as they are.
func (h hostFilter) close() {
	if h.kernel != nil {
		_ = h.kernel.Close() // a socket that was only used for exchanges that ended
	}
	if h.passage != nil {
		_ = h.passage.kernel.Close()
	}
}

// Those that want it must not be given a filter that is nil.
func (h hostFilter) forDriver() driver.Filter {
	if h.filter == nil {
		return nil
	}
	return h.filter
}

func (h hostFilter) forPassage() driver.Filter {
	if h.passage == nil {
		return nil
	}
	return h.passage
}

func (h hostFilter) forDiag() diag.Filter {
	if h.filter == nil {
		return nil
	}
	return h.filter
}

func (h hostFilter) forMetrics() metrics.Filter {
	if h.filter == nil {
		return nil
	}
	return h.filter
}

// onRepair has f told of what is repaired in either filter.
func (h hostFilter) onRepair(f func(did []string, failed error)) {
	if h.filter != nil {
		h.filter.OnRepair(f)
	}
	if h.passage != nil {
		h.passage.OnRepair(f)
	}
}

// parts are those that keep the rules as they should be.
func (h hostFilter) parts() []part {
	if h.filter == nil {
		return nil
	}
	parts := []part{{"packet filter", h.filter.Run}}
	if h.passage != nil {
		parts = append(parts, part{"Docker's packet filter", h.passage.Run})
	}
	return parts
}
