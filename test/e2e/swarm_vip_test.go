//go:build e2e

package e2e

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/netdriver/netdriver/test/e2e/lab"
)

// reached waits until every one of n tasks has answered calls of a name, and no call fails.
func (s *swarm) reached(n *lab.Node, container, host string, tasks int) {
	s.t.Helper()
	s.within(30*time.Second, func() error {
		by, failed := answers(s.t, n, container, host, 6*tasks)
		if failed > 0 || len(by) != tasks {
			return fmt.Errorf("%s: answers %v, %d failed", host, by, failed)
		}
		return nil
	})
}

// Docker gives a service's name one virtual address, which is dead on another driver's network: here it works.
func TestAServiceIsReachedAtItsVirtualAddress(t *testing.T) {
	aServiceIsReachedAtItsVirtualAddress(newSwarm(t, managedDriver, lab.Config{Nodes: 3}))
}

func aServiceIsReachedAtItsVirtualAddress(s *swarm) {
	t := s.t
	network := s.network("virtual", "10.132.1.0/24", "--opt", "host_access=true")
	manager, n := s.Nodes[0], s.Nodes[1]
	s.service(manager, "web", network, 3)
	client := s.client(n, "client", network)
	vip := lookup(t, n, client, "web")
	if len(vip) != 1 {
		t.Fatalf("web is %v, want one virtual address", vip)
	}
	s.reached(n, client, "web", 3)
	if err := ping(t, n, client, vip[0]); err != nil {
		t.Errorf("ping: %v", err)
	}
	// The hosts are in this network, too.
	for _, host := range s.Nodes {
		s.within(10*time.Second, func() error {
			page, err := httpGet(t, host, vip[0], 80)
			if err == nil && !strings.HasPrefix(page, "web-") {
				err = fmt.Errorf("%s got %q from the virtual address", host.Name, page)
			}
			return err
		})
	}
	// A task that calls its own service may be given itself.
	task := docker(t, n, "ps", "--quiet", "--filter", "name=web")
	s.reached(n, strings.Fields(task)[0], "web", 3)
	says(t, run(t, n, "netdriver", "inspect", network), "web", vip[0], "ready")

	// Without tasks it is refused at once, and nobody waits.
	docker(t, manager, "service", "scale", "--detach", "web=0")
	s.running(manager, "web", 0)
	// wget ends with 1 when it is refused, and with another status when timeout(1) ends it.
	s.within(5*time.Second, func() error {
		const script = `timeout 2 wget -q -O - http://web/ 2>/dev/null; echo $?`
		if got := docker(t, n, "exec", client, "sh", "-c", script); got != "1" {
			return fmt.Errorf("a service without tasks: wget said %q, want that it is refused at once: 1", got)
		}
		return nil
	})
	docker(t, manager, "service", "scale", "--detach", "web=2")
	s.running(manager, "web", 2)
	s.reached(n, client, "web", 2)
}

// A rolling update that starts the new task first lets no call fail, and what is open goes on to its old task.
func TestARollingUpdateLosesNoCall(t *testing.T) {
	aRollingUpdateLosesNoCall(newSwarm(t, managedDriver, lab.Config{Nodes: 3}))
}

func aRollingUpdateLosesNoCall(s *swarm) {
	t := s.t
	network := s.network("rolling", "10.132.2.0/24")
	manager, n := s.Nodes[0], s.Nodes[2]
	// Its server ends two seconds after it is told to.
	const script = `trap "sleep 2; exit 0" TERM; hostname >/www/index.html; httpd -f -h /www & wait`
	docker(t, manager, "service", "create", "--detach", "--no-resolve-image", "--name", "web", "--network", network,
		"--replicas", "3", "--hostname", "web-{{.Task.Slot}}", "--stop-grace-period", "5s", "--update-order", "start-first",
		"--update-delay", "1s", lab.Image, "sh", "-c", script)
	s.running(manager, "web", 3)
	client := s.client(n, "client", network)
	s.reached(n, client, "web", 3)
	leases := s.leases(network)
	const loop = `ok=0; bad=0
until [ -e /tmp/stop ]; do
  if timeout 4 wget -q -O /dev/null http://web/; then ok=$((ok+1)); else bad=$((bad+1)); fi
done
echo "$ok $bad"`
	type result struct {
		out string
		err error
	}
	done := make(chan result, 1)
	go func() {
		out, err := n.Docker(t.Context(), "exec", client, "sh", "-c", loop)
		done <- result{out, err}
	}()
	docker(t, manager, "service", "update", "--detach", "--force", "web")
	s.within(2*time.Minute, func() error {
		state, err := manager.Docker(t.Context(), "service", "inspect", "--format", "{{.UpdateStatus.State}}", "web")
		if err == nil && strings.TrimSpace(state) != "completed" {
			err = fmt.Errorf("update is %s", state)
		}
		return err
	})
	docker(t, n, "exec", client, "touch", "/tmp/stop")
	r := <-done
	if r.err != nil {
		t.Fatal(r.err)
	}
	f := strings.Fields(r.out)
	if ok, _ := strconv.Atoi(f[0]); ok < 20 || f[1] != "0" {
		t.Errorf("during the update %s calls were answered and %s failed", f[0], f[1])
	}
	s.within(60*time.Second, func() error {
		if now := s.leases(network); now != leases {
			return fmt.Errorf("%d leases after the update, %d before", now, leases)
		}
		return s.leftovers(network, 4)
	})
}
