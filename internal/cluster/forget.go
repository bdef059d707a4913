package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/netdriver/netdriver/ipsec"
	"github.com/netdriver/netdriver/store"
)

// forget removes everything that the store has of a node: first what would let it come back, then its networks'
// records, last its own. It can be repeated at any point.
func forget(ctx context.Context, s store.Store, node string) error {
	certificates, _, err := s.List(ctx, store.NodeCertificates(node))
	if err != nil {
		return err
	}
	for _, kv := range certificates {
		serial := strings.TrimPrefix(kv.Key, store.NodeCertificates(node))
		if _, err := s.Commit(ctx, nil, store.Put(store.RevokedKey(serial), []byte(node)), store.Delete(kv.Key)); err != nil {
			return fmt.Errorf("revoke the certificate of node %s: %w", node, err)
		}
	}
	if err := forgetKeys(ctx, s, node); err != nil {
		return fmt.Errorf("end the keys of node %s: %w", node, err)
	}
	if err := forgetClaims(ctx, s, node); err != nil {
		return fmt.Errorf("end the claims of node %s: %w", node, err)
	}
	networks, _, err := s.List(ctx, store.NetworkPrefix)
	if err != nil {
		return err
	}
	for _, kv := range networks {
		nw, err := store.Decode[store.Network](kv)
		if err != nil {
			continue // a record that this program does not understand is not its to change
		}
		if err := forgetEndpoints(ctx, s, nw, node); err != nil {
			return fmt.Errorf("remove the endpoints of node %s from network %s: %w", node, nw.Name, err)
		}
		if err := forgetMember(ctx, s, nw.Name, node); err != nil {
			return fmt.Errorf("remove node %s from network %s: %w", node, nw.Name, err)
		}
	}
	if err := forgetLeases(ctx, s, node); err != nil {
		return fmt.Errorf("free the addresses of node %s: %w", node, err)
	}
	_, err = s.Commit(ctx, nil, store.Delete(store.NodeKey(node)), store.Delete(store.AliveKey(node)),
		store.Delete(store.StatusKey(node)), store.Delete(store.EngineKey(node)), store.Delete(store.VolumeUseKey(node)),
		// Until now the node's daemon may have published anew.
		store.Delete(store.EncryptionPrefix+ipsec.OfferKey(node)), store.Delete(store.ProtectionKey(node)),
		store.DeletePrefix(store.EncryptionPrefix+ipsec.LinksPrefix(node)))
	return err
}

// forgetKeys removes what a node has of encryption: the others then end what they share with it, and remove its links to them.
func forgetKeys(ctx context.Context, s store.Store, node string) error {
	_, err := s.Commit(ctx, nil, store.Delete(store.EncryptionPrefix+ipsec.OfferKey(node)))
	return err
}

func forgetEndpoints(ctx context.Context, s store.Store, nw store.Network, node string) error {
	return each(ctx, s, store.NetworkEndpoints(nw.Name), func(kv store.KV) []store.Op {
		e, err := store.Decode[store.Endpoint](kv)
		if err != nil || e.Node != node {
			return nil
		}
		return []store.Op{
			store.Delete(kv.Key), store.Delete(store.MACKey(nw.MACScope(), e.MAC)), store.Delete(store.NameKey(nw.Name, e.ID)),
		}
	})
}

// forgetMember ends a node's memberships in a network. A network without members and without a swarm goes, with its
// pools.
func forgetMember(ctx context.Context, s store.Store, network, node string) error {
	for {
		kv, err := s.Get(ctx, store.NetworkKey(network))
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		nw, err := store.Decode[store.Network](kv)
		if err != nil {
			return nil
		}
		of := func(m store.Member) bool { return m.Node == node }
		if !slices.ContainsFunc(nw.Members, of) {
			return nil
		}
		nw.Members = slices.DeleteFunc(slices.Clone(nw.Members), of)
		var conds []store.Cond
		ops := []store.Op{store.Put(kv.Key, store.Encode(nw))}
		if len(nw.Members) == 0 && nw.Swarm == "" {
			if conds, ops, err = store.Dissolve(ctx, s, nw); err != nil {
				return err
			}
		}
		_, err = s.Commit(ctx, append(conds, store.Unchanged(kv)), ops...)
		if !errors.Is(err, store.ErrConflict) {
			return err
		}
	}
}

// forgetLeases ends a node's part of all leases.
func forgetLeases(ctx context.Context, s store.Store, node string) error {
	return each(ctx, s, store.LeasePrefix, func(kv store.KV) []store.Op {
		l, err := store.Decode[store.Lease](kv)
		if err != nil || l.Node != node || l.Kind != store.LeaseEndpoint && l.Kind != store.LeaseNode {
			return nil
		}
		if rest, kept := l.Vacate(); kept {
			return []store.Op{store.Put(kv.Key, store.Encode(rest))}
		}
		return []store.Op{store.Delete(kv.Key)}
	})
}

// forgetClaims ends a node's wishes for pools. A pool that was for nobody else goes.
func forgetClaims(ctx context.Context, s store.Store, node string) error {
	return each(ctx, s, store.PoolPrefix, func(kv store.KV) []store.Op {
		p, err := store.Decode[store.Pool](kv)
		of := func(c store.Claim) bool { return c.Node == node && !c.Swarm }
		if err != nil || !slices.ContainsFunc(p.Claims, of) {
			return nil
		}
		p.Claims = slices.DeleteFunc(slices.Clone(p.Claims), of)
		if len(p.Claims) > 0 || p.Network != "" {
			return []store.Op{store.Put(kv.Key, store.Encode(p))}
		}
		return []store.Op{
			store.Delete(kv.Key), store.Delete(store.CursorKey(p.Subnet)), store.DeletePrefix(store.PoolLeases(p.Subnet)),
		}
	})
}

// each changes every record below a prefix by what change makes of it.
func each(ctx context.Context, s store.Store, prefix string, change func(store.KV) []store.Op) error {
	kvs, _, err := s.List(ctx, prefix)
	if err != nil {
		return err
	}
	for _, kv := range kvs {
		if err := one(ctx, s, kv, change); err != nil {
			return err
		}
	}
	return nil
}

// one changes a record. If somebody else has changed it meanwhile, such as a swarm that gives up its part of a lease,
// it is looked at anew.
func one(ctx context.Context, s store.Store, kv store.KV, change func(store.KV) []store.Op) error {
	for {
		ops := change(kv)
		if len(ops) == 0 {
			return nil
		}
		_, err := s.Commit(ctx, []store.Cond{store.Unchanged(kv)}, ops...)
		if !errors.Is(err, store.ErrConflict) {
			return err
		}
		if kv, err = s.Get(ctx, kv.Key); errors.Is(err, store.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// containers returns how many endpoints a node has.
func containers(ctx context.Context, s store.Store, node string) (int, error) {
	kvs, _, err := s.List(ctx, store.EndpointPrefix)
	if err != nil {
		return 0, err
	}
	n := 0
	for _, kv := range kvs {
		if e, err := store.Decode[store.Endpoint](kv); err == nil && e.Node == node {
			n++
		}
	}
	return n, nil
}
