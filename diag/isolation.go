package diag

import (
	"context"

	"github.com/netdriver/netdriver/dataplane"
	"github.com/netdriver/netdriver/store"
)

// Isolation says how a network's endpoints are kept from each other.
type Isolation struct {
	// Isolate: they reach only the gateway and services. Allow are the rules; what none allows is denied.
	Isolate bool     `json:"isolate,omitempty"`
	Allow   []string `json:"allow,omitempty"`
	// Rate in bits per second of endpoints without one of their own; 0 is none.
	Rate uint64 `json:"rate,omitempty"`
}

// Drops is what was dropped at an endpoint's port: Spoofed are frames from it with an address that is not its own, Denied
// those to it that no rule allows, TooFast those above its rate.
type Drops struct {
	Spoofed uint64 `json:"spoofed"`
	Denied  uint64 `json:"denied"`
	TooFast uint64 `json:"tooFast"`
}

// Any says whether anything was dropped.
func (d Drops) Any() bool { return d != Drops{} }

// isolation is nil in a network that keeps nobody from anybody.
func (f facts) isolation() *Isolation {
	i := f.network.Isolation
	if !i.Judged() && i.Rate == 0 {
		return nil
	}
	return &Isolation{Isolate: i.Isolate, Allow: i.Allow, Rate: i.Rate}
}

// dropped returns what was dropped at this node's ports of a network, by device. Counters that cannot be read are only
// missing.
func (d *Diagnosis) dropped(ctx context.Context, nw network) map[string]Drops {
	out := map[string]Drops{}
	all, err := d.src.Plane.Drops(ctx, nw.VNI)
	if err != nil {
		return out
	}
	for _, c := range all {
		out[c.Port] = Drops{Spoofed: c.Spoofed, Denied: c.Denied, TooFast: c.TooFast}
	}
	return out
}

// dropsOf returns what was dropped at an endpoint's port, nil if that is not counted here.
func (f facts) dropsOf(e store.Endpoint) *Drops {
	d, counted := f.dropped[dataplane.PortName(e.ID)]
	if !counted || e.Node != f.me.Name {
		return nil
	}
	return &d
}
