package ipam

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/docker/go-plugins-helpers/ipam"

	"github.com/netdriver/netdriver/internal/plugin"
	"github.com/netdriver/netdriver/store"
	"github.com/netdriver/netdriver/vxlan"
)

// Options of a RequestAddress (moby daemon/libnetwork/ipamapi and netlabel).
const (
	optionType  = "RequestAddressType"
	typeGateway = "com.docker.network.gateway"
	optionMAC   = "com.docker.network.endpoint.macaddress"
)

// starting is how long an address without endpoint belongs to the container it was given to: CreateEndpoint follows
// RequestAddress at once, and moby gives a call 30 s (pkg/plugins/client.go).
const starting = 30 * time.Second

// request is a validated RequestAddress.
type request struct {
	PoolID
	address netip.Addr // zero: choose
	mac     vxlan.MAC  // zero: none
	gateway bool
	// endpoint is set if the address is for the node itself.
	endpoint string
}

// requestAddress leases the asked address or the next free one.
func (s *Service) requestAddress(ctx context.Context, req *ipam.RequestAddressRequest) (
	*ipam.RequestAddressResponse, error,
) {
	r, err := parseRequest(req)
	if err != nil {
		return nil, err
	}
	var a netip.Addr
	lease := s.claimAddress
	switch {
	case r.gateway:
		lease = s.claimGateway
	case !r.address.IsValid():
		lease = s.allocate
	}
	err = again(func() error {
		a, err = lease(ctx, r)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("request address: %w", err)
	}
	if r.swarm() {
		s.terms.ask(r.Subnet, a)
	}
	return &ipam.RequestAddressResponse{Address: netip.PrefixFrom(a, r.Subnet.Bits()).String()}, nil
}

func parseRequest(req *ipam.RequestAddressRequest) (request, error) {
	id, err := ParsePoolID(req.PoolID)
	if err != nil {
		return request{}, err
	}
	r := request{PoolID: id}
	if r.address, err = parseAddr(req.Address); err != nil {
		return r, err
	}
	if r.address.IsValid() {
		if err := checkUsable(id.Subnet, r.address); err != nil {
			return r, err
		}
	}
	if mac := req.Options[optionMAC]; mac != "" {
		if r.mac, err = vxlan.ParseMAC(mac); err != nil {
			return r, err
		}
	}
	r.gateway = req.Options[optionType] == typeGateway
	return r, nil
}

// pool returns the pool that r is about.
func (s *Service) pool(ctx context.Context, r request) (store.Pool, store.KV, error) {
	p, kv, err := get[store.Pool](ctx, s.cfg.Store, store.PoolKey(r.Subnet))
	if errors.Is(err, store.ErrNotFound) {
		err = fmt.Errorf("pool %s does not exist in the cluster; remove the network with `docker network rm` and "+
			"create it again: %w",
			r.Subnet, err)
	}
	return p, kv, err
}

// claimGateway does one try to answer the pool's gateway, which the first request fixes: the asked address, else the
// first one that is free.
func (s *Service) claimGateway(ctx context.Context, r request) (netip.Addr, error) {
	p, kv, err := s.pool(ctx, r)
	if err != nil {
		return netip.Addr{}, err
	}
	if p.Gateway.IsValid() {
		if r.address.IsValid() && r.address != p.Gateway {
			return p.Gateway, fmt.Errorf("the gateway of pool %s is %s in the cluster, asked for %s; omit --gateway "+
				"or use --gateway %s",
				r.Subnet, p.Gateway, r.address, p.Gateway)
		}
		return p.Gateway, nil
	}
	if p.Gateway, err = s.freeGateway(ctx, r); err != nil {
		return netip.Addr{}, err
	}
	l := s.lease(p.Gateway, store.LeaseGateway, r)
	conds := []store.Cond{store.Unchanged(kv), store.Absent(store.LeaseKey(r.Subnet, l.Address))}
	_, err = s.cfg.Store.Commit(ctx, conds, store.Put(kv.Key, store.Encode(p)),
		store.Put(store.LeaseKey(r.Subnet, l.Address), store.Encode(l)))
	return p.Gateway, err
}

// freeGateway returns the asked address if nobody has it, or else the first free one.
func (s *Service) freeGateway(ctx context.Context, r request) (netip.Addr, error) {
	a, last := usable(r.Subnet)
	if r.address.IsValid() {
		a, last = r.address, r.address
	}
	for ; ; a = a.Next() {
		l, _, err := get[store.Lease](ctx, s.cfg.Store, store.LeaseKey(r.Subnet, a))
		if errors.Is(err, store.ErrNotFound) {
			return a, nil
		}
		if err != nil {
			return a, err
		}
		if a == last {
			return a, heldError(l)
		}
	}
}

// claimAddress does one try to lease the asked address.
func (s *Service) claimAddress(ctx context.Context, r request) (netip.Addr, error) {
	key := store.LeaseKey(r.Subnet, r.address)
	l, kv, err := get[store.Lease](ctx, s.cfg.Store, key)
	if err == nil {
		return r.address, s.claimHeld(ctx, r, l, kv)
	}
	if !errors.Is(err, store.ErrNotFound) {
		return r.address, err
	}
	p, _, err := s.pool(ctx, r)
	if err != nil {
		return r.address, err
	}
	l = s.lease(r.address, store.LeaseEndpoint, r)
	// Docker does not say what an address is for: without MAC and before the network exists here it is an
	// --aux-address.
	if r.mac.IsZero() && slices.ContainsFunc(p.Claims, s.mine(r.Space)) {
		l.Kind = store.LeaseAux
	}
	// An engine that starts anew asks without a MAC for what lives: then the container itself would answer.
	if l.Kind == store.LeaseEndpoint && !r.mac.IsZero() {
		if err := s.vet(ctx, r, r.address); err != nil {
			return r.address, err
		}
	}
	conds := []store.Cond{store.Exists(store.PoolKey(r.Subnet)), store.Absent(key)}
	_, err = s.cfg.Store.Commit(ctx, conds, store.Put(key, store.Encode(l)))
	return r.address, err
}

// claimHeld grants an address that has a lease to its holder, who asks again: an --aux-address to every node; an
// address of this node to the same MAC, or without MAC, as a restarted engine asks. Another container gets it only if
// no endpoint came of the earlier request.
func (s *Service) claimHeld(ctx context.Context, r request, l store.Lease, kv store.KV) error {
	switch {
	case r.swarm():
		return s.claimForSwarm(ctx, r, l, kv)
	case l.Swarm && l.Node != s.cfg.Node:
		return s.claimFromSwarm(ctx, r, l, kv)
	}
	own := l.Kind == store.LeaseEndpoint && l.Node == s.cfg.Node
	switch {
	case r.mac.IsZero() && (own || l.Kind == store.LeaseAux), own && l.MAC == r.mac && l.Endpoint != "":
		return nil
	case !own, l.Endpoint != "", l.MAC != r.mac && s.cfg.Now().Sub(l.Created) < starting:
		return heldError(l)
	}
	renewed := s.lease(l.Address, l.Kind, r)
	renewed.Swarm = l.Swarm
	_, err := s.cfg.Store.Commit(ctx, []store.Cond{store.Unchanged(kv)}, store.Put(kv.Key, store.Encode(renewed)))
	return err
}

func (s *Service) lease(a netip.Addr, kind string, r request) store.Lease {
	l := store.Lease{Address: a, Kind: kind, Node: s.cfg.Node, MAC: r.mac, Created: s.cfg.Now()}
	if r.swarm() && kind == store.LeaseEndpoint {
		l.Swarm, l.Node = true, ""
	}
	if r.endpoint != "" {
		l.Kind, l.Endpoint = store.LeaseNode, r.endpoint
	}
	return l
}

// heldError says who has an address and what to do about it.
func heldError(l store.Lease) error {
	since := l.Created.Format(time.DateTime)
	switch {
	case l.Kind == store.LeaseGateway:
		return fmt.Errorf("address %s is the gateway of the pool; choose another", l.Address)
	case l.Kind == store.LeaseAux:
		return fmt.Errorf("address %s is reserved with --aux-address by node %s since %s; choose another",
			l.Address, l.Node, since)
	case l.Kind == store.LeaseNode:
		return fmt.Errorf("address %s is that of node %s itself, by host_access; choose another", l.Address, l.Node)
	case l.Node == "":
		return fmt.Errorf("address %s is held by a task or service of the swarm since %s; choose another",
			l.Address, since)
	case l.Endpoint == "":
		return fmt.Errorf("address %s is held by a container that starts or ends on node %s since %s; choose "+
			"another or try again in %s",
			l.Address, l.Node, since, starting)
	}
	return fmt.Errorf("address %s is held by endpoint %s on node %s since %s; choose another or remove that container",
		l.Address, l.Endpoint[:min(12, len(l.Endpoint))], l.Node, since)
}

// releaseAddress ends the part of this node or of the swarm in an address. The gateway and --aux-address stay until the
// pool goes. Docker ignores errors here.
func (s *Service) releaseAddress(ctx context.Context, req *ipam.ReleaseAddressRequest) (plugin.Empty, error) {
	if req.PoolID == "" || req.Address == "" {
		return plugin.Empty{}, nil
	}
	id, err := ParsePoolID(req.PoolID)
	if err != nil {
		return plugin.Empty{}, err
	}
	a, err := parseAddr(req.Address)
	if err != nil {
		return plugin.Empty{}, err
	}
	release := s.releaseForNode
	if id.swarm() {
		release = s.releaseForSwarm
		s.terms.free(id.Subnet, a)
	}
	err = again(func() error {
		l, kv, err := get[store.Lease](ctx, s.cfg.Store, store.LeaseKey(id.Subnet, a))
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		if err != nil || l.Kind != store.LeaseEndpoint {
			return err
		}
		return release(ctx, l, kv)
	})
	if err != nil {
		return plugin.Empty{}, fmt.Errorf("release address %s: %w", a, err)
	}
	return plugin.Empty{}, nil
}

// releaseForNode frees an address of this node that no endpoint has. One that an endpoint still has is freed later, by
// the janitor: its DeleteEndpoint was lost, and until the endpoint is withdrawn everywhere another container must not
// get it. One that this node does not have (any more) was freed before.
func (s *Service) releaseForNode(ctx context.Context, l store.Lease, kv store.KV) error {
	if l.Node != s.cfg.Node {
		return nil
	}
	if l.Endpoint != "" {
		s.log.Warn("address not released: an endpoint has it", "address", l.Address, "endpoint", l.Endpoint)
		return nil
	}
	_, err := s.cfg.Store.Commit(ctx, []store.Cond{store.Unchanged(kv)}, vacate(l, kv))
	return err
}
