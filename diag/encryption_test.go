package diag

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/netdriver/netdriver/store"
)

// protector is this node's encryption.
type protector struct {
	said store.Protection
	err  error
}

func (p *protector) Protection(context.Context) (store.Protection, error) { return p.said, p.err }

// encryptedCluster is newCluster with its network encrypted and all pairs open.
func encryptedCluster(t *testing.T) (*testCluster, *protector) {
	c := newCluster(t)
	kv, err := c.mem.Get(t.Context(), store.NetworkKey("my-net"))
	if err != nil {
		t.Fatal(err)
	}
	nw, err := store.Decode[store.Network](kv)
	if err != nil {
		t.Fatal(err)
	}
	nw.Encrypted, nw.Rekey, nw.MTU = true, time.Hour, 1416
	c.put(store.Put(kv.Key, store.Encode(nw)))
	for i := range 3 {
		c.status(i+1, store.Status{Applied: map[string]int64{"my-net": c.revision + 3}})
	}
	p := &protector{said: store.Protection{
		Node: "node1", Epoch: 3, Pairs: []store.Pair{{Peer: "node2", Cipher: "aes-256-gcm"}, {Peer: "node3", Cipher: "aes-256-gcm"}, {Peer: "node9"}},
	}}
	c.d.src.Encryption = p
	return c, p
}

func TestAnEncryptedNetworkIsJudgedByItsPairs(t *testing.T) {
	c, p := encryptedCluster(t)
	r := c.report()
	if r.Verdict != Healthy || r.MTU.Derived != "1416 = 1500 underlay − 50 VXLAN − 34 ESP" || len(r.Encryption.Pairs) != 2 || r.Encryption.Rekey != 3600 {
		t.Errorf("verdict %s %v, MTU %q, encryption %+v", r.Verdict, r.Reasons, r.MTU.Derived, r.Encryption)
	}
	p.said.Pairs[0].Blocked = "it has not acknowledged"
	expect(t, c.report(), Degraded, "node2", "node1 to node2, since it must not leave in clear: it has not acknowledged")
	p.said.Pairs[0].Blocked = ""
	c.put(store.Put(store.ProtectionKey("node2"), store.Encode(store.Protection{
		Node: "node2", Pairs: []store.Pair{{Peer: "node3", Blocked: "no key"}, {Peer: "node9", Blocked: "of another network"}},
	})))
	r = c.report()
	expect(t, r, Degraded, "node3", "node2 to node3, since it must not leave in clear: no key")
	if len(r.Encryption.Others) != 1 {
		t.Errorf("others %+v, want those of this network", r.Encryption.Others)
	}
	c.put(store.Put(store.ProtectionKey("node2"), store.Encode(store.Protection{Node: "node2", Problem: "no ESP"})))
	expect(t, c.report(), Degraded, "node2", "no ESP")
	p.said.Problem = "ESP is missing"
	expect(t, c.report(), Failed, "node1", "nothing leaves in clear: ESP is missing")
	p.said.Problem, p.err = "", errors.New("no counters")
	expect(t, c.report(), Unknown, "node1", "no counters")
	// A node that is down is reported as that, not as its pair.
	p.err = nil
	p.said.Pairs[1].Blocked = "silent"
	c.put(store.Delete(store.AliveKey("node3")))
	for _, x := range c.report().Reasons {
		if strings.Contains(x.Cause, "silent") {
			t.Errorf("said twice: %s", x.Cause)
		}
	}
}
