//go:build e2e

// Package faults breaks networks of real Docker hosts in many ways and demands of netdriver's verbs what a user would: the
// true cause, its place and a remedy within five seconds, nothing else, and health after the repair. All faults share one
// lab.
//
//	go test -tags e2e -run TestFaults/udp ./test/e2e/faults
package faults

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/netdriver/netdriver/diag"
	"github.com/netdriver/netdriver/test/e2e/lab"
)

const (
	storePort = 2379
	network   = "web"
	subnet    = "10.77.0.0/24"
)

// world is the lab with a network over three nodes and a container on each.
type world struct {
	t *testing.T
	*lab.Lab
	certificates map[netip.Addr]*lab.Certificate
	// address of the container of each node, and the endpoint's id.
	address, endpoint map[string]string
	// mac and peerMAC are those of the first two containers.
	mac, peerMAC string
	vni          uint32
}

// newWorld builds it.
func newWorld(t *testing.T) *world {
	t.Helper()
	w := bareWorld(t, 3)
	if err := w.StartDocker(t.Context(), "--live-restore"); err != nil {
		t.Fatal(err)
	}
	w.populate()
	return w
}

// bareWorld is a lab with daemons and without Docker.
func bareWorld(t *testing.T, nodes int) *world {
	t.Helper()
	binary, err := filepath.Abs("../../../bin/netdriver")
	if err != nil {
		t.Fatal(err)
	}
	l, err := lab.New(t.Context(), lab.Config{Nodes: nodes, Binary: binary})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, Lab: l, address: map[string]string{}, endpoint: map[string]string{}}
	t.Cleanup(func() {
		if t.Failed() {
			l.KeepLogs()
			t.Logf("logs: %s", l.Logs())
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	var addrs []netip.Addr
	for _, n := range l.Nodes {
		addrs = append(addrs, n.Addr)
	}
	if w.certificates, err = lab.Certificates(filepath.Join(l.Dir, "tls"), addrs...); err != nil {
		t.Fatal(err)
	}
	for _, n := range l.Nodes {
		w.startDaemon(n)
	}
	return w
}

func (w *world) startDaemon(n *lab.Node) {
	w.t.Helper()
	if err := n.StartDaemon(context.WithoutCancel(w.t.Context()), w.daemonConfig(n)); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) daemonConfig(n *lab.Node) lab.DaemonConfig {
	url := fmt.Sprintf("https://%s", netip.AddrPortFrom(w.Nodes[0].Addr, storePort))
	c := lab.DaemonConfig{Certificate: w.certificates[n.Addr]}
	if n == w.Nodes[0] {
		c.StoreListen = url
	} else {
		c.Store = []string{url}
	}
	return c
}

// populate makes the network and a container on each node.
func (w *world) populate() {
	w.t.Helper()
	for _, n := range w.Nodes {
		w.run(n, "docker", "network", "create", "-d", "custom-overlay", "--ipam-driver", "custom-overlay", "--subnet", subnet,
			"--opt", "network="+network, "--ipam-opt", "network="+network, network)
		w.run(n, "docker", "run", "--detach", "--name", "c-"+n.Name, "--network", network, lab.Image, "sleep", "10000")
		w.address[n.Name] = w.run(n, "docker", "inspect", "--format", "{{.NetworkSettings.Networks."+network+".IPAddress}}", "c-"+n.Name)
		w.endpoint[n.Name] = w.run(n, "docker", "inspect", "--format", "{{.NetworkSettings.Networks."+network+".EndpointID}}", "c-"+n.Name)
	}
	var r diag.NetworkReport
	w.ask(w.Nodes[0], &r, "inspect", network)
	w.vni = uint32(r.VNI)
	w.mac, w.peerMAC = w.containerMAC(w.Nodes[0]), w.containerMAC(w.Nodes[1])
}

// run runs a command on a node.
func (w *world) run(n *lab.Node, args ...string) string {
	w.t.Helper()
	out, err := n.Exec(context.WithoutCancel(w.t.Context()), args...)
	if err != nil {
		w.t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// inside runs a command in netdriver's namespace on a node.
func (w *world) inside(n *lab.Node, args ...string) string {
	w.t.Helper()
	return w.run(n, append([]string{"nsenter", "--net=/run/netdriver/netns", "--"}, args...)...)
}

// ask runs a verb and reads its JSON; its exit status is the verdict's. It returns how long it took.
func (w *world) ask(n *lab.Node, answer any, args ...string) time.Duration {
	w.t.Helper()
	begin := time.Now()
	out, err := n.Exec(w.t.Context(), append(append([]string{"netdriver"}, args...), "-o", "json")...)
	took := time.Since(begin)
	if bad := json.Unmarshal([]byte(out), answer); bad != nil {
		w.t.Fatalf("netdriver %s: %v, %v in %q", strings.Join(args, " "), err, bad, out)
	}
	return took
}

// ping is one echo request between containers.
func (w *world) ping(from, to *lab.Node, args ...string) error {
	_, err := from.Docker(w.t.Context(), append([]string{"exec", "c-" + from.Name, "ping", "-c", "1", "-W", "1", w.address[to.Name]}, args...)...)
	return err
}

func (w *world) bridge() string { return fmt.Sprintf("ndb%x", w.vni) }
func (w *world) vxlan() string  { return fmt.Sprintf("ndx%x", w.vni) }

func (w *world) port(n *lab.Node) string { return "ndp" + w.endpoint[n.Name][:10] }

// eventually tries until do succeeds.
func (w *world) eventually(limit time.Duration, do func() error) {
	w.t.Helper()
	end := time.Now().Add(limit)
	for {
		begin := time.Now()
		err := do()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			w.t.Fatalf("not within %s: %v", limit, err)
		}
		time.Sleep(max(50*time.Millisecond, 2*time.Since(begin)))
	}
}

func TestMain(m *testing.M) {
	if _, err := lab.ReapAll(); err != nil {
		fmt.Fprintln(os.Stderr, "FAIL:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// inContainer runs a program of the host in a container's network namespace.
func (w *world) inContainer(n *lab.Node, args ...string) string {
	w.t.Helper()
	cmd, err := n.InContainer(context.WithoutCancel(w.t.Context()), "c-"+n.Name, args...)
	if err != nil {
		w.t.Fatal(err)
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		w.t.Fatalf("%s: %v: %s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}
