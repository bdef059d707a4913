package main

import (
	"net/netip"
	"testing"
	"time"

	"github.com/netdriver/netdriver/diag"
	"github.com/netdriver/netdriver/internal/golden"
	"github.com/netdriver/netdriver/internal/proof"
	"github.com/netdriver/netdriver/store"
)

// encrypted is a network with a pair that works and one that is blocked.
func encrypted() diag.NetworkReport {
	r := healthy()
	r.Port, r.MTU = 4790, diag.MTU{MTU: 1416, Underlay: 1500, Overhead: 84, Derived: "1416 = 1500 underlay − 50 VXLAN − 34 ESP"}
	r.Encryption = &diag.Encryption{
		Rekey: 3600, Epoch: 118, Begun: now.Add(-22 * time.Minute),
		Drops: store.ProtectionDrops{PlainIn: 12, PlainOut: 3, FilterIn: 1, FilterOut: 2, Replayed: 4, Forged: 5, Unknown: 6},
		Pairs: []store.Pair{
			{Peer: "node2", Cipher: "chacha20-poly1305", Epoch: 118, PeerEpoch: 7, Since: now.Add(-22 * time.Minute), SAs: []store.SA{
				{SPI: 256, Packets: 1200, Bytes: 1_300_000}, {SPI: 257, In: true, Packets: 7, Bytes: 700},
				{SPI: 258, In: true, Packets: 1, Bytes: 100, Replayed: 2, Late: 1, Forged: 3},
			}},
			{Peer: "node3", Blocked: "it has not acknowledged a key that is in use here"},
		},
	}
	return r
}

func TestAnEncryptedNetworkShowsItsPairs(t *testing.T) {
	golden.Compare(t, "encrypted.txt", plain().network(encrypted()))
	golden.Compare(t, "networks-encrypted.txt", plain().networks(diag.NetworksReport{Networks: []diag.NetworkReport{encrypted(), healthy()}}))
}

func TestAProofSaysWhatLeft(t *testing.T) {
	seen := func(node string, esp, clear int) proof.Seen {
		s := proof.Seen{Node: node, Address: netip.MustParseAddr("192.0.2.12"), Sent: 20, ESP: esp, Clear: clear}
		if esp+clear > 0 {
			s.Devices = []string{"eth0"}
		}
		return s
	}
	for name, c := range map[string]struct {
		r    proofReport
		want diag.Verdict
	}{
		"encrypted": {proofReport{Encrypted: true, Result: proof.Result{Peers: []proof.Seen{seen("node2", 20, 0), seen("node3", 20, 0)}}}, diag.Healthy},
		"dropped":   {proofReport{Encrypted: true, Result: proof.Result{Peers: []proof.Seen{seen("node2", 20, 0), seen("node3", 0, 0)}}, blocked: map[string]string{"node3": "it is away"}}, diag.Degraded},
		"leak":      {proofReport{Encrypted: true, Result: proof.Result{Peers: []proof.Seen{seen("node2", 19, 1)}}}, diag.Failed},
		"plain":     {proofReport{Result: proof.Result{Peers: []proof.Seen{seen("node2", 0, 20)}}}, diag.Failed},
		"missed":    {proofReport{Encrypted: true, Result: proof.Result{Missed: 7, Peers: []proof.Seen{seen("node2", 20, 0)}}}, diag.Unknown},
	} {
		c.r.Network = "my-net"
		c.r.Verdict, c.r.Reason = verdictOf(c.r)
		if c.r.Verdict != c.want {
			t.Errorf("%s: %s, want %s", name, c.r.Verdict, c.want)
		}
		golden.Compare(t, "prove-"+name+".txt", plain().proof(c.r))
	}
}
