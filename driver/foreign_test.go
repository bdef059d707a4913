package driver

import (
	"errors"
	"strings"
	"testing"

	"github.com/netdriver/netdriver/store"
)

// foreign is a swarm of three hosts with a network of a stack file that names no IPAM driver: addresses come from the
// swarm's own, which netdriver is not asked about. CreateNetwork names its address space (20.10.24: GlobalDefault).
func foreign(t *testing.T) *swarm {
	t.Helper()
	s := newSwarm(t)
	s.id, s.subnet, s.gateway, s.options = "s2", "10.0.1.0/24", "10.0.1.1/24", map[string]string{"network": "stack"}
	s.must(s.allocateNetwork(s.leader))
	for _, h := range s.hosts {
		s.must(h.do("NetworkDriver.CreateNetwork", s.request("GlobalDefault")))
		h.engine.add(s.id)
	}
	return s
}

// endpoint makes the endpoint of a container whose address the swarm's own IPAM driver has given.
func (s *swarm) endpoint(on *host, address string) (swarmTask, error) {
	s.count++
	c := container{id: "f" + macN(s.count)[15:], address: address, mac: macN(s.count)}
	n := dockerNetwork{id: s.id}
	if err := errors.Join(on.createEndpoint(n, c), on.join(n, c)); err != nil {
		return swarmTask{}, err
	}
	on.engine.add(s.id, c.id)
	return swarmTask{c, on}, nil
}

// leased returns who has an address, "" if nobody.
func (s *swarm) leased(address string) string {
	s.t.Helper()
	leases, err := records[store.Lease](s.mem, store.LeasePrefix)
	s.must(err)
	for _, l := range leases {
		if l.Address == addr(bare(address)) {
			return l.Node + " " + l.Endpoint
		}
	}
	return ""
}

func TestAddressesOfAnotherIPAMDriverAreFreeAsSoonAsTheirEndpointIsGone(t *testing.T) {
	s := foreign(t)
	for _, h := range []*host{s.hosts[0], s.hosts[1], s.hosts[0]} {
		task, err := s.endpoint(h, "10.0.1.7/24")
		s.must(err)
		if got := s.leased(task.address); got != h.name+" "+task.id {
			t.Errorf("leased to %q, want %s on %s", got, task.id, h.name)
		}
		other := s.hosts[2]
		if _, err := s.endpoint(other, "10.0.1.7/24"); err == nil || !strings.Contains(err.Error(), h.name) {
			t.Errorf("a second endpoint with that address: error %v, want the holder's node", err)
		}
		h.engine.remove(s.id, task.id)
		s.must(h.deleteEndpoint(dockerNetwork{id: s.id}, task.container))
		if got := s.leased(task.address); got != "" {
			t.Errorf("still leased to %s; nobody will release it", got)
		}
	}
	for _, h := range s.hosts {
		s.must(h.do("NetworkDriver.DeleteNetwork", map[string]string{"NetworkID": s.id}))
	}
	s.must(s.leader.do("NetworkDriver.FreeNetwork", map[string]string{"NetworkID": s.id}))
	if pools, err := records[store.Pool](s.mem, store.PoolPrefix); len(pools) != 1 || err != nil { // that of web
		t.Errorf("pools %v, error %v", pools, err)
	}
}

func TestAnAddressOfAnotherIPAMDriverMovesFromALostNode(t *testing.T) {
	s := foreign(t)
	lost := s.hosts[2]
	old, err := s.endpoint(lost, "10.0.1.7/24")
	s.must(err)
	s.lose(lost)
	next, err := s.endpoint(s.hosts[0], "10.0.1.7/24")
	s.must(err)
	if got := s.leased(next.address); got != "n1 "+next.id {
		t.Errorf("leased to %q, want %s", got, next.id)
	}
	if _, err := s.mem.Get(t.Context(), store.EndpointKey("stack", old.id)); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("the lost node's endpoint: %v, want it gone", err)
	}
}

func TestASubnetOfAnotherIPAMDriverIsNobodyElses(t *testing.T) {
	s := foreign(t)
	if _, err := s.hosts[0].createNetwork("d1", "10.0.0.0/16", "network", "plain"); err == nil || !strings.Contains(err.Error(), "stack") {
		t.Errorf("a pool of ours that overlaps it: error %v", err)
	}
	plain, err := s.hosts[0].createNetwork("d2", "10.20.0.0/24", "network", "plain")
	s.must(err)
	for _, subnet := range []string{plain.pool, "10.20.0.0/16"} {
		s.id, s.subnet, s.options = "s3", subnet, nil
		if err := s.allocateNetwork(s.leader); err == nil || !strings.Contains(err.Error(), "--ipam-driver custom-overlay:latest") {
			t.Errorf("%s, which has addresses of ours: error %v, want the remedy", subnet, err)
		}
	}
}
