package cluster

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/time/rate"

	"github.com/netdriver/netdriver/store"
	"github.com/netdriver/netdriver/store/etcd"
)

const (
	// exchangeTimeout bounds one question to a member, connectTimeout the attempt to reach it.
	exchangeTimeout = 15 * time.Second
	connectTimeout  = 3 * time.Second
	// maxExchange is the size in bytes from which a request or answer is refused; certificates are far smaller.
	maxExchange = 64 << 10
	// attempts is how many joins per second a member looks at, so that nobody tries secrets; more wait.
	attempts = 5
)

// joinRequest is what a new node sends, and joinAnswer what it gets.
type joinRequest struct {
	Token   string     `json:"token"`
	Secret  []byte     `json:"secret"`
	Node    string     `json:"node"`
	ID      string     `json:"id"`
	Address netip.Addr `json:"address"`
	// Request is for a certificate, in PEM.
	Request []byte `json:"request"`
}

type joinAnswer struct {
	Certificate []byte       `json:"certificate"`
	Authority   []byte       `json:"authority"`
	Ports       Ports        `json:"ports"`
	Members     []netip.Addr `json:"members"`
}

// renewRequest is for another certificate of a node that has one, or for the authority's key.
type renewRequest struct {
	Request []byte     `json:"request"`
	Address netip.Addr `json:"address"`
}

type renewAnswer struct {
	Certificate []byte `json:"certificate"`
}

type keyAnswer struct {
	Key []byte `json:"key"`
}

// exchange answers other nodes on a member's join port.
type exchange struct {
	signer  *signer
	files   Files
	ports   Ports
	members func(context.Context) ([]netip.Addr, error)
	log     interface{ Info(string, ...any) }
	limit   *rate.Limiter
}

// serve answers until ctx ends. Who joins has no certificate yet; the other questions need one.
func (x *exchange) serve(ctx context.Context, addr netip.AddrPort) error {
	roots := x509.NewCertPool()
	roots.AddCert(x.signer.authority.Certificate)
	config := &tls.Config{
		MinVersion: tls.VersionTLS13, ClientCAs: roots, ClientAuth: tls.VerifyClientCertIfGiven,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			c, err := tls.LoadX509KeyPair(x.files.Cert(), x.files.Key())
			// With the authority's certificate, which a new node has only the hash of.
			c.Certificate = append(c.Certificate, x.signer.authority.Certificate.Raw)
			return &c, err
		},
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/join", answer(x.join))
	mux.HandleFunc("POST /v1/renew", answer(x.renew))
	mux.HandleFunc("POST /v1/authority", answer(x.authorityKey))
	srv := &http.Server{
		Handler: mux, ReadTimeout: exchangeTimeout, WriteTimeout: exchangeTimeout, TLSConfig: config,
		ErrorLog: log.New(io.Discard, "", 0), // of strangers, who would fill the log
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr.String())
	if err != nil {
		return fmt.Errorf("listen for nodes that join: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	if err := srv.Serve(tls.NewListener(l, config)); err != nil && ctx.Err() == nil {
		return fmt.Errorf("serve nodes that join: %w", err)
	}
	return nil
}

// answer makes a handler of a question.
func answer[Q, A any](f func(context.Context, *http.Request, Q) (A, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), exchangeTimeout)
		defer cancel()
		var q Q
		err := json.NewDecoder(io.LimitReader(r.Body, maxExchange)).Decode(&q)
		if err != nil {
			http.Error(w, "malformed request: "+err.Error(), http.StatusBadRequest)
			return
		}
		a, err := f(ctx, r, q)
		switch {
		case errors.Is(err, ErrDenied):
			http.Error(w, err.Error(), http.StatusForbidden)
		case err != nil:
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		default:
			_ = json.NewEncoder(w).Encode(a) // the node has gone: it asks again
		}
	}
}

// join gives a new node its certificate and says where the store is.
func (x *exchange) join(ctx context.Context, r *http.Request, q joinRequest) (joinAnswer, error) {
	var a joinAnswer
	if err := x.limit.Wait(ctx); err != nil {
		return a, err
	}
	if err := x.signer.admit(ctx, q.Token, q.Secret); err != nil {
		x.log.Info("a node was not let in", "peer", r.RemoteAddr, "node", q.Node, "error", err)
		return a, err
	}
	if err := errors.Join(store.CheckName("node", q.Node), x.signer.nameFree(ctx, q.ID, q.Node, q.Address)); err != nil {
		return a, err
	}
	if !q.Address.IsValid() {
		return a, fmt.Errorf("%w: the node has not said its address", ErrDenied)
	}
	var err error
	if a.Certificate, err = x.signer.sign(ctx, q.Request, q.Node, q.Address); err != nil {
		return a, err
	}
	a.Authority, a.Ports = x.signer.authority.CertificatePEM(), x.ports
	if a.Members, err = x.members(ctx); err != nil {
		return a, err
	}
	x.log.Info("a node has joined the cluster", "node", q.Node, "vtep", q.Address)
	return a, nil
}

// caller returns the name in the certificate of who asks.
func (x *exchange) caller(ctx context.Context, r *http.Request) (string, error) {
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
		return "", fmt.Errorf("%w: a certificate of the cluster is needed", ErrDenied)
	}
	c := r.TLS.PeerCertificates[0]
	refused, err := revoked(ctx, x.signer.store)
	if err != nil {
		return "", err
	}
	if refused[serial(c)] {
		return "", fmt.Errorf("%w: node %s was removed from it; join again with a new token", ErrDenied, c.Subject.CommonName)
	}
	return c.Subject.CommonName, nil
}

// renew signs another certificate for a node, of the same name.
func (x *exchange) renew(ctx context.Context, r *http.Request, q renewRequest) (renewAnswer, error) {
	node, err := x.caller(ctx, r)
	if err != nil {
		return renewAnswer{}, err
	}
	if !q.Address.IsValid() {
		return renewAnswer{}, fmt.Errorf("%w: the node has not said its address", ErrDenied)
	}
	c, err := x.signer.sign(ctx, q.Request, node, q.Address)
	return renewAnswer{c}, err
}

// authorityKey gives the authority's key to a node that becomes a member: it may be the last one some day.
func (x *exchange) authorityKey(ctx context.Context, r *http.Request, _ struct{}) (keyAnswer, error) {
	node, err := x.caller(ctx, r)
	if err != nil {
		return keyAnswer{}, err
	}
	growing, err := x.signer.store.Get(ctx, store.ClusterGrowing)
	if err != nil || string(growing.Value) != node {
		return keyAnswer{}, fmt.Errorf("%w: node %s does not become a member now", ErrDenied, node)
	}
	key, err := x.signer.authority.KeyPEM()
	x.log.Info("a node becomes a member and gets the authority's key", "node", node)
	return keyAnswer{key}, err
}

// ask sends a question to the first member that answers. A refusal is an answer.
func ask[A any](
	ctx context.Context, config *tls.Config, members []netip.AddrPort, path string, question any,
) (A, error) {
	var a A
	body, err := json.Marshal(question)
	if err != nil {
		return a, err
	}
	transport := &http.Transport{TLSClientConfig: config, DialContext: (&net.Dialer{Timeout: connectTimeout}).DialContext}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: exchangeTimeout}
	var errs []error
	for _, m := range members {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+m.String()+path, bytes.NewReader(body))
		if err != nil {
			return a, err
		}
		res, err := client.Do(req)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		text, err := io.ReadAll(io.LimitReader(res.Body, maxExchange))
		err = errors.Join(err, res.Body.Close())
		switch {
		case err == nil && res.StatusCode == http.StatusOK:
			return a, json.Unmarshal(text, &a)
		case res.StatusCode == http.StatusForbidden:
			return a, fmt.Errorf("member %s: %s", m, strings.TrimSpace(string(text)))
		}
		errs = append(errs, errors.Join(err, fmt.Errorf("member %s: %s", m, strings.TrimSpace(string(text)))))
	}
	return a, fmt.Errorf("no member of the cluster answers: %w; check that TCP port %d is open there",
		errors.Join(errs...), members[0].Port())
}

// trustOnly returns how to talk to a member of which nothing is known but the hash of its authority's certificate.
func trustOnly(hash []byte, now func() time.Time) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		// The chain is verified below: against the authority that the token names, and no other.
		InsecureSkipVerify: true, //nolint:gosec
		VerifyConnection: func(cs tls.ConnectionState) error {
			roots := x509.NewCertPool()
			for _, c := range cs.PeerCertificates {
				if sum := sha256.Sum256(c.Raw); bytes.Equal(sum[:], hash) {
					roots.AddCert(c)
				}
			}
			_, err := cs.PeerCertificates[0].Verify(x509.VerifyOptions{
				Roots: roots, CurrentTime: now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
			})
			if err != nil {
				return fmt.Errorf("who answers is no member of the token's cluster: %w; if the clocks differ, set this node's", err)
			}
			return nil
		},
	}
}

// mutual returns how to talk to members with this node's certificate.
func mutual(files Files) (*tls.Config, error) {
	config, err := etcd.ClientTLS(files.CA(), files.Cert(), files.Key())
	if err == nil {
		config.MinVersion = tls.VersionTLS13
	}
	return config, err
}
