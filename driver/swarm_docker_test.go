package driver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/docker/go-plugins-helpers/network"
	"github.com/google/go-cmp/cmp"

	"github.com/netdriver/netdriver/dataplane"
	"github.com/netdriver/netdriver/ipam"
	"github.com/netdriver/netdriver/store"
)

// swarm is a Docker swarm with one network that sends what swarms were measured to send (20.10.24, global
// scope): the leader for the whole swarm in the global address space, each node for its tasks in the local one.
type swarm struct {
	t      *testing.T
	mem    *store.Memory
	hosts  []*host
	leader *host
	count  int

	// What the managers keep of the network, in a log of their own.
	id, subnet, pool, gateway string
	options                   map[string]string // AllocateNetwork's answer
	vips                      []string
	tasks                     map[string]swarmTask // by endpoint
	// nodes are the networks that the nodes have made for their tasks.
	nodes map[*host]dockerNetwork
}

// swarmTask is a task of a service, or a container of the swarm's network.
type swarmTask struct {
	container
	on *host
}

// swarmOf makes a swarm of hosts, all of them managers; the first leads it.
func swarmOf(t *testing.T, mem *store.Memory, hosts ...*host) *swarm {
	s := &swarm{t: t, mem: mem, hosts: hosts, leader: hosts[0], tasks: map[string]swarmTask{}, nodes: map[*host]dockerNetwork{}}
	for _, h := range hosts {
		h.engine.swarm = "cluster1"
	}
	return s
}

// newSwarm is a swarm of two managers and a worker with network web.
func newSwarm(t *testing.T) *swarm {
	t.Helper()
	mem := store.NewMemory()
	s := swarmOf(t, mem,
		newHost(t, mem, "n1", "192.0.2.1"), newHost(t, mem, "n2", "192.0.2.2"), newHost(t, mem, "n3", "192.0.2.3"))
	s.hosts[2].engine.swarm = ""
	s.must(s.createNetwork("s1", "10.10.0.0/24", "network", "web"))
	return s
}

func (s *swarm) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// createNetwork does what `docker network create` on a manager comes to.
func (s *swarm) createNetwork(id, subnet string, pairs ...string) error {
	s.id, s.subnet, s.options = id, subnet, map[string]string{}
	for i := 0; i < len(pairs); i += 2 {
		s.options[pairs[i]] = pairs[i+1]
	}
	for _, h := range s.hosts {
		s.forget(h)
	}
	return s.allocate(s.leader)
}

// forget makes a host's engine forget its part in the network, as it does without a task in it. A manager knows of the
// swarm's networks all the same.
func (s *swarm) forget(h *host) {
	if h.engine.remove(s.id); h.engine.swarm != "" {
		h.engine.add(s.id)
	}
}

// allocate is what a leader sends of a network; of one that was allocated before, with what was answered then.
func (s *swarm) allocate(h *host) error {
	pool, err := call[struct{ PoolID, Pool string }](h, "IpamDriver.RequestPool",
		map[string]any{"AddressSpace": ipam.GlobalSpace, "Pool": s.subnet})
	if err != nil {
		return err
	}
	s.pool, s.subnet = pool.PoolID, pool.Pool
	gateway, _, _ := strings.Cut(s.gateway, "/")
	gw, err := call[struct{ Address string }](h, "IpamDriver.RequestAddress", map[string]any{
		"PoolID": s.pool, "Address": gateway, "Options": map[string]string{"RequestAddressType": "com.docker.network.gateway"},
	})
	if err != nil {
		return errors.Join(err, s.releasePool(h))
	}
	s.gateway = gw.Address
	if err := s.allocateNetwork(h); err != nil {
		return errors.Join(err, s.release(h, s.gateway), s.releasePool(h))
	}
	return nil
}

func (s *swarm) allocateNetwork(h *host) error {
	answer, err := call[network.AllocateNetworkResponse](h, "NetworkDriver.AllocateNetwork", network.AllocateNetworkRequest{
		NetworkID: s.id, Options: s.options, IPv4Data: []network.IPAMData{{Pool: s.subnet, Gateway: s.gateway}},
	})
	if err == nil {
		s.options = answer.Options
	}
	return err
}

func (s *swarm) releasePool(h *host) error {
	return h.do("IpamDriver.ReleasePool", map[string]string{"PoolID": s.pool})
}

func (s *swarm) release(h *host, address string) error {
	return h.releaseAddress(dockerNetwork{poolID: s.pool}, address)
}

// address asks the leader for an address: a VIP's or a task's, nothing says which.
func (s *swarm) address(h *host, address string) (string, error) {
	address, _, _ = strings.Cut(address, "/")
	got, err := call[struct{ Address string }](h, "IpamDriver.RequestAddress",
		map[string]any{"PoolID": s.pool, "Address": address, "Options": nil})
	return got.Address, err
}

// service gives a service its VIP.
func (s *swarm) service() error {
	vip, err := s.address(s.leader, "")
	if err == nil {
		s.vips = append(s.vips, vip)
	}
	return err
}

// lead makes h the leader, which repeats everything that lives.
func (s *swarm) lead(h *host) error {
	s.leader = h
	errs := []error{s.allocate(h)}
	for _, vip := range s.vips {
		_, err := s.address(h, vip)
		errs = append(errs, err)
	}
	for _, t := range s.tasks {
		_, err := s.address(h, t.address)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// start runs a task on a host: the leader asks for its address, then the node, which makes the network first if it has
// none. A failure leaves the task without its node; the leader releases the address.
func (s *swarm) start(on *host) (swarmTask, error) {
	a, err := s.address(s.leader, "")
	if err != nil {
		return swarmTask{}, err
	}
	t, err := s.place(on, a)
	if err != nil {
		err = errors.Join(err, s.release(s.leader, a))
	}
	return t, err
}

// place is the node's part of start.
func (s *swarm) place(on *host, address string) (swarmTask, error) {
	s.count++
	c := container{id: fmt.Sprintf("e%d", s.count), address: address, mac: macN(s.count)}
	n, err := s.enter(on)
	if err == nil {
		c, err = on.run(n, c)
	}
	if err != nil {
		return swarmTask{}, err
	}
	s.tasks[c.id] = swarmTask{c, on}
	return s.tasks[c.id], nil
}

// enter makes the network on a node that has no task in it yet.
func (s *swarm) enter(on *host) (dockerNetwork, error) {
	if n, ok := s.nodes[on]; ok {
		return n, nil
	}
	pool, err := call[struct{ PoolID, Pool string }](on, "IpamDriver.RequestPool",
		map[string]any{"AddressSpace": ipam.LocalSpace, "Pool": s.subnet})
	if err != nil {
		return dockerNetwork{}, err
	}
	gateway, _, _ := strings.Cut(s.gateway, "/")
	n := dockerNetwork{id: s.id, poolID: pool.PoolID, pool: pool.Pool, gateway: s.gateway}
	if err := on.do("IpamDriver.RequestAddress", map[string]any{
		"PoolID": n.poolID, "Address": gateway, "Options": map[string]string{"RequestAddressType": "com.docker.network.gateway"},
	}); err != nil {
		return n, errors.Join(err, on.releasePool(n))
	}
	n.req = s.request(ipam.LocalSpace)
	if err := on.do("NetworkDriver.CreateNetwork", n.req); err != nil {
		return n, errors.Join(err, on.releaseAddress(n, n.gateway), on.releasePool(n))
	}
	s.nodes[on] = n
	on.engine.add(s.id)
	return n, nil
}

// request is a node's CreateNetwork, with the options that were answered to the leader.
func (s *swarm) request(space string) *network.CreateNetworkRequest {
	req := request(s.id, s.subnet)
	generic := map[string]any{}
	for k, v := range s.options {
		generic[k] = v
	}
	req.Options[labelGeneric] = generic
	req.IPv4Data[0].AddressSpace, req.IPv4Data[0].Gateway = space, s.gateway
	return req
}

// stop ends a task: the node releases first, with the network if it was the last task there, then the leader.
func (s *swarm) stop(t swarmTask) error {
	return errors.Join(s.end(t), s.release(s.leader, t.address))
}

// end is the node's part of stop.
func (s *swarm) end(t swarmTask) error {
	delete(s.tasks, t.id)
	err := t.on.remove(s.nodes[t.on], t.container)
	if slices.ContainsFunc(slices.Collect(maps.Values(s.tasks)), func(other swarmTask) bool { return other.on == t.on }) {
		return err
	}
	n := s.nodes[t.on]
	delete(s.nodes, t.on)
	err = errors.Join(err, t.on.removeNetwork(n))
	s.forget(t.on)
	return err
}

// removeNetwork does what `docker network rm` on a manager comes to.
func (s *swarm) removeNetwork() error {
	for _, h := range s.hosts {
		h.engine.remove(s.id)
	}
	return errors.Join(s.release(s.leader, s.gateway), s.releasePool(s.leader),
		s.leader.do("NetworkDriver.FreeNetwork", map[string]string{"NetworkID": s.id}))
}

// lose cuts a host's power: its containers are gone, its kernel's objects are still there, and nobody is told.
func (s *swarm) lose(h *host) {
	s.t.Helper()
	h.life.kill()
	h.stop()
	h.stop = func() {}
	_, err := s.mem.Commit(context.Background(), nil, store.Delete(store.AliveKey(h.name)))
	s.must(err)
	for id, t := range s.tasks {
		if t.on == h {
			delete(s.tasks, id)
		}
	}
	s.forget(h)
	delete(s.nodes, h)
}

// found is what is compared: who has each address, by lease and by endpoint, and where each node sends packets for it.
type found struct {
	Leases, Endpoints []string
	Kernels           map[string][]string
}

// want is what should be found if no address is held but the VIPs' and the tasks', besides those told.
func (s *swarm) want(besides ...string) found {
	w := found{Leases: slices.Clone(besides), Kernels: map[string][]string{}}
	for _, vip := range s.vips {
		w.Leases = append(w.Leases, bare(vip)+" swarm=true node= endpoint=")
	}
	for _, t := range s.tasks {
		w.Leases = append(w.Leases, fmt.Sprintf("%s swarm=true node=%s endpoint=%s", bare(t.address), t.on.name, t.id))
		w.Endpoints = append(w.Endpoints, fmt.Sprintf("%s %s on %s", bare(t.address), t.id, t.on.name))
	}
	for h := range s.nodes {
		for _, t := range s.tasks {
			w.Kernels[h.name] = append(w.Kernels[h.name], fmt.Sprintf("%s at %s by %s", bare(t.address), t.mac, t.on.vtep))
		}
	}
	return w.sorted()
}

// found reads store and kernels.
func (s *swarm) found() (found, error) {
	f := found{Kernels: map[string][]string{}}
	leases, err := records[store.Lease](s.mem, store.LeasePrefix)
	for _, l := range leases {
		if l.Kind == store.LeaseEndpoint {
			f.Leases = append(f.Leases, fmt.Sprintf("%s swarm=%v node=%s endpoint=%s", l.Address, l.Swarm, l.Node, l.Endpoint))
		}
	}
	endpoints, bad := records[store.Endpoint](s.mem, store.EndpointPrefix)
	for _, e := range endpoints {
		f.Endpoints = append(f.Endpoints, fmt.Sprintf("%s %s on %s", e.IPv4.Addr(), e.ID, e.Node))
	}
	for _, h := range s.hosts {
		if h.life.dead() {
			continue // what its kernel has is nobody's concern until it returns
		}
		for _, n := range h.networks() {
			f.Kernels[h.name] = append(f.Kernels[h.name], paths(h, n)...)
		}
	}
	return f.sorted(), errors.Join(err, bad)
}

// paths says of each address and each MAC that a kernel knows where its packets go.
func paths(h *host, n dataplane.Network) (out []string) {
	at := map[string]string{}
	for _, e := range n.FDB {
		switch {
		case e.Port != "":
			at[e.MAC.String()] = h.vtep.String()
		case e.VTEP.IsValid() && !e.MAC.IsZero():
			at[e.MAC.String()] = e.VTEP.String()
		}
	}
	for _, neighbour := range n.Neighbours {
		mac := neighbour.MAC.String()
		out = append(out, fmt.Sprintf("%s at %s by %s", neighbour.Address, mac, at[mac]))
		delete(at, mac)
	}
	for mac, vtep := range at {
		out = append(out, fmt.Sprintf("stale entry %s by %s", mac, vtep))
	}
	return out
}

func (f found) sorted() found {
	slices.Sort(f.Leases)
	slices.Sort(f.Endpoints)
	for _, k := range f.Kernels {
		slices.Sort(k)
	}
	maps.DeleteFunc(f.Kernels, func(_ string, k []string) bool { return len(k) == 0 })
	return f
}

// records reads all records under a prefix.
func records[R store.Record](mem *store.Memory, prefix string) (out []R, err error) {
	kvs, _, err := mem.List(context.Background(), prefix)
	for _, kv := range kvs {
		r, bad := store.Decode[R](kv)
		out, err = append(out, r), errors.Join(err, bad)
	}
	return out, err
}

// bare is an address without its prefix length.
func bare(cidr string) string { a, _, _ := strings.Cut(cidr, "/"); return a }

// clean fails the test unless soon nothing is found but what should be.
func (s *swarm) clean(what string, besides ...string) {
	s.t.Helper()
	s.leader.eventually(what, func() error { return s.unclean(besides...) })
}

// tidy is clean once the janitors of the hosts that are up have run, an hour apart.
func (s *swarm) tidy(what string, besides ...string) {
	s.t.Helper()
	suspects := map[*host]doubt{}
	s.leader.eventually(what, func() error {
		for _, h := range s.hosts {
			if h.life.dead() {
				continue
			}
			h.clock.Add(int64(time.Hour))
			if suspects[h] == nil {
				suspects[h] = doubt{}
			}
			if err := h.driver.cleanOnce(context.Background(), suspects[h]); err != nil {
				return err
			}
		}
		return s.unclean(besides...)
	})
}

func (s *swarm) unclean(besides ...string) error {
	got, err := s.found()
	if diff := cmp.Diff(s.want(besides...), got); diff != "" {
		err = errors.Join(err, fmt.Errorf("(-want +found):\n%s", diff))
	}
	return err
}
