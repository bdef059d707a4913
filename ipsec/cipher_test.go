package ipsec

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestCiphersAreThoseOfTheKernel(t *testing.T) {
	want := map[Cipher]string{
		AES256GCM: "rfc4106(gcm(aes))", AES128GCM: "rfc4106(gcm(aes))", ChaCha20Poly1305: "rfc7539esp(chacha20,poly1305)",
	}
	sizes := map[Cipher]int{AES256GCM: 36, AES128GCM: 20, ChaCha20Poly1305: 36}
	for _, c := range Ciphers() {
		if c.KernelName() != want[c] || c.KeySize() != sizes[c] {
			t.Errorf("%s is %s with %d bytes", c, c.KernelName(), c.KeySize())
		}
		if back, err := CipherOf(c.KernelName(), c.KeySize()); back != c || err != nil {
			t.Errorf("%s comes back as %q, %v", c, back, err)
		}
	}
	if c, err := CipherOf("cbc(aes)", 32); !errors.Is(err, ErrCipher) {
		t.Errorf("cbc(aes) is %q, %v", c, err)
	}
}

func TestOptionEncryptedSaysWhatIsAllowed(t *testing.T) {
	for value, want := range map[string]Option{
		"": {Encrypted: true}, "true": {Encrypted: true}, "false": {},
		"aes-256-gcm": {true, AES256GCM}, "aes-128-gcm": {true, AES128GCM}, "chacha20-poly1305": {true, ChaCha20Poly1305},
	} {
		if got, err := ParseOption(value); got != want || err != nil {
			t.Errorf("encrypted=%s is %+v, %v", value, got, err)
		}
	}
	for _, value := range []string{"yes", "AES-256-GCM", "aes", " true"} {
		_, err := ParseOption(value)
		if !errors.Is(err, ErrCipher) || !strings.Contains(err.Error(), "chacha20-poly1305") ||
			!strings.Contains(err.Error(), value) {
			t.Errorf("encrypted=%s: %v", value, err)
		}
	}
	only := Option{true, AES128GCM}.Allowed(preferred(true))
	if diff := cmp.Diff([]Cipher{AES128GCM}, only); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(preferred(false), Option{Encrypted: true}.Allowed(preferred(false))); diff != "" {
		t.Error(diff)
	}
}

func TestCipherOfAPairSuitsTheSlowerCPU(t *testing.T) {
	tests := []struct {
		a, b []Cipher
		want Cipher
	}{
		{preferred(true), preferred(true), AES256GCM},
		{preferred(false), preferred(false), ChaCha20Poly1305},
		{preferred(true), preferred(false), ChaCha20Poly1305},
		{preferred(true), []Cipher{ChaCha20Poly1305}, ChaCha20Poly1305},
		{[]Cipher{AES128GCM}, preferred(false), AES128GCM},
		{[]Cipher{AES128GCM}, []Cipher{AES256GCM}, ""},
		{nil, preferred(true), ""},
	}
	for _, tt := range tests {
		if got, err := Agree(tt.a, tt.b); got != tt.want || (tt.want == "") != errors.Is(err, ErrCipher) {
			t.Errorf("%v and %v agree on %q, %v; want %q", tt.a, tt.b, got, err, tt.want)
		}
	}
}

func TestBothSidesAgreeOnOneCipher(t *testing.T) {
	lists := rapid.Custom(func(t *rapid.T) []Cipher {
		all := rapid.Permutation(Ciphers()).Draw(t, "order")
		return all[:rapid.IntRange(0, len(all)).Draw(t, "some")]
	})
	rapid.Check(t, func(t *rapid.T) {
		a, b := lists.Draw(t, "a"), lists.Draw(t, "b")
		x, errX := Agree(a, b)
		y, errY := Agree(b, a)
		if x != y || (errX == nil) != (errY == nil) {
			t.Fatalf("%q and %q", x, y)
		}
	})
}

func TestPreferenceIsThatOfTheCPU(t *testing.T) {
	if preferred(true)[0] != AES256GCM || preferred(false)[0] != ChaCha20Poly1305 || len(Preferred()) != len(Ciphers()) {
		t.Errorf("%v with AES instructions, %v without, here %v", preferred(true), preferred(false), Preferred())
	}
}
