//go:build e2e

package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/netdriver/netdriver/test/e2e/lab"
)

// ownAddress is what a node has itself in a network.
func ownAddress(t *testing.T, n *lab.Node, network string) string {
	t.Helper()
	out, _ := n.Exec(t.Context(), "netdriver", "inspect", network) // which may find a peer behind
	for _, line := range strings.Split(out, "\n") {
		if f := strings.Fields(line); strings.Contains(line, "the node itself") && f[4] == n.Name {
			return f[5]
		}
	}
	t.Fatalf("node %s has no address of its own in %s", n.Name, network)
	return ""
}

// Host processes and containers on the host's own network reach an overlay's containers on all hosts, and are reached; and
// only that: nothing is forwarded.
func TestANodeWithHostAccessIsInTheOverlayAndIsNoRouter(t *testing.T) {
	c := hosts(t)
	network := overlay(t, c.Nodes, "--subnet", "10.109.1.0/24", "--opt", "host_access=true")
	other := network + "-other"
	docker(t, c.Nodes[0], createArgs(other, "--subnet", "10.109.2.0/24", "--opt", "host_access=true")...)
	atEnd(t, c.Nodes[0], "network", "rm", other)
	a, b := serve(t, c.Nodes[0], network), serve(t, c.Nodes[1], network)
	d := network + "-in-other"
	docker(t, c.Nodes[0], "run", "--detach", "--name", d, "--network", other, lab.Image, "sleep", "1000")
	atEnd(t, c.Nodes[0], "rm", "--force", d)
	onHost := network + "-on-host"
	docker(t, c.Nodes[0], "run", "--detach", "--name", onHost, "--network", "host", lab.Image, "sleep", "1000")
	atEnd(t, c.Nodes[0], "rm", "--force", onHost)

	addrB := address(t, c.Nodes[1], network, b, "IPAddress")
	for i, n := range c.Nodes {
		eventually(t, 5*time.Second, func() error {
			got, err := httpGet(t, n, addrB, 80)
			if err == nil && got != c.Nodes[1].Name {
				err = fmt.Errorf("from host %s: %q", n.Name, got)
			}
			return err
		})
		mine := ownAddress(t, n, network)
		if err := ping(t, c.Nodes[1], b, mine); err != nil {
			t.Errorf("a container of n2 does not reach host n%d at %s: %v", i+1, mine, err)
		}
	}
	if got := fetch(t, c.Nodes[0], onHost, addrB); got != c.Nodes[1].Name {
		t.Errorf("from a container on the host's network: %q", got)
	}
	eventually(t, 10*time.Second, func() error {
		out, err := c.Nodes[0].Exec(t.Context(), "netdriver", "inspect", network)
		if err == nil && (!strings.Contains(out, "host access") || strings.Contains(out, "spoofed")) {
			err = fmt.Errorf("inspect: %s", out)
		}
		return err
	})

	// Through the host from one network to the other, which are both its neighbours; it reaches both itself.
	addrD := address(t, c.Nodes[0], other, d, "IPAddress")
	run(t, c.Nodes[0], "busybox", "ping", "-c", "1", "-W", "2", addrD)
	for _, way := range []struct{ from, to, via string }{
		{a, addrD, ownAddress(t, c.Nodes[0], network)}, {d, address(t, c.Nodes[0], network, a, "IPAddress"), ownAddress(t, c.Nodes[0], other)},
	} {
		cmd, err := c.Nodes[0].InContainer(t.Context(), way.from, "ip", "route", "add", way.to, "via", way.via)
		if err == nil {
			err = cmd.Run()
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := ping(t, c.Nodes[0], way.from, way.via); err != nil {
			t.Errorf("control: the host is not reached at %s: %v", way.via, err)
		}
		if ping(t, c.Nodes[0], way.from, way.to) == nil {
			t.Errorf("the host is a router: %s reaches %s through %s", way.from, way.to, way.via)
		}
	}
}

func TestTheNodesOwnInterfaceInAnOverlayComesBackAndGoesWithTheNetwork(t *testing.T) {
	c := hosts(t)
	n := c.Nodes[1] // the first one has the store
	network := overlay(t, []*lab.Node{n}, "--subnet", "10.109.3.0/24", "--opt", "host_access=true")
	addr := address(t, n, network, serve(t, n, network), "IPAddress")
	mine := ownAddress(t, n, network)
	device := strings.Fields(run(t, n, "ip", "-o", "address", "show", "to", mine))[1]
	reached := func() error {
		_, err := n.Exec(t.Context(), "busybox", "ping", "-c", "1", "-W", "1", addr)
		return err
	}
	eventually(t, 5*time.Second, reached)
	for _, harm := range [][]string{
		{"ip", "address", "del", mine + "/24", "dev", device}, {"ip", "link", "set", device, "down"}, {"ip", "link", "del", device},
	} {
		run(t, n, harm...)
		eventually(t, 5*time.Second, reached)
	}
	if out, err := n.Exec(t.Context(), "sh", "-c", "nft list table inet netdriver | grep seat-fwd"); err != nil {
		t.Errorf("nothing keeps the host from forwarding: %v %s", err, out)
	}
	if err := n.KillDaemon(); err != nil {
		t.Fatal(err)
	}
	if err := n.StartDaemon(t.Context(), c.daemonConfig(n)); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, reached)
	eventually(t, 10*time.Second, func() error { _, err := n.Exec(t.Context(), "netdriver", "inspect", network); return err })
	if again := ownAddress(t, n, network); again != mine {
		t.Errorf("the node had %s and has %s after a restart", mine, again)
	}
	docker(t, n, "rm", "--force", network+"-"+n.Name)
	docker(t, n, "network", "rm", network)
	if out := run(t, n, "ip", "-o", "link"); strings.Contains(out, device) {
		t.Errorf("the node's interface is left: %s", out)
	}
	if out, err := n.Exec(t.Context(), "sh", "-c", "nft list table inet netdriver | grep "+device); err == nil {
		t.Errorf("a rule is left: %s", out)
	}
}
