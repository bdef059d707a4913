//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/netdriver/netdriver/internal/events"
	"github.com/netdriver/netdriver/test/e2e/lab"
)

// capturing is `netdriver capture` on a node, while a test makes traffic.
type capturing struct {
	cmd      *exec.Cmd
	out, err *watched
	ended    chan error
}

// watched is what a program has written so far.
type watched struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (w *watched) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text.Write(b)
}

func (w *watched) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text.String()
}

// capture starts the verb and waits until it says what it captures.
func capture(t *testing.T, n *lab.Node, args ...string) *capturing {
	t.Helper()
	c := &capturing{cmd: n.Command(context.WithoutCancel(t.Context()), append([]string{"netdriver", "capture"}, args...)...), out: &watched{}, err: &watched{}}
	c.cmd.Stdout, c.cmd.Stderr = c.out, c.err
	c.ended = make(chan error, 1)
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { c.ended <- c.cmd.Wait() }()
	t.Cleanup(func() { _ = c.cmd.Process.Kill() })
	eventually(t, 20*time.Second, func() error {
		if !strings.Contains(c.err.String(), "netdriver capture of network") {
			return fmt.Errorf("it says %q", c.err)
		}
		return nil
	})
	return c
}

// wait waits for its end by itself.
func (c *capturing) wait(t *testing.T) error {
	t.Helper()
	select {
	case err := <-c.ended:
		return err
	case <-time.After(60 * time.Second):
		t.Fatalf("capture does not end; it says %s\n%s", c.err, c.out)
		return nil
	}
}

// tshark reads a file with Wireshark's own reader and returns the fields of each frame.
func tshark(t *testing.T, file string, fields ...string) [][]string {
	t.Helper()
	args := []string{"-n", "-r", file, "-T", "fields", "-E", "separator=|"}
	for _, f := range fields {
		args = append(args, "-e", f)
	}
	var errs bytes.Buffer
	cmd := exec.CommandContext(t.Context(), "tshark", args...)
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("tshark: %v: %s", err, errs.String())
	}
	var all [][]string
	for _, line := range strings.Split(strings.TrimSpace(string(out)), "\n") {
		all = append(all, strings.Split(line, "|"))
	}
	return all
}

func TestCaptureShowsTheFramesOfAllNodesInTheOrderOfTime(t *testing.T) {
	c := hosts(t)
	network := overlay(t, c.Nodes, "--subnet", "10.108.1.0/24")
	first, second := serve(t, c.Nodes[0], network), serve(t, c.Nodes[1], network)
	a, b := address(t, c.Nodes[0], network, first, "IPAddress"), address(t, c.Nodes[1], network, second, "IPAddress")
	if err := ping(t, c.Nodes[0], first, b); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, func() error { return named(t, c.Nodes[2], network, first, second) })
	file := filepath.Join(c.Nodes[2].Dir, "capture.pcapng")
	w := capture(t, c.Nodes[2], network, "icmp", "and", "host", first, "-w", file, "--count", "8", "--time", "1m") // a node without any of its containers
	for range 2 {
		eventually(t, 10*time.Second, func() error { return ping(t, c.Nodes[0], first, b) })
	}
	if err := w.wait(t); err != nil {
		t.Fatalf("%v: %s", err, w.err)
	}
	says(t, w.err.String(), "8 frames", "from 3 nodes; 0 lost")
	out1, in2, out2, in1 := first+"@n1 8 outbound", second+"@n2 8 inbound", second+"@n2 0 outbound", first+"@n1 0 inbound"
	frames := tshark(t, file, "frame.interface_name", "icmp.type", "frame.packet_flags_direction", "ip.src", "frame.time_epoch", "frame.interface_description")
	var got []string
	last := ""
	for _, f := range frames {
		direction := map[string]string{"0x00000001": "inbound", "0x00000002": "outbound"}[f[2]]
		got = append(got, fmt.Sprintf("%s %s %s", f[0], f[1], direction))
		if f[4] < last {
			t.Errorf("%s comes after %s", f[4], last)
		}
		last = f[4]
		says(t, f[5], "network "+network, "on node n")
	}
	want := []string{out1, in2, out2, in1}
	if fmt.Sprint(got) != fmt.Sprint(append(want, want...)) {
		t.Errorf("frames %q, want %q twice", got, want)
	}
	if frames[0][3] != a {
		t.Errorf("the first is from %s, want %s", frames[0][3], a)
	}
	says(t, run(t, c.Nodes[1], "netdriver", "events"), events.Captured, network, "reads the frames")
}

// named waits until the containers' names are known.
func named(t *testing.T, n *lab.Node, network string, names ...string) error {
	t.Helper()
	known := map[string]bool{}
	for _, e := range report(t, n, network).Endpoints {
		known[e.Container] = true
	}
	for _, name := range names {
		if !known[name] {
			return fmt.Errorf("%s is not known yet", name)
		}
	}
	return nil
}

// Without -w there is a line for each frame, of one endpoint if it is named; a frame that the filter does not pass is not shown.
func TestCaptureOfOneEndpointPrintsItsFrames(t *testing.T) {
	c := hosts(t)
	network := overlay(t, c.Nodes[:2], "--subnet", "10.108.2.0/24")
	first, second := serve(t, c.Nodes[0], network), serve(t, c.Nodes[1], network)
	b := address(t, c.Nodes[1], network, second, "IPAddress")
	w := capture(t, c.Nodes[0], network, b, "tcp port 80 or arp", "--time", "1m")
	if err := ping(t, c.Nodes[0], first, b); err != nil { // is not asked for
		t.Fatal(err)
	}
	fetch(t, c.Nodes[0], first, b)
	eventually(t, 10*time.Second, func() error {
		if !strings.Contains(w.out.String(), "Flags [F") {
			return fmt.Errorf("%s\n%s", w.out, w.err)
		}
		return nil
	})
	run(t, c.Nodes[0], "pkill", "-INT", "--full", "^netdriver capture "+network)
	if err := w.wait(t); err != nil {
		t.Errorf("%v: %s", err, w.err)
	}
	says(t, w.out.String(), "@n2 in  IP ", b+".80: Flags [S], seq", "@n2 out IP "+b+".80 > ", "Flags [S.]")
	for _, not := range []string{"ICMP", "@n1"} {
		if strings.Contains(w.out.String(), not) {
			t.Errorf("%s is shown:\n%s", not, w.out)
		}
	}
	if _, err := c.Nodes[0].Exec(t.Context(), "netdriver", "capture", network, "nobody"); err == nil || !strings.Contains(err.Error(), "no endpoint of network") {
		t.Errorf("capture of nobody: %v", err)
	}
}

// packetSockets are those in netdriver's namespace.
func packetSockets(t *testing.T, n *lab.Node) int {
	t.Helper()
	return len(strings.Split(run(t, n, "nsenter", "--net=/run/netdriver/netns", "cat", "/proc/net/packet"), "\n")) - 1
}

func TestNothingOfAKilledCaptureStays(t *testing.T) {
	c := hosts(t)
	network := overlay(t, c.Nodes[:2], "--subnet", "10.108.3.0/24")
	for _, n := range c.Nodes[:2] {
		serve(t, n, network)
	}
	var before []int
	for _, n := range c.Nodes[:2] {
		before = append(before, packetSockets(t, n))
	}
	w := capture(t, c.Nodes[0], network)
	for i, n := range c.Nodes[:2] {
		eventually(t, 10*time.Second, func() error {
			if now := packetSockets(t, n); now != before[i]+1 {
				return fmt.Errorf("%s: %d packet sockets, %d before", n.Name, now, before[i])
			}
			return nil
		})
	}
	run(t, c.Nodes[0], "pkill", "-KILL", "--full", "^netdriver capture "+network)
	_ = w.wait(t)
	for i, n := range c.Nodes[:2] {
		eventually(t, 20*time.Second, func() error {
			if now := packetSockets(t, n); now != before[i] {
				return fmt.Errorf("%s: %d packet sockets, %d before", n.Name, now, before[i])
			}
			return nil
		})
	}
}

// Without its daemon a node captures by itself, and says so.
func TestCaptureWorksWhileTheDaemonIsDown(t *testing.T) {
	c := hosts(t)
	network := overlay(t, c.Nodes[1:], "--subnet", "10.108.4.0/24")
	second, third := serve(t, c.Nodes[1], network), serve(t, c.Nodes[2], network)
	b := address(t, c.Nodes[1], network, second, "IPAddress")
	if err := ping(t, c.Nodes[2], third, b); err != nil {
		t.Fatal(err)
	}
	if err := c.Nodes[2].KillDaemon(); err != nil {
		t.Fatal(err)
	}
	w := capture(t, c.Nodes[2], network, "icmp", "--count", "4", "--time", "1m", "-o", "json")
	eventually(t, 10*time.Second, func() error { return ping(t, c.Nodes[2], third, b) })
	err := w.wait(t)
	if up := c.Nodes[2].StartDaemon(t.Context(), c.daemonConfig(c.Nodes[2])); up != nil {
		t.Fatal(up)
	}
	if err != nil {
		t.Fatalf("%v: %s", err, w.err)
	}
	says(t, w.err.String(), "no daemon runs on this host", "4 frames", "from 2 nodes")
	says(t, w.out.String(), `"schema":"netdriver.capture/v1"`, `"node":"n2"`, `"node":"n3"`, `"direction":"out"`, "ICMP EchoRequest")
}
