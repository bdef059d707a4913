//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/netdriver/netdriver/diag"
	"github.com/netdriver/netdriver/test/e2e/lab"
)

// With Docker's own driver, too, which shows that it is not the scenario that is wrong.
func TestServicesAreFoundByTheirNamesOnAllNodes(t *testing.T) {
	for _, driver := range []string{builtinDriver, managedDriver} {
		t.Run(strings.ReplaceAll(driver, ":", "-"), func(t *testing.T) {
			servicesAreFoundByTheirNamesOnAllNodes(newSwarm(t, driver, lab.Config{Nodes: 3}))
		})
	}
}

func servicesAreFoundByTheirNamesOnAllNodes(s *swarm) {
	t := s.t
	network := s.network("my-net", "10.130.1.0/24")
	manager := s.Nodes[0]
	s.service(manager, "my-service", network, 3)
	s.service(manager, "by-address", network, 2, "--endpoint-mode", "dnsrr")
	client := s.client(s.Nodes[1], "client", network, "--ip", "10.130.1.200", "--network-alias", "also-client")
	var tasks []string
	s.within(10*time.Second, func() error {
		if tasks = lookup(t, s.Nodes[1], client, "tasks.my-service"); len(tasks) != 3 {
			return fmt.Errorf("tasks.my-service is %v, want 3 addresses", tasks)
		}
		return nil
	})
	if got := lookup(t, s.Nodes[1], client, "by-address"); len(got) != 2 {
		t.Errorf("by-address is %v, want 2 addresses", got)
	}
	if got := lookup(t, s.Nodes[1], client, "also-client"); len(got) != 1 || got[0] != "10.130.1.200" {
		t.Errorf("also-client is %v, want 10.130.1.200", got)
	}
	seen := map[string]int{}
	for _, addr := range tasks {
		by, failed := answers(t, s.Nodes[1], client, addr, 2)
		if failed > 0 || len(by) != 1 {
			t.Errorf("task at %s: answers %v, %d failed", addr, by, failed)
		}
		for name := range by {
			seen[name]++
		}
	}
	want := map[string]int{"my-service-1": 1, "my-service-2": 1, "my-service-3": 1}
	if diff := cmp.Diff(want, seen); diff != "" {
		t.Errorf("who answered at the tasks' addresses (-want +got):\n%s", diff)
	}
	if by, failed := answers(t, s.Nodes[1], client, "by-address", 12); failed > 0 || len(by) != 2 {
		t.Errorf("by-address: answers %v, %d failed", by, failed)
	}
}

// leftovers says what of a network is there that no container needs: leases, forwarding entries, endpoints. It returns nil
// once endpoints is the number of all that are left, on every node.
func (s *swarm) leftovers(network string, endpoints int) error {
	for _, n := range s.Nodes {
		out, err := n.Exec(s.t.Context(), "netdriver", "inspect", "--output", "json", network)
		if err != nil && out == "" {
			return err
		}
		var r diag.NetworkReport
		if err := json.Unmarshal([]byte(out), &r); err != nil {
			return err
		}
		if r.EndpointCount != endpoints || r.Kernel.Checked && !r.Kernel.InSync {
			return fmt.Errorf("%s: %d endpoints, want %d; kernel %+v", n.Name, r.EndpointCount, endpoints, r.Kernel)
		}
		seen := map[string]bool{}
		for _, e := range r.Endpoints {
			for _, a := range e.Addresses {
				if seen[a.String()] {
					return fmt.Errorf("%s: address %s twice", n.Name, a)
				}
				seen[a.String()] = true
			}
		}
	}
	return nil
}

// leases is how many addresses of a network are leased, those of VIPs included.
func (s *swarm) leases(network string) int {
	s.t.Helper()
	r := report(s.t, s.storeNode(), network)
	used := 0
	for _, p := range r.Subnets {
		used += int(p.Used)
	}
	return used
}

func TestScalingUpAndDownLeaksNothing(t *testing.T) {
	scalingUpAndDownLeaksNothing(newSwarm(t, managedDriver, lab.Config{Nodes: 3}))
}

func scalingUpAndDownLeaksNothing(s *swarm) {
	t := s.t
	network := s.network("scaled", "10.130.2.0/24")
	manager := s.Nodes[0]
	// Thirty containers that start at once may keep a small machine's dockerd from being heard for 15 s.
	docker(t, manager, "swarm", "update", "--dispatcher-heartbeat", "20s")
	s.service(manager, "web", network, 2)
	idle := s.leases(network) - 2
	for range 2 {
		docker(t, manager, "service", "scale", "--detach", "web=30")
		s.running(manager, "web", 30)
		if err := s.leftovers(network, 30); err != nil {
			t.Error(err)
		}
		docker(t, manager, "service", "scale", "--detach", "web=0")
		s.running(manager, "web", 0)
		s.within(60*time.Second, func() error {
			if err := s.leftovers(network, 0); err != nil {
				return err
			}
			if now := s.leases(network); now != idle {
				return fmt.Errorf("%d leases, before the tasks there were %d", now, idle)
			}
			return nil
		})
	}
	docker(t, manager, "service", "rm", "web")
	s.within(60*time.Second, func() error {
		_, err := manager.Docker(t.Context(), "network", "rm", network)
		return err
	})
	s.within(60*time.Second, func() error { return s.noNetworks() })
}

// A stack file as users write it, with the driver's options.
func TestAStackIsDeployed(t *testing.T) {
	aStackIsDeployed(newSwarm(t, managedDriver, lab.Config{Nodes: 3}))
}

func aStackIsDeployed(s *swarm) {
	t := s.t
	const stack = `version: "3.8"
services:
  web:
    image: lab
    command: ["sh", "-c", "hostname >/www/index.html; exec httpd -f -h /www"]
    hostname: "web-{{.Task.Slot}}"
    networks: {inner: {aliases: [www]}}
    deploy: {replicas: 2, endpoint_mode: dnsrr}
  client:
    image: lab
    command: ["sleep", "10000"]
    networks: [inner]
    deploy: {placement: {constraints: ["node.hostname==n2"]}}
networks:
  inner:
    driver: custom-overlay:latest
    attachable: true
    driver_opts: {mtu: "1300"}
    ipam: {driver: "custom-overlay:latest", config: [{subnet: 10.130.3.0/24}]}
`
	manager := s.Nodes[0]
	run(t, manager, "sh", "-c", `printf %s "$0" | docker stack deploy --resolve-image never -c - app`, stack)
	s.running(manager, "app_web", 2)
	s.running(manager, "app_client", 1)
	client := docker(t, s.Nodes[1], "ps", "--quiet", "--filter", "name=app_client")
	if by, failed := answers(t, s.Nodes[1], client, "www", 10); failed > 0 || len(by) != 2 {
		t.Errorf("www: answers %v, %d failed", by, failed)
	}
	mtu := docker(t, s.Nodes[1], "exec", client, "cat", "/sys/class/net/eth0/mtu")
	if mtu != "1300" {
		t.Errorf("MTU %s, the stack's is 1300", mtu)
	}
	docker(t, manager, "stack", "rm", "app")
	s.within(60*time.Second, func() error { return s.noNetworks() })
}

// noNetworks says whether every node's netdriver has nothing left.
func (s *swarm) noNetworks() error {
	for _, n := range s.Nodes {
		out, err := n.Exec(s.t.Context(), "netdriver", "networks", "--output", "json")
		if err != nil && out == "" {
			return err
		}
		if strings.Contains(out, `"vni"`) {
			return fmt.Errorf("%s still has a network: %s", n.Name, out)
		}
	}
	return nil
}

// A service moves between networks without being made anew, and a published port in mode host shows the client's own
// address to the task.
func TestNetworksAreAddedToAServiceAndTakenAwayAndPortsArePublished(t *testing.T) {
	networksAreAddedToAServiceAndTakenAwayAndPortsArePublished(newSwarm(t, managedDriver, lab.Config{Nodes: 3}))
}

func networksAreAddedToAServiceAndTakenAwayAndPortsArePublished(s *swarm) {
	t := s.t
	manager := s.Nodes[0]
	front, back := s.network("front", "10.130.4.0/24"), s.network("back", "10.130.5.0/24")
	s.service(manager, "web", front, 2, "--publish", "mode=host,target=80,published=8080")
	onBack := s.client(s.Nodes[1], "on-back", back)
	if got := lookup(t, s.Nodes[1], onBack, "tasks.web"); len(got) != 0 {
		t.Errorf("before: tasks.web in %s is %v", back, got)
	}
	docker(t, manager, "service", "update", "--detach", "--network-add", back, "web")
	s.within(tasksLimit, func() error {
		if got := lookup(t, s.Nodes[1], onBack, "tasks.web"); len(got) != 2 {
			return fmt.Errorf("tasks.web in %s is %v", back, got)
		}
		return nil
	})
	s.running(manager, "web", 2)
	s.within(20*time.Second, func() error {
		if by, failed := answers(t, s.Nodes[1], onBack, "tasks.web", 8); failed > 0 || len(by) != 2 {
			return fmt.Errorf("answers %v, %d failed", by, failed)
		}
		return nil
	})
	docker(t, manager, "service", "update", "--detach", "--network-rm", back, "web")
	s.within(tasksLimit, func() error { return s.leftovers(back, 1) })
	s.running(manager, "web", 2)
	var reached int
	for _, n := range s.Nodes {
		page, err := httpGet(t, s.Outside, n.Addr.String(), 8080)
		if err != nil || !strings.HasPrefix(page, "web-") {
			continue
		}
		reached++
		if client, err := httpGetPage(t, s.Outside, n.Addr.String(), 8080, clientPage); !strings.Contains(client, s.Outside.Addr.String()) {
			t.Errorf("the task on %s is asked from %q (%v), want the client's own address %s", n.Name, client, err, s.Outside.Addr)
		}
	}
	if reached != 2 {
		t.Errorf("port 8080 answers on %d nodes, want the 2 with a task", reached)
	}
}
