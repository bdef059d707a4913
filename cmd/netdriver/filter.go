package main

import (
	"context"
	"log/slog"

	"github.com/netdriver/netdriver/dataplane/firewall"
	"github.com/netdriver/netdriver/diag"
	"github.com/netdriver/netdriver/driver"
)

// hostFilter is the host's packet filter. Without one netdriver runs all the same, and says what that means.
type hostFilter struct {
	kernel firewall.Kernel
	filter *firewall.Filter // nil if there is none
	lack   string           // why there is none
}

func openFilter(ctx context.Context, log *slog.Logger) hostFilter {
	kernel, err := firewall.Open(ctx, "")
	if err != nil {
		log.Warn("VXLAN packets are accepted from anybody, and no network can be encrypted", "error", err)
		return hostFilter{lack: err.Error()}
	}
	log.Info("the host has a packet filter", "kind", kernel.Name())
	return hostFilter{kernel: kernel, filter: firewall.New(kernel, log)}
}

// close leaves the rules as they are.
func (h hostFilter) close() {
	if h.kernel != nil {
		_ = h.kernel.Close() // a socket that was only used for exchanges that ended
	}
}

// The two that want it must not be given a filter that is nil.
func (h hostFilter) forDriver() driver.Filter {
	if h.filter == nil {
		return nil
	}
	return h.filter
}

func (h hostFilter) forDiag() diag.Filter {
	if h.filter == nil {
		return nil
	}
	return h.filter
}

// parts are those that keep the rules as they should be.
func (h hostFilter) parts() []part {
	if h.filter == nil {
		return nil
	}
	return []part{{"packet filter", h.filter.Run}}
}
