package keying

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"

	"github.com/netdriver/netdriver/ipsec"
	"github.com/netdriver/netdriver/store"
)

// Pinned is the identity of a node in a store that no authority of netdriver's vouches for: one that the user runs, or that of
// a single host. The node makes a key at its first start and writes the public half into its record; the others believe the
// record. So this rests on the store alone: whoever can write to it can be any node.
type Pinned struct {
	key  ed25519.PrivateKey
	safe error
}

var _ Identity = Pinned{}

// pemKey is the PEM type of a PKCS #8 key (RFC 7468 §10).
const pemKey = "PRIVATE KEY"

// OpenPinned reads the key in a data directory, or makes it. safe says why the store cannot be trusted, nil if it can.
func OpenPinned(dataDir string, safe error) (Pinned, error) {
	path := filepath.Join(dataDir, "node-key.pem")
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		text, err = newPinned(dataDir, path)
	}
	if err != nil {
		return Pinned{}, fmt.Errorf("the node's key: %w", err)
	}
	block, _ := pem.Decode(text)
	if block == nil || block.Type != pemKey {
		return Pinned{}, fmt.Errorf("the node's key: %s is no PEM of type %s; remove it to get a new one", path, pemKey)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return Pinned{}, fmt.Errorf("the node's key in %s: %w; remove it to get a new one", path, err)
	}
	key, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		return Pinned{}, fmt.Errorf("the node's key in %s is of type %T, want Ed25519; remove it to get a new one", path, parsed)
	}
	return Pinned{key, safe}, nil
}

// newPinned writes the file whole or not at all, also when the power fails.
func newPinned(dir, path string) ([]byte, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: pemKey, Bytes: der})
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	return text, renameio.WriteFile(path, text, 0o600, renameio.WithTempDir(dir))
}

// Public is what the node's record says, in PKIX's DER.
func (p Pinned) Public() ([]byte, error) { return x509.MarshalPKIXPublicKey(p.key.Public()) }

// Sign implements Identity.
func (p Pinned) Sign(message []byte) ([]byte, error) { return ed25519.Sign(p.key, message), nil }

// Prefixes implements Identity: the nodes' records are enough.
func (p Pinned) Prefixes() []string { return nil }

// Safe implements Identity.
func (p Pinned) Safe() error { return p.safe }

// Verifier implements Identity.
func (p Pinned) Verifier(_ func(string) (store.KV, bool), nodes map[string]store.Node) ipsec.Verifier {
	return pinnedVerifier(nodes)
}

type pinnedVerifier map[string]store.Node

// Verify implements ipsec.Verifier.
func (v pinnedVerifier) Verify(node string, message, signature []byte) error {
	n, known := v[node]
	if !known {
		return errors.New("the cluster has no such node")
	}
	if len(n.Key) == 0 {
		return errors.New("its record has no key: netdriver on it is too old, or it is in no store of this kind")
	}
	parsed, err := x509.ParsePKIXPublicKey(n.Key)
	if err != nil {
		return fmt.Errorf("the key in its record: %w", err)
	}
	key, ok := parsed.(ed25519.PublicKey)
	if !ok || !ed25519.Verify(key, message, signature) {
		return errors.New("the signature is not of the key in its record")
	}
	return nil
}
