package driver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/docker/go-plugins-helpers/network"

	"github.com/netdriver/netdriver/internal/plugin"
	"github.com/netdriver/netdriver/store"
	"github.com/netdriver/netdriver/vxlan"
)

// createNetwork makes this node's Docker network a member of a cluster network, and makes that network if it is the
// first. Asked again for the same Docker network it changes nothing. If the kernel refuses, the membership is undone.
func (d *Driver) createNetwork(ctx context.Context, req *network.CreateNetworkRequest) (plugin.Empty, error) {
	if err := store.CheckID("network", req.NetworkID); err != nil {
		return plugin.Empty{}, err
	}
	s, err := parseNetwork(req)
	if err != nil {
		return plugin.Empty{}, err
	}
	ctx, cancel, err := d.begin(ctx)
	if err != nil {
		return plugin.Empty{}, err
	}
	defer cancel()
	name, seen, err := d.enter(ctx, req.NetworkID, s)
	if err != nil {
		return plugin.Empty{}, err
	}
	for _, kv := range seen.pools { // their gateways are told at Join, and have a watch of their own
		err = cmp.Or(err, d.cfg.Mirror.Wait(ctx, kv.Key, kv.Modified))
	}
	if err == nil {
		err = d.await(ctx, name, store.NetworkKey(name), seen.network)
	}
	if err == nil {
		err = d.takeSeat(ctx, name)
	}
	if err != nil {
		quit := func(ctx context.Context) error { return d.quit(ctx, req.NetworkID) }
		return plugin.Empty{}, errors.Join(err, d.undo(ctx, quit))
	}
	return plugin.Empty{}, nil
}

// deleteNetwork ends the membership of a Docker network of this node; the last member takes the cluster network along.
// Docker ignores an error here and never asks again: what could not be done, the janitor does later.
func (d *Driver) deleteNetwork(ctx context.Context, req *network.DeleteNetworkRequest) (plugin.Empty, error) {
	ctx, cancel, err := d.begin(ctx)
	if err != nil {
		return plugin.Empty{}, err
	}
	defer cancel()
	if err := store.CheckID("network", req.NetworkID); err != nil {
		return plugin.Empty{}, err
	}
	return plugin.Empty{}, d.quit(ctx, req.NetworkID)
}

// undo runs f with its own time limit, since the call that failed may have used up its own.
func (d *Driver) undo(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), plugin.StoreTimeout/2)
	defer cancel()
	if err := f(ctx); err != nil {
		return fmt.Errorf("undo: %w", err)
	}
	return nil
}

// entered is what the mirror has to have seen before a network that was entered is as its records say.
type entered struct {
	network int64      // the revision of its record
	pools   []store.KV // those of its subnets
}

// enter writes the membership, and the network if it does not exist; it returns the network's name and the revisions at
// which all of that is in the store.
func (d *Driver) enter(ctx context.Context, dockerID string, s spec) (string, entered, error) {
	var dr draft
	var existing int64
	revision, err := d.commit(ctx, func() (t txn, err error) {
		if dr, err = d.draft(ctx, dockerID, s); err != nil {
			return t, err
		}
		if d.member(dr.network, dockerID) >= 0 {
			existing = dr.nw.Modified
			return t, s.contradictions(dr.network)
		}
		return d.entry(ctx, dockerID, s, &dr)
	})
	if err != nil {
		return "", entered{}, fmt.Errorf("create network %s: %w", dr.name, err)
	}
	if existing == 0 {
		for i := range dr.pools {
			dr.pools[i].Modified = revision
		}
		d.log.Info("joined network",
			"network", dr.name, "mode", dr.network.Mode, "vni", dr.network.VNI, "mtu", dr.network.MTU, "docker", dockerID)
	}
	return dr.name, entered{max(revision, existing), dr.pools}, nil
}

// entry is the transaction that makes dockerID a member of the drafted network.
func (d *Driver) entry(ctx context.Context, dockerID string, s spec, dr *draft) (txn, error) {
	if dr.network.Swarm == dockerID && len(dr.network.Members) == 0 {
		dr.network.Internal = s.internal // its allocation was not told
	}
	if s.foreignIPAM && (dr.network.Swarm != dockerID || !dr.network.ForeignIPAM) {
		return txn{}, fmt.Errorf("the subnets %s come from another IPAM driver, which allocates per host; "+
			"add --ipam-driver custom-overlay so that no two hosts give out one address", s.subnets)
	}
	return d.change(ctx, s, dr, func(nw *store.Network) {
		nw.Members = append(slices.Clone(nw.Members),
			store.Member{Node: d.site.node, DockerID: dockerID, Since: d.cfg.Now()})
	})
}

// change is the transaction that founds the drafted network or changes it by alter, and ends this node's claims on its
// pools.
func (d *Driver) change(ctx context.Context, s spec, dr *draft, alter func(*store.Network)) (t txn, err error) {
	if dr.nw.Key == "" {
		nw, err := d.found(ctx, s, dr.name)
		if err == nil && nw.VNI != 0 {
			err = d.compatible(ctx, nw, &t)
		}
		if err != nil {
			return t, err
		}
		dr.network = nw
		t.require(store.Absent(store.NetworkKey(nw.Name)))
		if nw.VNI != 0 {
			t.require(store.Absent(store.VNIKey(nw.VNI)))
			t.write(store.Put(store.VNIKey(nw.VNI), []byte(nw.Name)))
		}
	} else {
		if err := d.fits(ctx, s, dr.network); err != nil {
			return t, err
		}
		t.require(store.Unchanged(dr.nw))
	}
	alter(&dr.network)
	t.write(store.Put(store.NetworkKey(dr.name), store.Encode(dr.network)))
	for i, p := range dr.records {
		p.Network = dr.name
		p.Claims = slices.DeleteFunc(slices.Clone(p.Claims), d.claimed(s))
		t.require(store.Unchanged(dr.pools[i]))
		t.write(store.Put(dr.pools[i].Key, store.Encode(p)))
	}
	return t, nil
}

// claimed tells the claims on a pool that were made through this node for what s is: a network of its own, or a
// swarm's.
func (d *Driver) claimed(s spec) func(store.Claim) bool {
	return func(c store.Claim) bool { return c.Node == d.site.node && c.Swarm == s.allocation }
}

// fits says whether this node can be a member of an existing network.
func (d *Driver) fits(ctx context.Context, s spec, nw store.Network) error {
	if err := s.contradictions(nw); err != nil {
		return fmt.Errorf("network %s exists with other properties: %w", nw.Name, err)
	}
	m, err := d.modeOf(nw.Mode)
	if err != nil {
		return err
	}
	return m.fits(ctx, s, nw)
}

// found is the record of a new network with everything that the user left open chosen.
func (d *Driver) found(ctx context.Context, s spec, name string) (store.Network, error) {
	nw := store.Network{
		Name: name, Mode: cmp.Or(s.mode, store.ModeOverlay), MTU: s.mtu, Subnets: s.subnets, Internal: s.internal,
		Isolation: s.isolation.record(),
		Creator:   d.site.node, Created: d.cfg.Now(),
	}
	m, err := d.modeOf(s.mode)
	if err != nil {
		return nw, err
	}
	return nw, m.found(ctx, s, &nw)
}

// chooseVNI returns the asked VNI if it is free, else the first free one of the automatic range. The claim itself is a
// condition of the transaction that uses it.
func (d *Driver) chooseVNI(ctx context.Context, s spec, name string) (vxlan.VNI, error) {
	if s.vni != 0 {
		kv, err := d.cfg.Store.Get(ctx, store.VNIKey(s.vni))
		if err == nil {
			return 0, fmt.Errorf("VNI %d belongs to network %s; choose another --opt vni or omit it", s.vni, kv.Value)
		}
		if !errors.Is(err, store.ErrNotFound) {
			return 0, err
		}
		return s.vni, nil
	}
	for n := range retries {
		v := vxlan.AutoVNI(name, n)
		_, err := d.cfg.Store.Get(ctx, store.VNIKey(v))
		if errors.Is(err, store.ErrNotFound) {
			return v, nil
		}
		if err != nil {
			return 0, err
		}
	}
	return 0, fmt.Errorf("no free VNI found for network %s in %d tries; choose one with --opt vni=N", name, retries)
}

// quit ends a membership, with this node's endpoints in it, and the whole network if it was the last one and no swarm
// has it. A membership that does not exist is no error: Docker may ask twice.
func (d *Driver) quit(ctx context.Context, dockerID string) error {
	nw, err := d.networkOf(ctx, dockerID)
	if errors.Is(err, ErrUnknown) {
		return nil
	}
	if err == nil {
		err = d.leftovers(ctx, nw, dockerID)
	}
	if err == nil {
		err = d.leaveSeat(ctx, nw, dockerID)
	}
	var revision int64
	if err == nil {
		revision, err = d.commit(ctx, func() (txn, error) { return d.exit(ctx, nw.Name, dockerID) })
	}
	if err != nil {
		return fmt.Errorf("leave network %s: %w", nw.Name, err)
	}
	if revision == 0 { // it had been left
		return nil
	}
	d.log.Info("left network", "network", nw.Name, "docker", dockerID)
	return d.await(ctx, nw.Name, store.NetworkKey(nw.Name), revision)
}

// leftovers withdraws the endpoints that a Docker network of this node still has in the records: Docker refuses to
// remove a network in use, so these are of containers that ended while nobody could be told.
func (d *Driver) leftovers(ctx context.Context, nw store.Network, dockerID string) error {
	kvs, _, err := d.cfg.Store.List(ctx, store.NetworkEndpoints(nw.Name))
	if err != nil {
		return err
	}
	for _, kv := range kvs {
		e, err := store.Decode[store.Endpoint](kv)
		if err != nil || e.Node != d.site.node || e.DockerID != dockerID {
			continue
		}
		if err := d.withdraw(ctx, nw, e.ID, releaseNow); err != nil {
			return fmt.Errorf("endpoint %s: %w", e.ID, err)
		}
	}
	return nil
}

// exit is the transaction that ends a membership; it is empty if the network or the membership is gone.
func (d *Driver) exit(ctx context.Context, name, dockerID string) (txn, error) {
	nw, kv, found, err := read[store.Network](ctx, d.cfg.Store, store.NetworkKey(name))
	if err != nil || !found {
		return txn{}, err
	}
	i := d.member(nw, dockerID)
	if i < 0 {
		return txn{}, nil
	}
	nw.Members = slices.Delete(nw.Members, i, i+1)
	return d.update(ctx, kv, nw)
}

// update is the transaction that writes a network that has lost a member or its swarm, or removes it if it has neither
// any more.
func (d *Driver) update(ctx context.Context, kv store.KV, nw store.Network) (t txn, err error) {
	t.require(store.Unchanged(kv))
	if len(nw.Members) > 0 || nw.Swarm != "" {
		t.write(store.Put(kv.Key, store.Encode(nw)))
		return t, nil
	}
	conds, ops, err := store.Dissolve(ctx, d.cfg.Store, nw)
	t.require(conds...)
	t.write(ops...)
	return t, err
}

// subnetOf returns the subnet of a network that has an address.
func subnetOf(nw store.Network, a netip.Addr) (netip.Prefix, bool) {
	for _, p := range nw.Subnets {
		if p.Contains(a) {
			return p, true
		}
	}
	return netip.Prefix{}, false
}
