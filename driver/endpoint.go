package driver

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/docker/go-plugins-helpers/network"

	"github.com/netdriver/netdriver/internal/plugin"
	"github.com/netdriver/netdriver/store"
	"github.com/netdriver/netdriver/vxlan"
)

// createEndpoint records an endpoint, which publishes it to all nodes, and makes its interface. The answer has only
// what the request left open: libnetwork refuses to be answered what it gave (moby
// daemon/libnetwork/drivers/remote/driver.go).
func (d *Driver) createEndpoint(ctx context.Context, req *network.CreateEndpointRequest) (
	*network.CreateEndpointResponse, error,
) {
	ctx, cancel, err := d.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer cancel()
	nw, e, err := d.parseEndpoint(ctx, req)
	if err == nil {
		err = d.encrypts(ctx, nw)
	}
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
func (d *Driver) parseEndpoint(ctx context.Context, req *network.CreateEndpointRequest) (
	store.Network, store.Endpoint, error,
) {
	nw, err := d.networkOf(ctx, req.NetworkID)
	if err != nil {
		return nw, store.Endpoint{}, err
	}
	if req.Interface == nil {
		return nw, store.Endpoint{}, errors.New("no interface in the request: netdriver needs an address from its " +
			"IPAM driver")
	}
	v4, err4 := parseCIDR("address", req.Interface.Address)
	v6, err6 := parseCIDR("IPv6 address", req.Interface.AddressIPv6)
	e := store.Endpoint{
		ID: req.EndpointID, Network: nw.Name, Node: d.site.node, DockerID: req.NetworkID, IPv4: v4, IPv6: v6,
		Phase: store.PhaseCreated, Created: d.cfg.Now(),
	}
	errs := []error{err4, err6, store.CheckID("endpoint", req.EndpointID), parseEndpointOptions(nw, req.Options, &e), d.limits(e.Limit)}
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

// publish writes the endpoint, its claim on the MAC and its name into its leases, in one transaction. The same endpoint
// asked again is granted.
func (d *Driver) publish(ctx context.Context, nw store.Network, e store.Endpoint) (int64, error) {
	key, mac := store.EndpointKey(nw.Name, e.ID), store.MACKey(nw.MACScope(), e.MAC)
	var existing int64
	lost := false
	revision, err := d.commit(ctx, func() (t txn, err error) {
		if lost { // only then it is worth a question why
			if existing, err = d.published(ctx, nw, e); existing > 0 || err != nil {
				return t, err
			}
		}
		lost = true
		t.require(store.Exists(store.NetworkKey(nw.Name)), store.Absent(key), store.Absent(mac))
		t.write(store.Put(key, store.Encode(e)), store.Put(mac, []byte(e.ID)))
		for _, a := range e.Addrs() {
			if err := d.attach(ctx, nw, e, a, &t); err != nil {
				return t, err
			}
		}
		return t, d.evict(ctx, nw, e)
	})
	return max(revision, existing), err
}

// published finds out why publish lost: the endpoint exists, in that revision, or there is an obstacle that trying
// again cannot cure. Revision 0 means that it may be tried again.
func (d *Driver) published(ctx context.Context, nw store.Network, e store.Endpoint) (int64, error) {
	have, kv, found, err := read[store.Endpoint](ctx, d.cfg.Store, store.EndpointKey(nw.Name, e.ID))
	if err != nil {
		return 0, err
	}
	if found {
		return kv.Modified, sameEndpoint(have, e)
	}
	claim, err := d.cfg.Store.Get(ctx, store.MACKey(nw.MACScope(), e.MAC))
	if err == nil && string(claim.Value) != e.ID {
		return 0, fmt.Errorf("MAC address %s is that of endpoint %s in %s; choose another --mac-address",
			e.MAC, claim.Value, scopeName(nw))
	}
	if _, err := d.cfg.Store.Get(ctx, store.NetworkKey(nw.Name)); errors.Is(err, store.ErrNotFound) {
		return 0, fmt.Errorf("network %s has been removed meanwhile", nw.Name)
	}
	return 0, nil
}

// sameEndpoint says whether an endpoint that exists is the one asked for.
func sameEndpoint(have, asked store.Endpoint) error {
	if have.Group != asked.Group || have.Limit != asked.Limit {
		return fmt.Errorf("it exists already with group %q and rate %s, asked for %q and %s",
			have.Group, formatRate(have.Rate), asked.Group, formatRate(asked.Rate))
	}
	if have.MAC != asked.MAC || have.IPv4 != asked.IPv4 || have.IPv6 != asked.IPv6 || have.Node != asked.Node {
		return fmt.Errorf("it exists already with address %v and MAC %s on node %s, asked for %v and %s",
			have.Addrs(), have.MAC, have.Node, asked.Addrs(), asked.MAC)
	}
	return nil
}

// attach adds to a transaction that the endpoint has one of its addresses. A lease that is missing is made: it has been
// reclaimed since RequestAddress, or another IPAM driver gave the address.
func (d *Driver) attach(ctx context.Context, nw store.Network, e store.Endpoint, a netip.Addr, t *txn) error {
	subnet, _ := subnetOf(nw, a)
	key := store.LeaseKey(subnet, a)
	l, kv, found, err := read[store.Lease](ctx, d.cfg.Store, key)
	if err != nil {
		return err
	}
	if !found {
		l = store.Lease{Address: a, Kind: store.LeaseEndpoint, Created: d.cfg.Now()}
		t.require(store.Absent(key))
	} else {
		t.require(store.Unchanged(kv))
	}
	free, err := d.available(ctx, nw, l, e.ID)
	if err != nil {
		return err
	}
	if !free {
		return fmt.Errorf("address %s is held by %s since %s; choose another or remove its holder",
			a, holder(l), l.Created.Format(time.DateTime))
	}
	l.Node, l.Endpoint, l.MAC = d.site.node, e.ID, e.MAC
	t.write(store.Put(key, store.Encode(l)))
	return nil
}

// available says whether an endpoint of this node may have a leased address: IPAM gave it to this node, no node has it,
// or it comes from another IPAM driver, which would not have given it again if its former node were not lost.
func (d *Driver) available(ctx context.Context, nw store.Network, l store.Lease, endpoint string) (bool, error) {
	switch {
	case l.Kind == store.LeaseNode:
		return l.Node == d.site.node && l.Endpoint == endpoint, nil
	case l.Kind != store.LeaseEndpoint:
		return false, nil
	case l.Node == "", l.Node == d.site.node && (l.Endpoint == "" || l.Endpoint == endpoint):
		return true, nil
	case l.Node == d.site.node: // unless that endpoint is gone
		_, _, found, err := read[store.Endpoint](ctx, d.cfg.Store, store.EndpointKey(nw.Name, l.Endpoint))
		return !found, err
	case !nw.ForeignIPAM:
		return false, nil
	}
	_, err := d.cfg.Store.Get(ctx, store.AliveKey(l.Node))
	if errors.Is(err, store.ErrNotFound) {
		return true, nil
	}
	return false, err
}

// evict removes endpoints of other nodes that have the address of a new one here, whose lease says that it is this
// node's: they are left from a node that was lost, whose task the swarm runs elsewhere now.
func (d *Driver) evict(ctx context.Context, nw store.Network, e store.Endpoint) error {
	if nw.Swarm == "" {
		return nil
	}
	var stale []store.Endpoint
	d.cfg.Mirror.Read(func(r *store.Records) {
		for _, other := range r.Endpoints[nw.Name] {
			if other.Node != d.site.node && shareAddress(other, e) {
				stale = append(stale, other)
			}
		}
	})
	for _, old := range stale {
		_, kv, found, err := read[store.Endpoint](ctx, d.cfg.Store, store.EndpointKey(nw.Name, old.ID))
		if err == nil && found {
			d.log.Info("removing the endpoint of a lost node, whose address is used here now",
				"network", nw.Name, "endpoint", old.ID, "peer", old.Node)
			_, err = d.cfg.Store.Commit(ctx, []store.Cond{store.Unchanged(kv)}, forget(nw, old)...)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// shareAddress says whether two endpoints have an address in common. It is asked of thousands.
func shareAddress(a, b store.Endpoint) bool {
	return a.IPv4.IsValid() && a.IPv4.Addr() == b.IPv4.Addr() || a.IPv6.IsValid() && a.IPv6.Addr() == b.IPv6.Addr()
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

// endpointOperInfo: a 404 here would fail the container's start, so the answer is always empty and never an error.
func (d *Driver) endpointOperInfo(context.Context, *plugin.Empty) (network.InfoResponse, error) {
	return network.InfoResponse{Value: map[string]string{}}, nil
}

// deleteEndpoint withdraws an endpoint. What does not exist is no error, since Docker ignores errors here and may ask
// again.
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
	defer d.departed.set(req.EndpointID, false)
	if err := d.withdraw(ctx, nw, req.EndpointID, awaitRelease); err != nil {
		return plugin.Empty{}, fmt.Errorf("delete endpoint %s of network %s: %w", req.EndpointID, nw.Name, err)
	}
	return plugin.Empty{}, nil
}

// awaitRelease and releaseNow say what becomes of a withdrawn endpoint's leases: they stay, without endpoint and dated
// anew, for the ReleaseAddress that follows (should it never come, the janitor frees them); or they go, since Docker
// has forgotten the endpoint and nothing follows.
const (
	awaitRelease = false
	releaseNow   = true
)

// withdraw removes an endpoint's record and MAC claim, and its leases if release is set.
func (d *Driver) withdraw(ctx context.Context, nw store.Network, id string, release bool) error {
	key := store.EndpointKey(nw.Name, id)
	revision, err := d.commit(ctx, func() (t txn, err error) {
		e, kv, found, err := read[store.Endpoint](ctx, d.cfg.Store, key)
		if err != nil || !found {
			return t, err
		}
		if e.Node != d.site.node {
			return t, fmt.Errorf("it is an endpoint of node %s", e.Node)
		}
		t.require(store.Unchanged(kv))
		t.write(forget(nw, e)...)
		for _, a := range e.Addrs() {
			if err := d.detach(ctx, nw, e, a, release, &t); err != nil {
				return t, err
			}
		}
		return t, nil
	})
	if err != nil {
		return err
	}
	if revision == 0 { // it was gone
		return d.sync(ctx, nw.Name)
	}
	return d.await(ctx, nw.Name, key, revision)
}

// forget removes an endpoint's record, the names published for it and its claim on the MAC.
func forget(nw store.Network, e store.Endpoint) []store.Op {
	return []store.Op{
		store.Delete(store.EndpointKey(nw.Name, e.ID)), store.Delete(store.NameKey(nw.Name, e.ID)),
		store.Delete(store.MACKey(nw.MACScope(), e.MAC)),
	}
}

// scopeName says where a MAC address must be unique.
func scopeName(nw store.Network) string {
	if nw.OnLAN() {
		return "a network that is in a LAN"
	}
	return "network " + nw.Name
}

// detach adds to a transaction that the lease of one of the endpoint's addresses has no endpoint any more, or goes. The
// swarm keeps what it has. Of addresses from another IPAM driver no release follows.
func (d *Driver) detach(
	ctx context.Context, nw store.Network, e store.Endpoint, a netip.Addr, release bool, t *txn,
) error {
	subnet, _ := subnetOf(nw, a)
	l, kv, found, err := read[store.Lease](ctx, d.cfg.Store, store.LeaseKey(subnet, a))
	if errors.Is(err, store.ErrRecord) || err == nil && (!found || l.Endpoint != e.ID || l.Node != e.Node) {
		return nil
	}
	if err != nil {
		return err
	}
	kept := true
	if release || nw.ForeignIPAM {
		l, kept = l.Vacate()
	} else {
		l.Endpoint, l.Created = "", d.cfg.Now()
	}
	t.require(store.Unchanged(kv))
	if kept {
		t.write(store.Put(kv.Key, store.Encode(l)))
	} else {
		t.write(store.Delete(kv.Key))
	}
	return nil
}
