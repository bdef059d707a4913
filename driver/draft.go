package driver

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/netdriver/netdriver/store"
)

// draft is what is read before a network is made or entered: the pools of the asked subnets and, if there is one, the
// network.
type draft struct {
	name    string
	pools   []store.KV
	records []store.Pool
	// foreign are the subnets that no pool has: an allocation's, whose addresses come from the swarm's own IPAM driver.
	foreign []netip.Prefix
	nw      store.KV
	network store.Network
}

// draft reads what is decided upon. The network's name is that of --opt network, else the one that has the subnets,
// else one made of the Docker network's id.
func (d *Driver) draft(ctx context.Context, dockerID string, s spec) (draft, error) {
	dr := draft{name: s.name}
	for _, subnet := range s.subnets {
		if err := d.draftPool(ctx, s, subnet, &dr); err != nil {
			return dr, err
		}
	}
	if dr.name == "" {
		dr.name = "net-" + dockerID[:min(12, len(dockerID))]
	}
	var err error
	dr.network, dr.nw, _, err = read[store.Network](ctx, d.cfg.Store, store.NetworkKey(dr.name))
	return dr, err
}

// draftPool reads the pool of one subnet into dr.
func (d *Driver) draftPool(ctx context.Context, s spec, subnet netip.Prefix, dr *draft) error {
	p, kv, found, err := read[store.Pool](ctx, d.cfg.Store, store.PoolKey(subnet))
	switch {
	case err != nil:
		return err
	case !found && s.allocation:
		dr.foreign = append(dr.foreign, subnet)
		return nil
	case !found:
		return fmt.Errorf("subnet %s has no address pool in the cluster; create the network with "+
			"--ipam-driver custom-overlay", subnet)
	case p.Network != "" && dr.name != "" && p.Network != dr.name:
		return fmt.Errorf("subnet %s belongs to network %s, not to %s; choose another --subnet or --opt network=%s",
			subnet, p.Network, dr.name, p.Network)
	case p.Network != "":
		dr.name = p.Network
	}
	dr.pools, dr.records = append(dr.pools, kv), append(dr.records, p)
	return nil
}
