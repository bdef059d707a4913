package driver

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/netdriver/netdriver/dataplane/lan"
	"github.com/netdriver/netdriver/ipam"
	"github.com/netdriver/netdriver/store"
	"github.com/netdriver/netdriver/vxlan"
)

// Vet is asked before an address is given out. In a network that is in a LAN somebody outside the cluster may have it: then
// that is recorded, and the error wraps ipam.ErrOutside. A node that has no part in the LAN cannot know.
func (d *Driver) Vet(ctx context.Context, subnet netip.Prefix, a netip.Addr) error {
	var nw store.Network
	var node string
	d.cfg.Mirror.Read(func(r *store.Records) {
		nw = r.Networks[r.Pools[subnet].Network]
		for _, n := range r.Nodes {
			if n.VTEP == a {
				node = n.Name
			}
		}
	})
	if !nw.OnLAN() || d.cfg.LAN == nil {
		return nil
	}
	if node != "" {
		return fmt.Errorf("address %s is that of node %s: %w", a, node, ipam.ErrOutside)
	}
	host, err := d.cfg.LAN.Interfaces(ctx)
	if err != nil {
		return err
	}
	parent, err := lan.Resolve(nw.LAN.Parent, d.cfg.Parents, host)
	if err != nil {
		if isMember(nw, d.site.node) {
			return fmt.Errorf("network %s: %w", nw.Name, err)
		}
		return nil
	}
	if parent.Down {
		return fmt.Errorf("network %s: %w", nw.Name, downError(parent))
	}
	for _, i := range host {
		if slices.ContainsFunc(i.Addrs, func(p netip.Prefix) bool { return p.Addr() == a }) {
			return fmt.Errorf("address %s is that of interface %s of node %s: %w", a, i.Name, d.site.node, ipam.ErrOutside)
		}
	}
	if !slices.ContainsFunc(host, func(i lan.Interface) bool { return i.Name == parent.Device }) {
		return nil // the VLAN is still to be made
	}
	mac, found, err := d.cfg.LAN.Probe(ctx, parent.Device, a)
	if err != nil {
		return fmt.Errorf("ask in the LAN who has %s: %w", a, err)
	}
	if !found {
		return nil
	}
	d.log.Warn("an address is used outside the cluster", "network", nw.Name, "address", a, "mac", mac, "parent", parent.Device)
	conflict := fmt.Errorf("address %s is used by %s in the LAN, outside the cluster, as node %s found on %s: %w",
		a, mac, d.site.node, parent.Device, ipam.ErrOutside)
	return errors.Join(conflict, d.recordConflict(ctx, nw, a, mac))
}

func (d *Driver) recordConflict(ctx context.Context, nw store.Network, a netip.Addr, mac vxlan.MAC) error {
	c := store.Conflict{Network: nw.Name, Address: a, MAC: mac, Node: d.site.node, Seen: d.cfg.Now()}
	_, err := d.cfg.Store.Commit(ctx, []store.Cond{store.Exists(store.NetworkKey(nw.Name))},
		store.Put(store.ConflictKey(nw.Name, a), store.Encode(c)))
	return err
}

// recheckConflicts asks again for the addresses that this node found used outside, and forgets those that nobody has any
// more.
func (d *Driver) recheckConflicts(ctx context.Context) error {
	if d.cfg.LAN == nil {
		return nil
	}
	kvs, _, err := d.cfg.Store.List(ctx, store.ConflictPrefix)
	if err != nil {
		return err
	}
	var errs []error
	for _, kv := range kvs {
		c, err := store.Decode[store.Conflict](kv)
		if err != nil || c.Node != d.site.node {
			continue
		}
		nw := d.record(c.Network)
		subnet, _ := subnetOf(nw, c.Address)
		switch err := d.Vet(ctx, subnet, c.Address); {
		case err == nil:
			d.log.Info("an address is not used outside the cluster any more", "network", c.Network, "address", c.Address,
				"since", c.Seen.Format(time.DateTime))
			_, err = d.cfg.Store.Commit(ctx, nil, store.Delete(kv.Key))
			errs = append(errs, err)
		case !errors.Is(err, ipam.ErrOutside):
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
