//go:build e2e

package e2e

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/netdriver/netdriver/test/e2e/lab"
)

// grouped starts a web server in a network with options of its endpoint, such as "group=web", and returns its name.
func grouped(t *testing.T, n *lab.Node, network, name string, options ...string) string {
	t.Helper()
	attach := "name=" + network
	for _, o := range options {
		attach += ",driver-opt=" + o
	}
	name = network + "-" + name
	const script = `echo "$0" >/www/index.html; httpd -f -p 8080 -h /www & exec httpd -f -h /www`
	docker(t, n, "run", "--detach", "--name", name, "--network", attach, lab.Image, "sh", "-c", script, name)
	atEnd(t, n, "rm", "--force", name)
	return name
}

// reaches says whether a web server's port answers a container.
func reaches(t *testing.T, n *lab.Node, container, addr string, port int) bool {
	t.Helper()
	_, err := n.Docker(t.Context(), "exec", container, "timeout", "2", "wget", "-q", "-O", "/dev/null", fmt.Sprintf("http://%s:%d/", addr, port))
	return err == nil
}

// inside runs a command of the node in a container's network namespace.
func inside(t *testing.T, n *lab.Node, container string, args ...string) (string, error) {
	t.Helper()
	cmd, err := n.InContainer(t.Context(), container, args...)
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// A container with all rights in its own network namespace cannot use another's address, on its own host or on another.
func TestAContainerCannotSendAsAnother(t *testing.T) {
	nodes := hosts(t).Nodes[:2]
	network := overlay(t, nodes, "--subnet", "10.100.40.0/24")
	bad := grouped(t, nodes[0], network, "bad")
	victim := grouped(t, nodes[0], network, "victim")
	far := grouped(t, nodes[1], network, "far")
	stolen := address(t, nodes[0], network, victim, "IPAddress")
	target := address(t, nodes[1], network, far, "IPAddress")
	own := address(t, nodes[0], network, bad, "IPAddress")
	if out, err := inside(t, nodes[0], bad, "busybox", "ping", "-c", "1", "-W", "2", "-I", own, target); err != nil {
		t.Fatalf("as itself: %v: %s", err, out)
	}
	for _, address := range []string{stolen, "10.100.40.250"} {
		if out, err := inside(t, nodes[0], bad, "ip", "address", "add", address+"/24", "dev", "eth0"); err != nil {
			t.Fatal(out)
		}
		if out, err := inside(t, nodes[0], bad, "busybox", "ping", "-c", "1", "-W", "1", "-I", address, target); err == nil {
			t.Errorf("as %s: %s", address, out)
		}
	}
	if err := ping(t, nodes[1], far, stolen); err != nil {
		t.Errorf("the victim is not reached any more: %v", err)
	}
	if out, err := inside(t, nodes[0], bad, "ip", "link", "set", "eth0", "address", "02:66:66:66:66:66"); err != nil {
		t.Fatal(out)
	}
	if ping(t, nodes[0], bad, target) == nil {
		t.Error("with another MAC it is answered")
	}
}

// Groups are kept apart by the network's rules, whatever hosts their containers are on.
func TestGroupsReachWhatTheRulesAllow(t *testing.T) {
	nodes := hosts(t).Nodes[:2]
	network := overlay(t, nodes[:1], "--subnet", "10.100.41.0/24", "--opt", "allow=web>db:8080/tcp,web>cache")
	docker(t, nodes[1], createArgs(network, "--subnet", "10.100.41.0/24")...) // the rules are the cluster network's
	atEnd(t, nodes[1], "network", "rm", network)
	web := grouped(t, nodes[0], network, "web", "group=web")
	where := map[string]*lab.Node{}
	for i, n := range nodes {
		for _, group := range []string{"db", "cache"} {
			where[grouped(t, n, network, fmt.Sprintf("%s%d", group, i), "group="+group)] = n
		}
		where[grouped(t, n, network, fmt.Sprintf("none%d", i))] = n
	}
	webAddress := address(t, nodes[0], network, web, "IPAddress")
	var all sync.WaitGroup // what is denied takes its time
	for name, n := range where {
		addr := address(t, n, network, name, "IPAddress")
		db, cache := strings.Contains(name, "-db"), strings.Contains(name, "-cache")
		for port, want := range map[int]bool{80: cache, 8080: db || cache} {
			all.Go(func() {
				if got := reaches(t, nodes[0], web, addr, port); got != want {
					t.Errorf("web reaches %s port %d: %v, want %v", name, port, got, want)
				}
			})
		}
		all.Go(func() {
			if got := ping(t, nodes[0], web, addr) == nil; got != cache {
				t.Errorf("web pings %s: %v, want %v", name, got, cache)
			}
		})
		all.Go(func() {
			if reaches(t, n, name, webAddress, 80) || ping(t, n, name, webAddress) == nil {
				t.Errorf("%s reaches web, which no rule allows", name)
			}
		})
	}
	all.Wait()
	out := refused(t, nodes[0], "run", "--rm", "--network", "name="+network+",driver-opt=group=dbx", lab.Image, "true")
	if !strings.Contains(out, "its groups are cache, db, web") {
		t.Errorf("a group that no rule names: %s", out)
	}
	out = refused(t, nodes[0], "network", "create", "-d", "custom-overlay", "--ipam-driver", "custom-overlay", "--subnet", "10.100.42.0/24",
		"--opt", "allow=web=db", "bad-rules")
	if !strings.Contains(out, "FROM>TO") {
		t.Errorf("a bad rule: %s", out)
	}
}

// In an isolated network nobody reaches anybody.
func TestIsolatedContainersReachNobodyInTheirNetwork(t *testing.T) {
	nodes := hosts(t).Nodes[:2]
	network := overlay(t, nodes, "--subnet", "10.100.43.0/24", "--opt", "isolate=true")
	a, b := grouped(t, nodes[0], network, "a"), grouped(t, nodes[0], network, "b")
	c := grouped(t, nodes[1], network, "c")
	for to, n := range map[string]*lab.Node{b: nodes[0], c: nodes[1]} {
		if addr := address(t, n, network, to, "IPAddress"); reaches(t, nodes[0], a, addr, 80) || ping(t, nodes[0], a, addr) == nil {
			t.Errorf("%s reaches %s", a, to)
		}
	}
	// The servers work: what is published is reached by docker_gwbridge, which is another network.
	if out, err := inside(t, nodes[0], b, "wget", "-q", "-O", "-", "http://127.0.0.1/"); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// A service's virtual address leads to the real backend, which is what the rules judge; in an isolated network services are
// what everybody reaches.
func TestRulesJudgeTheBackendOfAVirtualAddress(t *testing.T) {
	s := newSwarm(t, managedDriver, lab.Config{Nodes: 3})
	manager, n := s.Nodes[0], s.Nodes[1]
	const script = `hostname >/www/index.html; httpd -f -p 8080 -h /www & exec httpd -f -h /www`
	service := func(network, name string, options ...string) {
		attach := strings.Join(append([]string{"name=" + network}, options...), ",driver-opt=")
		docker(t, manager, "service", "create", "--detach", "--no-resolve-image", "--name", name, "--network", attach,
			"--replicas", "3", lab.Image, "sh", "-c", script)
	}
	judged := s.network("judged", "10.132.40.0/24", "--opt", "allow=web>db:80/tcp")
	isolated := s.network("isolated", "10.132.41.0/24", "--opt", "isolate=true")
	service(judged, "db", "group=db")
	service(isolated, "open")
	s.running(manager, "db", 3)
	s.running(manager, "open", 3)
	web, other := grouped(t, n, judged, "web", "group=web"), grouped(t, n, judged, "other")
	eventually(t, 30*time.Second, func() error {
		if !reaches(t, n, web, "db", 80) {
			return fmt.Errorf("web does not reach db")
		}
		return nil
	})
	for range 6 { // every backend
		if !reaches(t, n, web, "db", 80) {
			t.Error("web does not reach db at its virtual address")
		}
		if reaches(t, n, web, "db", 8080) || reaches(t, n, other, "db", 80) {
			t.Error("what no rule allows gets through by the virtual address")
		}
	}
	alone := grouped(t, n, isolated, "alone")
	peer := grouped(t, s.Nodes[2], isolated, "peer")
	eventually(t, 30*time.Second, func() error {
		if !reaches(t, n, alone, "open", 80) {
			return fmt.Errorf("the service is not reached")
		}
		return nil
	})
	if reaches(t, n, alone, address(t, s.Nodes[2], isolated, peer, "IPAddress"), 80) {
		t.Error("a container that is no service is reached in an isolated network")
	}
}

// What was refused is counted at the endpoint, and told with who tried it, also when the daemon is down.
func TestRefusalsAreCountedAndTold(t *testing.T) {
	c := ownCluster(t, lab.Config{Nodes: 2})
	n := c.Nodes[0]
	network := "told"
	for _, n := range c.Nodes {
		docker(t, n, createArgs(network, "--subnet", "10.100.46.0/24", "--opt", "allow=web>db:80/tcp")...)
	}
	db := grouped(t, n, network, "db", "group=db")
	stranger := grouped(t, c.Nodes[1], network, "stranger")
	addr := address(t, n, network, db, "IPAddress")
	if reaches(t, c.Nodes[1], stranger, addr, 80) {
		t.Fatal("the stranger is not refused")
	}
	if out, err := inside(t, n, db, "ip", "address", "add", "10.100.46.99/24", "dev", "eth0"); err != nil {
		t.Fatal(out)
	}
	_, _ = inside(t, n, db, "busybox", "ping", "-c", "1", "-W", "1", "-I", "10.100.46.99", address(t, c.Nodes[1], network, stranger, "IPAddress"))
	eventually(t, 10*time.Second, func() error {
		out, err := n.Exec(t.Context(), "netdriver", "inspect", network)
		if err == nil && (!strings.Contains(out, "denied") || !strings.Contains(out, "spoofed") || !strings.Contains(out, "web>db:80/tcp")) {
			err = fmt.Errorf("inspect says\n%s", out)
		}
		return err
	})
	told := func() error {
		out, err := n.Exec(t.Context(), "netdriver", "events", "--network", network)
		if err != nil {
			return err
		}
		for _, want := range []string{"denied", stranger, addr + ":80", "spoofed", "10.100.46.99", db} {
			if !strings.Contains(out, want) {
				return fmt.Errorf("no %q in\n%s", want, out)
			}
		}
		return nil
	}
	eventually(t, 10*time.Second, told)
	if err := n.KillDaemon(); err != nil {
		t.Fatal(err)
	}
	if err := told(); err != nil {
		t.Errorf("without a daemon: %v", err)
	}
}
