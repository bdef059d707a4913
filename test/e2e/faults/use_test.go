//go:build e2e

package faults

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/netdriver/netdriver/test/e2e/lab"
)

const managedDriver = "custom-overlay:latest"

// What networks are used for: rules, rates, services, the hosts' LAN, addresses.
func TestFaultsOfUse(t *testing.T) {
	w := useWorld(t)
	w.try(w.usage())
}

// useWorld is two nodes that are a swarm, with networks of all kinds and containers in them.
func useWorld(t *testing.T) *world {
	t.Helper()
	w := bareWorld(t, 2)
	if err := w.StartDocker(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := w.StartSwarm(t.Context(), managedDriver); err != nil {
		t.Fatal(err)
	}
	n1, n2 := w.Nodes[0], w.Nodes[1]
	both := []*lab.Node{n1, n2}
	w.network(both, "cells", "10.78.0.0/24", "--opt", "isolate=true")
	w.network(both, "tiers", "10.79.0.0/24", "--opt", "allow=web>db:5432/tcp")
	w.network(both, "narrow", "10.80.0.0/24", "--opt", "rate=1mbit")
	w.network(both, "lan", "10.99.0.0/24", "--gateway", "10.99.0.254", "--ip-range", "10.99.0.64/26", "--opt", "mode=macvlan", "--opt", "parent=eth0")
	w.network([]*lab.Node{n1}, "tiny", "10.81.0.0/29")
	w.run(n1, "ip", "link", "add", "par0", "type", "bridge")
	w.run(n1, "ip", "link", "set", "par0", "up")
	w.network([]*lab.Node{n1}, "pair", "10.82.0.0/24", "--opt", "mode=macvlan", "--opt", "parent=par0")
	for _, n := range both {
		for _, network := range []string{"cells", "narrow", "lan"} {
			w.container(n, network+"-"+n.Name, network)
		}
	}
	w.container(n1, "tiers-n1", "name=tiers,driver-opt=group=web")
	w.container(n2, "tiers-n2", "name=tiers,driver-opt=group=db")
	w.container(n1, "pair-1", "pair")
	w.container(n1, "pair-2", "pair")
	w.run(n1, "docker", "network", "create", "--driver", managedDriver, "--ipam-driver", managedDriver, "--attachable",
		"--subnet", "10.83.0.0/24", "--opt", "network=services", "services")
	w.run(n1, "docker", "service", "create", "--detach", "--no-resolve-image", "--name", "api", "--network", "services", "--replicas", "2",
		"--stop-grace-period", "1s", lab.Image, "sleep", "10000")
	w.container(n1, "client", "services")
	w.eventually(60*time.Second, func() error { return w.trace(n1, "narrow-n1", "narrow-n2") })
	w.eventually(60*time.Second, func() error { return w.trace(n1, "lan-n1", "lan-n2") })
	w.eventually(60*time.Second, func() error { return w.trace(n1, "pair-1", "pair-2") })
	w.eventually(60*time.Second, func() error { return w.trace(n1, "client", "api") })
	return w
}

func (w *world) usage() []fault {
	n1, n2 := w.Nodes[0], w.Nodes[1]
	nothing := func(*world) {}
	fine := func(*world) error { return nil }
	pings := func(from *lab.Node, container, to string) func(*world) error {
		return func(w *world) error {
			address := w.addressOf(w.nodeOf(to), to)
			if _, err := from.Docker(w.t.Context(), "exec", container, "ping", "-c", "1", "-W", "1", address); err == nil {
				return fmt.Errorf("%s reaches %s", container, to)
			}
			return nil
		}
	}
	healthy := func(from, to string) func(*world) error { return func(w *world) error { return w.trace(n1, from, to) } }
	var flood context.CancelFunc
	return []fault{
		{
			name: "isolation_drops", inject: nothing, repair: nothing, well: fine, symptom: pings(n1, "cells-n1", "cells-n2"),
			verb: []string{"trace", "cells-n1", "cells-n2"}, says: []string{"policy: isolation", "isolate=true", "as the network was made"},
		},
		{
			name: "no_rule_of_the_groups_allows", inject: nothing, repair: nothing, well: fine, symptom: pings(n1, "tiers-n1", "tiers-n2"),
			verb: []string{"trace", "tiers-n1", "tiers-n2"}, says: []string{"policy: isolation", "web>db:5432/tcp", "is web", "db"},
		},
		{
			name: "rate_saturated", symptom: func(w *world) error {
				if out, _ := n1.Exec(w.t.Context(), "netdriver", "inspect", "narrow"); !strings.Contains(out, "too fast") {
					return fmt.Errorf("nothing was too fast: %s", out)
				}
				return nil
			}, well: healthy("narrow-n1", "narrow-n2"),
			inject: func(w *world) { flood = w.flood(n1, "narrow-n1", w.addressOf(n2, "narrow-n2"), time.Millisecond) }, repair: func(*world) { flood() },
			verb: []string{"trace", "narrow-n1", "narrow-n2"}, says: []string{"policy: the rate of 1000000 bit/s", "n1", "raise the rate"},
		},
		{
			name: "spoofed_address_is_dropped", symptom: func(w *world) error {
				if _, err := n1.Docker(w.t.Context(), "exec", "narrow-n1", "ping", "-c", "1", "-W", "1", w.addressOf(n2, "narrow-n2")); err == nil {
					return fmt.Errorf("it still passes")
				}
				return nil
			},
			inject: func(w *world) {
				w.inNamed(n1, "narrow-n1", "ip", "link", "set", "eth0", "address", "02:00:00:00:00:78")
			},
			repair: func(w *world) {
				w.inNamed(n1, "narrow-n1", "ip", "link", "set", "eth0", "address", w.run(n1, "docker", "inspect", "--format", "{{.NetworkSettings.Networks.narrow.MacAddress}}", "narrow-n1"))
			},
			well: healthy("narrow-n1", "narrow-n2"),
			verb: []string{"trace", "narrow-n1", "narrow-n2"}, says: []string{"n1", "has MAC 02:00:00:00:00:78", "guard drops", "restart the container"},
		},
		{
			name: "duplicate_address_in_the_LAN", symptom: fine, well: healthy("lan-n1", "lan-n2"),
			inject: func(w *world) {
				w.run(w.Outside, "ip", "address", "add", w.addressOf(n2, "lan-n2")+"/32", "dev", "br0")
			},
			repair: func(w *world) {
				w.run(w.Outside, "ip", "address", "del", w.addressOf(n2, "lan-n2")+"/32", "dev", "br0")
				w.inNamed(n1, "lan-n1", "ip", "neigh", "flush", "dev", "eth0")
			},
			verb: []string{"trace", "lan-n1", "lan-n2"}, says: []string{"n2", w.addressOf(n2, "lan-n2"), "another device, MAC", "--aux-address"}, also: []string{"believes"},
		},
		{
			name: "parent_down", symptom: pings(n1, "pair-1", "pair-2"), well: healthy("pair-1", "pair-2"),
			inject: command(n1, "ip", "link", "set", "par0", "down"), repair: command(n1, "ip", "link", "set", "par0", "up"),
			verb: []string{"trace", "pair-1", "pair-2"}, says: []string{"n1", "parent par0 is down", "bring it up"},
		},
		{
			name: "interface_down_in_a_LAN_container", symptom: pings(n1, "lan-n1", "lan-n2"), well: healthy("lan-n1", "lan-n2"),
			inject: func(w *world) { w.inNamed(n2, "lan-n2", "ip", "link", "set", "eth0", "down") },
			repair: func(w *world) { w.inNamed(n2, "lan-n2", "ip", "link", "set", "eth0", "up") },
			verb:   []string{"trace", "lan-n1", "lan-n2"}, says: []string{"n2", "interface eth0 in the container is down", "bring it up"},
		},
		{
			name: "leaked_leases_fill_a_pool", well: fine, repair: nothing,
			inject: func(w *world) {
				for i := range 6 { // as Docker does, which then forgets them; the last ones are refused
					_, _ = n1.Call(w.t.Context(), "/run/docker/plugins/custom-overlay.sock", "IpamDriver.RequestAddress", map[string]any{
						"PoolID": "netdriver-local/10.81.0.0/29", "Address": "",
						"Options": map[string]string{"com.docker.network.endpoint.macaddress": fmt.Sprintf("02:42:0a:51:00:%02x", i)},
					})
				}
			},
			symptom: func(w *world) error {
				if _, err := n1.Docker(w.t.Context(), "run", "--rm", "--network", "tiny", lab.Image, "true"); err == nil {
					return fmt.Errorf("there is still an address")
				}
				return nil
			},
			verb: []string{"inspect", "tiny"}, says: []string{"10.81.0.0/29 is full", "no container has", "ipam check"},
		},
		{
			name: "virtual_address_without_backend",
			inject: func(w *world) {
				w.run(n1, "docker", "service", "update", "--detach", "--no-resolve-image", "--update-parallelism", "0", "--constraint-add", "node.labels.none==1", "api")
			},
			repair: func(w *world) {
				w.run(n1, "docker", "service", "update", "--detach", "--no-resolve-image", "--constraint-rm", "node.labels.none==1", "api")
			},
			symptom: func(w *world) error {
				for _, n := range w.Nodes {
					if out, _ := n.Docker(w.t.Context(), "ps", "--quiet", "--filter", "label=com.docker.swarm.service.name=api"); strings.TrimSpace(out) != "" {
						return fmt.Errorf("a task is on %s", n.Name)
					}
				}
				time.Sleep(time.Second) // until the node's daemon knows
				return nil
			},
			well: healthy("client", "api"),
			verb: []string{"trace", "client", "api"}, says: []string{"service api has no healthy backend", "docker service ps api"},
		},
	}
}

// network creates a network on nodes.
func (w *world) network(nodes []*lab.Node, name, subnet string, args ...string) {
	w.t.Helper()
	for _, n := range nodes {
		w.run(n, append(append([]string{"docker", "network", "create", "-d", "custom-overlay", "--ipam-driver", "custom-overlay", "--subnet", subnet,
			"--opt", "network=" + name, "--ipam-opt", "network=" + name}, args...), name)...)
	}
}

func (w *world) container(n *lab.Node, name, network string) {
	w.t.Helper()
	w.run(n, "docker", "run", "--detach", "--name", name, "--network", network, lab.Image, "sleep", "10000")
}

// nodeOf is where a container is, by the end of its name; the first node has the others.
func (w *world) nodeOf(container string) *lab.Node {
	if strings.HasSuffix(container, "-n2") {
		return w.Nodes[1]
	}
	return w.Nodes[0]
}

func (w *world) addressOf(n *lab.Node, container string) string {
	w.t.Helper()
	return w.run(n, "docker", "inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", container)
}

// trace wants a path to be well.
func (w *world) trace(n *lab.Node, from, to string) error {
	w.t.Helper()
	out, err := n.Exec(w.t.Context(), "netdriver", "trace", from, to)
	if err != nil {
		return fmt.Errorf("trace %s %s: %w: %s", from, to, err, out)
	}
	return nil
}

// inNamed runs a program of the host in a container's network namespace.
func (w *world) inNamed(n *lab.Node, container string, args ...string) {
	w.t.Helper()
	cmd, err := n.InContainer(context.WithoutCancel(w.t.Context()), container, args...)
	if err != nil {
		w.t.Fatal(err)
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		w.t.Fatalf("%s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// flood sends packets of 1400 bytes until it is ended.
func (w *world) flood(n *lab.Node, container, to string, every time.Duration) context.CancelFunc {
	w.t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(w.t.Context()))
	cmd, err := n.InContainer(ctx, container, "busybox", "ping", "-i", fmt.Sprint(every.Seconds()), "-s", "1400", "-c", "1000000", to)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	return func() {
		cancel()
		_ = cmd.Wait() // it was killed
	}
}
