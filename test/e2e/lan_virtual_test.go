//go:build e2e && virtual

package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/netdriver/netdriver/test/e2e/lab"
)

// What only kernels of their own have, with real Docker engines: VLANs, ipvlan, and a host that has the old iptables only.
// n1, which has the store, is a namespace node.
func TestVirtualHostsOwnNetworks(t *testing.T) {
	begin := time.Now()
	c := ownCluster(t, lab.Config{Nodes: 3, Kernels: map[int]lab.Kernel{2: {}, 3: {Without: []string{"nf_tables"}}}})
	t.Logf("two kernels, the cluster and Docker in %s", time.Since(begin))
	for name, scenario := range map[string]func(*testing.T, *cluster){
		"VLAN": inVLAN, "ipvlan": inIPvlan, "old iptables": withOldIPTables,
	} {
		t.Run(name, func(t *testing.T) { scenario(t, c) })
	}
}

// sleeper starts a container that does nothing.
func sleeper(t *testing.T, n *lab.Node, network, name string, args ...string) string {
	t.Helper()
	docker(t, n, append(append([]string{"run", "--detach", "--name", name, "--network", network}, args...), lab.Image, "sleep", "10000")...)
	atEnd(t, n, "rm", "--force", name)
	return name
}

// reachable waits until a container is answered.
func reachable(t *testing.T, n *lab.Node, container, addr string) {
	t.Helper()
	eventually(t, n.Patience(10*time.Second), func() error { return ping(t, n, container, addr) })
}

// A VLAN's interface is made for the first network that wants it and goes with the last one; its containers are in that VLAN
// and in no other.
func inVLAN(t *testing.T, c *cluster) {
	nodes := c.Nodes[1:]
	tagged := overlay(t, nodes, "--subnet", "10.106.10.0/24", "--opt", "mode=macvlan", "--opt", "parent=eth0.10")
	other := "other-" + tagged
	docker(t, nodes[1], createArgs(other, "--subnet", "10.106.11.0/24", "--opt", "mode=macvlan", "--opt", "parent=eth0.11")...)
	atEnd(t, nodes[1], "network", "rm", other)
	a, b := sleeper(t, nodes[0], tagged, "vlan-a"), sleeper(t, nodes[1], tagged, "vlan-b")
	stranger := sleeper(t, nodes[1], other, "vlan-c")
	addr := address(t, nodes[1], tagged, b, "IPAddress")
	reachable(t, nodes[0], a, addr)
	for _, n := range nodes {
		says(t, run(t, n, "ip", "-d", "link", "show", "eth0.10"), "vlan protocol 802.1Q id 10", "netdriver vlan")
	}
	// With an address of the same subnet in the other VLAN, and untagged: the frames do not meet.
	if out, err := inside(t, nodes[1], stranger, "ip", "address", "add", "10.106.10.200/24", "dev", "eth0"); err != nil {
		t.Fatal(out)
	}
	run(t, c.Outside, "ip", "address", "add", "10.106.10.201/24", "dev", "br0")
	defer c.Outside.Exec(t.Context(), "ip", "address", "del", "10.106.10.201/24", "dev", "br0")
	for _, to := range []string{"10.106.10.200", "10.106.10.201"} {
		if ping(t, nodes[0], a, to) == nil {
			t.Errorf("a container in VLAN 10 reaches %s, which is not in it", to)
		}
	}
	docker(t, nodes[0], "rm", "--force", a)
	docker(t, nodes[0], "network", "rm", tagged)
	if out, err := nodes[0].Exec(t.Context(), "ip", "link", "show", "eth0.10"); err == nil {
		t.Errorf("the VLAN's interface is left: %s", out)
	}
}

// ipvlan containers have addresses of the LAN and their host's MAC, and come back when somebody removes them.
func inIPvlan(t *testing.T, c *cluster) {
	nodes := c.Nodes[1:]
	network := overlay(t, nodes, "--subnet", lanSubnet, "--gateway", "10.99.0.254", "--ip-range", "10.99.0.64/26",
		"--opt", "mode=ipvlan", "--opt", "parent=eth0")
	a, b := sleeper(t, nodes[0], network, "ipvlan-a"), sleeper(t, nodes[1], network, "ipvlan-b")
	addr := address(t, nodes[1], network, b, "IPAddress")
	reachable(t, nodes[0], a, addr)
	reachable(t, nodes[0], a, c.Outside.Addr.String())
	if own, host := run(t, nodes[0], "docker", "exec", a, "cat", "/sys/class/net/eth0/address"), run(t, nodes[0], "cat", "/sys/class/net/eth0/address"); own != host {
		t.Errorf("an ipvlan container has MAC %s, its host %s", own, host)
	}
	if out, err := inside(t, nodes[1], b, "ip", "link", "del", "eth0"); err != nil {
		t.Fatal(out)
	}
	eventually(t, nodes[1].Patience(5*time.Second), func() error { return ping(t, nodes[0], a, addr) })
	inspected(t, nodes[0], network, "ipvlan", "parent eth0", "HEALTHY")
}

// On a host with the old iptables only, strangers are kept out, bridge networks work and are closed to others, and the
// user's rules stay as they are; rules between groups are refused.
func withOldIPTables(t *testing.T, c *cluster) {
	n := c.Nodes[2]
	if out, err := n.Exec(t.Context(), "nft", "list", "tables"); err == nil {
		t.Fatalf("the node has nftables: %s", out)
	}
	save := func() string { return run(t, n, "sh", "-c", "iptables-save | grep -e '--comment mine'") }
	run(t, n, "iptables", "-I", "FORWARD", "-i", "user0", "-m", "comment", "--comment", "mine", "-j", "ACCEPT")
	before := save()
	network := overlay(t, c.Nodes[1:], "--subnet", "10.106.12.0/24")
	target, sender := sleeper(t, n, network, "old-target"), sleeper(t, c.Nodes[1], network, "old-sender")
	reachable(t, c.Nodes[1], sender, address(t, n, network, target, "IPAddress"))
	f := forgeryOf(t, network, c.Nodes[1], sender, n, target)
	const frames = 6
	got := refusals(t, n, target)
	forge(t, c.Nodes[1], f, frames)
	eventually(t, n.Patience(5*time.Second), func() error {
		if now := refusals(t, n, target) - got; now != frames {
			return fmt.Errorf("%d of %d frames from a node arrived", now, frames)
		}
		return nil
	})
	forge(t, c.Outside, f, frames)
	eventually(t, n.Patience(5*time.Second), func() error {
		if a := report(t, n, network).Admission; a.Filter != "iptables" || a.Strangers != frames {
			return fmt.Errorf("%+v", a)
		}
		return nil
	})
	if now := refusals(t, n, target) - got; now != frames {
		t.Errorf("%d frames from a stranger arrived", now-frames)
	}
	says(t, refused(t, n, createArgs("ruled-"+network, "--subnet", "10.106.13.0/24", "--opt", "allow=web>db")...), "nf_tables")

	one, theirs := "one-"+network, "theirs-"+network
	docker(t, n, createArgs(one, "--subnet", "10.106.14.0/24", "--opt", "mode=bridge")...)
	docker(t, n, "network", "create", "--subnet", "10.106.15.0/24", theirs)
	for _, name := range []string{one, theirs} {
		atEnd(t, n, "network", "rm", name)
		sleeper(t, n, name, name)
	}
	reachable(t, n, one, c.Outside.Addr.String())
	reachable(t, n, theirs, c.Outside.Addr.String())
	if ping(t, n, theirs, address(t, n, one, one, "IPAddress")) == nil || ping(t, n, one, address(t, n, theirs, theirs, "IPAddress")) == nil {
		t.Error("a network of Docker's and a bridge network reach each other")
	}
	if now := save(); now != before || !strings.Contains(now, "mine") {
		t.Errorf("the user's rules were\n%s\nand are\n%s", before, now)
	}
}
