//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/netdriver/netdriver/internal/door"
	"github.com/netdriver/netdriver/test/e2e/lab"
)

// The drivers that the scenarios of a swarm run with. Docker's own shows that a scenario itself is right.
const (
	managedDriver = "custom-overlay:latest"
	builtinDriver = "overlay"
)

// runDir is where a lab node's daemon has its sockets, by default.
const runDir = "/run/netdriver"

// tasksLimit is what tasks may take to run on two busy CPUs. Docker alone needs 10 to 20 s to hear of a new plugin.
const tasksLimit = 4 * time.Minute

// A swarm is a lab whose nodes are managers of one swarm, with the managed plugin and its daemon on each. The store is on
// the last node, so that the others can be lost.
type swarm struct {
	*cluster
	t *testing.T
	// driver is that of the networks that the scenario makes.
	driver string
}

// newSwarm makes a swarm for one test. The first node leads it.
func newSwarm(t *testing.T, driver string, config lab.Config) *swarm {
	t.Helper()
	config.Binary = binary(t)
	l, err := lab.New(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	s := &swarm{cluster: &cluster{Lab: l}, t: t, driver: driver}
	closeAtEnd(t, l)
	if err := s.start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s
}

// storeNode has the store of all.
func (s *swarm) storeNode() *lab.Node { return s.Nodes[len(s.Nodes)-1] }

func (s *swarm) start(ctx context.Context) error {
	if err := s.certify(); err != nil {
		return err
	}
	nodes := slices.Clone(s.Nodes)
	slices.Reverse(nodes) // the store first
	for _, n := range nodes {
		if err := s.startDaemon(ctx, n); err != nil {
			return err
		}
	}
	if err := s.StartDocker(ctx); err != nil {
		return err
	}
	var group errgroup.Group
	for _, n := range s.Nodes {
		group.Go(func() error { return addPlugin(ctx, n) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return s.join(ctx)
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

// addPlugin makes and enables the managed plugin, as `netdriver install --swarm` does on a host with systemd.
func addPlugin(ctx context.Context, n *lab.Node) error {
	dir := filepath.Join(n.Dir, "plugin")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	config, err := door.Config(runDir)
	if err != nil {
		return err
	}
	path, err := filepath.Abs("../../bin/netdriver")
	if err != nil {
		return err
	}
	program, err := os.Open(path)
	if err != nil {
		return err
	}
	defer program.Close()
	info, err := program.Stat()
	if err != nil {
		return err
	}
	archive, err := os.Create(filepath.Join(n.Dir, "plugin.tar"))
	if err != nil {
		return err
	}
	err = errors.Join(door.WriteArchive(archive, config, program, info.Size()), archive.Close())
	for _, command := range [][]string{
		{"tar", "-xf", archive.Name(), "-C", dir},
		{"docker", "plugin", "create", managedDriver, dir},
		{"docker", "plugin", "enable", managedDriver},
	} {
		if err == nil {
			_, err = n.Exec(ctx, command...)
		}
	}
	return err
}

// join makes the swarm. There is no registry, and no route to one: Docker would wait 20 s for each service and task.
func (s *swarm) join(ctx context.Context) error {
	first := s.Nodes[0]
	for _, n := range s.Nodes {
		if _, err := n.Exec(ctx, "ip", "route", "replace", "unreachable", "default"); err != nil {
			return err
		}
	}
	addr := first.Addr.String()
	if _, err := first.Docker(ctx, "swarm", "init", "--advertise-addr", addr, "--listen-addr", addr); err != nil {
		return err
	}
	token, err := first.Docker(ctx, "swarm", "join-token", "--quiet", "manager")
	if err != nil {
		return err
	}
	for _, n := range s.Nodes[1:] {
		if _, err := n.Docker(ctx, "swarm", "join", "--token", strings.TrimSpace(token), "--advertise-addr", n.Addr.String(),
			"--listen-addr", n.Addr.String(), addr+":2377"); err != nil {
			return err
		}
	}
	return nil
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

// webScript is a web server that says which task it is, and takes a second to end.
const webScript = `trap "exit 0" TERM; hostname >/www/index.html; httpd -f -h /www & wait`

// service creates a service of web servers and waits until all of its tasks run.
func (s *swarm) service(manager *lab.Node, name, network string, replicas int, args ...string) {
	s.t.Helper()
	command := []string{"service", "create", "--detach", "--no-resolve-image", "--name", name, "--network", network,
		"--replicas", fmt.Sprint(replicas), "--hostname", name + "-{{.Task.Slot}}", "--stop-grace-period", "1s",
		"--restart-delay", "200ms"}
	docker(s.t, manager, append(append(command, args...), lab.Image, "sh", "-c", webScript)...)
	s.running(manager, name, replicas)
}

// running waits until a service has exactly that many running tasks and no other.
func (s *swarm) running(manager *lab.Node, service string, replicas int) {
	s.t.Helper()
	eventually(s.t, tasksLimit, func() error {
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
