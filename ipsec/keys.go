package ipsec

import (
	"crypto/ecdh"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
)

// ErrKey is wrapped by every error about a key that cannot be used.
var ErrKey = errors.New("bad key")

const (
	redacted = "[redacted]"
	// keyLabel and spiLabel keep what is derived here apart from every other use of the same secret or hash.
	keyLabel = "netdriver esp key 1"
	spiLabel = "netdriver esp spi 1"
	// minSPI: 0 is not for use on the wire and 1..255 belong to IANA (RFC 4303 §2.1).
	minSPI = 256
)

// secret is the base of what must never be printed: whatever way it is formatted, logged or encoded, it says so.
type secret struct{}

func (secret) String() string               { return redacted }
func (secret) GoString() string             { return redacted }
func (secret) Format(f fmt.State, _ rune)   { fmt.Fprint(f, redacted) }
func (secret) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }
func (secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }
func (secret) LogValue() slog.Value         { return slog.StringValue(redacted) }

// sealed keeps a secret where fmt does not find it. Fmt cannot call the methods of secret when it prints an unexported
// field of something, and follows a pointer there if the verb is wrong for it; it never follows two.
type sealed[T any] struct{ value *T }

// PrivateKey is a node's X25519 key (RFC 7748) for one epoch. It lives in the daemon's memory only.
type PrivateKey struct {
	secret
	key *sealed[ecdh.PrivateKey]
}

// GenerateKey makes a private key from the system's randomness. The error wraps ErrKey.
func GenerateKey() (*PrivateKey, error) {
	k, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("%w: generate X25519 key: %v", ErrKey, err)
	}
	return &PrivateKey{key: &sealed[ecdh.PrivateKey]{k}}, nil
}

// Public returns the half that others may know, 32 bytes.
func (k *PrivateKey) Public() []byte { return k.key.value.PublicKey().Bytes() }

// Key is the key material of one SA: the cipher's key and its salt.
type Key struct {
	secret
	material *sealed[[]byte]
}

// RandomKey returns a key that nobody else has, to try a kernel with. The error wraps ErrKey.
func RandomKey(c Cipher) (Key, error) {
	b := make([]byte, c.KeySize())
	if _, err := rand.Read(b); err != nil {
		return Key{}, fmt.Errorf("%w: %v", ErrKey, err)
	}
	return Key{material: &sealed[[]byte]{&b}}, nil
}

// Bytes returns the material for the kernel: the key, then 4 bytes of salt.
func (k Key) Bytes() []byte {
	if k.material == nil {
		return nil
	}
	return *k.material.value
}

// IsZero says whether there is no key, as in an SA that was read from the kernel.
func (k Key) IsZero() bool { return k.material == nil }

// Pair is one direction between two nodes with the epochs of both: what a key is for.
type Pair struct {
	Sender, Receiver           Identity
	SenderEpoch, ReceiverEpoch Epoch
}

// Cipher returns what the two epochs agree on; the error wraps ErrCipher.
func (p Pair) Cipher() (Cipher, error) { return Agree(p.SenderEpoch.Ciphers, p.ReceiverEpoch.Ciphers) }

// Derive returns the key of the pair's SA. own is the private key of either end, so both ends get the same. The key is
// bound to everything in p and to the cipher: a node that takes another's name, address or epoch gets another key. The
// error wraps ErrKey or ErrCipher.
func (p Pair) Derive(own *PrivateKey) (Key, error) {
	c, err := p.Cipher()
	if err != nil {
		return Key{}, err
	}
	other := p.SenderEpoch.Public
	if string(own.Public()) == string(other) {
		other = p.ReceiverEpoch.Public
	}
	pub, err := ecdh.X25519().NewPublicKey(other)
	if err != nil {
		return Key{}, fmt.Errorf("%w: public key from %s to %s: %v", ErrKey, p.Sender.Name, p.Receiver.Name, err)
	}
	shared, err := own.key.value.ECDH(pub) // refuses a point of low order: the result would not depend on our key
	if err != nil {
		return Key{}, fmt.Errorf("%w: agree on a key from %s to %s: %v", ErrKey, p.Sender.Name, p.Receiver.Name, err)
	}
	b, err := hkdf.Key(sha256.New, shared, nil, string(p.transcript(keyLabel, []byte(c))), c.KeySize())
	if err != nil {
		return Key{}, fmt.Errorf("%w: derive the key from %s to %s: %v", ErrKey, p.Sender.Name, p.Receiver.Name, err)
	}
	return Key{material: &sealed[[]byte]{&b}}, nil
}

// SPI returns the security parameter index for the pair's SA: the first of a sequence that follows from the pair alone
// and that taken, which may be nil, does not refuse. The receiver chooses it, since it must be unique among what the
// receiver has at its address, and tells the sender in its Link.
func (p Pair) SPI(taken func(uint32) bool) uint32 {
	for try := uint32(0); ; try++ {
		h := sha256.Sum256(p.transcript(spiLabel, binary.BigEndian.AppendUint32(nil, try)))
		if spi := binary.BigEndian.Uint32(h[:]); spi >= minSPI && (taken == nil || !taken(spi)) {
			return spi
		}
	}
}

// transcript writes down the pair without ambiguity: each part has its length before it. The sender's half comes
// first, so the two directions differ.
func (p Pair) transcript(label string, extra []byte) []byte {
	var b []byte
	put := func(part []byte) {
		b = binary.BigEndian.AppendUint32(b, uint32(len(part)))
		b = append(b, part...)
	}
	put([]byte(label))
	put(extra)
	for _, end := range []struct {
		node  Identity
		epoch Epoch
	}{{p.Sender, p.SenderEpoch}, {p.Receiver, p.ReceiverEpoch}} {
		put([]byte(end.node.Name))
		put([]byte(end.node.ID))
		put(end.node.VTEP.Unmap().AsSlice())
		put(binary.BigEndian.AppendUint64(nil, end.epoch.Number))
		put([]byte(end.epoch.ID))
		put(end.epoch.Public)
		put(binary.BigEndian.AppendUint16(nil, end.epoch.Encap))
		for _, c := range end.epoch.Ciphers {
			put([]byte(c))
		}
		put(nil) // ends the list
	}
	return b
}
