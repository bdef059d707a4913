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

// Two networks have no path between them, whatever a container with all rights tries: my-app and my-db on each of two hosts.
func TestNetworksHaveNoPathBetweenThem(t *testing.T) {
	nodes := hosts(t).Nodes[:2]
	n := nodes[0]
	front := overlay(t, nodes, "--subnet", "10.100.44.0/24")
	back := "back-" + front
	for _, n := range nodes {
		docker(t, n, createArgs(back, "--subnet", "10.100.45.0/24")...)
		atEnd(t, n, "network", "rm", back)
	}
	app := grouped(t, n, front, "app")
	near, far := grouped(t, n, back, "db"), grouped(t, nodes[1], back, "fardb")
	friend := grouped(t, nodes[1], front, "friend")
	nearAddress, farAddress := address(t, n, back, near, "IPAddress"), address(t, nodes[1], back, far, "IPAddress")
	friendAddress := address(t, nodes[1], front, friend, "IPAddress")
	if !reaches(t, n, app, friendAddress, 80) { // the control: what is tried below works inside a network
		t.Fatal("a container of the same network is not reached")
	}
	if !reaches(t, n, near, farAddress, 80) {
		t.Fatal("the other network does not work")
	}
	closed := func(how string) {
		t.Helper()
		var all sync.WaitGroup
		for _, addr := range []string{nearAddress, farAddress} {
			all.Go(func() {
				if reaches(t, n, app, addr, 80) || ping(t, n, app, addr) == nil {
					t.Errorf("%s: %s is reached", how, addr)
				}
			})
		}
		all.Wait()
	}
	must := func(args ...string) {
		t.Helper()
		if out, err := inside(t, n, app, args...); err != nil {
			t.Fatalf("%v: %v: %s", args, err, out)
		}
	}
	closed("as it is")
	// The other subnet as if it were on the link, then by a neighbour in the network, then by the host and docker_gwbridge.
	must("ip", "route", "add", "10.100.45.0/24", "dev", "eth0")
	closed("the subnet on the link")
	must("ip", "route", "replace", "10.100.45.0/24", "via", friendAddress)
	docker(t, nodes[1], "network", "connect", back, friend) // a container in both networks, which forwards if it may
	if out, err := inside(t, nodes[1], friend, "sysctl", "-w", "net.ipv4.ip_forward=1"); err != nil {
		t.Fatal(out)
	}
	if !reaches(t, nodes[1], friend, nearAddress, 80) || !reaches(t, nodes[1], friend, farAddress, 80) {
		t.Error("a container on both networks does not reach both")
	}
	closed("by a container that is in both and forwards")
	docker(t, nodes[1], "network", "disconnect", back, friend)
	if reaches(t, nodes[1], friend, nearAddress, 80) {
		t.Error("a container that was taken out of the network still reaches it")
	}
	gateway := docker(t, n, "network", "inspect", "--format", "{{(index .IPAM.Config 0).Gateway}}", "docker_gwbridge")
	must("ip", "route", "replace", "10.100.45.0/24", "via", strings.TrimSpace(gateway))
	closed("by the host, which routes for docker_gwbridge")
	// With the other network's address, and with its neighbour's MAC.
	must("ip", "route", "replace", "10.100.45.0/24", "dev", "eth0")
	must("ip", "address", "add", "10.100.45.200/32", "dev", "eth0")
	must("ip", "route", "replace", "10.100.45.0/24", "dev", "eth0", "src", "10.100.45.200")
	closed("with an address of the other network")
	// docker_gwbridge itself: both containers have an interface there, and it lets them not speak (enable_icc=false).
	for _, name := range []string{app, near} {
		out, err := inside(t, n, name, "ip", "-4", "-o", "address", "show", "dev", "eth1")
		if err != nil {
			t.Fatal(out)
		}
		if f := strings.Fields(out); name == near && len(f) > 3 {
			addr, _, _ := strings.Cut(f[3], "/")
			if reaches(t, n, app, addr, 80) {
				t.Errorf("%s is reached by docker_gwbridge at %s", name, addr)
			}
			if _, err := n.Exec(t.Context(), "timeout", "2", "busybox", "wget", "-q", "-O", "/dev/null", fmt.Sprintf("http://%s/", addr)); err != nil {
				t.Errorf("the host itself does not reach it there, so nothing is shown: %v", err)
			}
		}
	}
}

// A frame under another network's VNI gets into that network only, and a container that makes VXLAN frames itself gets into
// none, though docker_gwbridge gives what it sends the address of a node.
func TestFramesOfContainersAndOfOtherVNIsReachNobody(t *testing.T) {
	nodes := hosts(t).Nodes[:2]
	front := overlay(t, nodes, "--subnet", "10.100.47.0/24")
	back := "back-" + front
	for _, n := range nodes {
		docker(t, n, createArgs(back, "--subnet", "10.100.48.0/24")...)
		atEnd(t, n, "network", "rm", back)
	}
	bad, beside := grouped(t, nodes[0], front, "bad"), grouped(t, nodes[1], front, "beside")
	friend, target := grouped(t, nodes[0], back, "friend"), grouped(t, nodes[1], back, "target")
	right := forgeryOf(t, back, nodes[0], friend, nodes[1], target)
	wrong := right
	wrong.vni = report(t, nodes[1], front).VNI
	if out, err := inside(t, nodes[0], bad, "busybox", "ping", "-c", "1", "-W", "2", nodes[1].Addr.String()); err != nil {
		t.Fatalf("the container does not reach the other host, so what it sends there shows nothing: %v: %s", err, out)
	}
	before, elsewhere := refusals(t, nodes[1], target), refusals(t, nodes[1], beside)
	const frames = 6
	for _, f := range []forgery{right, wrong} {
		if out, err := inside(t, nodes[0], bad, "bash", "-c", f.script(frames)); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	forge(t, nodes[0], wrong, frames)
	time.Sleep(time.Second)
	if got := refusals(t, nodes[1], target); got != before {
		t.Errorf("%d frames reached a container of the other network", got-before)
	}
	if got := refusals(t, nodes[1], beside); got != elsewhere {
		t.Errorf("%d frames reached a container that they were not addressed to", got-elsewhere)
	}
	forge(t, nodes[0], right, frames)
	eventually(t, 5*time.Second, func() error {
		if got := refusals(t, nodes[1], target) - before; got != frames {
			return fmt.Errorf("of %d frames of a node with the right VNI %d arrived", frames, got)
		}
		return nil
	})
}

// The cluster has no subnet twice. What Docker itself has with the same one, on the same host, is another network all the
// same: equal addresses are not mixed up.
func TestTheSameSubnetInTwoNetworksLeadsFromNeitherToTheOther(t *testing.T) {
	nodes := hosts(t).Nodes[:2]
	n := nodes[0]
	const subnet = "10.100.49.0/24"
	network := overlay(t, nodes, "--subnet", subnet)
	says(t, refused(t, n, createArgs("again-"+network, "--subnet", subnet)...), subnet, network)
	theirs := "theirs-" + network
	docker(t, n, "network", "create", "--subnet", subnet, theirs)
	atEnd(t, n, "network", "rm", theirs)
	start := func(n *lab.Node, network, name, addr string) string {
		const script = `echo "$0" >/www/index.html; exec httpd -f -h /www`
		docker(t, n, "run", "--detach", "--name", name, "--network", network, "--ip", addr, lab.Image, "sh", "-c", script, name)
		atEnd(t, n, "rm", "--force", name)
		return name
	}
	ours := map[string]string{}
	for i, n := range nodes {
		addr := fmt.Sprintf("10.100.49.%d", 20+i)
		ours[addr] = start(n, network, fmt.Sprintf("ours-%d", i), addr)
	}
	alike := start(n, theirs, "alike", "10.100.49.21") // the address of the other node's container
	alone := start(n, theirs, "alone", "10.100.49.30")
	get := func(from, addr string) string {
		got, _ := n.Docker(t.Context(), "exec", from, "timeout", "2", "wget", "-q", "-O", "-", "http://"+addr+"/")
		return strings.TrimSpace(got)
	}
	for _, c := range []struct{ from, addr, want string }{
		{"ours-0", "10.100.49.21", "ours-1"}, // ours, though the host has Docker's at the same address
		{alone, "10.100.49.21", alike},
		{"ours-0", "10.100.49.30", ""},
		{alone, "10.100.49.20", ""},
	} {
		if got := get(c.from, c.addr); got != c.want {
			t.Errorf("from %s at %s answers %q, want %q", c.from, c.addr, got, c.want)
		}
	}
}
