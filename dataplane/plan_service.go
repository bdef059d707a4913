package dataplane

import (
	"bytes"
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/netdriver/netdriver/dataplane/balance"
	"github.com/netdriver/netdriver/internal/sorted"
	"github.com/netdriver/netdriver/vxlan"
)

// balanced returns n with what follows from its services: all ports have the programs, or none. Without a port there is
// nobody here to balance for, and nothing that could hold the maps.
func (n Network) balanced() Network {
	if len(n.Ports) == 0 {
		n.Services = nil
	}
	on := len(n.Services) > 0
	if slices.ContainsFunc(n.Ports, func(p Port) bool { return p.Balanced != on }) {
		n.Ports = slices.Clone(n.Ports)
		for i := range n.Ports {
			n.Ports[i].Balanced = on
		}
	}
	return n
}

// services plans the balancing: backends, then the tables of new flows, then the programs, so that no packet meets a
// table whose backends are not there; the other way round when things go.
func (p *planner) services() {
	if len(p.want.Ports) == 0 { // the maps go with the ports
		return
	}
	attach, detach := p.attachments()
	if len(p.want.Services) == 0 && slices.ContainsFunc(p.have.Ports, func(port Port) bool { return port.Balanced }) {
		p.dels = slices.Concat(detach, p.dels) // and with the last program
		return
	}
	var dels []Op
	put := map[netip.Addr]bool{}
	sorted.Merge(p.have.Services, p.want.Services, compareServices, func(have, want *Service) {
		dels = append(dels, p.service(have, want, put)...)
	})
	// A virtual address that another service has now was put there, and so it is gone here.
	dels = slices.DeleteFunc(dels, func(o Op) bool { return o.Verb == DelVIP && put[o.Address] })
	slices.SortStableFunc(dels, func(a, b Op) int { return cmp.Compare(a.Verb, b.Verb) })
	// The programs come after what they need.
	p.ops = append(p.ops, attach...)
	p.dels = slices.Concat(detach, dels, p.dels)
}

// attachments returns the operations that put programs on ports, and those that take them off.
func (p *planner) attachments() (attach, detach []Op) {
	sorted.Merge(p.have.Ports, p.want.Ports, comparePorts, func(have, want *Port) {
		switch {
		case want == nil: // goes with its programs
		case want.Balanced && (have == nil || !have.Balanced):
			attach = append(attach, p.on(Attach, PortName(want.Endpoint), want.Endpoint))
		case !want.Balanced && have != nil && have.Balanced:
			detach = append(detach, p.on(Detach, PortName(have.Endpoint), have.Endpoint))
		}
	})
	return attach, detach
}

// service plans one service and returns the removals. put collects the virtual addresses that get a table.
func (p *planner) service(have, want *Service, put map[netip.Addr]bool) (dels []Op) {
	var was, is Service
	if have != nil {
		was = *have
	}
	if want != nil {
		is = *want
	}
	changed := was.Stale
	sorted.Merge(was.Backends, is.Backends, compareBackends, func(h, w *Backend) {
		switch {
		case w == nil:
			changed = true
			dels = append(dels, p.backend(DelBackend, was.ID, *h))
		case h == nil || h.Draining != w.Draining:
			changed = true
			p.ops = append(p.ops, p.backend(PutBackend, is.ID, *w))
		}
	})
	for _, vip := range is.VIPs {
		if changed || !slices.Contains(was.VIPs, vip) {
			put[vip] = true
			op := p.on(PutVIP, "", "")
			op.Service, op.Address, op.Backends = is.ID, vip, formatTargets(is.targets(vip))
			p.ops = append(p.ops, op)
		}
	}
	for _, vip := range was.VIPs {
		if !slices.Contains(is.VIPs, vip) {
			op := p.on(DelVIP, "", "")
			op.Service, op.Address = was.ID, vip
			dels = append(dels, op)
		}
	}
	return dels
}

func (p *planner) backend(v Verb, service string, b Backend) Op {
	op := p.on(v, "", "")
	op.Service, op.Address, op.MAC = service, b.Address, b.MAC
	op.Draining = v == PutBackend && b.Draining
	return op
}

// compareServices and compareBackends are the orders of their slices. Another MAC makes another backend: another
// container has the address now, which knows nothing of the flows.
func compareServices(a, b Service) int { return cmp.Compare(a.ID, b.ID) }

func compareBackends(a, b Backend) int {
	return cmp.Or(a.Address.Compare(b.Address), bytes.Compare(a.MAC[:], b.MAC[:]))
}

// targets are the backends that new flows to a virtual address of the service go to: those of its family.
func (s Service) targets(vip netip.Addr) []balance.Target {
	var out []balance.Target
	for _, b := range s.Backends {
		if !b.Draining && b.Address.Is4() == vip.Is4() {
			out = append(out, balance.Target{Address: b.Address, MAC: b.MAC})
		}
	}
	return out
}

// formatTargets writes backends as "address=MAC address=MAC", so that an Op stays a value.
func formatTargets(all []balance.Target) string {
	words := make([]string, len(all))
	for i, t := range all {
		words[i] = t.Address.String() + "=" + t.MAC.String()
	}
	return strings.Join(words, " ")
}

func parseTargets(s string) ([]balance.Target, error) {
	var out []balance.Target
	for _, word := range strings.Fields(s) {
		a, m, _ := strings.Cut(word, "=")
		address, err := netip.ParseAddr(a)
		if err != nil {
			return nil, fmt.Errorf("backend %q: %w", word, err)
		}
		mac, err := vxlan.ParseMAC(m)
		if err != nil {
			return nil, fmt.Errorf("backend %q: %w", word, err)
		}
		out = append(out, balance.Target{Address: address, MAC: mac})
	}
	return out, nil
}
