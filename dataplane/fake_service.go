package dataplane

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/dataplane/balance"
	"github.com/netdriver/netdriver/vxlan"
)

// Unsupported makes the kernel one that cannot balance services.
func (f *Fake) Unsupported() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.unsupported = true
}

// Balances implements Kernel.
func (f *Fake) Balances() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.unsupported {
		return balance.ErrUnsupported
	}
	return nil
}

// Counts implements Kernel: every backend is there, and nothing was sent to it.
func (f *Fake) Counts(_ context.Context, v vxlan.VNI) ([]balance.Count, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []balance.Count
	if n := f.nets[v]; n != nil {
		for _, s := range n.Services {
			for _, b := range s.Backends {
				out = append(out, balance.Count{Backend: balance.Backend{
					Service: s.ID, Address: b.Address, MAC: b.MAC, Draining: b.Draining}})
			}
		}
	}
	slices.SortStableFunc(out, func(a, b balance.Count) int { return a.Address.Compare(b.Address) })
	return out, nil
}

func (o Op) onEntry() bool {
	return slices.Contains([]Verb{PutFDB, PutNeighbour, Announce, DelFDB, DelNeighbour}, o.Verb)
}

func (o Op) onService() bool {
	return slices.Contains([]Verb{PutBackend, PutVIP, DelVIP, DelBackend}, o.Verb)
}

// balance performs an operation on a service, which is there as long as anything of it is. An operation on a network of
// which nothing is there has no effect that lasts, as in Linux, where nothing would hold the maps.
func (f *Fake) balance(n *Network, op Op) error {
	if f.unsupported {
		return balance.ErrUnsupported
	}
	i, found := slices.BinarySearchFunc(n.Services, Service{ID: op.Service}, compareServices)
	if !found {
		if removes(op) {
			return nil
		}
		n.Services = slices.Insert(n.Services, i, Service{ID: op.Service})
	}
	s := &n.Services[i]
	err := s.change(n, op)
	n.Services = slices.DeleteFunc(n.Services, func(s Service) bool { return len(s.VIPs)+len(s.Backends) == 0 })
	return err
}

func (s *Service) change(n *Network, op Op) error {
	b := Backend{Address: op.Address, MAC: op.MAC, Draining: op.Draining}
	i, found := slices.BinarySearchFunc(s.Backends, b, compareBackends)
	switch {
	case op.Verb == PutBackend && found:
		s.Backends[i] = b
	case op.Verb == PutBackend:
		s.Backends = slices.Insert(s.Backends, i, b)
	case op.Verb == DelBackend && found:
		s.Backends = slices.Delete(s.Backends, i, i+1)
	case op.Verb == PutVIP:
		return s.putVIP(n, op)
	case op.Verb == DelVIP:
		s.VIPs = slices.DeleteFunc(s.VIPs, func(a netip.Addr) bool { return a == op.Address })
	}
	return nil
}

// putVIP takes the address from whichever service had it.
func (s *Service) putVIP(n *Network, op Op) error {
	targets, err := parseTargets(op.Backends)
	if err != nil {
		return err
	}
	for _, t := range targets {
		if _, found := slices.BinarySearchFunc(s.Backends, Backend{Address: t.Address, MAC: t.MAC}, compareBackends); !found {
			return fmt.Errorf("no backend %s: %w", t.Address, unix.ENOENT)
		}
	}
	for i := range n.Services {
		n.Services[i].VIPs = slices.DeleteFunc(n.Services[i].VIPs, func(a netip.Addr) bool { return a == op.Address })
	}
	s.VIPs = append(s.VIPs, op.Address)
	slices.SortFunc(s.VIPs, netip.Addr.Compare)
	s.Stale = false
	return nil
}

func (n *Network) attach(endpoint string) {
	for i := range n.Ports {
		n.Ports[i].Balanced = n.Ports[i].Balanced || n.Ports[i].Endpoint == endpoint
	}
}

// detach takes the programs off a port. Without a port that has them the maps are gone.
func (n *Network) detach(endpoint string) {
	left := false
	for i := range n.Ports {
		if n.Ports[i].Endpoint == endpoint {
			n.Ports[i].Balanced = false
		}
		left = left || n.Ports[i].Balanced
	}
	if !left {
		n.Services = nil
	}
}
