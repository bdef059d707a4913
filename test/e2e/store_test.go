//go:build e2e

package e2e

import (
	"testing"
	"time"

	"github.com/netdriver/netdriver/test/e2e/lab"
)

// callLimit is what a call may take while the store is away: 10 s of waiting, and Docker's own part.
const callLimit = 14 * time.Second

// The first host's daemon carries the store. While it is down nobody can read or write records.
func TestAStoreThatIsAwayStopsNewContainersOnlyAndItsReturnHealsAll(t *testing.T) {
	c := hosts(t)
	network := overlay(t, c.Nodes, "--subnet", "10.103.1.0/24")
	second, third := serve(t, c.Nodes[1], network), serve(t, c.Nodes[2], network)
	addr := address(t, c.Nodes[2], network, third, "IPAddress")
	if err := c.Nodes[0].StopDaemon(); err != nil {
		t.Fatal(err)
	}
	stream := startStream(t, c.Nodes[1], second, addr, callLimit+5*time.Second)
	late := network + "-late"
	atEnd(t, c.Nodes[1], "rm", "--force", late)
	create := []string{"create", "--name", late, "--network", network, lab.Image, "sleep", "1000"}
	docker(t, c.Nodes[1], create...)
	start := time.Now()
	said := refused(t, c.Nodes[1], "start", late)
	if took := time.Since(start); took > callLimit {
		t.Errorf("the refusal took %s", took)
	}
	says(t, said, "the store cannot be reached")
	stream.mustLoseNothing(t)
	out, err := c.Nodes[1].Exec(t.Context(), "netdriver", "inspect", network)
	if err == nil {
		t.Errorf("inspect calls a network healthy whose store is away: %s", out)
	}
	says(t, out, network, "store")

	if err := c.Nodes[0].StartDaemon(t.Context(), c.daemonConfig(c.Nodes[0])); err != nil {
		t.Fatal(err)
	}
	eventually(t, 15*time.Second, func() error {
		_, err := c.Nodes[1].Docker(t.Context(), "start", late)
		return err
	})
	eventually(t, 10*time.Second, func() error {
		return ping(t, c.Nodes[2], third, address(t, c.Nodes[1], network, late, "IPAddress"))
	})
	eventually(t, 10*time.Second, func() error {
		_, err := c.Nodes[1].Exec(t.Context(), "netdriver", "inspect", network)
		return err
	})
}

func TestADaemonStartsWithoutItsStoreAndWorksWhenTheStoreComes(t *testing.T) {
	c := hosts(t)
	network := overlay(t, c.Nodes, "--subnet", "10.103.2.0/24")
	first := serve(t, c.Nodes[0], network)
	for _, n := range c.Nodes[:2] {
		if err := n.StopDaemon(); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range []*lab.Node{c.Nodes[1], c.Nodes[0]} {
		if err := n.StartDaemon(t.Context(), c.daemonConfig(n)); err != nil {
			t.Fatal(err)
		}
	}
	var second string
	eventually(t, 20*time.Second, func() error {
		_, err := c.Nodes[1].Exec(t.Context(), "netdriver", "inspect", network)
		return err
	})
	second = serve(t, c.Nodes[1], network)
	if err := ping(t, c.Nodes[0], first, address(t, c.Nodes[1], network, second, "IPAddress")); err != nil {
		t.Error(err)
	}
}
