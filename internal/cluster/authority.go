// Package cluster makes a cluster of nodes that one can join: an authority whose certificates every connection between
// nodes needs, tokens that let a new node have one, and a store that grows from one member to three or five.
//
// The first node makes the authority at `cluster init`. Nodes with the store's members have the authority's key, all
// others only a certificate of their own. A token carries the hash of the authority's certificate, so that the new node
// trusts nothing else, and a secret, so that the member trusts the new node.
package cluster

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"time"
)

const (
	// authorityLife is how long an authority is valid: it cannot be replaced without all nodes joining anew.
	authorityLife = 20 * 365 * 24 * time.Hour
	// CertificateLife is how long a node's certificate is valid. A node renews it when a third of that is left, so it may
	// be away from the cluster for four months.
	CertificateLife = 365 * 24 * time.Hour
	// skew is how far the clocks of two nodes may differ.
	skew = time.Hour
)

// The PEM types of what is written (RFC 7468).
const (
	pemCertificate = "CERTIFICATE"
	pemRequest     = "CERTIFICATE REQUEST"
	pemKey         = "PRIVATE KEY"
)

// Authority signs the certificates of a cluster's nodes.
type Authority struct {
	Certificate *x509.Certificate
	key         crypto.Signer
}

// NewAuthority makes an authority with a key of its own (ECDSA P-256, which every TLS implementation has).
func NewAuthority(cluster string, now time.Time) (*Authority, error) {
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "netdriver cluster " + cluster},
		NotBefore: now.Add(-skew), NotAfter: now.Add(authorityLife),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make the cluster's authority: %w", err)
	}
	certificate, err := x509.ParseCertificate(der)
	return &Authority{certificate, key}, err
}

// ParseAuthority reads an authority from PEM.
func ParseAuthority(certificate, key []byte) (*Authority, error) {
	c, err := parseCertificate(certificate)
	if err != nil {
		return nil, fmt.Errorf("the cluster's authority: %w", err)
	}
	k, err := parseKey(key)
	if err != nil {
		return nil, fmt.Errorf("key of the cluster's authority: %w", err)
	}
	if !c.PublicKey.(interface{ Equal(crypto.PublicKey) bool }).Equal(k.Public()) {
		return nil, errors.New("key of the cluster's authority: it belongs to another certificate")
	}
	return &Authority{c, k}, nil
}

// CertificatePEM and KeyPEM are what ParseAuthority reads.
func (a *Authority) CertificatePEM() []byte  { return encode(pemCertificate, a.Certificate.Raw) }
func (a *Authority) KeyPEM() ([]byte, error) { return encodeKey(a.key) }

// Hash is what a token says of the authority: SHA-256 of its certificate.
func (a *Authority) Hash() [sha256.Size]byte { return sha256.Sum256(a.Certificate.Raw) }

// Sign returns the certificate, in PEM, that a node asks for: valid for its name and address as a server and as a
// client. Nothing else of the request is taken over but its key.
func (a *Authority) Sign(request []byte, node string, addr netip.Addr, now time.Time) ([]byte, error) {
	block, _ := pem.Decode(request)
	if block == nil || block.Type != pemRequest {
		return nil, errors.New("certificate request: it is no PEM of type " + pemRequest)
	}
	r, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("certificate request: %w", err)
	}
	if err := r.CheckSignature(); err != nil {
		return nil, fmt.Errorf("certificate request: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: node},
		NotBefore: now.Add(-skew), NotAfter: now.Add(CertificateLife),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		DNSNames:    []string{node}, IPAddresses: []net.IP{addr.AsSlice()},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.Certificate, r.PublicKey, a.key)
	if err != nil {
		return nil, fmt.Errorf("sign the certificate of node %s: %w", node, err)
	}
	return encode(pemCertificate, der), nil
}

// Revoke returns a revocation list, in DER, which is what etcd reads, of certificates by serial number. A later number
// replaces an earlier one.
func (a *Authority) Revoke(serials []*big.Int, number int64, now time.Time) ([]byte, error) {
	list := &x509.RevocationList{
		Number: big.NewInt(number), ThisUpdate: now.Add(-skew), NextUpdate: now.Add(authorityLife),
	}
	for _, s := range serials {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: s, RevocationTime: now})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, a.Certificate, a.key)
	if err != nil {
		return nil, fmt.Errorf("make the list of revoked certificates: %w", err)
	}
	return der, nil
}

// newRequest returns a new key and a request for a certificate, both in PEM.
func newRequest(node string) (key, request []byte, err error) {
	k, err := newKey()
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader,
		&x509.CertificateRequest{Subject: pkix.Name{CommonName: node}}, k)
	if err != nil {
		return nil, nil, fmt.Errorf("make a certificate request: %w", err)
	}
	key, err = encodeKey(k)
	return key, encode(pemRequest, der), err
}

func newKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

// newSerial returns a random serial number of 128 bits: RFC 5280 §4.1.2.2 allows 20 octets, and nobody has to count.
func newSerial() (*big.Int, error) {
	return rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 128))
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func encodeKey(k crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return nil, err
	}
	return encode(pemKey, der), nil
}

func parseCertificate(text []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(text)
	if block == nil || block.Type != pemCertificate {
		return nil, errors.New("no PEM of type " + pemCertificate)
	}
	return x509.ParseCertificate(block.Bytes)
}

func parseKey(text []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(text)
	if block == nil || block.Type != pemKey {
		return nil, errors.New("no PEM of type " + pemKey)
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	signer, ok := k.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("key of type %T cannot sign", k)
	}
	return signer, nil
}
