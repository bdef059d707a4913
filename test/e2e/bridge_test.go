//go:build e2e

package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/netdriver/netdriver/test/e2e/lab"
)

// bridge creates the test's network of one host.
func bridge(t *testing.T, n *lab.Node, args ...string) string {
	t.Helper()
	return overlay(t, []*lab.Node{n}, append([]string{"--opt", "mode=bridge"}, args...)...)
}

func TestABridgeNetworkHasNATPublishedPortsAndHairpin(t *testing.T) {
	c := hosts(t)
	n := c.Nodes[0]
	network := bridge(t, n, "--subnet", "10.107.1.0/24")
	web := serve(t, n, network, "--publish", "8087:80")
	client := network + "-client"
	docker(t, n, "run", "--detach", "--name", client, "--network", network, lab.Image, "sleep", "1000")
	atEnd(t, n, "rm", "--force", client)
	addr := address(t, n, network, web, "IPAddress")
	if got := fetch(t, n, client, addr); got != n.Name {
		t.Errorf("from one container to the other: %q", got)
	}
	for _, from := range []string{web, client} { // the second goes out by NAT
		if err := ping(t, n, from, c.Outside.Addr.String()); err != nil {
			t.Errorf("from %s to the world: %v", from, err)
		}
	}
	says(t, docker(t, n, "exec", client, "ip", "route", "show", "default"), "via 10.107.1.1 dev eth0")
	if got := docker(t, n, "exec", client, "ls", "/sys/class/net"); strings.Contains(got, "eth1") {
		t.Errorf("a container without published ports has a second interface: %s", got)
	}
	says(t, docker(t, n, "port", web, "80"), "0.0.0.0:8087")
	run(t, n, "busybox", "ping", "-c", "1", "-W", "2", addr) // the host is in the network, as the gateway
	for who, get := range map[string]func() (string, error){
		"outside":  func() (string, error) { return httpGet(t, c.Outside, n.Addr.String(), 8087) },
		"the host": func() (string, error) { return httpGet(t, n, n.Addr.String(), 8087) },
		"a container beside it": func() (string, error) {
			return n.Docker(t.Context(), "exec", client, "timeout", "5", "wget", "-q", "-O", "-",
				fmt.Sprintf("http://%s:8087/", n.Addr))
		},
		"the container itself": func() (string, error) {
			return n.Docker(t.Context(), "exec", web, "timeout", "5", "wget", "-q", "-O", "-", fmt.Sprintf("http://%s:8087/", n.Addr))
		},
	} {
		eventually(t, 5*time.Second, func() error {
			got, err := get()
			if err == nil && strings.TrimSpace(got) != n.Name {
				err = fmt.Errorf("%s got %q from the published port, want %q", who, got, n.Name)
			}
			return err
		})
	}
	inspected(t, n, network, "bridge", "gateway 10.107.1.1", "HEALTHY")
}

// Nobody gets from another network of the host into a bridge network, or out of an internal one; each has the way that it
// may go as a control.
func TestABridgeNetworkIsClosedToOthersAndAnInternalOneToAll(t *testing.T) {
	c := hosts(t)
	n := c.Nodes[1]
	network := bridge(t, n, "--subnet", "10.107.2.0/24")
	inside := network + "-internal"
	docker(t, n, createArgs(inside, "--opt", "mode=bridge", "--subnet", "10.107.3.0/24", "--internal")...)
	atEnd(t, n, "network", "rm", inside)
	theirs := network + "-docker"
	docker(t, n, "network", "create", "--subnet", "10.107.4.0/24", theirs)
	atEnd(t, n, "network", "rm", theirs)
	named := network + "-named"
	docker(t, n, "network", "create", "--subnet", "10.107.11.0/24", "--opt", "com.docker.network.bridge.name=shop0", named)
	atEnd(t, n, "network", "rm", named)
	a, b, d, e := serve(t, n, network), serve(t, n, inside), serve(t, n, theirs), serve(t, n, named)
	run(t, n, "busybox", "ping", "-c", "1", "-W", "2", address(t, n, named, e, "IPAddress")) // control: it is there
	at := func(network, container string) string { return address(t, n, network, container, "IPAddress") }
	if err := ping(t, n, a, c.Outside.Addr.String()); err != nil {
		t.Errorf("control: from the open network to the world: %v", err)
	}
	if err := ping(t, n, b, "10.107.3.1"); err != nil {
		t.Errorf("control: from the internal network to its gateway: %v", err)
	}
	for _, way := range []struct{ from, to string }{
		{d, at(network, a)}, {b, at(network, a)}, {a, at(inside, b)}, {a, at(theirs, d)}, {a, at(named, e)}, {e, at(network, a)}, {b, c.Outside.Addr.String()},
	} {
		cmd, err := n.InContainer(t.Context(), way.from, "sh", "-c", "ip route show default | grep -q . || ip route add default via 10.107.3.1")
		if err == nil {
			err = cmd.Run()
		}
		if err != nil {
			t.Fatal(err)
		}
		if ping(t, n, way.from, way.to) == nil {
			t.Errorf("%s reaches %s", way.from, way.to)
		}
	}
	// A host beside this one that routes through it gets no further.
	run(t, c.Outside, "ip", "route", "add", "10.107.2.0/24", "via", n.Addr.String())
	defer c.Outside.Exec(t.Context(), "ip", "route", "del", "10.107.2.0/24")
	if _, err := c.Outside.Exec(t.Context(), "busybox", "ping", "-c", "1", "-W", "1", at(network, a)); err == nil {
		t.Error("a neighbour routes into the bridge network")
	}
}

func TestABridgeNetworkIsOneHosts(t *testing.T) {
	c := hosts(t)
	network := bridge(t, c.Nodes[0], "--subnet", "10.107.5.0/24")
	says(t, refused(t, c.Nodes[1], createArgs(network, "--opt", "mode=bridge", "--subnet", "10.107.5.0/24")...),
		"bridge of node n1", "overlay")
	for _, opt := range []string{"parent=eth0", "vni=7", "host_access=true", "encrypted=true"} {
		says(t, refused(t, c.Nodes[0], createArgs(network+"-bad", "--subnet", "10.107.6.0/24", "--opt", "mode=bridge", "--opt", opt)...),
			"no meaning with mode=bridge", strings.SplitN(opt, "=", 2)[0])
	}
}

// What a user has in the packet filter and of bridges is as before when networks of all modes have come and gone, and stays
// meanwhile; what somebody takes from ours comes back.
func TestUsersRulesAndBridgesStayAsTheyWereThroughALifeOfAllModes(t *testing.T) {
	n := hosts(t).Nodes[2]
	run(t, n, "ip", "link", "add", "user0", "type", "bridge")
	defer run(t, n, "ip", "link", "del", "user0")
	run(t, n, "ip", "address", "add", "10.108.0.1/24", "dev", "user0")
	run(t, n, "iptables", "-I", "FORWARD", "-i", "user0", "-m", "comment", "--comment", "mine", "-j", "ACCEPT")
	defer run(t, n, "iptables", "-D", "FORWARD", "-i", "user0", "-m", "comment", "--comment", "mine", "-j", "ACCEPT")
	run(t, n, "nft", "add table inet mine { chain c { type filter hook forward priority 0; iifname user0 counter accept; }; }")
	defer run(t, n, "nft", "delete", "table", "inet", "mine")
	// A user's table where netdriver has its own guard, and rules of the other tools, in the families that ours are not in.
	const ours = "--net=/run/netdriver/netns"
	run(t, n, "nsenter", ours, "nft", "add table bridge mine { chain c { type filter hook forward priority 0; iifname user0 drop; }; }")
	defer run(t, n, "nsenter", ours, "nft", "delete", "table", "bridge", "mine")
	run(t, n, "ip6tables", "-I", "INPUT", "-i", "user0", "-m", "comment", "--comment", "mine", "-j", "ACCEPT")
	defer run(t, n, "ip6tables", "-D", "INPUT", "-i", "user0", "-m", "comment", "--comment", "mine", "-j", "ACCEPT")
	mine := func() string {
		return run(t, n, "sh", "-c", `iptables-save | grep mine; ip6tables-save | grep mine; nft -a list table inet mine
nsenter --net=/run/netdriver/netns nft -a list table bridge mine; ip -d -o link show user0; ip -o address show user0`)
	}
	theirs := mine()
	untouched := func(when string) {
		t.Helper()
		if now := mine(); now != theirs {
			t.Errorf("%s the user's own is another.\nbefore:\n%s\nnow:\n%s", when, theirs, now)
		}
	}
	first := overlay(t, []*lab.Node{n}, "--subnet", "10.107.9.0/24") // makes Docker make its docker_gwbridge
	docker(t, n, "run", "--rm", "--network", first, lab.Image, "true")
	docker(t, n, "network", "rm", first)
	state := func() string {
		return run(t, n, "sh", "-c", `for t in filter nat; do iptables-save -t $t | grep -v '^[#:]'; ip6tables-save -t $t | grep -v '^[#:]'; done
nft list table inet mine; ip -o link show user0; ip -o address show user0; ip -o link | grep -v 'nd[a-z]' | cut -d: -f2 | sort
ip route | sed 's/ *linkdown *//'`) // a bridge loses its link some time after its last port
	}
	before := state()
	names := map[string][]string{
		"-lan":    {"--subnet", lanSubnet, "--ip-range", "10.99.0.128/26", "--opt", "mode=macvlan", "--opt", "parent=eth0", "--opt", "host_access=true"},
		"-bridge": {"--subnet", "10.107.7.0/24", "--opt", "mode=bridge"},
		"-over":   {"--subnet", "10.107.8.0/24", "--opt", "host_access=true"},
		"-rules":  {"--subnet", "10.107.10.0/24", "--opt", "allow=web>db:80", "--opt", "rate=10mbit"},
	}
	base := networkName(t)
	for suffix, args := range names {
		docker(t, n, createArgs(base+suffix, args...)...)
		docker(t, n, "run", "--detach", "--name", base+suffix, "--network", base+suffix, lab.Image, "sleep", "1000")
	}
	during := run(t, n, "iptables-save", "-t", "filter")
	if !strings.Contains(during, "mine") || !strings.Contains(strings.ToLower(during), "netdriver") {
		t.Errorf("the filter lacks the user's rule or ours:\n%s", during)
	}
	untouched("with networks of all modes")
	run(t, n, "nsenter", ours, "nft", "delete", "table", "bridge", "netdriver") // our repairs leave it alone, too
	run(t, n, "nft", "delete", "table", "inet", "netdriver")
	run(t, n, "iptables", "-F", strings.Fields(during[strings.Index(during, "NETDRIVER-passage"):])[0])
	eventually(t, 3*time.Second, func() error { return ping(t, n, base+"-bridge", hosts(t).Outside.Addr.String()) })
	eventually(t, 3*time.Second, func() error {
		for _, table := range [][]string{{"nft", "list", "table", "inet", "netdriver"}, {"nsenter", ours, "nft", "list", "table", "bridge", "netdriver"}} {
			if _, err := n.Exec(t.Context(), table...); err != nil {
				return err
			}
		}
		return nil
	})
	untouched("after repairs")
	if err := n.KillDaemon(); err != nil {
		t.Fatal(err)
	}
	if err := n.StartDaemon(t.Context(), hosts(t).daemonConfig(n)); err != nil {
		t.Fatal(err)
	}
	untouched("after a restart of the daemon")
	for suffix := range names {
		docker(t, n, "rm", "--force", base+suffix)
		docker(t, n, "network", "rm", base+suffix)
	}
	eventually(t, 5*time.Second, func() error {
		if after := state(); after != before {
			return fmt.Errorf("before:\n%s\nafter:\n%s", before, after)
		}
		return nil
	})
	untouched("at the end")
}
