package store

import (
	"context"
	"errors"
)

// Dissolve returns the transaction that removes a network which nobody has any more, with all that belongs to it. A
// pool that a node has just asked for, to create the same network, stays for that node.
func Dissolve(ctx context.Context, s Store, nw Network) (conds []Cond, ops []Op, err error) {
	ops = []Op{
		Delete(NetworkKey(nw.Name)), Delete(VNIKey(nw.VNI)),
		DeletePrefix(NetworkEndpoints(nw.Name)), DeletePrefix(NetworkMACs(nw.Name)),
		DeletePrefix(NetworkServices(nw.Name)), DeletePrefix(NetworkNames(nw.Name)), DeletePrefix(NetworkConflicts(nw.Name)),
	}
	if nw.OnLAN() {
		claims, err := macClaims(ctx, s, nw)
		if err != nil {
			return nil, nil, err
		}
		ops = append(ops, claims...)
	}
	for _, subnet := range nw.Subnets {
		kv, err := s.Get(ctx, PoolKey(subnet))
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		conds = append(conds, Unchanged(kv))
		if p, err := Decode[Pool](kv); err == nil && len(p.Claims) > 0 {
			p.Network = ""
			ops = append(ops, Put(kv.Key, Encode(p)))
			continue
		}
		ops = append(ops, Delete(kv.Key), Delete(CursorKey(subnet)), DeletePrefix(PoolLeases(subnet)))
	}
	return conds, ops, nil
}

// macClaims ends the claims of endpoints that a network in a LAN still has, which are among those of other networks.
func macClaims(ctx context.Context, s Store, nw Network) (ops []Op, err error) {
	kvs, _, err := s.List(ctx, NetworkEndpoints(nw.Name))
	if err != nil {
		return nil, err
	}
	for _, kv := range kvs {
		if e, err := Decode[Endpoint](kv); err == nil {
			ops = append(ops, Delete(MACKey(nw.MACScope(), e.MAC)))
		}
	}
	return ops, nil
}
