package ipam

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/netdriver/netdriver/store"
)

// In a swarm every address is asked for and released twice: by the leader in the global address space, and by the node
// that uses it in the local one. Both have one lease, which goes when the second has released it. A VIP is never asked
// for by a node.

// terms remember, for each pool, the addresses that the swarm asked for since this manager leads it. A new leader asks
// for everything that lives once more, and nothing in such a question tells it from that of a user who wants an address
// with --ip that somebody has: only the second question in one term is.
//
// They are forgotten with the process, on purpose: an answer that was lost with it is asked for again, and a replay
// that is refused breaks the swarm, while an address granted twice is refused on the node (claimFromSwarm).
type terms struct {
	mu    sync.Mutex
	asked map[netip.Prefix]map[netip.Addr]bool
}

func newTerms() *terms { return &terms{asked: make(map[netip.Prefix]map[netip.Addr]bool)} }

// begin begins a term.
func (t *terms) begin(subnet netip.Prefix) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.asked[subnet] = make(map[netip.Addr]bool)
}

// ask notes that an address was given. A daemon that started in the middle of a term begins to remember here.
func (t *terms) ask(subnet netip.Prefix, a netip.Addr) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.asked[subnet] == nil {
		t.asked[subnet] = make(map[netip.Addr]bool)
	}
	t.asked[subnet][a] = true
}

// free notes that an address was released.
func (t *terms) free(subnet netip.Prefix, a netip.Addr) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.asked[subnet], a)
}

func (t *terms) has(subnet netip.Prefix, a netip.Addr) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.asked[subnet][a]
}

// BeginTerm says that a leader repeats what the swarm has in the network with these subnets: everything in it will be
// asked for once. AllocateNetwork tells it, not the RequestPool before, which comes as well of a second network with
// the same subnet: a swarm tries that one anew at each of its events, for as long as it is refused.
func (s *Service) BeginTerm(subnets []netip.Prefix) {
	for _, subnet := range subnets {
		s.terms.begin(subnet)
	}
}

// claimForSwarm grants a leased address to the swarm: what a new leader repeats, and what so far only a node has, whose
// lease may be a dead node's. An address that the swarm has been given in this term is somebody's.
func (s *Service) claimForSwarm(ctx context.Context, r request, l store.Lease, kv store.KV) error {
	asked := s.terms.has(r.Subnet, l.Address)
	switch {
	case l.Kind == store.LeaseAux && !asked:
		return nil
	case l.Kind != store.LeaseEndpoint, l.Swarm && asked:
		return heldError(l)
	case l.Swarm:
		return nil
	}
	l.Swarm = true
	_, err := s.cfg.Store.Commit(ctx, []store.Cond{store.Unchanged(kv)}, store.Put(kv.Key, store.Encode(l)))
	return err
}

// claimFromSwarm lets this node use an address of the swarm that it does not use yet. The swarm gives an address to one
// task at a time, so another node that still has it is done with it, lost, or mistaken: if an endpoint there is alive,
// two containers would have the address. What is left of the endpoint there the driver removes with CreateEndpoint.
func (s *Service) claimFromSwarm(ctx context.Context, r request, l store.Lease, kv store.KV) error {
	if l.Node != "" && l.Endpoint != "" {
		_, err := s.cfg.Store.Get(ctx, store.AliveKey(l.Node))
		if err == nil {
			return heldError(l)
		}
		if !errors.Is(err, store.ErrNotFound) {
			return err
		}
		s.log.Info("address taken over from a lost node", "address", l.Address, "node", l.Node, "endpoint", l.Endpoint)
	}
	if !r.mac.IsZero() {
		if err := s.vet(ctx, r, l.Address); err != nil {
			return err
		}
	}
	l.Node, l.Endpoint, l.MAC, l.Created = s.cfg.Node, "", r.mac, s.cfg.Now()
	_, err := s.cfg.Store.Commit(ctx, []store.Cond{store.Unchanged(kv)}, store.Put(kv.Key, store.Encode(l)))
	return err
}

// releaseForSwarm ends the swarm's part of a lease, and the lease if no node uses the address.
func (s *Service) releaseForSwarm(ctx context.Context, l store.Lease, kv store.KV) error {
	op := store.Delete(kv.Key)
	if l.Node != "" {
		l.Swarm = false
		op = store.Put(kv.Key, store.Encode(l))
	}
	_, err := s.cfg.Store.Commit(ctx, []store.Cond{store.Unchanged(kv)}, op)
	return err
}

// vacate ends a node's part of a lease, and the lease unless the swarm has it.
func vacate(l store.Lease, kv store.KV) store.Op {
	if rest, kept := l.Vacate(); kept {
		return store.Put(kv.Key, store.Encode(rest))
	}
	return store.Delete(kv.Key)
}

// Orphans returns the leases that only a swarm has, older than before, of addresses that are not known to be a task's
// or a service's: their release was lost, as it is when a leader's daemon is away for longer than Docker waits.
// Docker's API does not list all that a swarm allocates (an address per node and network for some drivers), so nothing
// frees them by itself: an administrator looks and decides. Read known after before.
func Orphans(ctx context.Context, s store.Store, before time.Time, known map[netip.Addr]bool) ([]store.Lease, error) {
	kvs, _, err := s.List(ctx, store.LeasePrefix)
	if err != nil {
		return nil, fmt.Errorf("look for addresses that a swarm has forgotten: %w", err)
	}
	var out []store.Lease
	var errs []error
	for _, kv := range kvs {
		l, err := store.Decode[store.Lease](kv)
		errs = append(errs, err)
		if err == nil && l.Swarm && l.Node == "" && l.Created.Before(before) && !known[l.Address] {
			out = append(out, l)
		}
	}
	return out, errors.Join(errs...)
}
