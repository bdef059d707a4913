package driver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/docker/go-plugins-helpers/network"

	"github.com/netdriver/netdriver/internal/plugin"
	"github.com/netdriver/netdriver/store"
	"github.com/netdriver/netdriver/vxlan"
)

// createEndpoint records an endpoint, which publishes it to all nodes, and makes its interface. The answer has only what
// the request left open: libnetwork refuses to be answered what it gave (moby daemon/libnetwork/drivers/remote/driver.go).
func (d *Driver) createEndpoint(ctx context.Context, req *network.CreateEndpointRequest) (*network.CreateEndpointResponse, error) {
	ctx, cancel, err := d.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer cancel()
	nw, e, err := d.parseEndpoint(ctx, req)
	if err != nil {
		return nil, err
	}
	revision, err := d.publish(ctx, nw, e)
	if err != nil {
		return nil, fmt.Errorf("create endpoint %s in network %s: %w", e.ID, nw.Name, err)
	}
	if err := d.await(ctx, nw.Name, store.EndpointKey(nw.Name, e.ID), revision); err != nil {
		withdraw := func(ctx context.Context) error { return d.withdraw(ctx, nw, e.ID, awaitRelease) }
		return nil, errors.Join(err, d.undo(ctx, withdraw))
	}
	res := &network.CreateEndpointResponse{Interface: &network.EndpointInterface{}}
	if req.Interface.MacAddress == "" {
		res.Interface.MacAddress = e.MAC.String()
	}
	return res, nil
}

// parseEndpoint validates a CreateEndpoint request.
func (d *Driver) parseEndpoint(ctx context.Context, req *network.CreateEndpointRequest) (store.Network, store.Endpoint, error) {
	nw, err := d.networkOf(ctx, req.NetworkID)
	if err != nil {
		return nw, store.Endpoint{}, err
	}
	if req.Interface == nil {
		return nw, store.Endpoint{}, errors.New("no interface in the request: netdriver needs an address from its IPAM driver")
	}
	v4, err4 := parseCIDR("address", req.Interface.Address)
	v6, err6 := parseCIDR("IPv6 address", req.Interface.AddressIPv6)
	e := store.Endpoint{
		ID: req.EndpointID, Network: nw.Name, Node: d.site.node, DockerID: req.NetworkID, IPv4: v4, IPv6: v6,
		Phase: store.PhaseCreated, Created: d.cfg.Now(),
	}
	errs := []error{err4, err6, store.CheckID("endpoint", req.EndpointID), checkEndpointOptions(req.Options)}
	for _, a := range e.Addrs() {
		if _, ok := subnetOf(nw, a); !ok {
			errs = append(errs, fmt.Errorf("address %s is in no subnet of network %s (%v)", a, nw.Name, nw.Subnets))
		}
	}
	addrs := e.Addrs()
	if len(addrs) == 0 {
		errs = append(errs, errors.New("endpoint without address: netdriver needs one from its IPAM driver"))
	} else {
		e.MAC = vxlan.MACFor(addrs[0])
	}
	if mac := req.Interface.MacAddress; mac != "" {
		e.MAC, err = vxlan.ParseMAC(mac)
		errs = append(errs, err)
	}
	return nw, e, errors.Join(errs...)
}

// checkEndpointOptions refuses options that a user gave (docker network connect --driver-opt) and netdriver does not
// know; what Docker adds by itself is left to Docker.
func checkEndpointOptions(options map[string]any) error {
	var unknown []string
	for _, k := range slices.Sorted(maps.Keys(options)) {
		if !strings.HasPrefix(k, labelPrefix) {
			unknown = append(unknown, k)
		}
	}
	if len(unknown) > 0 {
		return fmt.Errorf("unknown endpoint option %s: there are none on an overlay network; omit --driver-opt", strings.Join(unknown, ", "))
	}
	return nil
}

// publish writes the endpoint, its claim on the MAC and its name into its leases, in one transaction. The same endpoint
// asked again is granted.
func (d *Driver) publish(ctx context.Context, nw store.Network, e store.Endpoint) (int64, error) {
	key := store.EndpointKey(nw.Name, e.ID)
	for range retries {
		conds := []store.Cond{store.Exists(store.NetworkKey(nw.Name)), store.Absent(key), store.Absent(store.MACKey(nw.Name, e.MAC))}
		ops := []store.Op{store.Put(key, store.Encode(e)), store.Put(store.MACKey(nw.Name, e.MAC), []byte(e.ID))}
		conds, ops, err := d.attachLeases(ctx, nw, e, conds, ops)
		if err != nil {
			return 0, err
		}
		revision, err := d.cfg.Store.Commit(ctx, conds, ops...)
		if !errors.Is(err, store.ErrConflict) {
			return revision, err
		}
		kv, err := d.cfg.Store.Get(ctx, key)
		if err == nil {
			return kv.Modified, sameEndpoint(kv, e)
		}
		if err := d.explain(ctx, nw, e); err != nil {
			return 0, err
		}
	}
	return 0, fmt.Errorf("%w %d times; try again", store.ErrConflict, retries)
}

// sameEndpoint says whether an endpoint that exists is the one asked for.
func sameEndpoint(kv store.KV, asked store.Endpoint) error {
	have, err := store.Decode[store.Endpoint](kv)
	if err != nil {
		return err
	}
	if have.MAC != asked.MAC || have.IPv4 != asked.IPv4 || have.IPv6 != asked.IPv6 || have.Node != asked.Node {
		return fmt.Errorf("it exists already with address %v and MAC %s on node %s, asked for %v and %s",
			have.Addrs(), have.MAC, have.Node, asked.Addrs(), asked.MAC)
	}
	return nil
}

// attachLeases adds to a transaction that the endpoint holds its addresses. A lease that is missing is made: the address
// was granted by an earlier RequestAddress whose lease has been reclaimed.
func (d *Driver) attachLeases(ctx context.Context, nw store.Network, e store.Endpoint, conds []store.Cond, ops []store.Op) (
	[]store.Cond, []store.Op, error,
) {
	for _, a := range e.Addrs() {
		subnet, _ := subnetOf(nw, a)
		lease := store.Lease{Address: a, Kind: store.LeaseEndpoint, Node: d.site.node, MAC: e.MAC, Created: d.cfg.Now()}
		kv, err := d.cfg.Store.Get(ctx, store.LeaseKey(subnet, a))
		switch {
		case errors.Is(err, store.ErrNotFound):
			conds = append(conds, store.Absent(store.LeaseKey(subnet, a)))
		case err != nil:
			return nil, nil, err
		default:
			if lease, err = store.Decode[store.Lease](kv); err != nil {
				return nil, nil, err
			}
			if lease.Node == "" && lease.Swarm {
				lease.Node, lease.MAC = d.site.node, e.MAC
			}
			if lease.Endpoint != "" && lease.Endpoint != e.ID && lease.Node == d.site.node {
				if conds, ops, err = d.evict(ctx, nw, &lease, conds, ops); err != nil {
					return nil, nil, err
				}
			}
			if lease.Kind != store.LeaseEndpoint || lease.Node != d.site.node || (lease.Endpoint != "" && lease.Endpoint != e.ID) {
				return nil, nil, fmt.Errorf("address %s is held by %s since %s; choose another or remove its holder",
					a, holder(lease), lease.Created.Format("2006-01-02 15:04:05"))
			}
			conds = append(conds, store.Unchanged(kv))
		}
		lease.Endpoint = e.ID
		ops = append(ops, store.Put(store.LeaseKey(subnet, a), store.Encode(lease)))
	}
	return conds, ops, nil
}

// evict removes the record of a lease's endpoint if that is another node's: IPAM took the address over for this node,
// since the other is lost and the swarm runs the task here now.
func (d *Driver) evict(ctx context.Context, nw store.Network, lease *store.Lease, conds []store.Cond, ops []store.Op) (
	[]store.Cond, []store.Op, error,
) {
	kv, err := d.cfg.Store.Get(ctx, store.EndpointKey(nw.Name, lease.Endpoint))
	if errors.Is(err, store.ErrNotFound) {
		lease.Endpoint = ""
		return conds, ops, nil
	}
	if err != nil {
		return nil, nil, err
	}
	old, err := store.Decode[store.Endpoint](kv)
	if err != nil || old.Node == d.site.node {
		return conds, ops, err
	}
	d.log.Info("removing the endpoint of a lost node whose address is used here now",
		"network", nw.Name, "endpoint", old.ID, "peer", old.Node)
	lease.Endpoint = ""
	return append(conds, store.Unchanged(kv)),
		append(ops, store.Delete(kv.Key), store.Delete(store.MACKey(nw.Name, old.MAC))), nil
}

// holder names who has a lease.
func holder(l store.Lease) string {
	if l.Node == "" {
		return "a task or service of the swarm"
	}
	if l.Endpoint == "" {
		return fmt.Sprintf("%s on node %s", l.Kind, l.Node)
	}
	return fmt.Sprintf("%s %s on node %s", l.Kind, l.Endpoint, l.Node)
}

// explain finds out why publish lost: a conflict that trying again cannot cure is returned as an error.
func (d *Driver) explain(ctx context.Context, nw store.Network, e store.Endpoint) error {
	kv, err := d.cfg.Store.Get(ctx, store.MACKey(nw.Name, e.MAC))
	if err == nil && string(kv.Value) != e.ID {
		return fmt.Errorf("MAC address %s is that of endpoint %s in network %s; choose another --mac-address", e.MAC, kv.Value, nw.Name)
	}
	if _, err := d.cfg.Store.Get(ctx, store.NetworkKey(nw.Name)); errors.Is(err, store.ErrNotFound) {
		return fmt.Errorf("network %s has been removed meanwhile", nw.Name)
	}
	return nil
}

// endpointOperInfo: a 404 here would fail the container's start, so the answer is always empty and never an error.
func (d *Driver) endpointOperInfo(context.Context, *plugin.Empty) (network.InfoResponse, error) {
	return network.InfoResponse{Value: map[string]string{}}, nil
}

// deleteEndpoint withdraws an endpoint. What does not exist is no error, since Docker ignores errors here and may ask again.
func (d *Driver) deleteEndpoint(ctx context.Context, req *network.DeleteEndpointRequest) (plugin.Empty, error) {
	ctx, cancel, err := d.begin(ctx)
	if err != nil {
		return plugin.Empty{}, err
	}
	defer cancel()
	if err := store.CheckID("endpoint", req.EndpointID); err != nil {
		return plugin.Empty{}, err
	}
	nw, err := d.networkOf(ctx, req.NetworkID)
	if errors.Is(err, ErrUnknown) {
		return plugin.Empty{}, nil
	}
	if err != nil {
		return plugin.Empty{}, err
	}
	if err := d.withdraw(ctx, nw, req.EndpointID, awaitRelease); err != nil {
		return plugin.Empty{}, fmt.Errorf("delete endpoint %s of network %s: %w", req.EndpointID, nw.Name, err)
	}
	return plugin.Empty{}, nil
}

// awaitRelease and releaseNow say what becomes of a withdrawn endpoint's leases: they stay, without endpoint and dated
// anew, for the ReleaseAddress that follows (should it never come, the janitor frees them); or they go, since Docker has
// forgotten the endpoint and nothing follows.
const (
	awaitRelease = false
	releaseNow   = true
)

// withdraw removes an endpoint's record and MAC claim, and its leases if release is set.
func (d *Driver) withdraw(ctx context.Context, nw store.Network, id string, release bool) error {
	key := store.EndpointKey(nw.Name, id)
	for range retries {
		kv, err := d.cfg.Store.Get(ctx, key)
		if errors.Is(err, store.ErrNotFound) {
			return d.sync(ctx, nw.Name)
		}
		if err != nil {
			return err
		}
		e, err := store.Decode[store.Endpoint](kv)
		if err != nil {
			return err
		}
		if e.Node != d.site.node {
			return fmt.Errorf("it is an endpoint of node %s", e.Node)
		}
		conds := []store.Cond{store.Unchanged(kv)}
		ops := []store.Op{store.Delete(key), store.Delete(store.MACKey(nw.Name, e.MAC))}
		if conds, ops, err = d.detachLeases(ctx, nw, e, release, conds, ops); err != nil {
			return err
		}
		revision, err := d.cfg.Store.Commit(ctx, conds, ops...)
		if errors.Is(err, store.ErrConflict) {
			continue
		}
		if err != nil {
			return err
		}
		return d.await(ctx, nw.Name, key, revision)
	}
	return fmt.Errorf("%w %d times; the janitor tries again", store.ErrConflict, retries)
}

// detachLeases adds to a transaction that the endpoint's leases have no endpoint any more, or go.
func (d *Driver) detachLeases(
	ctx context.Context, nw store.Network, e store.Endpoint, release bool, conds []store.Cond, ops []store.Op,
) ([]store.Cond, []store.Op, error) {
	for _, a := range e.Addrs() {
		subnet, _ := subnetOf(nw, a)
		kv, err := d.cfg.Store.Get(ctx, store.LeaseKey(subnet, a))
		if errors.Is(err, store.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		l, err := store.Decode[store.Lease](kv)
		if err != nil || l.Endpoint != e.ID {
			continue
		}
		kept := !release && !nw.ForeignIPAM // whose addresses nobody releases here
		if kept {
			l.Endpoint, l.Created = "", d.cfg.Now()
		} else {
			l, kept = l.Vacate()
		}
		conds = append(conds, store.Unchanged(kv))
		if kept {
			ops = append(ops, store.Put(kv.Key, store.Encode(l)))
		} else {
			ops = append(ops, store.Delete(kv.Key))
		}
	}
	return conds, ops, nil
}
