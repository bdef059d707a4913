package lab

import (
	"crypto/tls"
	"crypto/x509"
	"net/netip"
	"os"
	"testing"
)

func TestCertificatesServeBothRolesForTheirAddressOnly(t *testing.T) {
	first, second := netip.MustParseAddr("10.99.0.1"), netip.MustParseAddr("fd99::2")
	certificates, err := Certificates(t.TempDir(), first, second)
	if err != nil {
		t.Fatal(err)
	}
	for addr, other := range map[netip.Addr]netip.Addr{first: second, second: first} {
		files := certificates[addr]
		pair, err := tls.LoadX509KeyPair(files.Cert, files.Key)
		if err != nil {
			t.Fatal(err)
		}
		ca, err := os.ReadFile(files.CA)
		if err != nil {
			t.Fatal(err)
		}
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(ca)
		for _, role := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
			options := x509.VerifyOptions{DNSName: addr.String(), Roots: roots, KeyUsages: []x509.ExtKeyUsage{role}}
			if _, err := pair.Leaf.Verify(options); err != nil {
				t.Errorf("%s: %v", addr, err)
			}
			options.DNSName = other.String()
			if _, err := pair.Leaf.Verify(options); err == nil {
				t.Errorf("the certificate of %s is good for %s too", addr, other)
			}
		}
	}
}
