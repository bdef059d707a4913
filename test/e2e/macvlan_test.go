//go:build e2e

package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/netdriver/netdriver/test/e2e/lab"
)

// lanSubnet is the lab's own LAN, in which the nodes' eth0 and the switch are.
const lanSubnet = "10.99.0.0/24"

// inLAN creates the test's network on the nodes, in the LAN that eth0 is in.
func inLAN(t *testing.T, nodes []*lab.Node, args ...string) string {
	t.Helper()
	args = append([]string{"--subnet", lanSubnet, "--gateway", "10.99.0.254", "--ip-range", "10.99.0.64/26",
		"--opt", "mode=macvlan"}, args...)
	if !strings.Contains(strings.Join(args, " "), "parent=") {
		args = append(args, "--opt", "parent=eth0")
	}
	return overlay(t, nodes, args...)
}

// mac is a container's in a network, as Docker says.
func mac(t *testing.T, n *lab.Node, network, container string) string {
	t.Helper()
	return address(t, n, network, container, "MacAddress")
}

func TestMacvlanContainersOfAllHostsAreInTheLANWithAddressesOfTheirOwn(t *testing.T) {
	c := hosts(t)
	network := inLAN(t, c.Nodes)
	seen := map[string]string{}
	var containers, addrs []string
	for _, n := range c.Nodes {
		for i := range 2 {
			name := fmt.Sprintf("%s-%s-%d", network, n.Name, i)
			docker(t, n, "run", "--detach", "--name", name, "--network", network, lab.Image, "sleep", "1000")
			atEnd(t, n, "rm", "--force", name)
			addr, hw := address(t, n, network, name, "IPAddress"), mac(t, n, network, name)
			for _, id := range []string{addr, hw} {
				if other := seen[id]; other != "" {
					t.Errorf("%s has %s, and so has %s", name, id, other)
				}
				seen[id] = name
			}
			containers, addrs = append(containers, name), append(addrs, addr)
		}
	}
	for i, name := range containers {
		n := c.Nodes[i/2]
		for _, to := range append([]string{c.Outside.Addr.String()}, addrs...) {
			if err := ping(t, n, name, to); err != nil {
				t.Errorf("from %s: %v", name, err)
			}
		}
		run(t, c.Outside, "busybox", "ping", "-c", "1", "-W", "2", addrs[i])
		if got := docker(t, n, "exec", name, "ip", "route", "show", "default"); !strings.Contains(got, "via 10.99.0.254 dev eth0") {
			t.Errorf("%s: default route %q, want the LAN's gateway", name, got)
		}
	}
	inspected(t, c.Nodes[0], network, "macvlan bridge", "parent eth0", "gateway 10.99.0.254", "HEALTHY")
	says(t, run(t, c.Nodes[0], "netdriver", "networks"), "macvlan eth0")
}

func TestAnAddressThatSomebodyInTheLANHasIsNotGivenOut(t *testing.T) {
	c := hosts(t)
	n := c.Nodes[0]
	for _, a := range []string{"10.99.0.64", "10.99.0.65", "10.99.0.70"} {
		run(t, c.Outside, "ip", "address", "add", a+"/32", "dev", "br0")
		defer c.Outside.Exec(t.Context(), "ip", "address", "del", a+"/32", "dev", "br0")
	}
	network := inLAN(t, c.Nodes[:2])
	hw := run(t, c.Outside, "cat", "/sys/class/net/br0/address")
	rival := network + "-rival"
	atEnd(t, n, "rm", "--force", rival)
	says(t, refused(t, n, "run", "--name", rival, "--network", network, "--ip", "10.99.0.70", lab.Image, "true"),
		"10.99.0.70", hw, "outside the cluster", "eth0")
	docker(t, n, "rm", "--force", rival)
	if got := address(t, n, network, serve(t, n, network), "IPAddress"); got != "10.99.0.66" {
		t.Errorf("the first free address is %s, want 10.99.0.66, since .64 and .65 are used in the LAN", got)
	}
	said, err := n.Exec(t.Context(), "netdriver", "inspect", network)
	if err == nil {
		t.Error("inspect is content with a duplicate address")
	}
	says(t, said, "10.99.0.70", hw, "DEGRADED", "--aux-address")
	run(t, c.Outside, "ip", "address", "del", "10.99.0.70/32", "dev", "br0")
	docker(t, n, "run", "--detach", "--name", rival, "--network", network, "--ip", "10.99.0.70", lab.Image, "sleep", "1000")
}

// In a LAN with IPv6 containers have an address of either family, are asked for by neighbour discovery, and keep out of what
// somebody else has; a removed interface comes back with both.
func TestMacvlanContainersHaveIPv6AddressesOfTheLAN(t *testing.T) {
	c := hosts(t)
	nodes := c.Nodes[:2]
	const outside, taken = "2001:db8:99::fe", "2001:db8:99::40"
	for _, a := range []string{outside, taken} {
		run(t, c.Outside, "ip", "-6", "address", "add", a+"/64", "dev", "br0", "nodad")
		defer c.Outside.Exec(t.Context(), "ip", "-6", "address", "del", a+"/64", "dev", "br0")
	}
	network := inLAN(t, nodes, "--ipv6", "--subnet", "2001:db8:99::/64", "--gateway", outside)
	rival := network + "-rival"
	atEnd(t, nodes[0], "rm", "--force", rival)
	says(t, refused(t, nodes[0], "run", "--name", rival, "--network", network, "--ip6", taken, lab.Image, "true"), taken, "outside the cluster")
	docker(t, nodes[0], "rm", "--force", rival)
	a, b := serve(t, nodes[0], network), serve(t, nodes[1], network)
	at := map[string]string{}
	for name, n := range map[string]*lab.Node{a: nodes[0], b: nodes[1]} {
		at[name] = address(t, n, network, name, "GlobalIPv6Address")
		says(t, docker(t, n, "exec", name, "ip", "-6", "route", "show", "default"), "via "+outside+" dev eth0")
	}
	if at[a] == at[b] {
		t.Errorf("both have %s", at[a])
	}
	if got := fetch(t, nodes[0], a, at[b]); got != nodes[1].Name {
		t.Errorf("from one host's container to the other's: %q", got)
	}
	for _, to := range []string{at[b], address(t, nodes[1], network, b, "IPAddress"), outside} {
		if err := ping(t, nodes[0], a, to); err != nil {
			t.Error(err)
		}
	}
	if out, err := inside(t, nodes[0], a, "ip", "link", "del", "eth0"); err != nil {
		t.Fatal(out)
	}
	eventually(t, 5*time.Second, func() error {
		_, err := c.Outside.Exec(t.Context(), "busybox", "ping", "-6", "-c", "1", "-W", "1", at[a])
		return err
	})
}

// inspected waits until a network is well and inspect says all the words.
func inspected(t *testing.T, n *lab.Node, network string, words ...string) {
	t.Helper()
	eventually(t, 10*time.Second, func() error {
		out, err := n.Exec(t.Context(), "netdriver", "inspect", network)
		for _, w := range words {
			if err == nil && !strings.Contains(out, w) {
				err = fmt.Errorf("lacks %q: %s", w, out)
			}
		}
		return err
	})
}

// noticed waits until inspect tells of a repair.
func noticed(t *testing.T, n *lab.Node, network string, words ...string) {
	t.Helper()
	eventually(t, 5*time.Second, func() error {
		out, _ := n.Exec(t.Context(), "netdriver", "inspect", network)
		for _, w := range append(words, "last drift") {
			if !strings.Contains(out, w) {
				return fmt.Errorf("lacks %q: %s", w, out)
			}
		}
		return nil
	})
}

// extra makes an interface of its own on a node, with a peer that stands for the LAN, and returns its name.
func extra(t *testing.T, n *lab.Node, name string) string {
	t.Helper()
	run(t, n, "ip", "link", "add", name, "type", "veth", "peer", "name", name+"-far")
	for _, dev := range []string{name, name + "-far"} {
		run(t, n, "ip", "link", "set", dev, "up")
	}
	return name
}

func TestAnInterfaceThatIsRemovedFromAContainerOrWithItsParentComesBack(t *testing.T) {
	c := hosts(t)
	n := c.Nodes[2]
	network := inLAN(t, []*lab.Node{n, c.Nodes[0]})
	name := serve(t, n, network, "--cap-add", "NET_ADMIN")
	addr := address(t, n, network, name, "IPAddress")
	before := docker(t, n, "exec", name, "ip", "address", "show", "dev", "eth0")
	there := func() error {
		out, err := inside(t, n, name, "cat", "/proc/net/dev")
		if err == nil && !strings.Contains(out, "eth0") {
			err = fmt.Errorf("no eth0 in %s", out)
		}
		return err
	}
	if err := there(); err != nil { // the control, and the programs are in memory
		t.Fatal(err)
	}
	if out, err := inside(t, n, name, "ip", "link", "del", "eth0"); err != nil {
		t.Fatal(out)
	}
	begin := time.Now()
	eventually(t, time.Second, there)
	t.Logf("back %s after its removal", time.Since(begin))
	back := func() error {
		_, err := c.Outside.Exec(t.Context(), "busybox", "ping", "-c", "1", "-W", "1", addr)
		return err
	}
	eventually(t, 5*time.Second, back)
	noticed(t, n, network, "netns /var/run/docker/netns/")
	for _, word := range []string{addr, mac(t, n, network, name)} {
		says(t, before, word)
		says(t, docker(t, n, "exec", name, "ip", "address", "show", "dev", "eth0"), word)
	}
	says(t, docker(t, n, "exec", name, "ip", "route", "show", "default"), "via 10.99.0.254 dev eth0")
	docker(t, n, "restart", "--time", "0", name)
	addr = address(t, n, network, name, "IPAddress") // Docker asks for a new one
	eventually(t, 5*time.Second, back)
}

func TestAParentThatIsDownOrGoneIsReportedAndWhatIsOnItComesBackWithIt(t *testing.T) {
	n := hosts(t).Nodes[1]
	extra(t, n, "lan1")
	network := overlay(t, []*lab.Node{n}, "--subnet", "10.106.1.0/24", "--gateway", "10.106.1.254",
		"--opt", "mode=macvlan", "--opt", "parent=lan1")
	name := serve(t, n, network)
	addr := address(t, n, network, name, "IPAddress")
	run(t, n, "ip", "link", "set", "lan1", "down")
	reported := func(word string) func() error {
		return func() error {
			out, err := n.Exec(t.Context(), "netdriver", "inspect", network)
			if err == nil || !strings.Contains(out, word) || !strings.Contains(out, "FAILED") {
				return fmt.Errorf("inspect does not tell of %q: %v %s", word, err, out)
			}
			return nil
		}
	}
	eventually(t, 5*time.Second, reported("parent is down"))
	rival := network + "-rival"
	atEnd(t, n, "rm", "--force", rival)
	says(t, refused(t, n, "run", "--name", rival, "--network", network, lab.Image, "true"), "lan1", "parent is down", "ip link set")
	docker(t, n, "rm", "--force", rival)
	run(t, n, "ip", "link", "set", "lan1", "up")
	healthy := func() error { _, err := n.Exec(t.Context(), "netdriver", "inspect", network); return err }
	eventually(t, 5*time.Second, healthy)

	run(t, n, "ip", "link", "del", "lan1")
	eventually(t, 5*time.Second, reported("no interface lan1"))
	extra(t, n, "lan1")
	eventually(t, 5*time.Second, healthy)
	says(t, docker(t, n, "exec", name, "ip", "address", "show", "dev", "eth0"), addr, mac(t, n, network, name))
	run(t, n, "ip", "address", "add", "10.106.1.250/24", "dev", "lan1-far")
	run(t, n, "busybox", "ping", "-c", "1", "-W", "2", "-I", "lan1-far", addr)
	docker(t, n, "rm", "--force", name)
	docker(t, n, "network", "rm", network)
	run(t, n, "ip", "link", "del", "lan1")
}

func TestAParentIsFoundByItsSubnetAndRefusedWithTheReason(t *testing.T) {
	c := hosts(t)
	n := c.Nodes[0]
	network := inLAN(t, c.Nodes[:2], "--opt", "parent="+lanSubnet)
	a, b := serve(t, c.Nodes[0], network), serve(t, c.Nodes[1], network)
	if err := ping(t, n, a, address(t, c.Nodes[1], network, b, "IPAddress")); err != nil {
		t.Error(err)
	}
	run(t, n, "ip", "link", "add", "br7", "type", "bridge")
	extra(t, n, "lan7")
	run(t, n, "ip", "link", "set", "lan7", "master", "br7")
	defer func() {
		run(t, n, "ip", "link", "del", "lan7")
		run(t, n, "ip", "link", "del", "br7")
	}()
	for _, test := range []struct {
		args []string
		want []string
	}{
		{[]string{"mode=macvlan", "parent=eth9"}, []string{"no interface eth9", "this host has", "eth0"}},
		{[]string{"mode=macvlan", "parent=lo"}, []string{"loopback"}},
		{[]string{"mode=macvlan", "parent=lan7"}, []string{"lan7", "port of br7", "parent=br7"}},
		{[]string{"mode=macvlan", "parent=198.51.100.0/24"}, []string{"no interface has an address in 198.51.100.0/24"}},
		{[]string{"mode=macvlan"}, []string{"needs --opt parent"}},
		{[]string{"parent=eth0"}, []string{"parent has no meaning with mode=overlay", "mode=macvlan"}},
		{[]string{"mode=macvlan", "parent=eth0", "vni=7"}, []string{"vni has no meaning with mode=macvlan", "mode=overlay"}},
		{[]string{"mode=macvlan", "parent=eth0", "macvlan_mode=hub"}, []string{"hub", "private"}},
		{[]string{"mode=macvlan", "parent=eth0", "macvlan_mode=private", "host_access=true"}, []string{"host_access", "macvlan_mode=bridge"}},
		{[]string{"mode=ipvlan", "parent=eth0"}, []string{"CONFIG_IPVLAN", "mode=macvlan"}},
		{[]string{"mode=macvlan", "parent=eth0.10"}, []string{"CONFIG_VLAN_8021Q"}},
		{[]string{"mode=macvlan", "parent=eth0", "mtu=9000"}, []string{"9000", "1500"}},
	} {
		name := networkName(t) + "-bad"
		args := []string{"--subnet", "10.106.2.0/24"}
		for _, o := range test.args {
			args = append(args, "--opt", o)
		}
		says(t, refused(t, n, createArgs(name, args...)...), test.want...)
	}
	if out := run(t, n, "ip", "link"); strings.Contains(out, "eth0.10") || strings.Contains(out, "ndv") {
		t.Errorf("something is left of what was refused:\n%s", out)
	}
}

func TestTheHostAndItsMacvlanContainersReachEachOtherWithHostAccess(t *testing.T) {
	c := hosts(t)
	n := c.Nodes[0]
	network := inLAN(t, c.Nodes[:2], "--opt", "host_access=true")
	name := serve(t, n, network)
	far := serve(t, c.Nodes[1], network)
	addr := address(t, n, network, name, "IPAddress")
	run(t, n, "busybox", "ping", "-c", "1", "-W", "2", addr)
	run(t, n, "busybox", "ping", "-c", "1", "-W", "2", address(t, c.Nodes[1], network, far, "IPAddress"))
	for _, to := range []string{n.Addr.String(), c.Nodes[1].Addr.String(), c.Outside.Addr.String()} {
		if err := ping(t, n, name, to); err != nil {
			t.Errorf("from the container to %s: %v", to, err)
		}
	}
	inspected(t, n, network, "host access", "the node itself")
	shim := ""
	for _, line := range strings.Split(run(t, n, "ip", "-o", "link"), "\n") {
		if _, rest, ok := strings.Cut(line, ": ndm"); ok {
			shim = "ndm" + rest[:strings.IndexAny(rest, "@:")]
		}
	}
	run(t, n, "ip", "link", "del", shim)
	eventually(t, 3*time.Second, func() error {
		_, err := n.Exec(t.Context(), "busybox", "ping", "-c", "1", "-W", "1", addr)
		return err
	})
	noticed(t, n, network, shim)
	if err := n.KillDaemon(); err != nil {
		t.Fatal(err)
	}
	if err := n.StartDaemon(t.Context(), c.daemonConfig(n)); err != nil {
		t.Fatal(err)
	}
	run(t, n, "busybox", "ping", "-c", "1", "-W", "2", addr)
	docker(t, n, "rm", "--force", name)
	docker(t, n, "network", "rm", network)
	if out := run(t, n, "ip", "link"); strings.Contains(out, "ndm") {
		t.Errorf("the host's own interface is left:\n%s", out)
	}
}

// Positive control of the above: without host access the host does not reach its own containers, as with Docker's macvlan.
func TestWithoutHostAccessTheHostDoesNotReachItsMacvlanContainers(t *testing.T) {
	c := hosts(t)
	network := inLAN(t, c.Nodes[:1])
	addr := address(t, c.Nodes[0], network, serve(t, c.Nodes[0], network), "IPAddress")
	run(t, c.Outside, "busybox", "ping", "-c", "1", "-W", "2", addr)
	if _, err := c.Nodes[0].Exec(t.Context(), "busybox", "ping", "-c", "1", "-W", "1", addr); err == nil {
		t.Error("the host reaches its container")
	}
}

// A swarm's tasks get addresses of the LAN, each its own, and those that move keep none of a lost one's.
func TestASwarmServiceOnMacvlanHasOneLANAddressForEachTask(t *testing.T) {
	s := newSwarm(t, managedDriver, lab.Config{Nodes: 3})
	network := s.network("lan", lanSubnet, "--gateway", "10.99.0.254", "--ip-range", "10.99.0.64/26",
		"--opt", "mode=macvlan", "--opt", "parent="+lanSubnet)
	manager := s.Nodes[0]
	s.service(manager, "web", network, 3)
	seen := map[string]bool{}
	check := func() {
		t.Helper()
		s.within(20*time.Second, func() error {
			clear(seen)
			r := report(t, s.storeNode(), network)
			for _, e := range r.Endpoints {
				seen[e.Addresses[0].String()], seen[e.MAC.String()] = true, true
			}
			if len(r.Endpoints) != 3 || len(seen) != 6 {
				return fmt.Errorf("%d endpoints with %d different addresses and MACs: %+v", len(r.Endpoints), len(seen), r.Endpoints)
			}
			return nil
		})
		for _, e := range report(t, s.storeNode(), network).Endpoints {
			a := e.Addresses[0].String()
			s.within(5*time.Second, func() error {
				got, err := httpGet(t, s.Outside, a, 80)
				if err == nil && !strings.HasPrefix(got, "web-") {
					err = fmt.Errorf("%s says %q", a, got)
				}
				return err
			})
		}
	}
	check()
	docker(t, manager, "service", "update", "--detach", "--force", "web")
	s.running(manager, "web", 3)
	check()
	docker(t, manager, "service", "rm", "web")
	s.within(30*time.Second, func() error { return s.leftovers(network, 0) })
}
