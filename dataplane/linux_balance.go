//go:build linux

package dataplane

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/dataplane/balance"
	"github.com/netdriver/netdriver/internal/netlink"
	"github.com/netdriver/netdriver/vxlan"
)

const (
	// loopback is the index of lo in every network namespace (LOOPBACK_IFINDEX of linux/if.h).
	loopback = 1
	// lookAtPrograms is how often we look whether programs are still where we put them: the kernel tells nobody.
	lookAtPrograms = 500 * time.Millisecond
)

// balancers are the maps and programs of networks whose services are balanced, as far as this process knows them.
type balancers struct {
	mu  sync.Mutex
	all map[vxlan.VNI]*balancer
}

// balancer is that of one network, with the ports that have the programs: names by index.
type balancer struct {
	*balance.Set
	ports map[int32]string
}

// Balances implements Kernel.
func (l *Linux) Balances() error { return l.balances() }

// probeBalancing is tried once, on the loopback device of our namespace.
func (l *Linux) probeBalancing() error {
	return netlink.In(l.ours, func() error { return balance.Supported(loopback) })
}

// port is a local port's device.
type portDevice struct {
	index int32
	name  string
}

// balancer returns a network's, found through the programs on its ports if this process does not know it yet. It is nil
// if there is none.
func (l *Linux) balancer(v vxlan.VNI, ports []portDevice) (*balancer, error) {
	b := l.balancing.all[v]
	for _, p := range ports {
		if b != nil {
			break
		}
		set, err := balance.Adopt(int(p.index))
		if errors.Is(err, unix.ENODEV) {
			continue // gone meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("take over the balancing of port %s: %w", p.name, err)
		}
		if set != nil {
			b = &balancer{set, map[int32]string{}}
			l.balancing.all[v] = b
		}
	}
	if b == nil {
		return nil, nil
	}
	for _, p := range ports {
		if on, err := b.Attached(int(p.index)); err == nil && on {
			b.ports[p.index] = p.name
		} else {
			delete(b.ports, p.index)
		}
	}
	return b, nil
}

// inBalancing runs f on a thread in our namespace, where devices' indexes are those of our devices.
func (l *Linux) inBalancing(f func() error) error {
	l.balancing.mu.Lock()
	defer l.balancing.mu.Unlock()
	return netlink.In(l.ours, f)
}

// readServices adds to the networks what is balanced in them.
func (r *reader) readServices() error {
	ports := map[vxlan.VNI][]portDevice{}
	for i, o := range r.owners {
		if o.endpoint != "" {
			ports[o.vni] = append(ports[o.vni], portDevice{i, o.name})
		}
	}
	if len(ports) == 0 {
		return nil
	}
	return r.l.inBalancing(func() error {
		for v, devices := range ports {
			b, err := r.l.balancer(v, devices)
			if err != nil {
				return err
			}
			if b == nil {
				continue
			}
			if err := b.read(r.nets[v]); err != nil {
				return err
			}
		}
		return nil
	})
}

// read puts what the maps hold into n.
func (b *balancer) read(n *Network) error {
	for i := range n.Ports {
		for _, name := range b.ports {
			n.Ports[i].Balanced = n.Ports[i].Balanced || name == PortName(n.Ports[i].Endpoint)
		}
	}
	vips, backends, err := b.Read()
	if err != nil {
		return err
	}
	n.Services = servicesOf(vips, backends)
	return nil
}

// servicesOf puts services together.
func servicesOf(vips []balance.VIP, backends []balance.Backend) []Service {
	byID := map[string]*Service{}
	service := func(id string) *Service {
		if byID[id] == nil {
			byID[id] = &Service{ID: id}
		}
		return byID[id]
	}
	for _, b := range backends {
		s := service(b.Service)
		s.Backends = append(s.Backends, Backend{Address: b.Address, MAC: b.MAC, Draining: b.Draining})
	}
	for _, v := range vips {
		s := service(v.Service)
		s.VIPs = append(s.VIPs, v.Address)
		s.Stale = s.Stale || v.Broken || !slices.Equal(v.Backends, s.targets(v.Address))
	}
	var all []Service
	for _, s := range byID {
		slices.SortFunc(s.VIPs, netip.Addr.Compare)
		all = append(all, *s)
	}
	slices.SortFunc(all, compareServices)
	return all
}

// balance performs one operation on the maps and programs of a network.
func (r *run) balance(op Op) error {
	r.flush() // the port may have just been made
	b, err := r.l.balancerFor(op)
	if err != nil || b == nil {
		return err
	}
	switch op.Verb {
	case PutBackend:
		return b.PutBackend(op.backend())
	case DelBackend:
		probes, err := b.DelBackend(op.backend())
		return errors.Join(err, r.l.send(probes))
	case PutVIP:
		targets, err := parseTargets(op.Backends)
		if err != nil {
			return err
		}
		return b.PutVIP(balance.VIP{Address: op.Address, Service: op.Service, Backends: targets})
	case DelVIP:
		return b.DelVIP(op.Address)
	}
	index, err := r.find(op, op.Device)
	if err != nil {
		return err
	}
	return r.l.inBalancing(func() error {
		if op.Verb == Detach {
			err := b.Detach(int(index))
			r.l.forgetPort(op.VNI, op.Device) // after its last use: with the last port the maps are given up
			return err
		}
		if err := b.Attach(int(index)); err != nil {
			return err
		}
		b.ports[index] = op.Device
		return nil
	})
}

// balancerFor returns the network's balancer, which is made if op puts something; nil if there is nothing to remove from.
func (l *Linux) balancerFor(op Op) (*balancer, error) {
	l.balancing.mu.Lock()
	b := l.balancing.all[op.VNI]
	l.balancing.mu.Unlock()
	if b != nil {
		return b, nil
	}
	ports, err := l.portsOf(op.VNI)
	if err != nil {
		return nil, err
	}
	err = l.inBalancing(func() (err error) {
		if b, err = l.balancer(op.VNI, ports); err != nil || b != nil || removes(op) {
			return err
		}
		set, err := balance.New()
		if err != nil {
			return err
		}
		b = &balancer{set, map[int32]string{}}
		l.balancing.all[op.VNI] = b
		return nil
	})
	return b, err
}

// portsOf lists a network's ports.
func (l *Linux) portsOf(v vxlan.VNI) ([]portDevice, error) {
	devices, owners, err := l.devices(l.in)
	if err != nil {
		return nil, err
	}
	var out []portDevice
	for i, o := range owners {
		if o.vni == v && o.endpoint != "" {
			out = append(out, portDevice{i, devices[i].name})
		}
	}
	return out, nil
}

// send sends the probes. A device that is gone meanwhile has no client.
func (l *Linux) send(probes []balance.Probe) error {
	var errs []error
	for _, p := range probes {
		to := &unix.SockaddrLinklayer{Ifindex: p.Device, Halen: 6}
		if err := unix.Sendto(l.frames, p.Frame, 0, to); err != nil && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.ENXIO) {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("tell clients that the backend is gone: %w", err)
	}
	return nil
}

func (o Op) backend() balance.Backend {
	return balance.Backend{Service: o.Service, Address: o.Address, MAC: o.MAC, Draining: o.Draining}
}

// forgetPort drops a port that is about to lose its programs, and with the last one, or with the bridge, the maps.
func (l *Linux) forgetPort(v vxlan.VNI, device string) {
	b := l.balancing.all[v]
	if b == nil {
		return
	}
	for i, name := range b.ports {
		if name == device {
			delete(b.ports, i)
		}
	}
	if len(b.ports) > 0 && device != BridgeName(v) {
		return
	}
	delete(l.balancing.all, v)
	if err := b.Close(); err != nil {
		l.log.Error("cannot give up what balanced services", "vni", v, "error", err)
	}
}

// Counts implements Kernel.
func (l *Linux) Counts(_ context.Context, v vxlan.VNI) ([]balance.Count, error) {
	ports, err := l.portsOf(v)
	if err != nil {
		return nil, err
	}
	var counts []balance.Count
	err = l.inBalancing(func() error {
		b, err := l.balancer(v, ports)
		if err == nil && b != nil {
			counts, err = b.Counts()
		}
		return err
	})
	return counts, err
}

// watchPrograms tells of programs that others took off a port, until ctx ends.
func (l *Linux) watchPrograms(ctx context.Context, send func(Event)) {
	tick := time.NewTicker(lookAtPrograms)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for _, e := range append(l.detached(), l.unlimited()...) {
			send(e)
		}
	}
}

// detached returns an event for every port that has lost a program.
func (l *Linux) detached() (events []Event) {
	l.balancing.mu.Lock()
	idle := len(l.balancing.all) == 0
	l.balancing.mu.Unlock()
	if idle {
		return nil
	}
	err := l.inBalancing(func() error {
		for v, b := range l.balancing.all {
			for i, name := range b.ports {
				if on, err := b.Attached(int(i)); err == nil && !on { // an error means that the device is gone
					events = append(events, Event{VNI: v, Device: name, Detached: true})
				}
			}
		}
		return nil
	})
	if err != nil {
		l.log.Error("cannot look at the programs on ports", "error", err)
	}
	slices.SortFunc(events, func(a, b Event) int { return strings.Compare(a.Device, b.Device) })
	return events
}
