package driver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"time"

	"github.com/docker/go-plugins-helpers/network"

	"github.com/netdriver/netdriver/internal/plugin"
	"github.com/netdriver/netdriver/store"
)

// swarmTimeout bounds a call of a swarm's leader, which is better late than refused: after one refused replay it gives
// up the network and starts no task in it any more, without a word to its user.
const swarmTimeout = 22 * time.Second

// allocateNetwork makes the cluster network that a swarm network stands for, or finds it: each new leader asks again, with
// the options that were answered first. The answer's options replace the user's on every node, so all of them are in it.
func (d *Driver) allocateNetwork(ctx context.Context, req *network.AllocateNetworkRequest) (
	*network.AllocateNetworkResponse, error,
) {
	if err := store.CheckID("network", req.NetworkID); err != nil {
		return nil, err
	}
	s, err := parseAllocation(req)
	if err == nil {
		var cancel context.CancelFunc
		if ctx, cancel, err = d.beginWithin(ctx, swarmTimeout); err == nil {
			defer cancel()
			var nw store.Network
			if nw, err = d.allot(ctx, req.NetworkID, s); err == nil {
				return &network.AllocateNetworkResponse{Options: settled(req.Options, nw)}, nil
			}
		}
	}
	// Docker tells nobody why tasks of the network stay "new".
	d.log.Error("network of the swarm refused", "docker", req.NetworkID, "error", err)
	return nil, err
}

// settled returns the options with everything that the user left open.
func settled(options map[string]string, nw store.Network) map[string]string {
	out := maps.Clone(options)
	if out == nil {
		out = map[string]string{}
	}
	out[optionNetwork] = nw.Name
	out[optionVNI] = strconv.FormatUint(uint64(nw.VNI), 10)
	out[optionPort] = strconv.Itoa(int(nw.Port))
	out[optionMTU] = strconv.Itoa(nw.MTU)
	return out
}

// allot returns the cluster network of a swarm network, which it makes if it does not exist.
func (d *Driver) allot(ctx context.Context, dockerID string, s spec) (store.Network, error) {
	for range retries {
		dr, err := d.draft(ctx, dockerID, s)
		if err != nil {
			return store.Network{}, err
		}
		if dr.nw.Key != "" && dr.network.Swarm == dockerID {
			return dr.network, nil
		}
		conds, ops, err := d.allotment(ctx, dockerID, s, &dr)
		if err != nil {
			return store.Network{}, err
		}
		_, err = d.cfg.Store.Commit(ctx, conds, ops...)
		if errors.Is(err, store.ErrConflict) {
			continue
		}
		if err != nil {
			return store.Network{}, fmt.Errorf("allocate network %s: %w", dr.name, err)
		}
		d.log.Info("allocated network of the swarm", "network", dr.name, "vni", dr.network.VNI, "docker", dockerID)
		return dr.network, nil
	}
	return store.Network{}, fmt.Errorf("allocate network: %w %d times; try again", store.ErrConflict, retries)
}

// allotment is the transaction that gives the drafted network to a swarm.
func (d *Driver) allotment(ctx context.Context, dockerID string, s spec, dr *draft) ([]store.Cond, []store.Op, error) {
	if dr.network.Swarm != "" {
		return nil, nil, fmt.Errorf("network %s is that of another swarm network, %s; choose another --subnet and --opt network=NAME",
			dr.name, dr.network.Swarm)
	}
	s.internal = dr.network.Internal // the request does not say; each node's CreateNetwork does
	conds, ops, err := d.change(ctx, s, dr, func(nw *store.Network) {
		nw.Swarm, nw.ForeignIPAM = dockerID, len(dr.foreign) > 0
	})
	if err != nil || len(dr.foreign) == 0 {
		return conds, ops, err
	}
	return d.reserve(ctx, dr, conds, ops)
}

// reserve adds to a transaction that the subnets of another IPAM driver become pools, of which nobody else can have a part.
// The guard makes it fail if a pool is made meanwhile.
func (d *Driver) reserve(ctx context.Context, dr *draft, conds []store.Cond, ops []store.Op) ([]store.Cond, []store.Op, error) {
	guard := store.Absent(store.PoolGuard)
	kv, err := d.cfg.Store.Get(ctx, store.PoolGuard)
	if err == nil {
		guard = store.Unchanged(kv)
	} else if !errors.Is(err, store.ErrNotFound) {
		return nil, nil, err
	}
	pools, _, err := d.cfg.Store.List(ctx, store.PoolPrefix)
	if err != nil {
		return nil, nil, err
	}
	for _, subnet := range dr.foreign {
		for _, kv := range pools {
			if p, err := store.Decode[store.Pool](kv); err == nil && p.Subnet.Overlaps(subnet) {
				return nil, nil, fmt.Errorf("subnet %s overlaps pool %s of network %s; choose another --subnet, or let "+
					"netdriver choose: --ipam-driver custom-overlay:latest", subnet, p.Subnet, p.Network)
			}
		}
		p := store.Pool{Subnet: subnet, Network: dr.name, Creator: d.site.node, Created: d.cfg.Now()}
		conds = append(conds, store.Absent(store.PoolKey(subnet)))
		ops = append(ops, store.Put(store.PoolKey(subnet), store.Encode(p)))
	}
	return append(conds, guard), append(ops, store.Put(store.PoolGuard, []byte(dr.foreign[0].String()))), nil
}

// freeNetwork ends the swarm's part of a network. It goes at once if no node is a member, else with its last one: a node
// that is away cleans up when it returns.
func (d *Driver) freeNetwork(ctx context.Context, req *network.FreeNetworkRequest) (plugin.Empty, error) {
	ctx, cancel, err := d.beginWithin(ctx, swarmTimeout)
	if err != nil {
		return plugin.Empty{}, err
	}
	defer cancel()
	if err := store.CheckID("network", req.NetworkID); err != nil {
		return plugin.Empty{}, err
	}
	return plugin.Empty{}, d.free(ctx, req.NetworkID)
}

// free ends the swarm's part of the network with that Docker id; if there is none, that has been done.
func (d *Driver) free(ctx context.Context, dockerID string) error {
	for range retries {
		kv, nw, err := d.ofSwarm(ctx, dockerID)
		if err != nil || nw.Name == "" {
			return err
		}
		conds, ops := []store.Cond{store.Unchanged(kv)}, []store.Op(nil)
		if len(nw.Members) == 0 {
			conds, ops, err = d.dissolve(ctx, conds, nw)
		} else {
			nw.Swarm, nw.SwarmCluster = "", ""
			ops = []store.Op{store.Put(kv.Key, store.Encode(nw))}
		}
		if err != nil {
			return fmt.Errorf("free network %s: %w", nw.Name, err)
		}
		if _, err = d.commitAll(ctx, conds, ops); errors.Is(err, store.ErrConflict) {
			continue
		}
		if err != nil {
			return fmt.Errorf("free network %s: %w", nw.Name, err)
		}
		d.log.Info("network freed by the swarm", "network", nw.Name, "docker", dockerID, "members", len(nw.Members))
		return nil
	}
	return fmt.Errorf("free network: %w %d times; the janitor tries again", store.ErrConflict, retries)
}

// ofSwarm returns the network that stands for a swarm network, the zero one if there is none.
func (d *Driver) ofSwarm(ctx context.Context, dockerID string) (store.KV, store.Network, error) {
	kvs, _, err := d.cfg.Store.List(ctx, store.NetworkPrefix)
	if err != nil {
		return store.KV{}, store.Network{}, err
	}
	for _, kv := range kvs {
		if nw, err := store.Decode[store.Network](kv); err == nil && nw.Swarm == dockerID {
			return kv, nw, nil
		}
	}
	return store.KV{}, store.Network{}, nil
}
