package etcd

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
)

// ClientTLS returns how to talk to a store that asks for certificates: ca, cert and key are PEM files. The certificate
// and its key are read again for each connection, so that renewed ones need no restart; the authority is read once.
func ClientTLS(ca, cert, key string) (*tls.Config, error) {
	pem, err := os.ReadFile(ca)
	if err != nil {
		return nil, fmt.Errorf("store's certificate authority: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("store's certificate authority: no certificate in %s; want a PEM file", ca)
	}
	pair := func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		c, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return nil, fmt.Errorf("certificate for the store from %s and %s: %w", cert, key, err)
		}
		return &c, nil
	}
	if _, err := pair(nil); err != nil {
		return nil, err
	}
	return &tls.Config{
		RootCAs:              roots,
		GetClientCertificate: pair,
		MinVersion:           tls.VersionTLS12, // etcd's own minimum; both sides choose 1.3 where they can
	}, nil
}
