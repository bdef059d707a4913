package ipsec

import (
	"fmt"
	"net/netip"
	"testing"
	"time"
)

// BenchmarkStepWith300Peers is one round of a node that shares keys with 300 others, each in two epochs, when nothing has changed.
func BenchmarkStepWith300Peers(b *testing.B) {
	const peers = 300
	self := testNode(0)
	m, err := NewMachine(self, testConfig())
	if err != nil {
		b.Fatal(err)
	}
	v := View{Links: map[string]Link{}, Fresh: true}
	for i := range peers {
		key, err := GenerateKey()
		if err != nil {
			b.Fatal(err)
		}
		n := Identity{
			Name: fmt.Sprintf("p%d", i), ID: fmt.Sprintf("idp%d", i), VTEP: netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)}),
		}
		o := Offer{Node: n}
		for e := range 2 {
			o.Epochs = append(o.Epochs, Epoch{Number: uint64(e + 1), ID: fmt.Sprintf("e%d-%d", i, e), Public: key.Public(), Ciphers: Ciphers()})
		}
		v.Offers = append(v.Offers, o)
	}
	var have State
	step := func(now time.Duration) {
		want, err := m.Step(now, v)
		if err != nil {
			b.Fatal(err)
		}
		for _, op := range Plan(have, want) {
			m.Done(op)
		}
		have = want
		m.Published(m.Offer())
	}
	step(0)
	for _, l := range m.Links() { // each peer has what this node will send with
		v.Links[l.To] = Link{From: l.To, FromID: l.ToID, To: l.From, ToID: l.FromID, Receives: []SARef{{m.Offer().Epochs[0].ID, l.Receives[0].Sender, 0x10000}}}
	}
	step(time.Second)
	b.ResetTimer()
	for i := range b.N {
		step(time.Duration(i) * time.Millisecond)
	}
	if len(have.SAs) < 3*peers {
		b.Fatalf("only %d SAs", len(have.SAs))
	}
}
