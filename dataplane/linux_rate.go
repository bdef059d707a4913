//go:build linux

package dataplane

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/dataplane/rate"
	"github.com/netdriver/netdriver/vxlan"
)

// limited is a port that has a limit, as far as this process knows.
type limited struct {
	vni  vxlan.VNI
	name string
}

// rate limits a port, or takes the limit off.
func (r *run) rate(op Op) error {
	r.flush() // the port may have just been made
	index, err := r.find(op, op.Device)
	if err != nil {
		return err
	}
	return r.l.inBalancing(func() error {
		if op.Verb == DelRate {
			delete(r.l.limits, index)
			return rate.Clear(int(index))
		}
		r.l.limits[index] = limited{op.VNI, op.Device}
		return rate.Set(int(index), op.Limit)
	})
}

// readRates adds the ports' limits. A kernel without eBPF has none.
func (r *reader) readRates() error {
	if r.l.Balances() != nil {
		return nil
	}
	return r.l.inBalancing(func() error {
		for i, o := range r.owners {
			if o.endpoint == "" {
				continue
			}
			limit, _, _, err := rate.Read(int(i))
			if errors.Is(err, unix.ENODEV) {
				continue // gone meanwhile
			}
			if err != nil {
				return fmt.Errorf("read the limit of %s: %w", o.name, err)
			}
			n := r.nets[o.vni]
			for k := range n.Ports {
				if n.Ports[k].Endpoint == o.endpoint {
					n.Ports[k].Limit = limit
				}
			}
			if limit != (rate.Limit{}) {
				r.l.limits[i] = limited{o.vni, o.name}
			}
		}
		return nil
	})
}

// unlimited returns an event for every port that has lost its limit.
func (l *Linux) unlimited() (events []Event) {
	l.balancing.mu.Lock()
	idle := len(l.limits) == 0
	l.balancing.mu.Unlock()
	if idle {
		return nil
	}
	err := l.inBalancing(func() error {
		for i, port := range l.limits {
			limit, _, _, err := rate.Read(int(i))
			switch {
			case errors.Is(err, unix.ENODEV):
				delete(l.limits, i)
			case err == nil && limit == rate.Limit{}:
				events = append(events, Event{VNI: port.vni, Device: port.name, Detached: true})
			}
		}
		return nil
	})
	if err != nil {
		l.log.Error("cannot look at the limits of ports", "error", err)
	}
	return events
}

// tooFast returns how many packets the limits of ports have cost. A limit that cannot be read has none to tell.
func (l *Linux) tooFast(ports []portDevice) map[string]uint64 {
	out := map[string]uint64{}
	if l.Balances() != nil {
		return out
	}
	err := l.inBalancing(func() error {
		for _, p := range ports {
			if limit, from, to, err := rate.Read(int(p.index)); err == nil && limit != (rate.Limit{}) {
				out[p.name] = from + to
			}
		}
		return nil
	})
	if err != nil {
		l.log.Error("cannot look at the limits of ports", "error", err)
	}
	return out
}
