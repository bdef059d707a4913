package driver

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"

	"github.com/docker/go-plugins-helpers/network"

	"github.com/netdriver/netdriver/internal/plugin"
	"github.com/netdriver/netdriver/store"
)

// allocateNetwork makes the cluster network that a swarm network stands for, or finds it: each new leader asks again,
// with the options that were answered first. The answer's options replace the user's on every node, so all of them are
// in it.
func (d *Driver) allocateNetwork(ctx context.Context, req *network.AllocateNetworkRequest) (
	*network.AllocateNetworkResponse, error,
) {
	if err := store.CheckID("network", req.NetworkID); err != nil {
		return nil, err
	}
	s, err := parseAllocation(req)
	if err != nil {
		return nil, err
	}
	ctx, cancel, err := d.beginWithin(ctx, plugin.SwarmTimeout)
	if err != nil {
		return nil, err
	}
	defer cancel()
	var nw store.Network
	err = store.Insist(ctx, func() error {
		nw, err = d.allot(ctx, req.NetworkID, s)
		return err
	})
	if err != nil {
		return nil, err
	}
	if d.cfg.Leases != nil {
		d.cfg.Leases.BeginTerm(nw.Subnets)
	}
	return &network.AllocateNetworkResponse{Options: settled(req.Options, nw)}, nil
}

// settled returns the options with everything that the user left open.
func settled(options map[string]string, nw store.Network) map[string]string {
	out := maps.Clone(options)
	if out == nil {
		out = map[string]string{}
	}
	out[optionNetwork] = nw.Name
	if nw.VNI != 0 {
		out[optionVNI] = strconv.FormatUint(uint64(nw.VNI), 10)
		out[optionPort] = strconv.Itoa(int(nw.Port))
	}
	settledMedium(out, nw)
	out[optionMTU] = strconv.Itoa(nw.MTU)
	settledEncryption(out, nw)
	return out
}

// allot returns the cluster network of a swarm network, which it makes if it does not exist.
func (d *Driver) allot(ctx context.Context, dockerID string, s spec) (store.Network, error) {
	var dr draft
	revision, err := d.commit(ctx, func() (t txn, err error) {
		dr, err = d.draft(ctx, dockerID, s)
		if err != nil || dr.network.Swarm == dockerID {
			return t, err
		}
		return d.allotment(ctx, dockerID, s, &dr)
	})
	if err != nil {
		return store.Network{}, fmt.Errorf("allocate network %s: %w", dr.name, err)
	}
	if revision > 0 {
		d.log.Info("allocated network of the swarm", "network", dr.name, "vni", dr.network.VNI, "docker", dockerID)
	}
	return dr.network, nil
}

// allotment is the transaction that gives the drafted network to a swarm.
func (d *Driver) allotment(ctx context.Context, dockerID string, s spec, dr *draft) (txn, error) {
	if dr.network.Swarm != "" {
		return txn{}, fmt.Errorf("network %s is that of another swarm network, %s; choose another --subnet and "+
			"--opt network=NAME", dr.name, dr.network.Swarm)
	}
	// A swarm asks our IPAM driver for the pool just before; the request itself does not say whose addresses it has.
	for _, p := range dr.records {
		if !slices.ContainsFunc(p.Claims, d.claimed(s)) {
			return txn{}, overlapError(p.Subnet, p)
		}
	}
	s.internal = dr.network.Internal // the request does not say; each node's CreateNetwork does
	t, err := d.change(ctx, s, dr, func(nw *store.Network) {
		nw.Swarm, nw.ForeignIPAM = dockerID, len(dr.foreign) > 0
	})
	if err == nil && len(dr.foreign) > 0 {
		err = d.reserve(ctx, dr, &t)
	}
	return t, err
}

// reserve adds to a transaction that the subnets of another IPAM driver become pools, of which nobody else can have a
// part. The guard makes it fail if a pool is made meanwhile.
func (d *Driver) reserve(ctx context.Context, dr *draft, t *txn) error {
	if err := d.guarded(ctx, store.PoolGuard, dr.foreign[0].String(), t); err != nil {
		return err
	}
	pools, _, err := d.cfg.Store.List(ctx, store.PoolPrefix)
	if err != nil {
		return err
	}
	for _, subnet := range dr.foreign {
		for _, kv := range pools {
			if p, err := store.Decode[store.Pool](kv); err == nil && p.Subnet.Overlaps(subnet) {
				return overlapError(subnet, p)
			}
		}
		p := store.Pool{Subnet: subnet, Network: dr.name, Creator: d.site.node, Created: d.cfg.Now()}
		t.require(store.Absent(store.PoolKey(subnet)))
		t.write(store.Put(store.PoolKey(subnet), store.Encode(p)))
	}
	return nil
}

// overlapError refuses a subnet of another IPAM driver, which knows nothing of the cluster's pools.
func overlapError(subnet netip.Prefix, p store.Pool) error {
	return fmt.Errorf("subnet %s, which comes from another IPAM driver, overlaps pool %s of network %s; choose another "+
		"--subnet, or let netdriver give the addresses: --ipam-driver custom-overlay:latest", subnet, p.Subnet, p.Network)
}

// freeNetwork ends the swarm's part of a network. It goes at once if no node is a member, else with its last one: a
// node that is away cleans up when it returns.
func (d *Driver) freeNetwork(ctx context.Context, req *network.FreeNetworkRequest) (plugin.Empty, error) {
	if err := store.CheckID("network", req.NetworkID); err != nil {
		return plugin.Empty{}, err
	}
	ctx, cancel, err := d.beginWithin(ctx, plugin.SwarmTimeout)
	if err != nil {
		return plugin.Empty{}, err
	}
	defer cancel()
	return plugin.Empty{}, store.Insist(ctx, func() error { return d.free(ctx, req.NetworkID) })
}

// free ends the swarm's part of the network with that Docker id; if there is none, that has been done.
func (d *Driver) free(ctx context.Context, dockerID string) error {
	var nw store.Network
	revision, err := d.commit(ctx, func() (t txn, err error) {
		var kv store.KV
		if kv, nw, err = d.ofSwarm(ctx, dockerID); err != nil || nw.Name == "" {
			return t, err
		}
		nw.Swarm, nw.SwarmCluster = "", ""
		return d.update(ctx, kv, nw)
	})
	if err != nil {
		return fmt.Errorf("free network %s: %w", nw.Name, err)
	}
	if revision > 0 {
		d.log.Info("network freed by the swarm", "network", nw.Name, "docker", dockerID, "members", len(nw.Members))
	}
	return nil
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
