// Package peer lets daemons ask each other what they see of a path, and for the frames of a network, over mutual TLS with
// the certificates that the store is used with. A node answers questions for diagnosis and changes nothing.
//
// On a connection both sides write JSON, one value after the other. For a testimony: the asker a request; the node "ready"
// when it looks; the asker "go" when all nodes are; the node its answer. For a capture: see capture.go.
package peer

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/netdriver/netdriver/diag"
	"github.com/netdriver/netdriver/internal/capture"
	"github.com/netdriver/netdriver/store"
)

const (
	// connectTimeout bounds reaching a node, whose kernel answers even if its daemon is busy, and greetTimeout the first
	// exchange with the daemon; exchangeTimeout one question.
	connectTimeout  = 1200 * time.Millisecond
	greetTimeout    = 1500 * time.Millisecond
	exchangeTimeout = 15 * time.Second
	// maxMessage is the size in bytes from which a request is refused.
	maxMessage = 1 << 20
	// atOnce is how many questions a node answers side by side, captures how many of them may be captures, which last.
	atOnce   = 8
	captures = 2
)

// Files are the PEM files of a node: the authority's certificate, and its own with its key.
type Files struct{ CA, Cert, Key string }

// request is what an asker sends first.
type request struct {
	Testify *diag.Question    `json:"testify,omitempty"`
	Capture *capture.Question `json:"capture,omitempty"`
	Traffic bool              `json:"traffic,omitempty"`
}

// message is what else goes to and fro.
type message struct {
	Ready     bool            `json:"ready,omitempty"`
	Go        bool            `json:"go,omitempty"`
	Testimony *diag.Testimony `json:"testimony,omitempty"`
	Error     string          `json:"error,omitempty"`
	Traffic   *diag.Traffic   `json:"traffic,omitempty"`
	// Of a capture.
	Clock *time.Time     `json:"clock,omitempty"`
	Batch *capture.Batch `json:"batch,omitempty"`
	Stop  bool           `json:"stop,omitempty"`
}

// Server answers other nodes.
type Server struct {
	Address netip.AddrPort
	Files   Files
	Witness diag.Witness
	// Traffic reads this node's counters.
	Traffic func(ctx context.Context) (diag.Traffic, error)
	// Captures gives the frames of this node's ports to others, Captured is told of it. Without Captures they get none.
	Captures *capture.Node
	Captured func(asker string, q capture.Question)
	// Refused says whether a certificate with that serial number, in hexadecimal, was taken back.
	Refused func(ctx context.Context, serial string) (bool, error)
	Log     *slog.Logger
}

// config returns how to speak TLS as files say. A certificate that is renewed is read again.
func (f Files) config() (*tls.Config, error) {
	text, err := os.ReadFile(f.CA)
	if err != nil {
		return nil, fmt.Errorf("authority for other nodes: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("authority for other nodes: no certificate in %s", f.CA)
	}
	pair := func() (*tls.Certificate, error) {
		c, err := tls.LoadX509KeyPair(f.Cert, f.Key)
		return &c, err
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, RootCAs: roots, ClientCAs: roots, ClientAuth: tls.RequireAndVerifyClientCert,
		GetCertificate:       func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return pair() },
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return pair() },
	}, nil
}

// Run answers until ctx ends. That the port cannot be had is no reason for a daemon to end: it is tried again.
func (s Server) Run(ctx context.Context) error {
	const again = 10 * time.Second
	for told := false; ctx.Err() == nil; {
		err := s.serve(ctx)
		if err != nil && !told && ctx.Err() == nil {
			s.Log.Warn("other nodes cannot ask this one for traces", "address", s.Address, "error", err)
			told = true
		}
		select {
		case <-ctx.Done():
		case <-time.After(again):
		}
	}
	return nil
}

func (s Server) serve(ctx context.Context) error {
	config, err := s.Files.config()
	if err != nil {
		return err
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", s.Address.String())
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	var g errgroup.Group
	g.SetLimit(atOnce)
	defer func() { _ = g.Wait() }()
	places := make(chan struct{}, captures)
	for {
		conn, err := l.Accept()
		if err != nil {
			l.Close()
			return err
		}
		g.Go(func() error {
			if err := s.answer(ctx, tls.Server(conn, config), places); err != nil {
				s.Log.Debug("a question of another node was not answered", "peer", conn.RemoteAddr().String(), "error", err)
			}
			return nil
		})
	}
}

func (s Server) answer(running context.Context, conn *tls.Conn, places chan struct{}) error {
	defer conn.Close()
	ctx, cancel := context.WithTimeout(running, exchangeTimeout)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if err := conn.HandshakeContext(ctx); err != nil {
		return err
	}
	serial := fmt.Sprintf("%x", conn.ConnectionState().PeerCertificates[0].SerialNumber)
	if refused, err := s.Refused(ctx, serial); err != nil || refused {
		return errors.Join(fmt.Errorf("certificate %s was taken back or cannot be looked up", serial), err)
	}
	in, out := json.NewDecoder(io.LimitReader(conn, maxMessage)), json.NewEncoder(conn)
	var q request
	if err := in.Decode(&q); err != nil {
		return err
	}
	if q.Capture != nil {
		if !stop() {
			return ctx.Err()
		}
		select {
		case places <- struct{}{}:
			defer func() { <-places }()
		default:
			return out.Encode(message{Error: fmt.Sprintf("it is capturing for %d others already: wait until one has ended", captures)})
		}
		return s.capture(running, conn, in, *q.Capture)
	}
	if q.Traffic && s.Traffic != nil {
		t, err := s.Traffic(ctx)
		if err != nil {
			return errors.Join(err, out.Encode(message{Error: err.Error()}))
		}
		return out.Encode(message{Traffic: &t})
	}
	if q.Testify == nil {
		return out.Encode(message{Error: "unknown question: this daemon is of another version"})
	}
	t, err := s.Witness.Testify(ctx, *q.Testify, func() error {
		if err := out.Encode(message{Ready: true}); err != nil {
			return err
		}
		var m message
		return in.Decode(&m)
	})
	if err != nil {
		return errors.Join(err, out.Encode(message{Error: err.Error()}))
	}
	return out.Encode(message{Testimony: &t})
}

// Client asks other nodes.
type Client struct {
	Files Files
	Port  uint16
}

var _ diag.Peers = Client{}

// dial reaches a node's daemon.
func (c Client) dial(ctx context.Context, node store.Node) (net.Conn, error) {
	config, err := c.Files.config()
	if err != nil {
		return nil, err
	}
	conn, err := dial(ctx, netip.AddrPortFrom(node.VTEP, c.Port).String(), config)
	if err != nil {
		return nil, fmt.Errorf("ask the daemon of %s: %w", node.Name, err)
	}
	return conn, nil
}

// Testify implements diag.Peers.
func (c Client) Testify(ctx context.Context, node store.Node, q diag.Question, ready func() error) (diag.Testimony, error) {
	var t diag.Testimony
	conn, err := c.dial(ctx, node)
	if err != nil {
		return t, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	in, out := json.NewDecoder(conn), json.NewEncoder(conn)
	if err := out.Encode(request{Testify: &q}); err != nil {
		return t, err
	}
	for {
		var m message
		if err := in.Decode(&m); err != nil {
			return t, fmt.Errorf("the daemon of %s did not answer: %w", node.Name, err)
		}
		switch {
		case m.Error != "":
			return t, fmt.Errorf("the daemon of %s: %s", node.Name, m.Error)
		case m.Testimony != nil:
			return *m.Testimony, nil
		case m.Ready:
			if err := ready(); err != nil {
				return t, err
			}
			if err := out.Encode(message{Go: true}); err != nil {
				return t, err
			}
		}
	}
}

// Traffic implements diag.Peers.
func (c Client) Traffic(ctx context.Context, node store.Node) (diag.Traffic, error) {
	conn, err := c.dial(ctx, node)
	if err != nil {
		return diag.Traffic{}, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if err := json.NewEncoder(conn).Encode(request{Traffic: true}); err != nil {
		return diag.Traffic{}, err
	}
	var m message
	switch err := json.NewDecoder(conn).Decode(&m); {
	case err != nil:
		return diag.Traffic{}, fmt.Errorf("the daemon of %s did not answer: %w", node.Name, err)
	case m.Traffic == nil:
		return diag.Traffic{}, fmt.Errorf("the daemon of %s: %s", node.Name, m.Error)
	}
	return *m.Traffic, nil
}

// dial connects to a daemon. The error wraps diag.ErrSilent if the host does not answer at all, diag.ErrHangs if
// only its kernel does.
func dial(ctx context.Context, at string, config *tls.Config) (*tls.Conn, error) {
	raw, err := (&net.Dialer{Timeout: connectTimeout}).DialContext(ctx, "tcp", at)
	if e := net.Error(nil); errors.As(err, &e) && e.Timeout() {
		err = fmt.Errorf("%w: %w", diag.ErrSilent, err)
	}
	if err != nil {
		return nil, err
	}
	host, _, err := net.SplitHostPort(at)
	if err != nil {
		return nil, errors.Join(err, raw.Close())
	}
	config = config.Clone()
	config.ServerName = host
	conn := tls.Client(raw, config)
	ctx, cancel := context.WithTimeout(ctx, greetTimeout)
	defer cancel()
	if err := conn.HandshakeContext(ctx); err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("%w: %w", diag.ErrHangs, err)
		}
		return nil, errors.Join(fmt.Errorf("greet %s: %w", at, err), raw.Close())
	}
	return conn, nil
}
