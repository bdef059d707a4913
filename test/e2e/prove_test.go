//go:build e2e

package e2e

import (
	"encoding/json"
	"strings"
	"testing"
)

// What a network in clear shows is the control of what an encrypted one must not show.
func TestANetworkInClearIsProvenToBeInClear(t *testing.T) {
	nodes := hosts(t).Nodes
	network := overlay(t, nodes, "--subnet", "10.151.1.0/24")
	out, err := nodes[0].Exec(t.Context(), "sh", "-c", `netdriver prove --probes 30 "$0"; echo status $?`, network)
	if err != nil {
		t.Fatal(err)
	}
	says(t, out, "FAILED", "0 of 60 left as ESP, 60 in clear", "not encrypted", "eth0", "status 2")
	out, err = nodes[1].Exec(t.Context(), "sh", "-c", `netdriver prove -o json "$0" || true`, network)
	if err != nil {
		t.Fatal(err)
	}
	var r struct {
		Schema, Verdict string
		Encrypted       bool
		Peers           []struct{ Sent, Clear, ESP int }
	}
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatal(err)
	}
	if r.Schema != "netdriver.prove/v1" || r.Encrypted || len(r.Peers) != 2 || r.Peers[0].Sent != 20 || r.Peers[0].Clear != 20 {
		t.Errorf("%s", out)
	}
	if _, err := nodes[0].Exec(t.Context(), "netdriver", "prove", "no-such-network"); err == nil || !strings.Contains(err.Error(), "no such network") {
		t.Errorf("an unknown network: %v", err)
	}
}

// A node either can encrypt or says what it lacks, and leaves nothing; the machine that runs this test decides.
func TestANodeWithoutESPRefusesEncryptedNetworks(t *testing.T) {
	n := hosts(t).Nodes[0]
	name := networkName(t)
	_, lacks := n.Exec(t.Context(), "ip", "xfrm", "state", "add", "src", "192.0.2.1", "dst", "192.0.2.2", "proto", "esp", "spi", "0x7777", "mode",
		"transport", "aead", "rfc4106(gcm(aes))", "0x"+strings.Repeat("ab", 20), "128")
	create := createArgs(name, "--subnet", "10.151.2.0/24", "--opt", "encrypted", "--opt", "network="+name, "--ipam-opt", "network="+name)
	if lacks == nil {
		run(t, n, "ip", "xfrm", "state", "delete", "src", "192.0.2.1", "dst", "192.0.2.2", "proto", "esp", "spi", "0x7777")
		docker(t, n, create...)
		says(t, run(t, n, "netdriver", "inspect", name), "encrypted", "MTU", "ESP")
		docker(t, n, "network", "rm", name)
		return
	}
	says(t, refused(t, n, create...), name+" is encrypted", "node n1 cannot encrypt", "esp4")
	if out := run(t, n, "netdriver", "networks"); strings.Contains(out, name) {
		t.Errorf("the refused network is there:\n%s", out)
	}
	if out := run(t, n, "sh", "-c", "ip xfrm policy; ip xfrm state"); strings.Contains(out, "4790") {
		t.Errorf("the refused network has left %s", out)
	}
}
