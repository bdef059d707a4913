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
		DeletePrefix(NetworkServices(nw.Name)), DeletePrefix(NetworkNames(nw.Name)),
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
