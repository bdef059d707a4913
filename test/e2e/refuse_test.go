//go:build e2e

package e2e

import (
	"strings"
	"testing"

	"github.com/netdriver/netdriver/test/e2e/lab"
)

// says fails the test unless text has all the words.
func says(t *testing.T, text string, words ...string) {
	t.Helper()
	for _, word := range words {
		if !strings.Contains(text, word) {
			t.Errorf("lacks %q: %s", word, text)
		}
	}
}

func TestAddressInUseIsRefusedWithItsHoldersName(t *testing.T) {
	nodes := hosts(t).Nodes
	network := overlay(t, nodes, "--subnet", "10.101.1.0/24")
	serve(t, nodes[0], network, "--ip", "10.101.1.77")
	name := network + "-rival"
	atEnd(t, nodes[1], "rm", "--force", name)
	said := refused(t, nodes[1], "run", "--name", name, "--network", network, "--ip", "10.101.1.77", lab.Image, "true")
	says(t, said, "10.101.1.77", nodes[0].Name)
	// Another address is fine: the network itself is not what was refused.
	serve(t, nodes[1], network, "--ip", "10.101.1.78")
}

func TestFullPoolSaysSoWithNumbers(t *testing.T) {
	n := hosts(t).Nodes[0]
	network := overlay(t, hosts(t).Nodes[:1], "--subnet", "10.101.2.0/24", "--ip-range", "10.101.2.64/31")
	for _, name := range []string{"-a", "-b"} {
		docker(t, n, "run", "--detach", "--name", network+name, "--network", network, lab.Image, "sleep", "1000")
		atEnd(t, n, "rm", "--force", network+name)
	}
	atEnd(t, n, "rm", "--force", network+"-c")
	said := refused(t, n, "run", "--name", network+"-c", "--network", network, lab.Image, "true")
	says(t, said, "full", "10.101.2.64/31", "2")
}

func TestBadOptionsAreExplainedToDockersUser(t *testing.T) {
	n := hosts(t).Nodes[0]
	tests := []struct {
		name string
		args []string
		want []string
	}{
		{"unknown option", []string{"--opt", "colour=red"}, []string{"colour"}},
		{"vni too large", []string{"--opt", "vni=16777216"}, []string{"vni", "16777216", "16777215"}},
		{"vni no number", []string{"--opt", "vni=ten"}, []string{"vni", "ten"}},
		{"mtu too large", []string{"--opt", "mtu=9000"}, []string{"9000", "1450"}},
		{"unknown mode", []string{"--opt", "mode=magic"}, []string{"magic", "overlay"}},
		{"port zero", []string{"--opt", "port=0"}, []string{"port"}},
		{"overlaps the underlay", []string{"--subnet", "10.99.0.0/16"}, []string{"10.99.0.0/16", "10.99.0.0/24", "n1"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			name := networkName(t)
			args := test.args
			if args[0] != "--subnet" {
				args = append([]string{"--subnet", "10.101.3.0/24"}, args...)
			}
			says(t, refused(t, n, createArgs(name, args...)...), test.want...)
			// The same without the mistake works: nothing is left of the refused one.
			docker(t, n, createArgs(name, "--subnet", "10.101.3.0/24")...)
			docker(t, n, "network", "rm", name)
		})
	}
}

func TestContradictingCreateShowsBothValues(t *testing.T) {
	nodes := hosts(t).Nodes
	network := overlay(t, nodes[:1], "--subnet", "10.101.4.0/24", "--opt", "vni=4711")
	says(t, refused(t, nodes[1], createArgs(network, "--subnet", "10.101.4.0/24", "--opt", "vni=4712")...), "4711", "4712")
	says(t, refused(t, nodes[1], createArgs(network, "--subnet", "10.101.5.0/24")...), "10.101.4.0/24", "10.101.5.0/24")
	docker(t, nodes[1], createArgs(network, "--subnet", "10.101.4.0/24")...)
	docker(t, nodes[1], "network", "rm", network)
}
