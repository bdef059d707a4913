package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/netdriver/netdriver/store"
)

// forget removes everything that the store has of a node: first what would let it come back, then its networks' records,
// last its own. It can be repeated at any point.
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
		store.Delete(store.StatusKey(node)), store.Delete(store.EngineKey(node)))
	return err
}

func forgetEndpoints(ctx context.Context, s store.Store, nw store.Network, node string) error {
	kvs, _, err := s.List(ctx, store.NetworkEndpoints(nw.Name))
	if err != nil {
		return err
	}
	for _, kv := range kvs {
		e, err := store.Decode[store.Endpoint](kv)
		if err != nil || e.Node != node {
			continue
		}
		_, err = s.Commit(ctx, []store.Cond{store.Unchanged(kv)}, store.Delete(kv.Key),
			store.Delete(store.MACKey(nw.Name, e.MAC)), store.Delete(store.NameKey(nw.Name, e.ID)))
		if err != nil && !errors.Is(err, store.ErrConflict) {
			return err
		}
	}
	return nil
}

// forgetMember ends a node's memberships in a network. A network without members and without a swarm goes, with its pools.
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
		ops := []store.Op{store.Put(kv.Key, store.Encode(nw))}
		if len(nw.Members) == 0 && nw.Swarm == "" {
			ops = dissolve(nw)
		}
		_, err = s.Commit(ctx, []store.Cond{store.Unchanged(kv)}, ops...)
		if !errors.Is(err, store.ErrConflict) {
			return err
		}
	}
}

// dissolve removes a network that nobody has any more, with all that belongs to it.
func dissolve(nw store.Network) []store.Op {
	ops := []store.Op{
		store.Delete(store.NetworkKey(nw.Name)), store.Delete(store.VNIKey(nw.VNI)),
		store.DeletePrefix(store.NetworkEndpoints(nw.Name)), store.DeletePrefix(store.NetworkMACs(nw.Name)),
		store.DeletePrefix(store.NetworkServices(nw.Name)), store.DeletePrefix(store.NetworkNames(nw.Name)),
	}
	for _, subnet := range nw.Subnets {
		ops = append(ops, store.Delete(store.PoolKey(subnet)), store.Delete(store.CursorKey(subnet)),
			store.DeletePrefix(store.PoolLeases(subnet)))
	}
	return ops
}

// forgetLeases ends a node's part of all leases.
func forgetLeases(ctx context.Context, s store.Store, node string) error {
	kvs, _, err := s.List(ctx, store.LeasePrefix)
	if err != nil {
		return err
	}
	for _, kv := range kvs {
		l, err := store.Decode[store.Lease](kv)
		if err != nil || l.Node != node || l.Kind != store.LeaseEndpoint {
			continue
		}
		op := store.Delete(kv.Key)
		if rest, kept := l.Vacate(); kept {
			op = store.Put(kv.Key, store.Encode(rest))
		}
		if _, err := s.Commit(ctx, []store.Cond{store.Unchanged(kv)}, op); err != nil && !errors.Is(err, store.ErrConflict) {
			return err
		}
	}
	return nil
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
