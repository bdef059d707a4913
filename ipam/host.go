package ipam

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/netdriver/netdriver/store"
)

// ErrOutside says that somebody outside the cluster has an address.
var ErrOutside = errors.New("choose another, or end its use there")

// LeaseNode leases an address of a pool for this node itself, which endpoint is to have. Asked again it answers the same. It
// is one of this host's range, if Docker named that when it asked for the pool, moments ago.
func (s *Service) LeaseNode(ctx context.Context, subnet netip.Prefix, endpoint string) (a netip.Addr, err error) {
	r := request{PoolID: PoolID{Space: LocalSpace, Subnet: subnet, Range: s.rangeOf(subnet)}, endpoint: endpoint}
	kvs, _, err := s.cfg.Store.List(ctx, store.PoolLeases(subnet))
	if err != nil {
		return a, err
	}
	for _, kv := range kvs {
		l, err := store.Decode[store.Lease](kv)
		if err == nil && l.Kind == store.LeaseNode && l.Node == s.cfg.Node && l.Endpoint == endpoint {
			return l.Address, nil
		}
	}
	err = again(func() error {
		a, err = s.allocate(ctx, r)
		return err
	})
	return a, err
}

// vet asks whether somebody outside the cluster has an address that is to be given out.
func (s *Service) vet(ctx context.Context, r request, a netip.Addr) error {
	if s.cfg.Vet == nil {
		return nil
	}
	return s.cfg.Vet(ctx, r.Subnet, a)
}

// CheckRoutes refuses a subnet that one of a host's routes overlaps.
func CheckRoutes(subnet netip.Prefix, routes []netip.Prefix, host string) error {
	if r, ok := overlap(subnet, routes); ok {
		return fmt.Errorf("subnet %s overlaps the route to %s on host %s (see `ip route`); choose another --subnet "+
			"or remove the route",
			subnet, r, host)
	}
	return nil
}

// noteRange remembers where this host allocates in a pool: an address for the node itself is asked for without Docker, which
// has the range in its own id of the pool only.
func (s *Service) noteRange(subnet, rng netip.Prefix) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ranges[subnet] = rng
}

func (s *Service) rangeOf(subnet netip.Prefix) netip.Prefix {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ranges[subnet]
}
