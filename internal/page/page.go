// Package page serves the page about the cluster: a browser draws what the local socket's reports say, the same bytes. It
// needs no build step and nothing from elsewhere, changes nothing, and holds no secret. docs/ui.md describes it.
package page

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"
)

const (
	// headerTimeout is what a browser may take to send its request, writeTimeout to take the answer: a report of 10,000
	// endpoints has some megabytes, and may take 20 s to be made.
	headerTimeout = 5 * time.Second
	writeTimeout  = time.Minute
	// idleTimeout is how long an unused connection stays; the page asks every few seconds.
	idleTimeout = 30 * time.Second
	// maxHeader is the size in bytes from which a request is refused.
	maxHeader = 16 << 10
	// again is when an address that could not be had is tried again.
	again = 10 * time.Second
)

// Server serves the page.
type Server struct {
	// Address is where, ADDRESS:PORT.
	Address string
	// Cert and Key are PEM files; without them the page is served in clear. CA, if not empty, has signed the certificates that
	// browsers must show.
	Cert, Key, CA string
	// Reports answers GET /v1/…, as package control does.
	Reports http.Handler
	Log     *slog.Logger
}

// Run serves until ctx ends. That the address cannot be had is no reason for a daemon to end: it is tried again.
func (s *Server) Run(ctx context.Context) error {
	for told := false; ctx.Err() == nil; {
		err := s.serve(ctx)
		if err != nil && !told && ctx.Err() == nil {
			s.Log.Warn("the page is not served; choose another address with --ui, or free this one", "address", s.Address, "error", err)
			told = true
		}
		select {
		case <-ctx.Done():
		case <-time.After(again):
		}
	}
	return nil
}

func (s *Server) serve(ctx context.Context) error {
	config, err := s.config()
	if err != nil {
		return err
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", s.Address)
	if err != nil {
		return err
	}
	scheme := "http"
	if config != nil {
		l, scheme = tls.NewListener(l, config), "https"
	}
	s.Log.Info("serving the page", "url", scheme+"://"+l.Addr().String()+"/")
	srv := &http.Server{
		Handler: s.Handler(), ReadHeaderTimeout: headerTimeout, ReadTimeout: headerTimeout, WriteTimeout: writeTimeout,
		IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader, ErrorLog: slog.NewLogLogger(s.Log.Handler(), slog.LevelDebug),
	}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	return srv.Serve(l)
}

// config returns how to speak TLS; nil if it is not spoken. A certificate that is renewed is read again.
func (s *Server) config() (*tls.Config, error) {
	if s.Cert == "" {
		return nil, nil
	}
	if _, err := s.pair(); err != nil {
		return nil, fmt.Errorf("certificate of the page: %w", err)
	}
	c := &tls.Config{
		MinVersion:     tls.VersionTLS12,
		NextProtos:     []string{"http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return s.pair() },
	}
	if s.CA == "" {
		return c, nil
	}
	text, err := os.ReadFile(s.CA)
	if err != nil {
		return nil, fmt.Errorf("authority of the page's readers: %w", err)
	}
	c.ClientCAs, c.ClientAuth = x509.NewCertPool(), tls.RequireAndVerifyClientCert
	if !c.ClientCAs.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("authority of the page's readers: no certificate in %s", s.CA)
	}
	return c, nil
}

func (s *Server) pair() (*tls.Certificate, error) {
	c, err := tls.LoadX509KeyPair(s.Cert, s.Key)
	if err == nil && c.Leaf == nil {
		err = errors.New("it has no leaf")
	}
	return &c, err
}
