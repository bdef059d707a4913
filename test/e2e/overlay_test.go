//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/netdriver/netdriver/test/e2e/lab"
)

// overlay creates the test's network on the given nodes, with --subnet and whatever else is given, and returns its
// name. It is removed at the test's end, after the containers.
func overlay(t *testing.T, nodes []*lab.Node, args ...string) string {
	t.Helper()
	name := networkName(t)
	for _, n := range nodes {
		docker(t, n, createArgs(name, args...)...)
		atEnd(t, n, "network", "rm", name)
	}
	return name
}

// createArgs is the `docker network create` of a cluster network.
func createArgs(name string, args ...string) []string {
	command := []string{"network", "create", "-d", "custom-overlay", "--ipam-driver", "custom-overlay",
		"--opt", "network=" + name, "--ipam-opt", "network=" + name}
	return append(append(command, args...), name)
}

// serve starts a container with a web server that says the node's name, and returns the container's name, which
// begins with the network's. It is removed at the test's end.
func serve(t *testing.T, n *lab.Node, network string, args ...string) string {
	t.Helper()
	const script = `echo "$0" >/www/index.html; exec httpd -f -h /www`
	name := network + "-" + n.Name
	command := append([]string{"run", "--detach", "--name", name, "--network", network}, args...)
	docker(t, n, append(command, lab.Image, "sh", "-c", script, n.Name)...)
	atEnd(t, n, "rm", "--force", name)
	return name
}

// address is a container's address in a network; family is IPAddress or GlobalIPv6Address, as in `docker inspect`.
func address(t *testing.T, n *lab.Node, network, container, family string) string {
	t.Helper()
	format := fmt.Sprintf("{{(index .NetworkSettings.Networks %q).%s}}", network, family)
	addr := docker(t, n, "inspect", "--format", format, container)
	if addr == "" {
		t.Fatalf("container %s of %s has no %s", container, n.Name, family)
	}
	return addr
}

// ping is one echo request from a container; nil if it is answered within two seconds.
func ping(t *testing.T, n *lab.Node, container, addr string) error {
	t.Helper()
	_, err := n.Docker(t.Context(), "exec", container, "ping", "-c", "1", "-W", "2", addr)
	return err
}

// fetch gets / from a web server through a container.
func fetch(t *testing.T, n *lab.Node, container, addr string) string {
	t.Helper()
	if strings.Contains(addr, ":") {
		addr = "[" + addr + "]"
	}
	// The -T of Debian 12's static busybox wget crashes.
	return docker(t, n, "exec", container, "timeout", "5", "wget", "-q", "-O", "-", "http://"+addr+"/")
}

// atEnd runs a docker command after the test; it fails the test when it fails and nothing else did. What is gone
// already is no failure.
func atEnd(t *testing.T, n *lab.Node, args ...string) {
	t.Helper()
	t.Cleanup(func() {
		// The test's own context has ended by now.
		_, err := n.Docker(context.Background(), args...)
		if err != nil && !strings.Contains(err.Error(), "No such") && !t.Failed() {
			t.Errorf("clean up: %v", err)
		}
	})
}

func TestContainersOnTwoHostsReachEachOther(t *testing.T) {
	nodes := hosts(t).Nodes
	network := overlay(t, nodes, "--subnet", "10.100.1.0/24")
	containers := make([]string, len(nodes))
	for i, n := range nodes {
		containers[i] = serve(t, n, network)
	}
	for i, from := range nodes {
		for j, to := range nodes {
			addr := address(t, to, network, containers[j], "IPAddress")
			if err := ping(t, from, containers[i], addr); err != nil {
				t.Errorf("%s to %s: %v", from.Name, to.Name, err)
			}
			if got := fetch(t, from, containers[i], addr); got != to.Name {
				t.Errorf("%s to %s: the page says %q", from.Name, to.Name, got)
			}
		}
	}
	if ping(t, nodes[0], containers[0], "10.100.1.250") == nil {
		t.Error("an address that nobody has answered")
	}
}

func TestDualStackNetworkCarriesBothFamilies(t *testing.T) {
	nodes := hosts(t).Nodes[:2]
	network := overlay(t, nodes, "--ipv6", "--subnet", "10.100.2.0/24", "--subnet", "fd10:100:2::/64")
	first, second := serve(t, nodes[0], network), serve(t, nodes[1], network)
	for _, family := range []string{"IPAddress", "GlobalIPv6Address"} {
		addr := address(t, nodes[1], network, second, family)
		if err := ping(t, nodes[0], first, addr); err != nil {
			t.Error(err)
		}
		if got := fetch(t, nodes[0], first, addr); got != nodes[1].Name {
			t.Errorf("http://%s says %q", addr, got)
		}
	}
}

func TestOverlayOverAnIPv6UnderlayCarriesFullSizePackets(t *testing.T) {
	c := ownCluster(t, lab.Config{Nodes: 2, IPv6: true})
	network := overlay(t, c.Nodes, "--subnet", "10.100.3.0/24")
	first, second := serve(t, c.Nodes[0], network), serve(t, c.Nodes[1], network)
	addr := address(t, c.Nodes[1], network, second, "IPAddress")
	// 1500 bytes less 70 for IPv6, UDP, VXLAN and the inner Ethernet header; of these 28 are IPv4's and ICMP's
	// headers.
	const payload = 1500 - 70 - 28
	_, err := c.Nodes[0].Docker(t.Context(), "exec", first, "ping", "-c", "1", "-W", "2", "-s", fmt.Sprint(payload), addr)
	if err != nil {
		t.Error(err)
	}
	if got := docker(t, c.Nodes[0], "exec", first, "cat", "/sys/class/net/eth0/mtu"); got != "1430" {
		t.Errorf("the container's MTU is %s, want 1430", got)
	}
}

func TestInternalNetworkHasNoWayOut(t *testing.T) {
	c := hosts(t)
	n := c.Nodes[0]
	open := overlay(t, c.Nodes[:1], "--subnet", "10.100.4.0/24")
	closed := open + "-closed"
	docker(t, n, createArgs(closed, "--subnet", "10.100.5.0/24", "--internal")...)
	atEnd(t, n, "network", "rm", closed)
	if err := ping(t, n, serve(t, n, open), c.Outside.Addr.String()); err != nil {
		t.Errorf("a network that is not internal has no way out: %v", err)
	}
	inside := serve(t, n, closed)
	for _, addr := range []string{c.Outside.Addr.String(), n.Addr.String()} {
		if ping(t, n, inside, addr) == nil {
			t.Errorf("a container of an internal network reached %s", addr)
		}
	}
}

func TestPublishedPortIsReachedFromOutside(t *testing.T) {
	c := hosts(t)
	n := c.Nodes[1]
	network := overlay(t, c.Nodes[1:2], "--subnet", "10.100.6.0/24")
	container := serve(t, n, network, "--publish", "8081:80")
	if got := docker(t, n, "port", container, "80"); !strings.Contains(got, "0.0.0.0:8081") {
		t.Errorf("docker port says %q, want 0.0.0.0:8081", got)
	}
	eventually(t, 5*time.Second, func() error {
		got, err := httpGet(t, c.Outside, n.Addr.String(), 8081)
		if err == nil && got != n.Name {
			err = fmt.Errorf("the page says %q, want %q", got, n.Name)
		}
		return err
	})
}

// Every host is a member of 224.0.0.1; containers that answer broadcast echo show who has got the packet.
func TestMulticastReachesTheContainersOfAllHosts(t *testing.T) {
	nodes := hosts(t).Nodes
	network := overlay(t, nodes, "--subnet", "10.100.7.0/24", "--internal")
	var first string
	var addrs []string
	for i, n := range nodes {
		container := serve(t, n, network, "--sysctl", "net.ipv4.icmp_echo_ignore_broadcasts=0")
		addrs = append(addrs, address(t, n, network, container, "IPAddress"))
		if i == 0 {
			first = container
		}
	}
	// ping counts one answer a request; -c 3 leaves time for those of the others.
	out := docker(t, nodes[0], "exec", first, "ping", "-c", "3", "-I", "eth0", "224.0.0.1")
	for _, addr := range addrs[1:] {
		if !strings.Contains(out, "from "+addr) {
			t.Errorf("%s did not answer:\n%s", addr, out)
		}
	}
}

func TestNetworkRemovedOnOneHostStaysOnTheOthers(t *testing.T) {
	nodes := hosts(t).Nodes
	network := overlay(t, nodes, "--subnet", "10.100.8.0/24")
	first, second := serve(t, nodes[0], network), serve(t, nodes[1], network)
	docker(t, nodes[2], "network", "rm", network)
	if err := ping(t, nodes[0], first, address(t, nodes[1], network, second, "IPAddress")); err != nil {
		t.Errorf("after the removal on %s: %v", nodes[2].Name, err)
	}
	if out := run(t, nodes[0], "netdriver", "networks"); !strings.Contains(out, network) {
		t.Errorf("netdriver networks lacks %s:\n%s", network, out)
	}
}

func TestNetworkGoesWithItsLastHost(t *testing.T) {
	nodes := hosts(t).Nodes
	network := overlay(t, nodes, "--subnet", "10.100.9.0/24")
	for _, n := range nodes {
		docker(t, n, "network", "rm", network)
	}
	eventually(t, 5*time.Second, func() error {
		if out := run(t, nodes[1], "netdriver", "networks"); strings.Contains(out, network) {
			return fmt.Errorf("netdriver networks still has %s:\n%s", network, out)
		}
		return nil
	})
}
