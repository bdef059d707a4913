//go:build e2e

package e2e

import (
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/netdriver/netdriver/test/e2e/lab"
)

// leader returns the node that leads the swarm, as another one sees it.
func (s *swarm) leader(asked *lab.Node) *lab.Node {
	s.t.Helper()
	var leader *lab.Node
	s.within(60*time.Second, func() error {
		out, err := asked.Docker(s.t.Context(), "node", "ls", "--format", "{{.Hostname}} {{.ManagerStatus}}")
		if err != nil {
			return err
		}
		for line := range strings.Lines(out) {
			if f := strings.Fields(line); len(f) == 2 && f[1] == "Leader" {
				leader = s.named(f[0])
				return nil
			}
		}
		return fmt.Errorf("nobody leads: %s", out)
	})
	return leader
}

func (s *swarm) named(name string) *lab.Node {
	i := slices.IndexFunc(s.Nodes, func(n *lab.Node) bool { return n.Name == name })
	return s.Nodes[i]
}

// serves says whether all tasks of a service answer at their own addresses, to a container on a node.
func (s *swarm) serves(n *lab.Node, container, service string, tasks int) error {
	addrs := lookup(s.t, n, container, "tasks."+service)
	if len(addrs) != tasks {
		return fmt.Errorf("tasks.%s is %v, want %d addresses", service, addrs, tasks)
	}
	for _, a := range addrs {
		if _, failed := answers(s.t, n, container, a, 1); failed > 0 {
			return fmt.Errorf("the task at %s does not answer", a)
		}
	}
	return nil
}

// answer says whether the tasks of a service that run answer at the addresses that they have in a network, whose addresses
// begin with prefix.
func (s *swarm) answer(n *lab.Node, container, service, prefix string) error {
	tasks, err := s.tasks(n, service)
	if err != nil {
		return err
	}
	const format = `{{range .NetworksAttachments}}{{range .Addresses}}{{println .}}{{end}}{{end}}`
	for id := range tasks {
		out, err := n.Docker(s.t.Context(), "inspect", "--type", "task", "--format", format, id)
		if err != nil {
			return err
		}
		addr, _, _ := strings.Cut(out[max(strings.Index(out, prefix), 0):], "/")
		if _, failed := answers(s.t, n, container, addr, 1); failed > 0 {
			return fmt.Errorf("task %s at %q does not answer", id, addr)
		}
	}
	return nil
}

// A new leader asks its own plugin for everything anew. A refusal there stops the swarm's networks without a word.
func TestServicesGoOnWhenTheLeaderChanges(t *testing.T) {
	servicesGoOnWhenTheLeaderChanges(newSwarm(t, managedDriver, lab.Config{Nodes: 3}))
}

func servicesGoOnWhenTheLeaderChanges(s *swarm) {
	t := s.t
	network := s.network("led", "10.131.1.0/24")
	last := s.storeNode()
	s.service(s.Nodes[0], "web", network, 3)
	client := s.client(last, "client", network)
	s.within(20*time.Second, func() error { return s.serves(last, client, "web", 3) })
	leases := s.leases(network)

	docker(t, last, "node", "demote", "n1")
	if now := s.leader(last); now == s.Nodes[0] {
		t.Fatal("n1 still leads")
	}
	docker(t, last, "service", "scale", "--detach", "web=6")
	s.running(last, "web", 6)
	s.within(20*time.Second, func() error { return s.serves(last, client, "web", 6) })
	if now := s.leases(network); now != leases+3 {
		t.Errorf("%d leases after 3 more tasks, before %d", now, leases)
	}
	out := refused(t, last, "run", "--rm", "--network", network, "--ip", address(t, last, network, client, "IPAddress"), lab.Image, "true")
	t.Logf("an address that is in use: %s", out)

	// Back to n1, while a dockerd without its plugin's daemon leads for a moment.
	docker(t, last, "node", "promote", "n1")
	docker(t, last, "service", "scale", "--detach", "web=3")
	s.running(last, "web", 3)
	s.within(60*time.Second, func() error {
		if now := s.leases(network); now != leases {
			return fmt.Errorf("%d leases with 3 tasks, before %d", now, leases)
		}
		return s.leftovers(network, 4)
	})
}

// A host that loses its power loses its tasks, which Swarm starts elsewhere: there they are reached at once. When it is
// back, nothing of its old tasks answers or keeps an address.
func TestTasksOfALostNodeAreReachedAtTheirNewPlaceAndTheNodeReturnsClean(t *testing.T) {
	tasksOfALostNodeAreReachedAtTheirNewPlaceAndTheNodeReturnsClean(newSwarm(t, managedDriver, lab.Config{Nodes: 3}))
}

func tasksOfALostNodeAreReachedAtTheirNewPlaceAndTheNodeReturnsClean(s *swarm) {
	t := s.t
	network := s.network("lost", "10.131.2.0/24")
	last, lost := s.storeNode(), s.Nodes[1]
	docker(t, s.Nodes[0], "swarm", "update", "--dispatcher-heartbeat", "1s")
	s.service(s.Nodes[0], "web", network, 3)
	client := s.client(last, "client", network)
	s.within(20*time.Second, func() error { return s.serves(last, client, "web", 3) })
	leases := s.leases(network)

	if err := lost.PowerOff(); err != nil {
		t.Fatal(err)
	}
	s.within(tasksLimit, func() error {
		tasks, err := s.tasks(last, "web")
		if err != nil {
			return err
		}
		for _, node := range tasks {
			if node == lost.Name {
				return fmt.Errorf("tasks are still said to run on %s: %v", lost.Name, tasks)
			}
		}
		if len(tasks) != 3 {
			return fmt.Errorf("%d tasks", len(tasks))
		}
		return nil
	})
	s.within(2*time.Second, func() error { return s.answer(last, client, "web", "10.131.2.") })
	// Docker's own name server knows the lost tasks for longer.
	s.within(time.Minute, func() error { return s.serves(last, client, "web", 3) })

	if err := lost.PowerOn(t.Context()); err != nil {
		t.Fatal(err)
	}
	run(t, lost, "ip", "route", "replace", "unreachable", "default")
	if err := s.startDaemon(t.Context(), lost); err != nil {
		t.Fatal(err)
	}
	if err := lost.StartDocker(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.within(90*time.Second, func() error {
		if now := s.leases(network); now != leases {
			return fmt.Errorf("%d leases, before the loss %d", now, leases)
		}
		return s.leftovers(network, 4)
	})
	if err := s.serves(last, client, "web", 3); err != nil {
		t.Error(err)
	}
}

func TestDrainedNodesTasksMoveAndANetworkRemovedMeanwhileIsGoneWhenANodeReturns(t *testing.T) {
	drainedNodesTasksMoveAndANetworkRemovedMeanwhileIsGoneWhenANodeReturns(newSwarm(t, managedDriver, lab.Config{Nodes: 3}))
}

func drainedNodesTasksMoveAndANetworkRemovedMeanwhileIsGoneWhenANodeReturns(s *swarm) {
	t := s.t
	network := s.network("drained", "10.131.3.0/24")
	manager, drained, last := s.Nodes[0], s.Nodes[1], s.storeNode()
	s.service(manager, "web", network, 3)
	client := s.client(last, "client", network)
	docker(t, manager, "node", "update", "--availability", "drain", drained.Name)
	s.within(tasksLimit, func() error {
		tasks, err := s.tasks(manager, "web")
		for _, node := range tasks {
			if node == drained.Name {
				return fmt.Errorf("tasks still run on %s", drained.Name)
			}
		}
		if err == nil && len(tasks) != 3 {
			err = fmt.Errorf("%d tasks", len(tasks))
		}
		return err
	})
	s.within(10*time.Second, func() error { return s.serves(last, client, "web", 3) })
	docker(t, manager, "node", "update", "--availability", "active", drained.Name)
	docker(t, manager, "service", "update", "--detach", "--force", "--update-parallelism", "0", "web")
	s.running(manager, "web", 3)
	s.within(30*time.Second, func() error { return s.leftovers(network, 4) })

	// The daemon of one node and its dockerd are away while the network is removed.
	if err := drained.StopDocker(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := drained.KillDaemon(); err != nil {
		t.Fatal(err)
	}
	docker(t, last, "rm", "--force", client)
	docker(t, manager, "service", "rm", "web")
	s.within(90*time.Second, func() error {
		_, err := manager.Docker(t.Context(), "network", "rm", network)
		return err
	})
	if err := s.startDaemon(t.Context(), drained); err != nil {
		t.Fatal(err)
	}
	if err := drained.StartDocker(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.within(3*time.Minute, s.noNetworks)
}

// Five managers and five members of the store: two hosts are lost, the leader among them, and everything goes on, new tasks
// included.
func TestASwarmOfFiveLosesTwo(t *testing.T) {
	s := newGrownSwarm(t, 5)
	network := s.network("five", "10.131.4.0/24")
	first, last := s.Nodes[0], s.storeNode()
	docker(t, first, "swarm", "update", "--dispatcher-heartbeat", "1s")
	s.service(first, "web", network, 5)
	client := s.client(last, "client", network)
	s.reached(last, client, "web", 5)

	for _, lost := range s.Nodes[:2] {
		if err := lost.PowerOff(); err != nil {
			t.Fatal(err)
		}
	}
	s.within(tasksLimit, func() error {
		tasks, err := s.tasks(last, "web")
		if err != nil {
			return err
		}
		alive := map[string]bool{s.Nodes[2].Name: true, s.Nodes[3].Name: true, s.Nodes[4].Name: true}
		for id, node := range tasks {
			if !alive[node] {
				delete(tasks, id)
			}
		}
		if len(tasks) != 5 {
			return fmt.Errorf("%d tasks on the nodes that are left: %v", len(tasks), tasks)
		}
		return nil
	})
	s.reached(last, client, "web", 5)
	docker(t, last, "service", "scale", "--detach", "web=8")
	s.within(tasksLimit, func() error { return s.serves(last, client, "web", 8) })
}
