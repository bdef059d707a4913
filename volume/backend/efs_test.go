package backend

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// tlsServer serves TLS with a certificate for a name that is valid until then, and returns its port and the certificate's
// file.
func tlsServer(t *testing.T, name string, until time.Time) (port, file string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{name}, NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: until,
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _ = conn.(*tls.Conn).Handshake(); conn.Close() }()
		}
	}()
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port), file
}

func TestACertificateOfEFSThatIsNotRightFailsTheMountWithTheReason(t *testing.T) {
	soon := time.Now().Add(time.Hour)
	right, ca := tlsServer(t, "localhost", soon)
	other, otherCA := tlsServer(t, "other.example.com", soon)
	old, oldCA := tlsServer(t, "localhost", time.Now().Add(-24*time.Hour))
	plain := rpcServer(t, rpcSuccess)
	for name, c := range map[string]struct{ port, ca, want string }{
		"unknown CA":   {right, "", "signed by nobody that this node trusts"},
		"another's":    {right, otherCA, "signed by nobody that this node trusts"},
		"another name": {other, otherCA, "for another name"},
		"expired":      {old, oldCA, "has expired"},
		"no TLS":       {plain, ca, "does not speak TLS there"},
		"missing file": {right, ca + "x", "no readable file " + ca + "x"},
		"no NFS":       {right, ca, "through TLS for NFS"}, // the handshake is fine: the control of the others
	} {
		options := map[string]string{
			"type": "efs", "volume": "fs-0123abcd", "addr": "localhost", "o": "port=" + c.port,
		}
		if c.ca != "" {
			options["cafile"] = c.ca
		}
		_, err := prepare(t, Host{}, options)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want %q", name, err, c.want)
		}
	}
}
