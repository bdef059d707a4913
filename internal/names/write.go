package names

import (
	"context"
	"errors"
	"maps"
	"slices"

	"github.com/netdriver/netdriver/store"
)

// read fills published with what the store has of the local endpoints. A record that cannot be read counts as none and
// is written anew.
func (p *Publisher) read(ctx context.Context, local map[string]store.Endpoint) error {
	published := map[string]store.Name{}
	networks := map[string]bool{}
	for _, e := range local {
		networks[e.Network] = true
	}
	for network := range networks {
		kvs, _, err := p.cfg.Store.List(ctx, store.NetworkNames(network))
		if err != nil {
			return err
		}
		for _, kv := range kvs {
			if _, mine := local[kv.Key]; !mine {
				continue
			}
			if n, err := store.Decode[store.Name](kv); err == nil {
				published[kv.Key] = n
			}
		}
	}
	p.published = published
	return nil
}

// write publishes the names that differ from what is published, and returns how many of them were written.
func (p *Publisher) write(ctx context.Context, want map[string]store.Name) (int, error) {
	var changed []string
	for _, key := range slices.Sorted(maps.Keys(want)) {
		if have, there := p.published[key]; !there || have != want[key] {
			changed = append(changed, key)
		}
	}
	before := len(p.published)
	for some := range slices.Chunk(changed, store.MaxOps/2) {
		if err := p.commit(ctx, some, want); err != nil {
			return 0, err
		}
	}
	return len(p.published) - before, nil
}

// commit writes some names, each only if its endpoint exists, which takes its name along when it goes. One that has
// just gone makes the transaction fail: the halves are tried then, so that it holds up no other.
func (p *Publisher) commit(ctx context.Context, keys []string, want map[string]store.Name) error {
	var conds []store.Cond
	var ops []store.Op
	for _, key := range keys {
		n := want[key]
		conds = append(conds, store.Exists(store.EndpointKey(n.Network, n.Endpoint)))
		ops = append(ops, store.Put(key, store.Encode(n)))
	}
	_, err := p.cfg.Store.Commit(ctx, conds, ops...)
	switch {
	case errors.Is(err, store.ErrConflict) && len(keys) > 1:
		half := len(keys) / 2
		return errors.Join(p.commit(ctx, keys[:half], want), p.commit(ctx, keys[half:], want))
	case errors.Is(err, store.ErrConflict):
		return nil
	case err != nil:
		return err
	}
	for _, key := range keys {
		p.published[key] = want[key]
	}
	return nil
}

// nameless is a Docker network of which only the id is known.
type nameless struct{ network, dockerID string }

// networks publishes the names of Docker networks. Those of the swarm that have no place on this node are asked for in
// a full round only: just managers know them.
func (p *Publisher) networks(ctx context.Context, full bool) error {
	var errs []error
	for _, n := range p.nameless(full) {
		p.asked = true
		name, known, err := p.cfg.Docker.NetworkName(ctx, n.dockerID)
		if err != nil || !known || store.CheckShown("network", name) != nil {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, p.nameNetwork(ctx, n, name))
	}
	return errors.Join(errs...)
}

func (p *Publisher) nameless(full bool) []nameless {
	var out []nameless
	p.cfg.Mirror.Read(func(r *store.Records) {
		for _, nw := range r.Networks {
			here := false
			for _, m := range nw.Members {
				if m.Node != p.cfg.Node {
					continue
				}
				if m.DockerID == nw.Swarm {
					here = true
				} else if m.Name == "" {
					out = append(out, nameless{nw.Name, m.DockerID})
				}
			}
			if nw.Swarm != "" && nw.SwarmName == "" && (here || full) {
				out = append(out, nameless{nw.Name, nw.Swarm})
			}
		}
	})
	return out
}

// nameNetwork writes a Docker network's name into the network's record. If somebody else writes that meanwhile, the
// next round tries again.
func (p *Publisher) nameNetwork(ctx context.Context, n nameless, name string) error {
	kv, err := p.cfg.Store.Get(ctx, store.NetworkKey(n.network))
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	nw, err := store.Decode[store.Network](kv)
	if err != nil {
		return err
	}
	if nw.Swarm == n.dockerID {
		if nw.SwarmName == name { // another node was quicker
			return nil
		}
		nw.SwarmName = name
	}
	for i, m := range nw.Members {
		if m.DockerID == n.dockerID && m.Node == p.cfg.Node && nw.Swarm != n.dockerID {
			nw.Members[i].Name = name
		}
	}
	_, err = p.cfg.Store.Commit(ctx, []store.Cond{store.Unchanged(kv)}, store.Put(kv.Key, store.Encode(nw)))
	if errors.Is(err, store.ErrConflict) {
		return nil
	}
	if err == nil {
		p.cfg.Log.Debug("found out a network's name", "network", n.network, "docker", n.dockerID, "name", name)
	}
	return err
}
