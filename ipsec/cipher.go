package ipsec

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/cpu"
)

// ErrCipher is wrapped by every error about a cipher that is not known or not common to two nodes.
var ErrCipher = errors.New("bad cipher")

// Cipher names an AEAD cipher of ESP as users write it.
type Cipher string

// The ciphers. All have a 16-byte ICV and take a 4-byte salt after the key.
const (
	AES256GCM        Cipher = "aes-256-gcm"
	AES128GCM        Cipher = "aes-128-gcm"
	ChaCha20Poly1305 Cipher = "chacha20-poly1305"
)

const (
	// ICVBits is the length of the integrity check value: the longest of RFC 4106 §6 and the only one of RFC 7634 §2.
	ICVBits = 128
	// saltSize is the part of the nonce that comes with the key, in bytes (RFC 4106 §8.1, RFC 7634 §2).
	saltSize = 4

	// The kernel's names for the algorithms (net/xfrm/xfrm_algo.c).
	kernelGCM    = "rfc4106(gcm(aes))"
	kernelChaCha = "rfc7539esp(chacha20,poly1305)"
)

// Ciphers returns all ciphers in the order in which Agree breaks ties.
func Ciphers() []Cipher { return []Cipher{ChaCha20Poly1305, AES256GCM, AES128GCM} }

// KernelName returns the name by which Linux knows the cipher.
func (c Cipher) KernelName() string {
	if c == ChaCha20Poly1305 {
		return kernelChaCha
	}
	return kernelGCM
}

// KeySize returns the bytes of key material that the kernel wants, salt included: 36 (RFC 4106 §8.1 for 256 bits,
// RFC 7634 §2) or 20 (RFC 4106 §8.1 for 128 bits).
func (c Cipher) KeySize() int {
	if c == AES128GCM {
		return 16 + saltSize
	}
	return 32 + saltSize
}

// CipherOf returns the cipher that the kernel's algorithm and key size in bytes, salt included, stand for. The error
// wraps ErrCipher.
func CipherOf(algorithm string, keySize int) (Cipher, error) {
	for _, c := range Ciphers() {
		if c.KernelName() == algorithm && c.KeySize() == keySize {
			return c, nil
		}
	}
	return "", fmt.Errorf("%w: the kernel's %s with %d bytes of key is none of ours", ErrCipher, algorithm, keySize)
}

// CheckCipher says whether c is one of Ciphers. The error wraps ErrCipher and lists them.
func CheckCipher(c Cipher) error {
	if !slices.Contains(Ciphers(), c) {
		return fmt.Errorf("%w %q: want one of %s", ErrCipher, string(c), strings.Join(names(Ciphers()), ", "))
	}
	return nil
}

// Option is what the network option "encrypted" says.
type Option struct {
	Encrypted bool
	// Cipher is the only one allowed; empty leaves the choice to the nodes.
	Cipher Cipher
}

// ParseOption reads the value of the network option "encrypted": nothing and "true" let the nodes choose the cipher
// (Docker gives the empty value for a bare --opt encrypted), "false" is no encryption, a cipher's name demands it. The
// error wraps ErrCipher and lists what is allowed.
func ParseOption(value string) (Option, error) {
	switch value {
	case "", "true":
		return Option{Encrypted: true}, nil
	case "false":
		return Option{}, nil
	}
	c := Cipher(value)
	if CheckCipher(c) != nil {
		return Option{}, fmt.Errorf("%w: encrypted=%s: want encrypted alone to let the nodes choose, false, or one of %s",
			ErrCipher, value, strings.Join(names(Ciphers()), ", "))
	}
	return Option{Encrypted: true, Cipher: c}, nil
}

// Preferred returns all ciphers in the order in which this machine's CPU prefers them.
func Preferred() []Cipher {
	x86, arm := cpu.X86.HasAES && cpu.X86.HasPCLMULQDQ, cpu.ARM64.HasAES && cpu.ARM64.HasPMULL
	return preferred(x86 || arm || cpu.S390X.HasAESGCM)
}

// preferred puts ChaCha20 first on a CPU without instructions for AES and GHASH: it was measured 1.9 times as fast
// there, as TLS stacks know too. The shorter key comes last: it was no faster.
func preferred(aes bool) []Cipher {
	if aes {
		return []Cipher{AES256GCM, ChaCha20Poly1305, AES128GCM}
	}
	return []Cipher{ChaCha20Poly1305, AES256GCM, AES128GCM}
}

// Allowed returns those of a node's ciphers that an option leaves, in the node's order.
func (o Option) Allowed(preferred []Cipher) []Cipher {
	return slices.DeleteFunc(slices.Clone(preferred), func(c Cipher) bool { return o.Cipher != "" && c != o.Cipher })
}

// Agree returns the cipher of a pair of nodes from the preferences of both. Both sides come to the same result: the
// common cipher with the least sum of ranks. A tie, as between a CPU with AES instructions and one without, goes to
// ChaCha20, since the slower node is the bottleneck. The error wraps ErrCipher.
func Agree(a, b []Cipher) (Cipher, error) {
	best, least := Cipher(""), 0
	for _, c := range Ciphers() {
		i, j := slices.Index(a, c), slices.Index(b, c)
		if i >= 0 && j >= 0 && (best == "" || i+j < least) {
			best, least = c, i+j
		}
	}
	if best == "" {
		return "", fmt.Errorf("%w: nothing in common between %s and %s", ErrCipher,
			strings.Join(names(a), ", "), strings.Join(names(b), ", "))
	}
	return best, nil
}

func names(cs []Cipher) []string {
	out := make([]string, len(cs))
	for i, c := range cs {
		out[i] = string(c)
	}
	return out
}
