package ipsec

import (
	"crypto/ed25519"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/netdriver/netdriver/internal/golden"
)

// signers signs as one node, and verifies for all.
type signers struct {
	node string
	keys map[string]ed25519.PrivateKey
}

func newSigners(nodes ...string) signers {
	s := signers{node: nodes[0], keys: map[string]ed25519.PrivateKey{}}
	for i, n := range nodes {
		s.keys[n] = ed25519.NewKeyFromSeed(append(make([]byte, 31), byte(i)))
	}
	return s
}

func (s signers) Sign(message []byte) ([]byte, error) {
	k, ok := s.keys[s.node]
	if !ok {
		return nil, errors.New("no certificate")
	}
	return ed25519.Sign(k, message), nil
}

func (s signers) Verify(node string, message, signature []byte) error {
	k, ok := s.keys[node]
	if !ok || !ed25519.Verify(k.Public().(ed25519.PublicKey), message, signature) {
		return errors.New("the signature does not match its certificate")
	}
	return nil
}

func testOffer(t *testing.T) Offer {
	return Offer{Node: testNode(0), Epochs: []Epoch{
		{Number: 1, ID: "A", Public: fixedKey(t, 1).Public(), Ciphers: Ciphers(), Kept: true},
		{Number: 2, ID: "B", Public: fixedKey(t, 2).Public(), Ciphers: Ciphers(), Encap: 4500},
	}}
}

func testLink() Link {
	return Link{From: "n0", FromID: "id0", To: "n1", ToID: "id1",
		Receives: []SARef{{"X", "A", 256}, {"X", "B", 257}}, Sends: SARef{"A", "X", 300}}
}

func TestRecordsSurviveTheStoreSigned(t *testing.T) {
	s := newSigners("n0", "n1")
	o, l := testOffer(t), testLink()
	ob, errO := Encode(o, s)
	lb, errL := Encode(l, s)
	if errO != nil || errL != nil {
		t.Fatal(errO, errL)
	}
	golden.Compare(t, "records.golden", string(ob)+"\n"+string(lb)+"\n")
	gotO, err := Decode[Offer](OfferKey("n0"), ob, s)
	if diff := cmp.Diff(o, gotO, cmpopts.EquateComparable(netip.Addr{})); diff != "" || err != nil {
		t.Error(diff, err)
	}
	gotL, err := Decode[Link](LinkKey("n1", "n0"), lb, s)
	if diff := cmp.Diff(l, gotL); diff != "" || err != nil {
		t.Error(diff, err)
	}
}

func TestRecordsOfOthersAreRefused(t *testing.T) {
	s := newSigners("n0", "n1")
	b, err := Encode(testOffer(t), s)
	if err != nil {
		t.Fatal(err)
	}
	forger := s
	forger.node = "n1"
	forged, err := Encode(testOffer(t), forger)
	if err != nil {
		t.Fatal(err)
	}
	mapped := strings.Replace(string(b), `"v":1`, `"v":2`, 1)
	changed := []byte(strings.Replace(string(b), `"r":"ey`, `"r":"fy`, 1))
	for name, tt := range map[string]struct {
		key   string
		value []byte
		says  string
	}{
		"another node's signature": {OfferKey("n0"), forged, "not signed by node n0"},
		"another key":              {OfferKey("n1"), b, "it was written for offers/n0"},
		"a later version":          {OfferKey("n0"), []byte(mapped), "upgrade netdriver"},
		"changed on the way":       {OfferKey("n0"), changed, ""},
		"nonsense":                 {OfferKey("n0"), []byte("x"), ""},
		"a stranger":               {OfferKey("n0"), b, "not signed"},
	} {
		v := s
		if name == "a stranger" {
			v = newSigners("n1")
		}
		_, err := Decode[Offer](tt.key, tt.value, v)
		if !errors.Is(err, ErrRecord) || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRecordsThatWouldMisleadAreNeitherWrittenNorRead(t *testing.T) {
	s := newSigners("n0")
	for name, change := range map[string]func(*Offer){
		"no epochs":    func(o *Offer) { o.Epochs = nil },
		"order":        func(o *Offer) { o.Epochs[1].Number = 1 },
		"short key":    func(o *Offer) { o.Epochs[0].Public = []byte{1} },
		"no id":        func(o *Offer) { o.Epochs[0].ID = "" },
		"cipher":       func(o *Offer) { o.Epochs[0].Ciphers = []Cipher{"null"} },
		"no address":   func(o *Offer) { o.Node.VTEP = netip.Addr{} },
		"no node's id": func(o *Offer) { o.Node.ID = "" },
		"name":         func(o *Offer) { o.Node.Name = "a/b" },
		"many":         func(o *Offer) { o.Epochs = make([]Epoch, 17) },
	} {
		o := testOffer(t)
		change(&o)
		if _, err := Encode(o, s); !errors.Is(err, ErrRecord) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, change := range map[string]func(*Link){
		"low SPI": func(l *Link) { l.Receives[0].SPI = 255 },
		"no id":   func(l *Link) { l.ToID = "" },
		"name":    func(l *Link) { l.To = "" },
		"epoch":   func(l *Link) { l.Sends.Sender = "" },
		"many":    func(l *Link) { l.Receives = make([]SARef, 300) },
	} {
		l := testLink()
		change(&l)
		if _, err := Encode(l, s); !errors.Is(err, ErrRecord) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Encode(testOffer(t), signers{node: "nobody"}); !errors.Is(err, ErrRecord) {
		t.Errorf("without a certificate: %v", err)
	}
}
