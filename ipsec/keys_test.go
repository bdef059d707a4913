package ipsec

import (
	"bytes"
	"crypto/ecdh"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/netdriver/netdriver/internal/golden"
)

// fixedKey is a private key that is the same in every run.
func fixedKey(t interface{ Fatal(...any) }, seed byte) *PrivateKey {
	k, err := ecdh.X25519().NewPrivateKey(bytes.Repeat([]byte{seed}, 32))
	if err != nil {
		t.Fatal(err)
	}
	return &PrivateKey{key: &sealed[ecdh.PrivateKey]{k}}
}

func testPair(t interface{ Fatal(...any) }, ciphers ...Cipher) (Pair, *PrivateKey, *PrivateKey) {
	a, b := fixedKey(t, 1), fixedKey(t, 2)
	return Pair{
		Sender: testNode(0), Receiver: testNode(1),
		SenderEpoch:   Epoch{Number: 7, ID: "EA", Public: a.Public(), Ciphers: ciphers},
		ReceiverEpoch: Epoch{Number: 9, ID: "EB", Public: b.Public(), Ciphers: ciphers},
	}, a, b
}

// TestKeysAreThoseOfTheOtherVersions pins what is derived: nodes of two versions must come to the same keys.
func TestKeysAreThoseOfTheOtherVersions(t *testing.T) {
	var b strings.Builder
	for _, c := range Ciphers() {
		p, own, _ := testPair(t, c)
		k, err := p.Derive(own)
		if err != nil {
			t.Fatal(err)
		}
		if len(k.Bytes()) != c.KeySize() {
			t.Errorf("%s has %d bytes of key", c, len(k.Bytes()))
		}
		fmt.Fprintf(&b, "%s key %s spi %#x\n", c, hex.EncodeToString(k.Bytes()), p.SPI(nil))
	}
	golden.Compare(t, "keys.golden", b.String())
}

func TestBothEndsDeriveOneKeyAndEachDirectionItsOwn(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p, _, _ := testPair(t, rapid.SampledFrom(Ciphers()).Draw(t, "cipher"))
		a, errA := GenerateKey()
		b, errB := GenerateKey()
		if errA != nil || errB != nil {
			t.Fatal(errA, errB)
		}
		p.SenderEpoch.Public, p.ReceiverEpoch.Public = a.Public(), b.Public()
		back := Pair{p.Receiver, p.Sender, p.ReceiverEpoch, p.SenderEpoch}
		var keys [][]byte
		for _, end := range []struct {
			pair Pair
			own  *PrivateKey
		}{{p, a}, {p, b}, {back, a}, {back, b}} {
			k, err := end.pair.Derive(end.own)
			if err != nil {
				t.Fatal(err)
			}
			keys = append(keys, k.Bytes())
		}
		if !bytes.Equal(keys[0], keys[1]) || !bytes.Equal(keys[2], keys[3]) {
			t.Fatal("the two ends disagree")
		}
		if bytes.Equal(keys[0], keys[2]) || p.SPI(nil) == back.SPI(nil) {
			t.Fatal("both directions have one key or SPI")
		}
	})
}

func TestEveryInputChangesTheKey(t *testing.T) {
	all := []Cipher{AES256GCM, ChaCha20Poly1305}
	p, own, _ := testPair(t, all...)
	base, err := p.Derive(own)
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Pair){
		"sender's name":      func(p *Pair) { p.Sender.Name = "x" },
		"sender's id":        func(p *Pair) { p.Sender.ID = "x" },
		"sender's VTEP":      func(p *Pair) { p.Sender.VTEP = netip.MustParseAddr("192.0.2.99") },
		"receiver's name":    func(p *Pair) { p.Receiver.Name = "x" },
		"receiver's id":      func(p *Pair) { p.Receiver.ID = "x" },
		"receiver's VTEP":    func(p *Pair) { p.Receiver.VTEP = netip.MustParseAddr("2001:db8::9") },
		"sender's number":    func(p *Pair) { p.SenderEpoch.Number++ },
		"sender's epoch":     func(p *Pair) { p.SenderEpoch.ID = "x" },
		"receiver's number":  func(p *Pair) { p.ReceiverEpoch.Number++ },
		"receiver's epoch":   func(p *Pair) { p.ReceiverEpoch.ID = "x" },
		"receiver's key":     func(p *Pair) { p.ReceiverEpoch.Public = fixedKey(t, 3).Public() },
		"cipher":             func(p *Pair) { p.SenderEpoch.Ciphers = []Cipher{ChaCha20Poly1305} },
		"sender's ciphers":   func(p *Pair) { p.SenderEpoch.Ciphers = []Cipher{AES256GCM} },
		"receiver's ciphers": func(p *Pair) { p.ReceiverEpoch.Ciphers = append(slices.Clone(all), AES128GCM) },
		"encapsulation":      func(p *Pair) { p.SenderEpoch.Encap = 4500 },
		"name against id":    func(p *Pair) { p.Sender.Name, p.Sender.ID = "n", "0id0" },
	} {
		changed := p
		change(&changed)
		k, err := changed.Derive(own)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if bytes.Equal(k.Bytes(), base.Bytes()) || changed.SPI(nil) == p.SPI(nil) {
			t.Errorf("another %s gives the same key or SPI", name)
		}
	}
	if again, err := p.Derive(own); err != nil || !bytes.Equal(again.Bytes(), base.Bytes()) {
		t.Errorf("the same inputs give another key, %v", err)
	}
}

func TestPublicKeysThatGiveKeysAwayAreRefused(t *testing.T) {
	for name, public := range map[string][]byte{"low order": make([]byte, 32), "short": make([]byte, 31), "none": nil} {
		p, own, _ := testPair(t, AES256GCM)
		p.ReceiverEpoch.Public = public
		if k, err := p.Derive(own); !errors.Is(err, ErrKey) || !k.IsZero() {
			t.Errorf("%s: %v, %v", name, k, err)
		}
	}
	p, own, _ := testPair(t, AES256GCM)
	p.SenderEpoch.Ciphers = []Cipher{AES128GCM}
	if _, err := p.Derive(own); !errors.Is(err, ErrCipher) {
		t.Errorf("no common cipher: %v", err)
	}
}

func TestSPIsAreAbove255AndAvoidTakenOnes(t *testing.T) {
	p, _, _ := testPair(t, AES256GCM)
	taken := map[uint32]bool{}
	for range 100 {
		spi := p.SPI(func(n uint32) bool { return taken[n] })
		if spi < 256 || taken[spi] || spi != p.SPI(func(n uint32) bool { return taken[n] }) {
			t.Fatalf("SPI %#x is reserved, taken or not the same twice", spi)
		}
		taken[spi] = true
	}
}

func TestKeysDoNotShowThemselves(t *testing.T) {
	p, own, _ := testPair(t, AES256GCM)
	key, err := p.Derive(own)
	if err != nil {
		t.Fatal(err)
	}
	sa := SA{Src: p.Sender.VTEP, Dst: p.Receiver.VTEP, SPI: 256, Cipher: AES256GCM, Key: key}
	hidden := struct {
		k  Key
		p  *PrivateKey
		sa *association
		op Op
	}{key, own, &association{SA: sa}, Op{Verb: AddSA, SA: sa}}
	var out strings.Builder
	for _, v := range []any{key, &key, *own, own, sa, hidden, hidden.op, []Key{key}, map[string]Key{"k": key}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%X", "%q", "%d"} {
			fmt.Fprintf(&out, verb+"\n", v)
		}
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		out.Write(b)
		slog.New(slog.NewTextHandler(&out, nil)).Info("x", "value", v)
		slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "value", v)
	}
	if !strings.Contains(out.String(), redacted) {
		t.Error("nothing was printed at all")
	}
	for _, material := range [][]byte{key.Bytes(), own.key.value.Bytes()} {
		for _, form := range []string{
			hex.EncodeToString(material[:8]), strings.ToUpper(hex.EncodeToString(material[:8])), string(material[:8]),
			strings.Trim(fmt.Sprint(material[:8]), "[]"), strings.TrimSuffix(fmt.Sprintf("%#v", material[:4]), "}")[7:],
		} {
			if strings.Contains(out.String(), form) {
				t.Errorf("a key shows as %q", form)
			}
		}
	}
}
