//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/netdriver/netdriver/diag"
	"github.com/netdriver/netdriver/test/e2e/lab"
)

// report is `netdriver inspect NETWORK -o json`; its exit status is the verdict's and no error here.
func report(t *testing.T, n *lab.Node, network string) diag.NetworkReport {
	t.Helper()
	out, _ := n.Exec(t.Context(), "netdriver", "inspect", network, "-o", "json")
	var r diag.NetworkReport
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatalf("%v in: %s", err, out)
	}
	return r
}

func TestInspectShowsTheNetworkAndOnHowManyNodesAnEndpointIsSeen(t *testing.T) {
	c := hosts(t)
	network := overlay(t, c.Nodes, "--subnet", "10.104.1.0/24")
	serve(t, c.Nodes[1], network)
	eventually(t, 5*time.Second, func() error {
		r := report(t, c.Nodes[0], network)
		if r.Verdict != diag.Healthy || len(r.Peers) != len(c.Nodes) || len(r.Endpoints) != 1 {
			return fmt.Errorf("report %+v", r)
		}
		if e := r.Endpoints[0]; e.Node != c.Nodes[1].Name || e.SeenBy != len(c.Nodes) {
			return fmt.Errorf("endpoint %+v", e)
		}
		return nil
	})
	says(t, run(t, c.Nodes[0], "netdriver", "inspect", network), "HEALTHY", "10.104.1.0/24", "1450 = 1500 underlay", "3/3")
	says(t, run(t, c.Nodes[0], "netdriver", "networks"), network)
	says(t, run(t, c.Nodes[0], "netdriver", "nodes"), "n1", "n2", "n3")
	says(t, fmt.Sprint(lastError(c.Nodes[0].Exec(t.Context(), "netdriver", "inspect", "no-such-network"))), "no-such-network", network)
}

func lastError(_ string, err error) error { return err }

// What somebody removes from our devices is put back, and inspect keeps the receipt.
func TestWhatIsRemovedByHandIsPutBackAndShown(t *testing.T) {
	c := hosts(t)
	network := overlay(t, c.Nodes[:2], "--subnet", "10.104.2.0/24")
	first, second := serve(t, c.Nodes[0], network), serve(t, c.Nodes[1], network)
	addr := address(t, c.Nodes[1], network, second, "IPAddress")
	r := report(t, c.Nodes[0], network)
	bridge, vx := fmt.Sprintf("ndb%x", uint32(r.VNI)), fmt.Sprintf("ndx%x", uint32(r.VNI))
	inside := func(args ...string) []string {
		return append([]string{"nsenter", "--net=/run/netdriver/netns", "--"}, args...)
	}
	for i, damage := range [][]string{
		{"ip", "neigh", "del", addr, "dev", bridge},
		{"ip", "link", "set", vx, "nomaster"},
		{"ip", "link", "set", bridge, "down"},
		{"ip", "link", "del", vx},
	} {
		run(t, c.Nodes[0], inside(damage...)...)
		eventually(t, 5*time.Second, func() error {
			r := report(t, c.Nodes[0], network)
			if !r.Kernel.InSync || len(r.Kernel.Drifts) <= i {
				return fmt.Errorf("after %v: %+v", damage, r.Kernel)
			}
			return ping(t, c.Nodes[0], first, addr)
		})
	}
}

func TestADeadNodeIsShownAndItsEntriesStay(t *testing.T) {
	c := hosts(t)
	network := overlay(t, c.Nodes[1:], "--subnet", "10.104.3.0/24")
	second, third := serve(t, c.Nodes[1], network), serve(t, c.Nodes[2], network)
	addr := address(t, c.Nodes[2], network, third, "IPAddress")
	if err := c.Nodes[2].KillDaemon(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if c.Nodes[2].DaemonPID() == 0 {
			if err := c.Nodes[2].StartDaemon(context.WithoutCancel(t.Context()), c.daemonConfig(c.Nodes[2])); err != nil {
				t.Error(err)
			}
		}
	})
	// At first it is behind, which is degraded too: the lost lease says that it is down.
	eventually(t, 30*time.Second, func() error {
		if said := fmt.Sprint(lastError(c.Nodes[1].Exec(t.Context(), "netdriver", "inspect", network))); !strings.Contains(said, "DOWN") {
			return errors.New(said)
		}
		return nil
	})
	if r := report(t, c.Nodes[1], network); r.Verdict != diag.Degraded {
		t.Errorf("verdict %s of a network with a dead node, want %s", r.Verdict, diag.Degraded)
	}
	says(t, fmt.Sprint(lastError(c.Nodes[1].Exec(t.Context(), "netdriver", "inspect", network))), "DOWN", c.Nodes[2].Name)
	if err := ping(t, c.Nodes[1], second, addr); err != nil {
		t.Errorf("its containers cannot be reached any more: %v", err)
	}
	if err := c.Nodes[2].StartDaemon(t.Context(), c.daemonConfig(c.Nodes[2])); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, func() error {
		if r := report(t, c.Nodes[1], network); r.Verdict != diag.Healthy {
			return fmt.Errorf("verdict %s: %+v", r.Verdict, r.Reasons)
		}
		return nil
	})
}
