package cluster

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"os"
	"slices"
	"time"

	"github.com/netdriver/netdriver/ipsec"
	"github.com/netdriver/netdriver/store"
)

// Identity is a node's in its cluster: it signs with the key of its certificate, and believes what other nodes have signed
// whose certificates the authority has made and nobody has revoked. Whoever can only write to the store can be no other node.
type Identity struct {
	files Files
	ca    *x509.Certificate
	now   func() time.Time
}

// OpenIdentity reads the authority's certificate; a node's own may be renewed at any time and is read when it is needed.
func OpenIdentity(files Files, now func() time.Time) (*Identity, error) {
	text, err := os.ReadFile(files.CA())
	if err != nil {
		return nil, fmt.Errorf("the cluster's authority: %w", err)
	}
	ca, err := parseCertificate(text)
	if err != nil {
		return nil, fmt.Errorf("the cluster's authority in %s: %w", files.CA(), err)
	}
	return &Identity{files, ca, now}, nil
}

// Prefixes are those of the records that Verifier needs.
func (i *Identity) Prefixes() []string { return []string{store.CertificatePrefix, store.RevokedPrefix} }

// Safe is nil: nothing but the authority's certificate is trusted.
func (i *Identity) Safe() error { return nil }

// maxSerial is the length of a serial number in bytes (RFC 5280 §4.1.2.2).
const maxSerial = 20

// Sign returns the certificate's serial number, its length first, and the signature (ECDSA with SHA-256).
func (i *Identity) Sign(message []byte) ([]byte, error) {
	certificate, key, err := i.own()
	if err != nil {
		return nil, fmt.Errorf("this node's certificate: %w", err)
	}
	digest := sha256.Sum256(message)
	signature, err := key.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil {
		return nil, err
	}
	serial := certificate.SerialNumber.Bytes()
	return slices.Concat([]byte{byte(len(serial))}, serial, signature), nil
}

// own reads this node's certificate and key.
func (i *Identity) own() (*x509.Certificate, crypto.Signer, error) {
	text, err := os.ReadFile(i.files.Cert())
	if err != nil {
		return nil, nil, err
	}
	certificate, err := parseCertificate(text)
	if err != nil {
		return nil, nil, err
	}
	if text, err = os.ReadFile(i.files.Key()); err != nil {
		return nil, nil, err
	}
	key, err := parseKey(text)
	if err != nil {
		return nil, nil, err
	}
	if public, ok := key.Public().(*ecdsa.PublicKey); !ok || !public.Equal(certificate.PublicKey) {
		return nil, nil, errors.New("the key belongs to another one: it is being renewed")
	}
	return certificate, key, nil
}

// Verifier believes what the records of certificates vouch for.
func (i *Identity) Verifier(record func(key string) (store.KV, bool), _ map[string]store.Node) ipsec.Verifier {
	return verifier{i, record}
}

type verifier struct {
	*Identity
	record func(key string) (store.KV, bool)
}

// Verify says whether a node of that name has signed: with a certificate of its own that the authority has signed, that the
// store still has, and that is neither refused nor over.
func (v verifier) Verify(node string, message, signature []byte) error {
	if len(signature) == 0 || len(signature) < 1+int(signature[0]) || signature[0] > maxSerial {
		return errors.New("it is no signature")
	}
	number := new(big.Int).SetBytes(signature[1 : 1+signature[0]]).Text(16)
	if _, refused := v.record(store.RevokedKey(number)); refused {
		return fmt.Errorf("certificate %s is refused: the node was removed from the cluster", number)
	}
	kv, there := v.record(store.CertificateKey(node, number))
	if !there {
		return fmt.Errorf("the cluster has no certificate %s of it", number)
	}
	certificate, err := parseCertificate(kv.Value)
	if err != nil {
		return fmt.Errorf("certificate %s: %w", number, err)
	}
	if err := v.vouches(certificate, node, number); err != nil {
		return fmt.Errorf("certificate %s: %w", number, err)
	}
	public, ok := certificate.PublicKey.(*ecdsa.PublicKey)
	digest := sha256.Sum256(message)
	if !ok || !ecdsa.VerifyASN1(public, digest[:], signature[1+signature[0]:]) {
		return fmt.Errorf("the signature is not of the key in certificate %s", number)
	}
	return nil
}

// vouches says whether the authority has made a certificate for a node, for now.
func (v verifier) vouches(c *x509.Certificate, node, number string) error {
	now := v.now()
	switch {
	case c.CheckSignatureFrom(v.ca) != nil:
		return errors.New("it is not of this cluster's authority")
	case c.Subject.CommonName != node || serial(c) != number:
		return fmt.Errorf("it is of node %s with serial number %s", c.Subject.CommonName, serial(c))
	case now.Before(c.NotBefore) || now.After(c.NotAfter):
		return fmt.Errorf("it is valid from %s to %s, and the time here is %s",
			c.NotBefore.Format(time.RFC3339), c.NotAfter.Format(time.RFC3339), now.Format(time.RFC3339))
	}
	return nil
}
