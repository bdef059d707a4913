//go:build e2e && virtual

package e2e

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/netdriver/netdriver/test/e2e/lab"
)

// A service's virtual address works in an encrypted network of a swarm as in any other, and its calls travel as ESP. The
// manager's kernel has no ESP: it makes the network for the others, and takes no task of it.
func TestVirtualEncryptedService(t *testing.T) {
	s := makeSwarm(t, managedDriver, lab.Config{Nodes: 3, Kernels: map[int]lab.Kernel{2: {}, 3: {}}},
		func(s *swarm, _ context.Context) error { return found(s.t, s.Nodes, debugging()) })
	e := &encrypted{cluster: s.cluster, t: t, nodes: s.Nodes[1:]}
	const network = "vault" // as docs/encryption.md calls it
	lines := commands(t, "docs/encryption.md")
	if len(lines) < 3 {
		t.Fatalf("%q: the page is not read as it is written", lines)
	}
	run(t, s.Nodes[0], strings.Fields(lines[0])...)
	s.service(s.Nodes[0], "web", network, 2, "--constraint", "node.hostname!=n1", "--replicas-max-per-node", "1")
	n := e.nodes[0]
	client := s.client(n, "client", network)
	w := e.capture("vip")
	s.reached(n, client, "web", 2)
	if c := w.stop(inESP, inClear); c[0] == 0 || c[1] != 0 {
		t.Errorf("calls of the service: %d packets of ESP, %d in clear", c[0], c[1])
	}
	for _, line := range lines[1:] {
		says(t, run(t, n, strings.Fields(line)...), network, "HEALTHY")
	}
	says(t, run(t, n, "netdriver", "prove", network), "20 of 20 left as ESP, 0 in clear")
	judgedInESP(t, s, e)
	if _, err := s.Nodes[0].Exec(t.Context(), "sh", "-c", "modprobe esp4 && modprobe esp6"); err == nil {
		t.Log("this machine's kernel has ESP: the manager may take part")
		return
	}
	says(t, refused(t, s.Nodes[0], "run", "--rm", "--network", network, lab.Image, "true"), "cannot encrypt", network, "n1")
	if out := docker(t, n, "network", "inspect", "--format", "{{.Options}}", network); !strings.Contains(out, "encrypted:true") || !strings.Contains(out, "rekey:1h0m0s") {
		t.Errorf("Docker's options of the network: %s", out)
	}
}

// judgedInESP: the rules between groups hold in an encrypted network, too, on another node and by a virtual address.
func judgedInESP(t *testing.T, s *swarm, e *encrypted) {
	t.Helper()
	network := s.network("tiers", "10.132.60.0/24", "--opt", "encrypted", "--opt", "allow=web>db:80/tcp")
	docker(t, s.Nodes[0], "service", "create", "--detach", "--no-resolve-image", "--name", "db", "--network", "name="+network+",driver-opt=group=db",
		"--replicas", "2", "--constraint", "node.hostname!=n1", "--replicas-max-per-node", "1", lab.Image,
		"sh", "-c", "hostname >/www/index.html; httpd -f -p 8080 -h /www & exec httpd -f -h /www")
	s.running(s.Nodes[0], "db", 2)
	n := e.nodes[0]
	web, other := grouped(t, n, network, "web", "group=web"), grouped(t, n, network, "other")
	s.within(60*time.Second, func() error {
		if !reaches(t, n, web, "db", 80) || !reaches(t, n, web, "tasks.db", 80) {
			return errors.New("web does not reach db")
		}
		return nil
	})
	for range 3 { // both tasks
		if reaches(t, n, web, "db", 8080) || reaches(t, n, other, "db", 80) || reaches(t, n, other, "tasks.db", 80) {
			t.Error("what no rule allows gets through in an encrypted network")
		}
	}
}
