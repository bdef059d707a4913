package ipam

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/netdriver/netdriver/store"
)

// allocate does one try to lease the next free address where this host allocates.
func (s *Service) allocate(ctx context.Context, r request) (netip.Addr, error) {
	v := s.follow(r.Subnet)
	if err := v.wait(ctx); err != nil {
		return netip.Addr{}, err
	}
	var after netip.Addr
	for range retries {
		a, ok := v.take(r.allocates(), after)
		if !ok {
			return s.allocateLast(ctx, r)
		}
		if err := s.vet(ctx, r, a); err != nil {
			v.settle(a, holding{})
			if errors.Is(err, ErrOutside) {
				after = a
				continue
			}
			return a, err
		}
		h, err := s.write(ctx, r, a)
		v.settle(a, h)
		if err == nil {
			return a, nil
		}
		if !errors.Is(err, store.ErrConflict) {
			return a, err
		}
		// Somebody else has it, of which the view will hear, or the pool is gone.
		if _, _, err := s.pool(ctx, r); err != nil {
			return a, err
		}
		after = a
	}
	return netip.Addr{}, errRetry
}

// write makes the lease of a chosen address and moves the pool's cursor, so that no node gives this address out again
// before it has gone round.
func (s *Service) write(ctx context.Context, r request, a netip.Addr) (holding, error) {
	l := s.lease(a, store.LeaseEndpoint, r)
	kv := store.KV{Key: store.LeaseKey(r.Subnet, a), Value: store.Encode(l)}
	conds := []store.Cond{store.Exists(store.PoolKey(r.Subnet)), store.Absent(kv.Key)}
	try := once
	if r.swarm() {
		try = store.Insist
	}
	err := try(ctx, func() error {
		revision, err := s.cfg.Store.Commit(ctx, conds,
			store.Put(kv.Key, kv.Value), store.Put(store.CursorKey(r.Subnet), []byte(a.String())))
		kv.Created, kv.Modified = revision, revision
		return err
	})
	if errors.Is(err, store.ErrConflict) && r.swarm() {
		return s.recognise(ctx, l, kv, err)
	}
	if err != nil {
		return holding{}, err
	}
	return holding{l, kv}, nil
}

// recognise returns the lease that conflicts with l if it is l itself: an earlier attempt to write it succeeded, and
// only the answer was lost. Nobody would ever free another one: what the swarm has is not the janitor's.
func (s *Service) recognise(ctx context.Context, l store.Lease, kv store.KV, conflict error) (holding, error) {
	have, err := s.cfg.Store.Get(ctx, kv.Key)
	switch {
	case err == nil && bytes.Equal(have.Value, kv.Value):
		return holding{l, have}, nil
	case err != nil && !errors.Is(err, store.ErrNotFound):
		return holding{}, err
	}
	return holding{}, conflict
}

// allocateLast allocates from what the store itself says, since the view knows of no free address and may be behind.
func (s *Service) allocateLast(ctx context.Context, r request) (netip.Addr, error) {
	if _, _, err := s.pool(ctx, r); err != nil {
		return netip.Addr{}, err
	}
	kvs, _, err := s.cfg.Store.List(ctx, store.PoolLeases(r.Subnet))
	if err != nil {
		return netip.Addr{}, err
	}
	used := newAddrSet(r.Subnet)
	var full fullError
	for _, kv := range kvs {
		a, err := netip.ParseAddr(kv.Key[len(store.PoolLeases(r.Subnet)):])
		if err != nil {
			continue
		}
		used.add(a)
		full.count(kv)
	}
	for outside := 0; ; outside++ {
		a, ok := used.next(r.allocates(), netip.Addr{})
		if !ok {
			full.request, full.outside = r, outside
			return a, full
		}
		err := s.vet(ctx, r, a)
		if errors.Is(err, ErrOutside) {
			used.add(a)
			continue
		}
		if err == nil {
			_, err = s.write(ctx, r, a)
		}
		return a, err
	}
}

// fullError says that a pool, or this host's range of it, has no free address.
type fullError struct {
	request
	// endpoints and reserved are the leases of each sort in the whole pool.
	endpoints, reserved int
	// outside is how many are used by others in the LAN.
	outside int
}

// count counts one lease.
func (e *fullError) count(kv store.KV) {
	if l, err := store.Decode[store.Lease](kv); err == nil && l.Kind != store.LeaseEndpoint {
		e.reserved++
		return
	}
	e.endpoints++
}

func (e fullError) Error() string {
	s := fmt.Sprintf("pool %s is full: of its %s addresses %d are held by endpoints and %d reserved (gateway, "+
		"--aux-address)",
		e.Subnet, size(e.Subnet, e.Subnet), e.endpoints, e.reserved)
	advice := "remove containers, or create a network with a larger --subnet"
	if e.Range.IsValid() {
		s = fmt.Sprintf("range %s of this host is full: all its %s addresses are in use (of the %s of pool %s, %d "+
			"are held by endpoints and %d reserved)",
			e.Range, size(e.Subnet, e.Range), size(e.Subnet, e.Subnet), e.Subnet, e.endpoints, e.reserved)
		advice = "remove containers of this host, use --ip with an address outside the range, or create its network " +
			"with a larger --ip-range"
	}
	if e.outside > 0 {
		s += fmt.Sprintf("; %d free ones are used in the LAN outside the cluster", e.outside)
	}
	return s + "; " + advice
}

// size returns how many usable addresses of subnet are in r, as text.
func size(subnet, r netip.Prefix) string {
	first, last, _ := within(subnet, r)
	a, b := numberOf(first), numberOf(last)
	if a.hi != b.hi {
		return "more than 2^64"
	}
	return fmt.Sprint(b.lo - a.lo + 1)
}
