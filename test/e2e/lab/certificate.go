package lab

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"
)

// A Certificate names the PEM files that one node uses towards the store, as server and as client.
type Certificate struct {
	CA, Cert, Key string

	write func(from, until time.Time) error
}

// Renew writes the certificate anew, valid from one time until another, which may have passed.
func (c *Certificate) Renew(from, until time.Time) error { return c.write(from, until) }

// Certificates makes a certificate authority and, signed by it, a certificate for each address, as PEM files in dir.
// All are valid for a day.
func Certificates(dir string, addrs ...netip.Addr) (map[netip.Addr]*Certificate, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	authority := template("netdriver lab CA")
	authority.IsCA, authority.BasicConstraintsValid = true, true
	authority.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature
	authorityKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	ca := filepath.Join(dir, "ca.pem")
	if err := sign(ca, authority, authority, &authorityKey.PublicKey, authorityKey); err != nil {
		return nil, err
	}
	certificates := make(map[netip.Addr]*Certificate, len(addrs))
	for _, addr := range addrs {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, err
		}
		leaf := template(addr.String())
		leaf.KeyUsage = x509.KeyUsageDigitalSignature
		leaf.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
		leaf.IPAddresses = []net.IP{addr.AsSlice(), net.IPv4(127, 0, 0, 1)}
		leaf.DNSNames = []string{"localhost"}
		certificate := &Certificate{
			CA:   ca,
			Cert: filepath.Join(dir, addr.String()+".pem"),
			Key:  filepath.Join(dir, addr.String()+"-key.pem"),
		}
		certificate.write = func(from, until time.Time) error {
			leaf.NotBefore, leaf.NotAfter = from, until
			return sign(certificate.Cert, leaf, authority, &key.PublicKey, authorityKey)
		}
		if err := certificate.Renew(leaf.NotBefore, leaf.NotAfter); err != nil {
			return nil, err
		}
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return nil, err
		}
		if err := writePEM(certificate.Key, "PRIVATE KEY", der); err != nil {
			return nil, err
		}
		certificates[addr] = certificate
	}
	return certificates, nil
}

// template is what all certificates have in common; an hour back allows for a clock that is behind.
func template(name string) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(24 * time.Hour),
	}
}

func sign(file string, cert, parent *x509.Certificate, public *ecdsa.PublicKey, key *ecdsa.PrivateKey) error {
	der, err := x509.CreateCertificate(rand.Reader, cert, parent, public, key)
	if err != nil {
		return fmt.Errorf("sign the certificate of %s: %w", cert.Subject.CommonName, err)
	}
	return writePEM(file, "CERTIFICATE", der)
}

func writePEM(file, kind string, der []byte) error {
	return os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}
