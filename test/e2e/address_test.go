//go:build e2e

package e2e

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/netdriver/netdriver/test/e2e/lab"
)

// The gateway and auxiliary addresses are kept from containers; each host allocates in its own range.
func TestGatewayAuxiliaryAddressesAndRangesAreKept(t *testing.T) {
	nodes := hosts(t).Nodes
	name := networkName(t)
	ranges := []netip.Prefix{netip.MustParsePrefix("10.105.1.8/30"), netip.MustParsePrefix("10.105.1.16/30")}
	for i, n := range nodes[:2] {
		docker(t, n, createArgs(name, "--subnet", "10.105.1.0/24", "--ip-range", ranges[i].String(),
			"--gateway", "10.105.1.254", "--aux-address", "printer=10.105.1.9")...)
		atEnd(t, n, "network", "rm", name)
	}
	for i, n := range nodes[:2] {
		for k := range 3 { // of the four addresses of the first range one is the printer's
			c := fmt.Sprintf("%s-%d", name, k)
			docker(t, n, "run", "--detach", "--name", c, "--network", name, lab.Image, "sleep", "1000")
			atEnd(t, n, "rm", "--force", c)
			got := netip.MustParseAddr(address(t, n, name, c, "IPAddress"))
			if !ranges[i].Contains(got) || got == netip.MustParseAddr("10.105.1.9") {
				t.Errorf("on %s: %s, want one in %s and not the printer's", n.Name, got, ranges[i])
			}
		}
	}
	rival := name + "-rival"
	for _, taken := range []string{"10.105.1.9", "10.105.1.254"} {
		atEnd(t, nodes[1], "rm", "--force", rival)
		said := refused(t, nodes[1], "run", "--name", rival, "--network", name, "--ip", taken, lab.Image, "true")
		says(t, said, taken)
		docker(t, nodes[1], "rm", "--force", rival)
	}
}

func TestAFreedAddressIsNotGivenOutAtOnce(t *testing.T) {
	nodes := hosts(t).Nodes
	network := overlay(t, nodes[:2], "--subnet", "10.105.2.0/24")
	seen := map[string]bool{}
	for i := range 6 {
		n := nodes[i%2]
		c := fmt.Sprintf("%s-%d", network, i)
		docker(t, n, "run", "--detach", "--name", c, "--network", network, lab.Image, "sleep", "1000")
		addr := address(t, n, network, c, "IPAddress")
		docker(t, n, "rm", "--force", c)
		if seen[addr] {
			t.Errorf("%s was given out again after %d containers", addr, i)
		}
		seen[addr] = true
	}
}

func TestANetworkWithoutSubnetGetsAFreeOneThatOthersJoinByName(t *testing.T) {
	nodes := hosts(t).Nodes
	network := overlay(t, nodes[:2])
	first, second := serve(t, nodes[0], network), serve(t, nodes[1], network)
	if err := ping(t, nodes[0], first, address(t, nodes[1], network, second, "IPAddress")); err != nil {
		t.Error(err)
	}
}

func TestAnotherUDPPortCarriesTheNetwork(t *testing.T) {
	nodes := hosts(t).Nodes
	network := overlay(t, nodes[:2], "--subnet", "10.105.3.0/24", "--opt", "port=14789")
	first, second := serve(t, nodes[0], network), serve(t, nodes[1], network)
	if err := ping(t, nodes[0], first, address(t, nodes[1], network, second, "IPAddress")); err != nil {
		t.Error(err)
	}
	says(t, run(t, nodes[0], "netdriver", "inspect", network), "UDP 14789")
}

func TestAPoolOfAnotherNetworkIsRefused(t *testing.T) {
	nodes := hosts(t).Nodes
	network := overlay(t, nodes[:1], "--subnet", "10.105.4.0/24")
	other := network + "-other"
	says(t, refused(t, nodes[1], createArgs(other, "--subnet", "10.105.4.0/25")...), "10.105.4.0/24", network)
	says(t, refused(t, nodes[1], createArgs(other, "--subnet", "10.105.4.0/24")...), network, other)
	docker(t, nodes[1], createArgs(other, "--subnet", "10.105.5.0/24")...)
	docker(t, nodes[1], "network", "rm", other)
}
