//go:build e2e

package e2e

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/netdriver/netdriver/test/e2e/lab"
)

// counted is how many bytes an interface has received or sent, and when that was read.
func counted(t *testing.T, n *lab.Node, container, what string) (bytes uint64, at time.Time) {
	t.Helper()
	out, err := inside(t, n, container, "sh", "-c", "ip -s -o link show dev eth0 | tr -s ' \\\\' '\\n'")
	if err != nil {
		t.Fatal(out)
	}
	at = time.Now()
	words := strings.Fields(out)
	for i, w := range words {
		if w == what+":" {
			for _, v := range words[i+1:] { // behind the heads of columns
				if bytes, err = strconv.ParseUint(v, 10, 64); err == nil {
					return bytes, at
				}
			}
		}
	}
	t.Fatalf("no %s in %s", what, out)
	return 0, at
}

// busyIn starts a command in a container's network namespace that runs until the test's end.
func busyIn(t *testing.T, n *lab.Node, container string, args ...string) {
	t.Helper()
	cmd, err := n.InContainer(t.Context(), container, args...)
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // by the signal
	})
}

// The rate of an endpoint is what TCP gets in the long run, within 10 %, in both directions.
func TestARateIsWhatTCPGetsInBothDirections(t *testing.T) {
	const rate = 100 // Mbit/s
	nodes := hosts(t).Nodes[:2]
	network := overlay(t, nodes, "--subnet", "10.100.53.0/24")
	limited, free := grouped(t, nodes[0], network, "limited", "rate=100mbit"), grouped(t, nodes[1], network, "free")
	for _, way := range []struct {
		name             string
		from, to         *lab.Node
		sender, receiver string
	}{
		{"it sends", nodes[0], nodes[1], limited, free}, {"it is sent", nodes[1], nodes[0], free, limited},
	} {
		t.Run(way.name, func(t *testing.T) {
			busyIn(t, way.to, way.receiver, "busybox", "nc", "-l", "-p", "9000", "-e", "sh", "-c", "exec cat >/dev/null")
			addr := address(t, way.to, network, way.receiver, "IPAddress")
			time.Sleep(500 * time.Millisecond)
			busyIn(t, way.from, way.sender, "sh", "-c", "exec busybox nc "+addr+" 9000 </dev/zero")
			time.Sleep(2500 * time.Millisecond) // what the bucket was full of has been sent then
			first, begin := counted(t, way.to, way.receiver, "RX")
			time.Sleep(6 * time.Second)
			last, end := counted(t, way.to, way.receiver, "RX")
			got := float64(last-first) * 8 / 1e6 / end.Sub(begin).Seconds()
			t.Logf("%.1f of %d Mbit/s", got, rate)
			if got < .9*rate || got > 1.1*rate {
				t.Errorf("it got %.1f Mbit/s, want %d within 10 %%", got, rate)
			}
		})
	}
}
