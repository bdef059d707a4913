//go:build e2e && virtual

package e2e

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/netdriver/netdriver/test/e2e/lab"
)

// The scenarios of a swarm on hosts with kernels of their own, one after the other in one swarm. These kernels have
// IPVS: so Docker's own overlay balances, too, and ports are published by the ingress network.
func TestASwarmOfVirtualNodes(t *testing.T) {
	begin := time.Now()
	s := newSwarm(t, managedDriver, lab.Config{Nodes: 3, Virtual: true})
	t.Logf("a swarm of three virtual nodes in %s", time.Since(begin))
	for _, c := range []struct {
		name, driver string
		scenario     func(*swarm)
	}{
		{"names-builtin", builtinDriver, servicesAreFoundByTheirNamesOnAllNodes},
		{"names", managedDriver, servicesAreFoundByTheirNamesOnAllNodes},
		{"ingress-builtin", builtinDriver, publishedPortsAnswerOnAllNodes},
		{"ingress", managedDriver, publishedPortsAnswerOnAllNodes},
		{"networks", managedDriver, networksAreAddedToAServiceAndTakenAwayAndPortsArePublished},
		{"virtual-address", managedDriver, aServiceIsReachedAtItsVirtualAddress},
		{"rolling-update", managedDriver, aRollingUpdateLosesNoCall},
		{"stack", managedDriver, aStackIsDeployed},
		{"leader", managedDriver, servicesGoOnWhenTheLeaderChanges},
		{"lost-node", managedDriver, tasksOfALostNodeAreReachedAtTheirNewPlaceAndTheNodeReturnsClean},
	} {
		t.Run(c.name, func(t *testing.T) {
			begin := time.Now()
			c.scenario(s.during(t, c.driver))
			t.Logf("took %s", time.Since(begin))
		})
	}
}

// during is the swarm for a part of the test, which leaves it empty.
func (s *swarm) during(t *testing.T, driver string) *swarm {
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), s.Nodes[0].Patience(3*time.Minute))
		defer cancel()
		s.empty(ctx, t)
	})
	return &swarm{cluster: s.cluster, t: t, driver: driver}
}

// empty removes all services, containers and networks of the swarm, and waits until they are gone.
func (s *swarm) empty(ctx context.Context, t *testing.T) {
	manager := s.Nodes[0]
	remove := func(n *lab.Node, list []string, command ...string) error {
		out, err := n.Docker(ctx, list...)
		for _, id := range strings.Fields(out) {
			if err == nil {
				_, err = n.Docker(ctx, append(command, id)...)
			}
		}
		return err
	}
	err := remove(manager, []string{"service", "ls", "--quiet"}, "service", "rm")
	// Docker itself removes tasks: their containers print nothing.
	const others = `{{if not (.Label "com.docker.swarm.task.id")}}{{.ID}}{{end}}`
	for _, n := range s.Nodes {
		err = errors.Join(err, remove(n, []string{"ps", "--all", "--format", others}, "rm", "--force"))
	}
	if err != nil {
		t.Error(err)
	}
	// A network is there until its last task has left it; that of published ports stays, and is "custom" to Docker.
	networks := []string{"network", "ls", "--filter", "scope=swarm", "--filter", "type=custom",
		"--format", `{{if ne .Name "ingress"}}{{.ID}}{{end}}`}
	for {
		err := remove(manager, networks, "network", "rm")
		left, failed := manager.Docker(ctx, networks...)
		if err == nil && failed == nil && strings.TrimSpace(left) == "" {
			return
		}
		select {
		case <-ctx.Done():
			t.Error(errors.Join(err, failed, fmt.Errorf("networks are left: %s", left)))
			return
		case <-time.After(time.Second):
		}
	}
}

// A port that the swarm publishes answers on every node, wherever the tasks are.
func publishedPortsAnswerOnAllNodes(s *swarm) {
	t := s.t
	network := s.network("published", "10.133.1.0/24")
	s.service(s.Nodes[0], "web", network, 2, "--publish", "8080:80")
	client := s.client(s.Nodes[2], "client", network)
	s.reached(s.Nodes[2], client, "web", 2)
	for _, n := range s.Nodes {
		s.within(20*time.Second, func() error {
			page, err := httpGet(t, s.Outside, n.Addr.String(), 8080)
			if err == nil && !strings.HasPrefix(page, "web-") {
				err = fmt.Errorf("port 8080 of %s answers %q", n.Name, page)
			}
			return err
		})
	}
}
