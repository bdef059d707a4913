package driver

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/netdriver/netdriver/ipam"
	"github.com/netdriver/netdriver/store"
)

// started runs a service with a VIP and a task on each host.
func started(t *testing.T) (*swarm, []swarmTask) {
	t.Helper()
	s := newSwarm(t)
	s.must(s.service())
	var tasks []swarmTask
	for _, h := range s.hosts {
		task, err := s.start(h)
		s.must(err)
		tasks = append(tasks, task)
	}
	return s, tasks
}

func TestAServiceOfASwarmRunsEverywhereAndLeavesNothing(t *testing.T) {
	s, tasks := started(t)
	s.clean("a VIP and three tasks")
	for range 5 { // scaled up on one host, and to nothing
		task, err := s.start(s.hosts[1])
		s.must(err)
		tasks = append(tasks, task)
	}
	s.clean("eight tasks")
	for _, task := range tasks {
		s.must(s.stop(task))
	}
	s.clean("no task, and the VIP")
	record[store.Network](t, s.mem, store.NetworkKey("web")) // though no node has a part in it
	s.must(s.release(s.leader, s.vips[0]))
	s.must(s.removeNetwork())
	for _, h := range s.hosts {
		s.must(h.empty())
	}
}

func TestAnUpdateThatStartsFirstGivesEveryTaskANewAddress(t *testing.T) {
	s, old := started(t)
	for _, task := range old {
		next, err := s.start(task.on)
		s.must(err)
		if next.address == task.address {
			t.Errorf("%s is given out while it is used", next.address)
		}
		s.must(s.stop(task))
	}
	s.clean("three new tasks")
}

func TestEachLeaderIsGrantedWhatLivesAndFindsTheNetworkAsItWas(t *testing.T) {
	s, _ := started(t)
	options, network := s.options, record[store.Network](t, s.mem, store.NetworkKey("web"))
	for _, h := range []*host{s.hosts[1], s.hosts[2], s.hosts[0], s.hosts[0]} {
		if err := s.lead(h); err != nil {
			t.Fatalf("%s leads: %v", h.name, err)
		}
		if diff := cmp.Diff(options, s.options); diff != "" {
			t.Errorf("%s answers other options, so nodes would disagree (-first +now):\n%s", h.name, diff)
		}
		s.clean("what lives is as it was")
	}
	if diff := cmp.Diff(network, record[store.Network](t, s.mem, store.NetworkKey("web")), equal()); diff != "" {
		t.Errorf("network (-want +got):\n%s", diff)
	}
	for _, task := range s.tasks {
		s.must(s.stop(task))
	}
	s.clean("the last leader's releases free what the first one's requests leased")
}

func TestTheOptionsAnsweredToASwarmAreTheUsersWithAllThatWasChosen(t *testing.T) {
	mem := store.NewMemory()
	s := swarmOf(t, mem, newHost(t, mem, "n1", "192.0.2.1"))
	s.must(s.createNetwork("s1", "10.10.0.0/24", labelMTU, "1300", "vni", "77"))
	want := map[string]string{labelMTU: "1300", "mtu": "1300", "vni": "77", "port": "4789", "network": "net-s1"}
	if diff := cmp.Diff(want, s.options); diff != "" {
		t.Errorf("options (-want +got):\n%s", diff)
	}
	if _, err := s.start(s.hosts[0]); err != nil {
		t.Errorf("a node that is given them: %v", err)
	}
}

func TestALostNodesTaskRunsElsewhereAndTheNodeReturnsClean(t *testing.T) {
	s, tasks := started(t)
	lost := tasks[2]
	s.lose(lost.on)
	next, err := s.start(s.hosts[0])
	s.must(err)
	if next.address == lost.address {
		t.Errorf("%s is given to another while the lost node may still answer for it", next.address)
	}
	lost.on.start()
	s.tidy("its node's part is gone, the swarm's is not", bare(lost.address)+" swarm=true node= endpoint=")
	s.must(s.release(s.leader, lost.address)) // late, since the node is back
	s.clean("nothing of the lost task is left")
}

func TestANodesEndpointWinsOverThatOfALostNodeWithTheSameAddress(t *testing.T) {
	s, tasks := started(t)
	lost := tasks[2]
	if _, err := s.place(s.hosts[0], lost.address); err == nil || !strings.Contains(err.Error(), lost.id) {
		t.Errorf("while its endpoint lives elsewhere: error %v, want it named", err)
	}
	s.lose(lost.on)
	if _, err := s.place(s.hosts[0], lost.address); err != nil {
		t.Fatal(err)
	}
	s.tidy("one endpoint with the address, in the records and in the kernels of those that are up")
	lost.on.start()
	s.tidy("the returned node has no part in it")
}

func TestASecondSwarmNetworkWithTheSameSubnetIsRefusedAndTheFirstIsUnharmed(t *testing.T) {
	s, _ := started(t)
	other := swarmOf(t, s.mem, s.hosts...)
	for what, options := range map[string][]string{"by subnet": nil, "by name": {"network", "web"}, "other name": {"network", "api"}} {
		if err := other.createNetwork("s2", "10.10.0.0/24", options...); err == nil || !strings.Contains(err.Error(), "--subnet") {
			t.Errorf("%s: error %v, want the remedy", what, err)
		}
	}
	other.gateway = ""
	if err := other.createNetwork("s2", "10.11.0.0/24", "network", "api"); err != nil { // the positive control
		t.Errorf("another subnet: %v", err)
	}
	s.must(s.lead(s.hosts[1]))
	s.clean("the first network is as it was")
}

func TestAPlainNetworkAndASwarmsStandSideBySide(t *testing.T) {
	s, _ := started(t)
	h := s.hosts[0]
	n, err := h.createNetwork("d1", "10.20.0.0/24", "network", "plain")
	s.must(err)
	c, err := h.run(n, container{id: "p1", mac: macN(900)})
	s.must(err)
	if err := s.unclean(); err == nil || !strings.Contains(err.Error(), "p1") {
		t.Errorf("the plain container is not found: %v", err)
	}
	s.must(errors.Join(h.remove(n, c), h.removeNetwork(n)))
	s.clean("the swarm's network")
}

func TestASwarmAndPlainEnginesMayShareANetworkThatGoesWithTheLastOfThem(t *testing.T) {
	for _, plainFirst := range []bool{true, false} {
		t.Run(fmt.Sprintf("plain_first=%v", plainFirst), func(t *testing.T) {
			mem := store.NewMemory()
			h1, h2 := newHost(t, mem, "n1", "192.0.2.1"), newHost(t, mem, "n2", "192.0.2.2")
			s := swarmOf(t, mem, h1, h2)
			var n dockerNetwork
			steps := []func() error{
				func() (err error) { n, err = h2.createNetwork("d1", "10.10.0.0/24", "network", "web"); return err },
				func() error { return s.createNetwork("s1", "10.10.0.0/24", "network", "web") },
			}
			if !plainFirst {
				slices.Reverse(steps)
			}
			for _, step := range steps {
				s.must(step())
			}
			c, err := h2.run(n, container{id: "p1", mac: macN(900)})
			s.must(err)
			task, err := s.start(h1)
			s.must(err)
			if bare(task.address) == bare(c.address) {
				t.Errorf("both have %s", c.address)
			}
			s.must(errors.Join(s.stop(task), s.removeNetwork()))
			if nw := record[store.Network](t, mem, store.NetworkKey("web")); nw.Swarm != "" || len(nw.Members) != 1 {
				t.Errorf("network %+v, want it with its plain member only", nw)
			}
			s.must(errors.Join(h2.remove(n, c), h2.removeNetwork(n)))
			s.must(h2.empty())
		})
	}
}

func TestANetworkThatTheSwarmHasForgottenIsFreed(t *testing.T) {
	s, tasks := started(t)
	s.tidy("every task is there") // and the managers have found out whose network it is
	away := tasks[2].on
	for _, task := range tasks[:2] {
		s.must(s.stop(task))
	}
	s.lose(away)
	for _, h := range s.hosts {
		h.engine.remove(s.id) // FreeNetwork was lost
	}
	s.vips = nil
	away.start()
	suspects := map[*host]doubt{s.hosts[0]: {}, away: {}}
	away.eventually("nothing is left", func() error {
		for h, d := range suspects {
			h.clock.Add(int64(settle * 2))
			s.must(h.driver.cleanOnce(t.Context(), d))
		}
		return away.empty()
	})
}

func TestANetworkOfAnotherSwarmIsLeftAlone(t *testing.T) {
	s, tasks := started(t)
	s.tidy("every task is there")
	for _, task := range tasks {
		s.must(s.stop(task))
	}
	stranger := newHost(t, s.mem, "n9", "192.0.2.9") // manager of another swarm, in the same cluster
	stranger.engine.swarm = "cluster2"
	for _, h := range s.hosts {
		h.engine.down = true
	}
	d := doubt{}
	for range 4 {
		stranger.clock.Add(int64(settle * 2))
		s.must(stranger.driver.cleanOnce(t.Context(), d))
	}
	record[store.Network](t, s.mem, store.NetworkKey("web"))
}

func TestANodeWhoseNetworkRecordIsGoneMakesItAsItWas(t *testing.T) {
	s := newSwarm(t)
	before := record[store.Network](t, s.mem, store.NetworkKey("web"))
	_, err := s.mem.Commit(t.Context(), nil, store.Delete(store.NetworkKey("web")), store.Delete(store.VNIKey(before.VNI)),
		store.DeletePrefix(store.PoolPrefix), store.DeletePrefix(store.LeasePrefix))
	s.must(err) // as a restored store has it
	_, err = s.place(s.hosts[1], "10.10.0.7/24")
	s.must(err)
	s.must(s.lead(s.hosts[0]))
	after := record[store.Network](t, s.mem, store.NetworkKey("web"))
	if after.VNI != before.VNI || after.Swarm != "s1" || len(after.Members) != 1 {
		t.Errorf("network %+v, was %+v", after, before)
	}
	s.clean("the task")
}

func TestFreeNetworkComesInAnyOrderAndTwice(t *testing.T) {
	for what, steps := range map[string]func(*swarm, swarmTask) error{
		"as Docker does": func(s *swarm, task swarmTask) error {
			return errors.Join(s.stop(task), s.removeNetwork(), s.removeNetwork())
		},
		"before the last task": func(s *swarm, task swarmTask) error { return errors.Join(s.removeNetwork(), s.stop(task)) },
		"between its node and its leader": func(s *swarm, task swarmTask) error {
			return errors.Join(s.end(task), s.removeNetwork(), s.release(s.leader, task.address))
		},
	} {
		t.Run(what, func(t *testing.T) {
			s := newSwarm(t)
			task, err := s.start(s.hosts[1])
			s.must(err)
			s.must(steps(s, task))
			s.must(s.hosts[0].empty())
			s.must(s.hosts[1].empty())
		})
	}
}

func TestEndpointsLeftInASwarmNetworkGoWithTheirNodesPartAndTheSwarmKeepsItsAddresses(t *testing.T) {
	s := newSwarm(t)
	h := s.hosts[1]
	var besides []string
	for range 50 { // more than one transaction could take
		task, err := s.start(h)
		s.must(err)
		besides = append(besides, bare(task.address)+" swarm=true node= endpoint=")
	}
	clear(s.tasks) // their Leave, DeleteEndpoint and ReleaseAddress were lost
	n := s.nodes[h]
	delete(s.nodes, h)
	s.must(h.removeNetwork(n))
	s.clean("the swarm's addresses", besides...)
}

func TestEmptyBodiesAreRefusedAndChangeNothing(t *testing.T) {
	s, _ := started(t)
	for _, m := range append(s.leader.driver.SwarmMethods(), s.leader.leases.Methods()...) {
		res, err := s.leader.client.Post("http://plugin/"+m.Name(), "application/json", strings.NewReader(""))
		if err != nil {
			t.Errorf("%s: %v", m.Name(), err)
			continue
		}
		res.Body.Close()
		if err := s.leader.do(m.Name(), struct{}{}); err == nil && strings.Contains(m.Name(), "Create") {
			t.Errorf("%s: an empty request is granted", m.Name())
		}
	}
	s.clean("what lives is as it was")
	s.must(s.lead(s.hosts[1]))
}

func TestASwarmIsServedThroughADaemonKilledAtEachStep(t *testing.T) {
	for what, test := range map[string]struct {
		prepare   func(*swarm) error
		operation func(*swarm) error
	}{
		"creating the network": {
			func(*swarm) error { return nil },
			func(s *swarm) error { return s.createNetwork("s1", "10.10.0.0/24", "network", "web") },
		},
		"starting a task":      {web1, func(s *swarm) error { _, err := s.start(s.hosts[0]); return err }},
		"ending a task":        {web2, func(s *swarm) error { return s.stop(s.tasks["e1"]) }},
		"removing the network": {web1, (*swarm).removeNetwork},
	} {
		t.Run(what, func(t *testing.T) {
			var s *swarm
			prepare := func(h *host) {
				s = swarmOf(t, h.mem, h)
				s.must(test.prepare(s))
				h.again = true
			}
			killAtEachStep(t, prepare, func(*host) error { return test.operation(s) }, func(t *testing.T, h *host, err error) {
				if err != nil {
					t.Fatalf("asked again: %v", err)
				}
				s.t = t
				s.tidy("what lives, and the address at most whose answer was lost", s.orphans(t)...)
			})
		})
	}
}

// web1 makes the swarm's network, web2 a task in it besides.
func web1(s *swarm) error { return s.createNetwork("s1", "10.10.0.0/24", "network", "web") }

func web2(s *swarm) error {
	err := web1(s)
	if err == nil {
		_, err = s.start(s.hosts[0])
	}
	return err
}

// orphans are the leases that only a swarm has and its managers do not know of.
func (s *swarm) orphans(t *testing.T) (out []string) {
	t.Helper()
	known := map[netip.Addr]bool{}
	for _, task := range s.tasks {
		known[addr(bare(task.address))] = true
	}
	leases, err := ipam.Orphans(t.Context(), s.mem, time.Now().Add(time.Hour), known)
	s.must(err)
	if len(leases) > 1 {
		t.Errorf("%d orphans of one lost answer: %v", len(leases), leases)
	}
	for _, l := range leases {
		out = append(out, l.Address.String()+" swarm=true node= endpoint=")
	}
	return out
}
