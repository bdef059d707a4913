package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/netdriver/netdriver/test/e2e/lab"
)

const (
	// driver is the managed plugin's name.
	driver = "custom-overlay:latest"
	// startLimit is how long the tasks of a service may take to run on a busy machine.
	startLimit = 3 * time.Minute
	// calls is how often the service is called to see all its replicas.
	calls = 8
)

// swarm are the three Docker hosts of the demo with a swarm.
type swarm struct {
	*show
	lab   *lab.Lab
	first *lab.Node
}

func newSwarm(show *show, l *lab.Lab) *swarm { return &swarm{show: show, lab: l, first: l.Nodes[0]} }

// steps are the demo, in order. Docker tells a swarm a node's plugins when it joins; of later ones it hears 10 to 20 s
// later, so the plugin comes first.
func (s *swarm) steps() []step {
	return []step{
		{"three Docker hosts, each with a systemd", s.startHosts},
		{"netdriver on each: a service of the host, and a managed plugin in Docker", s.install},
		{"a cluster of the three daemons", s.joinCluster},
		{"a swarm", s.joinSwarm},
		{"a network of the swarm", s.createNetwork},
		{"a service with a replica on each host", s.createService},
		{"a client calls the service by its name, through its virtual address", s.call},
		{"what netdriver knows", s.inspect},
		{"the daemons are restarted one by one, and the client goes on calling", s.restart},
		{"clean up: no trace is left on the hosts", s.remove},
	}
}

func (s *swarm) startHosts(ctx context.Context) error {
	for _, n := range s.lab.Nodes {
		if err := n.StartSystemd(ctx); err != nil {
			return err
		}
	}
	return s.startDockers(ctx, s.lab)
}

func (s *swarm) install(ctx context.Context) error {
	for _, n := range s.lab.Nodes {
		if _, err := s.exec(ctx, n, "netdriver", "install", "--swarm", "--underlay", "eth0"); err != nil {
			return err
		}
	}
	return nil
}

// joinCluster makes a cluster of the three daemons, and waits until each has a member of the store.
func (s *swarm) joinCluster(ctx context.Context) error {
	if _, err := s.exec(ctx, s.first, "netdriver", "cluster", "init"); err != nil {
		return err
	}
	token, err := s.exec(ctx, s.first, "netdriver", "cluster", "token")
	if err != nil {
		return err
	}
	for _, n := range s.lab.Nodes[1:] {
		if _, err := s.exec(ctx, n, "netdriver", "cluster", "join", strings.TrimSpace(token)); err != nil {
			return err
		}
	}
	err = s.until(ctx, startLimit, func() error {
		out, err := s.first.Exec(ctx, "netdriver", "cluster", "status")
		if !strings.Contains(out, "can lose 1 more") {
			err = errors.Join(err, fmt.Errorf("the store cannot lose a member yet: %s", out))
		}
		return err
	})
	if err != nil {
		return err
	}
	_, err = s.exec(ctx, s.first, "netdriver", "cluster", "status")
	return err
}

func (s *swarm) joinSwarm(ctx context.Context) error {
	addr := s.first.Addr.String()
	if _, err := s.exec(ctx, s.first, "docker", "swarm", "init", "--advertise-addr", addr); err != nil {
		return err
	}
	token, err := s.exec(ctx, s.first, "docker", "swarm", "join-token", "--quiet", "worker")
	if err != nil {
		return err
	}
	for _, n := range s.lab.Nodes[1:] {
		if _, err := s.exec(ctx, n, "docker", "swarm", "join", "--token", strings.TrimSpace(token),
			"--advertise-addr", n.Addr.String(), addr+":2377"); err != nil {
			return err
		}
	}
	_, err = s.exec(ctx, s.first, "docker", "node", "ls")
	return err
}

func (s *swarm) createNetwork(ctx context.Context) error {
	_, err := s.exec(ctx, s.first, "docker", "network", "create", "-d", driver, "--ipam-driver", driver,
		"--attachable", "--subnet", subnet, "--opt", "network="+network, "--ipam-opt", "network="+network, network)
	return err
}

func (s *swarm) createService(ctx context.Context) error {
	const serve = `echo "hello from $(hostname)" >/www/index.html; exec httpd -f -h /www`
	// There is no registry to ask for the image's digest.
	if _, err := s.exec(ctx, s.first, "docker", "service", "create", "--detach", "--no-resolve-image", "--name", "web",
		"--network", network, "--replicas", "3", "--replicas-max-per-node", "1",
		"--hostname", "web-{{.Node.Hostname}}",
		"--stop-grace-period", "1s",
		lab.Image, "sh", "-c", serve); err != nil {
		return err
	}
	err := s.until(ctx, startLimit, func() error {
		running, err := s.first.Docker(ctx, "service", "ls", "--filter", "name=web", "--format", "{{.Replicas}}")
		if !strings.HasPrefix(running, "3/3") {
			err = errors.Join(err, fmt.Errorf("%s replicas run", strings.TrimSpace(running)))
		}
		return err
	})
	_, show := s.exec(ctx, s.first, "docker", "service", "ps", "web")
	return errors.Join(err, show)
}

// until repeats try until it succeeds or the limit has passed.
func (s *swarm) until(ctx context.Context, limit time.Duration, try func() error) error {
	for end := time.Now().Add(limit); ; {
		err := try()
		if err == nil || time.Now().After(end) || ctx.Err() != nil {
			return err
		}
		time.Sleep(200 * time.Millisecond)
	}
}

func (s *swarm) call(ctx context.Context) error {
	if _, err := s.exec(ctx, s.first, "docker", "run", "--detach", "--name", "client", "--network", network,
		lab.Image, "sleep", "1000"); err != nil {
		return err
	}
	if _, err := s.exec(ctx, s.first, "docker", "exec", "client", "nslookup", "web"); err != nil {
		return err
	}
	seen := map[string]bool{}
	for range calls {
		page, err := s.exec(ctx, s.first, "docker", "exec", "client", "timeout", "5", "wget", "-q", "-O", "-", "http://web/")
		if err != nil {
			return err
		}
		seen[strings.TrimSpace(page)] = true
	}
	if len(seen) < 2 {
		return fmt.Errorf("%d calls were all answered by %v: the service does not share them out", calls,
			slices.Collect(maps.Keys(seen)))
	}
	return nil
}

func (s *swarm) inspect(ctx context.Context) error {
	_, err := s.exec(ctx, s.first, "netdriver", "inspect", network)
	return err
}

// restart calls the service all the time while each host's daemon is restarted, and counts what fails.
func (s *swarm) restart(ctx context.Context) error {
	const loop = `ok=0; bad=0
until [ -e /tmp/stop ]; do
  if timeout 5 wget -q -O /dev/null http://web/; then ok=$((ok+1)); else bad=$((bad+1)); fi
  sleep 0.05
done
echo "$ok calls answered, $bad failed"`
	s.command(s.first, []string{"docker", "exec", "client", "sh", "-c", loop})
	type result struct {
		out string
		err error
	}
	done := make(chan result, 1)
	go func() {
		out, err := s.first.Docker(ctx, "exec", "client", "sh", "-c", loop)
		done <- result{out, err}
	}()
	for _, n := range s.lab.Nodes {
		if _, err := s.exec(ctx, n, "systemctl", "restart", "netdriver"); err != nil {
			return err
		}
	}
	if _, err := s.exec(ctx, s.first, "docker", "exec", "client", "touch", "/tmp/stop"); err != nil {
		return err
	}
	r := <-done
	s.output(r.out)
	if r.err == nil && (!strings.HasSuffix(strings.TrimSpace(r.out), " 0 failed") || strings.HasPrefix(r.out, "0 ")) {
		r.err = errors.New("calls failed while a daemon was restarted")
	}
	return r.err
}

// remove takes everything down as a user would; the lab then removes the hosts themselves.
func (s *swarm) remove(ctx context.Context) error {
	for _, command := range [][]string{{"rm", "--force", "client"}, {"service", "rm", "web"}} {
		if _, err := s.exec(ctx, s.first, append([]string{"docker"}, command...)...); err != nil {
			return err
		}
	}
	// Both are refused until the service's last task has ended.
	if err := s.insist(ctx, s.first, "docker", "network", "rm", network); err != nil {
		return err
	}
	for _, n := range slices.Backward(s.lab.Nodes) {
		if err := s.insist(ctx, n, "netdriver", "uninstall", "--purge"); err != nil {
			return err
		}
	}
	return nil
}

// insist prints a command and runs it until it succeeds.
func (s *swarm) insist(ctx context.Context, n *lab.Node, args ...string) error {
	s.command(n, args)
	var out string
	err := s.until(ctx, startLimit, func() (err error) { out, err = n.Exec(ctx, args...); return err })
	s.output(out)
	return err
}
