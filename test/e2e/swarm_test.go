//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/netdriver/netdriver/test/e2e/lab"
)

// The drivers that the scenarios of a swarm run with. Docker's own shows that a scenario itself is right.
const (
	managedDriver = "custom-overlay:latest"
	builtinDriver = "overlay"
)

// tasksLimit is what tasks may take to run on two busy CPUs. Docker alone needs 10 to 20 s to hear of a new plugin.
const tasksLimit = 4 * time.Minute

// A swarm is a lab whose nodes are managers of one swarm, with the managed plugin and its daemon on each. The store is on
// the last node, so that the others can be lost, or on all of them.
type swarm struct {
	*cluster
	t *testing.T
	// driver is that of the networks that the scenario makes.
	driver string
}

// newSwarm makes a swarm for one test. The first node leads it.
func newSwarm(t *testing.T, driver string, config lab.Config) *swarm {
	t.Helper()
	return makeSwarm(t, driver, config, (*swarm).startDaemons)
}

// newGrownSwarm makes a swarm whose nodes have joined one cluster, all as members of its store.
func newGrownSwarm(t *testing.T, nodes int) *swarm {
	t.Helper()
	return makeSwarm(t, managedDriver, lab.Config{Nodes: nodes}, (*swarm).growCluster)
}

// makeSwarm makes a lab, has netdriver started on its nodes, and makes a swarm of their dockerds.
func makeSwarm(t *testing.T, driver string, config lab.Config, daemons func(*swarm, context.Context) error) *swarm {
	t.Helper()
	config.Binary = binary(t)
	l, err := lab.New(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	s := &swarm{cluster: &cluster{Lab: l}, t: t, driver: driver}
	closeAtEnd(t, l)
	if err := daemons(s, t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s
}

// storeNode has the store of all.
func (s *swarm) storeNode() *lab.Node { return s.Nodes[len(s.Nodes)-1] }

// startDaemons starts netdriver on all nodes, on the one with the store first.
func (s *swarm) startDaemons(ctx context.Context) error {
	if err := s.certify(); err != nil {
		return err
	}
	for _, n := range slices.Backward(s.Nodes) {
		if err := s.startDaemon(ctx, n); err != nil {
			return err
		}
	}
	return nil
}

// growCluster starts netdriver on all nodes and makes a cluster of them, as docs/cluster.md says.
func (s *swarm) growCluster(ctx context.Context) error {
	first := s.Nodes[0]
	for _, n := range s.Nodes {
		if err := n.StartDaemon(ctx, lab.DaemonConfig{Args: []string{"--log-level", "debug"}}); err != nil {
			return err
		}
	}
	if _, err := first.Exec(ctx, "netdriver", "cluster", "init"); err != nil {
		return err
	}
	token, err := first.Exec(ctx, "netdriver", "cluster", "token")
	if err != nil {
		return err
	}
	for _, n := range s.Nodes[1:] {
		if _, err := n.Exec(ctx, "netdriver", "cluster", "join", strings.TrimSpace(token)); err != nil {
			return err
		}
	}
	if _, err := first.Exec(ctx, "netdriver", "cluster", "members", fmt.Sprint(len(s.Nodes))); err != nil {
		return err
	}
	members(s.t, first, len(s.Nodes))
	return nil
}

// start starts the dockerds and makes them one swarm.
func (s *swarm) start(ctx context.Context) error {
	if err := s.StartDocker(ctx); err != nil {
		return err
	}
	return s.StartSwarm(ctx, managedDriver)
}

// startDaemon starts a node's netdriver as a part of the cluster.
func (s *swarm) startDaemon(ctx context.Context, n *lab.Node) error {
	url := fmt.Sprintf("https://%s", netip.AddrPortFrom(s.storeNode().Addr, storePort))
	config := lab.DaemonConfig{Certificate: s.certificates[n.Addr], Args: []string{"--log-level", "debug"}}
	if n == s.storeNode() {
		config.StoreListen = url
	} else {
		config.Store = []string{url}
	}
	return n.StartDaemon(ctx, config)
}

// network creates an attachable network of the swarm.
func (s *swarm) network(name, subnet string, args ...string) string {
	s.t.Helper()
	command := []string{"network", "create", "--driver", s.driver, "--attachable", "--subnet", subnet}
	if s.driver == managedDriver {
		command = append(command, "--ipam-driver", s.driver, "--opt", "network="+name)
	}
	docker(s.t, s.Nodes[0], append(append(command, args...), name)...)
	return name
}

// webScript is a web server that says which task it is, and at clientPage who asks.
const webScript = `trap "exit 0" TERM; hostname >/www/index.html; mkdir -p /www/cgi-bin
printf '#!/bin/sh\nprintf "\\r\\n"; echo $REMOTE_ADDR\n' >/www/cgi-bin/client; chmod +x /www/cgi-bin/client; httpd -f -h /www & wait`

// clientPage is where a task's web server says from which address it was asked.
const clientPage = "/cgi-bin/client"

// service creates a service of web servers and waits until all of its tasks run.
func (s *swarm) service(manager *lab.Node, name, network string, replicas int, args ...string) {
	s.t.Helper()
	command := []string{"service", "create", "--detach", "--no-resolve-image", "--name", name, "--network", network,
		"--replicas", fmt.Sprint(replicas), "--hostname", name + "-{{.Task.Slot}}", "--stop-grace-period", "1s",
		"--restart-delay", "200ms"}
	docker(s.t, manager, append(append(command, args...), lab.Image, "sh", "-c", webScript)...)
	s.running(manager, name, replicas)
}

// within tries until do succeeds; the last error ends the test after the limit, which is that of namespace nodes.
func (s *swarm) within(limit time.Duration, do func() error) {
	s.t.Helper()
	eventually(s.t, s.Nodes[0].Patience(limit), do)
}

// running waits until a service has exactly that many running tasks and no other.
func (s *swarm) running(manager *lab.Node, service string, replicas int) {
	s.t.Helper()
	s.within(tasksLimit, func() error {
		tasks, err := s.tasks(manager, service)
		if err == nil && len(tasks) != replicas {
			var all string
			all, err = manager.Docker(s.t.Context(), "service", "ps", "--no-trunc", service)
			err = errors.Join(err, fmt.Errorf("%d of %d tasks of %s run:\n%s", len(tasks), replicas, service, all))
		}
		return err
	})
}

// tasks returns the ids of a service's tasks that run and are to run, by node.
func (s *swarm) tasks(manager *lab.Node, service string) (map[string]string, error) {
	out, err := manager.Docker(s.t.Context(), "service", "ps", "--no-trunc", "--filter", "desired-state=running",
		"--format", "{{.ID}} {{.Node}} {{.CurrentState}}", service)
	if err != nil {
		return nil, err
	}
	tasks := map[string]string{}
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) > 2 && f[2] == "Running" {
			tasks[f[0]] = f[1]
		}
	}
	return tasks, nil
}

// client starts a container outside of any service.
func (s *swarm) client(n *lab.Node, name, network string, args ...string) string {
	s.t.Helper()
	command := append([]string{"run", "--detach", "--name", name, "--network", network}, args...)
	docker(s.t, n, append(command, lab.Image, "sleep", "10000")...)
	return name
}

// lookup returns what a name resolves to in a container.
func lookup(t *testing.T, n *lab.Node, container, name string) []string {
	t.Helper()
	out, err := n.Docker(t.Context(), "exec", container, "nslookup", "-type=a", name)
	if err != nil {
		return nil
	}
	_, answer, _ := strings.Cut(out, "answer:")
	var addrs []string
	for line := range strings.Lines(answer) {
		if a, found := strings.CutPrefix(strings.TrimSpace(line), "Address: "); found {
			addrs = append(addrs, a)
		}
	}
	slices.Sort(addrs)
	return addrs
}

// answers returns how often each task answered n calls, and how many calls failed.
func answers(t *testing.T, node *lab.Node, container, host string, n int) (by map[string]int, failed int) {
	t.Helper()
	const script = `for i in $(seq "$1"); do timeout 3 wget -q -O - "http://$0/" || echo failed; done`
	out := docker(t, node, "exec", container, "sh", "-c", script, host, fmt.Sprint(n))
	by = map[string]int{}
	for line := range strings.Lines(out) {
		by[strings.TrimSpace(line)]++
	}
	failed = by["failed"]
	delete(by, "failed")
	return by, failed
}
