package ipam

import (
	"context"
	"errors"
	"net/netip"
	"sync"

	"github.com/netdriver/netdriver/store"
)

// In a swarm every address is asked for and released twice: by the leader in the global address space, and by the node
// that uses it in the local one. Both have one lease, which goes when the second has released it. A VIP is never asked
// for by a node.

// terms remember, for each pool, the addresses that the swarm asked for since this manager leads it. A new leader asks
// for everything that lives once more, and nothing in such a question tells it from that of a user who wants an address
// with --ip that somebody has: only the second question in one term is.
type terms struct {
	mu    sync.Mutex
	asked map[netip.Prefix]map[netip.Addr]bool
}

// begin begins a term: each one begins with RequestPool.
func (t *terms) begin(subnet netip.Prefix) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.asked, subnet)
}

// ask notes that an address was given. A daemon that started in the middle of a term begins to remember here.
func (t *terms) ask(subnet netip.Prefix, a netip.Addr) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.asked[subnet] == nil {
		t.asked[subnet] = map[netip.Addr]bool{}
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

// claimForSwarm grants a leased address to the swarm: what a new leader repeats, and what so far only a node has, whose
// lease may be a dead node's. An address that the swarm has been given in this term is somebody's.
func (s *Service) claimForSwarm(ctx context.Context, r request, l store.Lease, kv store.KV) error {
	switch {
	case l.Kind == store.LeaseAux && !s.terms.has(r.Subnet, l.Address):
		return nil
	case l.Kind != store.LeaseEndpoint, s.terms.has(r.Subnet, l.Address):
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
// two containers would have the address. That endpoint's id stays in the lease: the driver removes its record.
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
	l.Node, l.MAC, l.Created = s.cfg.Node, r.mac, s.cfg.Now()
	_, err := s.cfg.Store.Commit(ctx, []store.Cond{store.Unchanged(kv)}, store.Put(kv.Key, store.Encode(l)))
	return err
}

// releaseForSwarm ends the swarm's part of a lease, and the lease if no node uses the address.
func (s *Service) releaseForSwarm(ctx context.Context, id PoolID, l store.Lease, kv store.KV) error {
	op := store.Delete(kv.Key)
	if l.Node != "" {
		l.Swarm = false
		op = store.Put(kv.Key, store.Encode(l))
	}
	_, err := s.cfg.Store.Commit(ctx, []store.Cond{store.Unchanged(kv)}, op)
	if err == nil {
		s.terms.free(id.Subnet, l.Address)
	}
	return err
}

// vacate ends a node's part of a lease, and the lease unless the swarm has it.
func vacate(l store.Lease, kv store.KV) store.Op {
	if rest, kept := l.Vacate(); kept {
		return store.Put(kv.Key, store.Encode(rest))
	}
	return store.Delete(kv.Key)
}
