package ipsec

import (
	"net/netip"
	"testing"
)

func TestESPInUDPIsUsedIfEitherEndWantsIt(t *testing.T) {
	tests := []struct {
		sender, receiver uint16
		want             Encap
	}{
		{0, 0, Encap{}},
		{4500, 0, Encap{4500, 4500}},
		{0, 4501, Encap{4501, 4501}},
		{4500, 4501, Encap{4500, 4501}},
	}
	for _, tt := range tests {
		p, own, _ := testPair(t, AES256GCM)
		p.SenderEpoch.Encap, p.ReceiverEpoch.Encap = tt.sender, tt.receiver
		sa, err := newSA(p, 256, own)
		if err != nil || sa.Encap != tt.want {
			t.Errorf("%d to %d: %+v, %v; want %+v", tt.sender, tt.receiver, sa.Encap, err, tt.want)
		}
	}
}

func TestSAsAreThoseOfTheDesign(t *testing.T) {
	for _, vtep := range []string{"192.0.2.7", "2001:db8::7", "::ffff:192.0.2.7"} {
		p, own, _ := testPair(t, AES128GCM)
		p.Receiver.VTEP = netip.MustParseAddr(vtep)
		sa, err := newSA(p, 777, own)
		if err != nil {
			t.Fatal(err)
		}
		if sa.Window < 1024 || !sa.ESN || sa.Dst != p.Receiver.VTEP.Unmap() || sa.SPI != 777 || len(sa.Key.Bytes()) != 20 {
			t.Errorf("%s", sa)
		}
	}
}

func TestBlockingPoliciesCoverBothDirectionsAndFamiliesBelowThePairs(t *testing.T) {
	seen := map[PolicyID]bool{}
	for _, p := range Blocked(4790).Policies {
		if !p.Block || p.Port != 4790 || p.Src.Bits() != 0 || p.Dst.Bits() != 0 || p.Priority <= PairPriority {
			t.Errorf("%s", p)
		}
		seen[p.ID()] = true
	}
	if len(seen) != 4 {
		t.Errorf("%d policies", len(seen))
	}
}

func TestWhatNoRecordExplainsIsRemovedAfterARestart(t *testing.T) {
	c := calmCluster(t, 2)
	n := c.nodes[0]
	stray := testSA("192.0.2.2", "192.0.2.1", 0x9999)
	n.kernel = n.kernel.Apply(Op{Verb: AddSA, SA: stray})
	before := n.m.newest().Number
	n.m = nil
	c.calm()
	if _, there := find(n.kernel, stray.ID()); there {
		t.Error("the stray SA is still there")
	}
	if n.m.newest().Number != before+1 {
		t.Errorf("epoch %d after %d", n.m.newest().Number, before)
	}
}

func TestANodeWithAnotherIdentityStartsAfresh(t *testing.T) {
	c := calmCluster(t, 2)
	n := c.nodes[0]
	n.m, n.self.ID = nil, "reinstalled"
	n.kernel = State{}
	for _, o := range c.nodes { // its neighbours cannot know at once that their SAs lead nowhere
		for _, s := range o.kernel.SAs {
			c.lost[s.ID()] = true
		}
	}
	c.calm()
	if e := n.m.newest(); e.Number != 1 {
		t.Errorf("its first epoch is %d", e.Number)
	}
}
