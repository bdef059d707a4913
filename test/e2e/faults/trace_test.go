//go:build e2e

package faults

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/test/e2e/lab"
)

// remains is what a trace could leave: devices, addresses, routes, filters, packet sockets, in the host's, netdriver's and the
// container's namespace.
func (w *world) remains(n *lab.Node) string {
	w.t.Helper()
	const look = "ip -o link | sed 's/ qdisc .*//'; ip -o address; ip route show table all; ip rule; nft list ruleset 2>/dev/null | " +
		"sed 's/counter packets [0-9]* bytes [0-9]*//; /element/d'; wc -l </proc/net/packet; wc -l </proc/net/raw"
	container, err := n.InContainer(context.WithoutCancel(w.t.Context()), "c-"+n.Name, "bash", "-c", look)
	if err != nil {
		w.t.Fatal(err)
	}
	out, err := container.CombinedOutput()
	if err != nil {
		w.t.Fatalf("%v: %s", err, out)
	}
	return w.run(n, "bash", "-c", look) + w.inside(n, "bash", "-c", look) + string(out)
}

// Killed at any moment, command or daemon, a trace leaves nothing on any node.
func (w *world) tracesLeaveNothing() {
	n1, n2 := w.Nodes[0], w.Nodes[1]
	before := w.remains(n1) + w.remains(n2)
	killed := func(what *exec.Cmd, after time.Duration) {
		if err := what.Start(); err != nil {
			w.t.Fatal(err)
		}
		time.Sleep(after)
		_ = what.Process.Kill()
		_ = what.Wait() // it was killed
	}
	trace := func() *exec.Cmd {
		return n1.Command(context.WithoutCancel(w.t.Context()), "netdriver", "trace", "c-n1", "c-n2")
	}
	for i := range 8 {
		killed(trace(), time.Duration(i*40)*time.Millisecond)
	}
	// The daemon does the work: of the node that is asked, then of the other one.
	for i, n := range []*lab.Node{n2, n1} {
		cmd := trace()
		if err := cmd.Start(); err != nil {
			w.t.Fatal(err)
		}
		time.Sleep(time.Duration(100+50*i) * time.Millisecond)
		if err := unix.Kill(n.DaemonPID(), unix.SIGKILL); err != nil {
			w.t.Fatal(err)
		}
		_ = cmd.Wait() // without its daemon it may fail
		w.kill(n)
		w.startDaemon(n)
	}
	w.eventually(20*time.Second, func() error {
		if now := w.remains(n1) + w.remains(n2); now != before {
			return fmt.Errorf("traces left something: before\n%s\nnow\n%s", before, now)
		}
		return nil
	})
}

// A trace answers both ways, with times and the path's MTU, also about addresses that nobody has.
func (w *world) tracesAnswer() {
	out := w.run(w.Nodes[0], "netdriver", "trace", "c-n1", "c-n2")
	for _, word := range []string{"THERE", "BACK", "stack", "container", "port", "vxlan", "underlay", "there and back in", "largest packet 1450 of 1450 bytes", "SINCE", " ms"} {
		if !strings.Contains(out, word) {
			w.t.Errorf("no %q in\n%s", word, out)
		}
	}
	for to, word := range map[string]string{
		"10.77.0.200": "nobody has the address", "10.77.0.255": "first or last address", "192.0.2.1": "in no subnet", "10.77.0.1": "gateway", "nobody": `is called "nobody"`,
	} {
		if out, err := w.Nodes[0].Exec(w.t.Context(), "netdriver", "trace", "c-n1", to); err == nil || !strings.Contains(out, word) {
			w.t.Errorf("trace to %s: %v, no %q in\n%s", to, err, word, out)
		}
	}
}

func TestTracesAnswerAndLeaveNothing(t *testing.T) {
	w := newWorld(t)
	w.healthy("at first")
	w.tracesAnswer()
	w.tracesLeaveNothing()
	w.healthy("after killed traces")
}
