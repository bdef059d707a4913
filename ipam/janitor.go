package ipam

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/netdriver/netdriver/store"
)

// claimTTL is how old a claim gets without its network: a creation takes seconds, and Docker never repeats the
// ReleasePool of one that failed.
const claimTTL = 10 * time.Minute

// Reclaim frees this node's endpoint leases that alive denies and returns them, also when others could not be freed.
// Those that a swarm has, too, stay until it releases them itself. A lease that changes meanwhile is left alone. It
// looks at the pools of this node's networks, the first time at all pools of the cluster: a lease may be left in one
// that this node has no part in any more.
func (s *Service) Reclaim(ctx context.Context, alive func(store.Lease) bool) ([]store.Lease, error) {
	pools, err := s.pools(ctx)
	if err != nil {
		return nil, err
	}
	mine, err := s.networks(ctx)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	all := !s.surveyed
	unseen := maps.Clone(s.views)
	s.mu.Unlock()
	var freed []store.Lease
	var errs []error
	for _, p := range pools {
		used := mine[p.Network] || slices.ContainsFunc(p.Claims, s.mine(LocalSpace))
		if !all && !used && unseen[p.Subnet] == nil {
			continue
		}
		delete(unseen, p.Subnet)
		leases, err := s.reclaim(ctx, p.Subnet, used, alive)
		freed, errs = append(freed, leases...), append(errs, err)
	}
	for subnet := range unseen {
		s.unfollow(subnet) // the pool is gone
	}
	err = errors.Join(errs...)
	s.mu.Lock()
	s.surveyed = s.surveyed || err == nil
	s.mu.Unlock()
	return freed, err
}

// networks returns the names of the networks that this node is a member of.
func (s *Service) networks(ctx context.Context) (map[string]bool, error) {
	kvs, _, err := s.cfg.Store.List(ctx, store.NetworkPrefix)
	if err != nil {
		return nil, err
	}
	mine := map[string]bool{}
	for _, kv := range kvs {
		if nw, err := store.Decode[store.Network](kv); err == nil && s.member(nw) {
			mine[nw.Name] = true
		}
	}
	return mine, nil
}

// reclaim does Reclaim for one pool, and ends to follow a pool that this node neither uses nor has leases in.
func (s *Service) reclaim(ctx context.Context, subnet netip.Prefix, used bool, alive func(store.Lease) bool) (
	[]store.Lease, error,
) {
	v := s.follow(subnet)
	if err := v.wait(ctx); err != nil {
		return nil, err
	}
	var freed []store.Lease
	var errs []error
	held := v.owned()
	for _, h := range held {
		if h.lease.Kind != store.LeaseEndpoint || alive(h.lease) {
			continue
		}
		_, err := s.cfg.Store.Commit(ctx, []store.Cond{store.Unchanged(h.kv)}, vacate(h.lease, h.kv))
		switch {
		case err == nil:
			freed = append(freed, h.lease)
		case !errors.Is(err, store.ErrConflict):
			errs = append(errs, fmt.Errorf("free address %s of pool %s: %w", h.lease.Address, subnet, err))
		}
	}
	if !used && len(held) == len(freed) {
		s.unfollow(subnet)
	}
	return freed, errors.Join(errs...)
}

// ExpireClaims gives up the pools that this node asked for more than ten minutes ago and has made no network of.
func (s *Service) ExpireClaims(ctx context.Context) error {
	pools, err := s.pools(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, p := range pools {
		for _, space := range []string{LocalSpace, GlobalSpace} {
			mine := s.mine(space)
			expired := func(c store.Claim) bool { return mine(c) && s.cfg.Now().Sub(c.Since) > claimTTL }
			if p.err != nil || !slices.ContainsFunc(p.Claims, expired) {
				continue
			}
			s.log.Info("no network was made of an address pool", "pool", p.Subnet, "network", p.Network)
			if err := again(func() error { return s.dropClaim(ctx, p.Subnet, space) }); err != nil {
				errs = append(errs, fmt.Errorf("give up pool %s: %w", p.Subnet, err))
			}
		}
	}
	return errors.Join(errs...)
}
