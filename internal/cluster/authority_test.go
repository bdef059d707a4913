package cluster

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var (
	start    = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	loopback = netip.MustParseAddr("127.0.0.1")
)

func testAuthority(t testing.TB) *Authority {
	t.Helper()
	a, err := NewAuthority("n1", start)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func testRequest(t testing.TB, node string) (key, request []byte) {
	t.Helper()
	key, request, err := newRequest(node)
	if err != nil {
		t.Fatal(err)
	}
	return key, request
}

// verify says whether an authority vouches for a certificate at some time.
func verify(a *Authority, c *x509.Certificate, at time.Time, usage x509.ExtKeyUsage) error {
	roots := x509.NewCertPool()
	roots.AddCert(a.Certificate)
	_, err := c.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{usage}})
	return err
}

func TestACertificateIsForTheGivenNameAndAddressOnly(t *testing.T) {
	t.Parallel()
	a := testAuthority(t)
	key, err := newKey()
	if err != nil {
		t.Fatal(err)
	}
	// The request asks for far more than it gets.
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "n1"}, DNSNames: []string{"n1", "*"}, IPAddresses: []net.IP{{192, 0, 2, 1}},
		ExtraExtensions: []pkix.Extension{
			{Id: []int{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 3, 1, 1, 0xff}}, // CA
		},
	}, key)
	if err != nil {
		t.Fatal(err)
	}
	text, err := a.Sign(encode(pemRequest, der), "n2", netip.MustParseAddr("192.0.2.2"), start)
	if err != nil {
		t.Fatal(err)
	}
	c, err := parseCertificate(text)
	if err != nil {
		t.Fatal(err)
	}
	if c.Subject.CommonName != "n2" || !slices.Equal(c.DNSNames, []string{"n2"}) || len(c.IPAddresses) != 1 ||
		!c.IPAddresses[0].Equal(net.IP{192, 0, 2, 2}) || c.IsCA || c.KeyUsage&x509.KeyUsageCertSign != 0 {
		t.Errorf("name %s, DNS %v, IP %v, CA %t", c.Subject.CommonName, c.DNSNames, c.IPAddresses, c.IsCA)
	}
	if !key.PublicKey.Equal(c.PublicKey) {
		t.Error("it is for another key")
	}
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		if err := verify(a, c, start, usage); err != nil {
			t.Errorf("usage %v: %v", usage, err)
		}
	}
}

func TestACertificateEndsAfterAYearAndForgivesAnHour(t *testing.T) {
	t.Parallel()
	a := testAuthority(t)
	_, request := testRequest(t, "n2")
	text, err := a.Sign(request, "n2", loopback, start)
	if err != nil {
		t.Fatal(err)
	}
	c, err := parseCertificate(text)
	if err != nil {
		t.Fatal(err)
	}
	for at, valid := range map[time.Time]bool{
		start.Add(-skew): true, start.Add(-skew - time.Second): false,
		start.Add(CertificateLife): true, start.Add(CertificateLife + time.Second): false,
	} {
		if err := verify(a, c, at, x509.ExtKeyUsageClientAuth); (err == nil) != valid {
			t.Errorf("at %s: %v, want valid %t", at, err, valid)
		}
	}
	if err := verify(testAuthority(t), c, start, x509.ExtKeyUsageClientAuth); err == nil {
		t.Error("another authority of the same name vouches for it")
	}
}

func TestWhatIsNoRequestIsNotSigned(t *testing.T) {
	t.Parallel()
	a := testAuthority(t)
	_, good := testRequest(t, "n2")
	block, _ := pem.Decode(good)
	changed := bytes.Clone(block.Bytes)
	changed[len(changed)-1] ^= 1 // the signature
	for name, c := range map[string]struct {
		request []byte
		ok      bool
	}{
		"good":              {good, true},
		"empty":             {nil, false},
		"a certificate":     {a.CertificatePEM(), false},
		"cut":               {encode(pemRequest, block.Bytes[:20]), false},
		"another signature": {encode(pemRequest, changed), false},
	} {
		if _, err := a.Sign(c.request, "n2", loopback, start); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAnAuthorityIsReadAsItWasWritten(t *testing.T) {
	t.Parallel()
	a, other := testAuthority(t), testAuthority(t)
	key, err := a.KeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	b, err := ParseAuthority(a.CertificatePEM(), key)
	if err != nil || a.Hash() != b.Hash() || !b.key.(*ecdsa.PrivateKey).Equal(a.key) {
		t.Errorf("%v", err)
	}
	for name, c := range map[string]struct {
		certificate, key []byte
		want             string
	}{
		"another's key":  {other.CertificatePEM(), key, "belongs to another"},
		"no certificate": {nil, key, pemCertificate},
		"no key":         {a.CertificatePEM(), nil, pemKey},
		"key is rubbish": {a.CertificatePEM(), encode(pemKey, []byte("x")), "key of the"},
	} {
		if _, err := ParseAuthority(c.certificate, c.key); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want an error with %q", name, err, c.want)
		}
	}
}

func TestTheListOfRefusedCertificatesIsReadAsItWasWritten(t *testing.T) {
	t.Parallel()
	a := testAuthority(t)
	files := FilesIn(t.TempDir())
	der, err := a.Revoke([]*big.Int{big.NewInt(0xab), big.NewInt(17)}, 1, start)
	if err != nil {
		t.Fatal(err)
	}
	if err := files.write(files.CRL(), der); err != nil {
		t.Fatal(err)
	}
	got, err := listed(files)
	if diff := cmp.Diff(map[string]bool{"ab": true, "11": true}, got); diff != "" || err != nil {
		t.Errorf("%v\n%s", err, diff)
	}
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		t.Fatal(err)
	}
	if err := list.CheckSignatureFrom(a.Certificate); err != nil {
		t.Error(err)
	}
	if err := list.CheckSignatureFrom(testAuthority(t).Certificate); err == nil {
		t.Error("another authority's key fits its signature")
	}
}
