package etcd

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/netdriver/netdriver/store"
	"github.com/netdriver/netdriver/test/e2e/lab"
)

// host runs a store that can be stopped and started again.
type host struct {
	cfg    EmbedConfig
	server *Server
}

// startHost starts an embedded store with listen URLs for https if there are certificates.
func startHost(t testing.TB, certificate *lab.Certificate) *host {
	t.Helper()
	h := &host{cfg: EmbedConfig{DataDir: t.TempDir(), RunDir: shortDir(t), Log: testLog(t)}}
	if certificate != nil {
		h.cfg.Listen = []string{"https://" + freeAddress(t)}
		h.cfg.CA, h.cfg.Cert, h.cfg.Key = certificate.CA, certificate.Cert, certificate.Key
	}
	h.start(t)
	t.Cleanup(h.stop)
	return h
}

func (h *host) start(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	s, err := Embed(ctx, h.cfg)
	if err != nil {
		t.Fatal(err)
	}
	h.server = s
}

func (h *host) stop() {
	if h.server != nil {
		h.server.Close()
		h.server = nil
	}
}

// cuttable is a client that reaches the store through a proxy which can be cut.
type cuttable struct {
	*Client
	t     *testing.T
	proxy *proxy
	admin *clientv3.Client
}

// connect returns a client of a cluster of its own at the store's first listen URL, or at its socket.
func (h *host) connect(t *testing.T, cfg *tls.Config) *cuttable {
	t.Helper()
	c := &cuttable{t: t, admin: h.admin(t)}
	endpoint := h.server.Endpoint()
	if cfg != nil {
		u, err := url.Parse(h.cfg.Listen[0])
		if err != nil {
			t.Fatal(err)
		}
		c.proxy = startProxy(t, "tcp", "127.0.0.1:0", u.Host)
		endpoint = "https://" + c.proxy.listener.Addr().String()
	} else {
		c.proxy = startProxy(t, "unix", shortDir(t)+"/p", strings.TrimPrefix(endpoint, "unix://"))
		endpoint = "unix://" + c.proxy.listener.Addr().String()
	}
	c.Client = dialTest(t, Config{Endpoints: []string{endpoint}, TLS: cfg})
	return c
}

// admin returns etcd's own client of the store, for what netdriver never does.
func (h *host) admin(t testing.TB) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{
		Endpoints:   []string{h.server.Endpoint()},
		DialOptions: (&link{}).options(),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func (c *cuttable) SetAvailable(available bool) { c.proxy.set(available) }

// Compact lets the store forget what the watches have missed while they were cut off.
func (c *cuttable) Compact() {
	c.t.Helper()
	c.SetAvailable(false)
	defer c.SetAvailable(true)
	var revision int64
	for range 2 {
		resp, err := c.admin.Put(c.t.Context(), "elsewhere", "")
		if err != nil {
			c.t.Fatal(err)
		}
		revision = resp.Header.Revision
	}
	if _, err := c.admin.Compact(c.t.Context(), revision, clientv3.WithCompactPhysical()); err != nil {
		c.t.Fatal(err)
	}
}

// clusters numbers the clusters of the tests, so that many can share one store.
var clusters atomic.Int64

func dialTest(t testing.TB, cfg Config) *Client {
	t.Helper()
	if cfg.Cluster == "" {
		cfg.Cluster = fmt.Sprintf("c%d", clusters.Add(1))
	}
	cfg.Log = testLog(t)
	c, err := Dial(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// proxy forwards connections until it is cut.
type proxy struct {
	listener net.Listener
	network  string
	target   string

	mu    sync.Mutex
	cut   bool
	conns map[net.Conn]bool
}

func startProxy(t *testing.T, network, addr, target string) *proxy {
	t.Helper()
	l, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{listener: l, network: network, target: target, conns: make(map[net.Conn]bool)}
	t.Cleanup(func() {
		l.Close()
		p.set(false)
	})
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go p.forward(c)
		}
	}()
	return p
}

func (p *proxy) set(available bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = !available
	if p.cut {
		for c := range p.conns {
			c.Close()
		}
		clear(p.conns)
	}
}

func (p *proxy) forward(in net.Conn) {
	defer in.Close()
	out, err := net.Dial(p.network, p.target)
	if err != nil {
		return
	}
	defer out.Close()
	p.mu.Lock()
	if p.cut {
		p.mu.Unlock()
		return
	}
	p.conns[in], p.conns[out] = true, true
	p.mu.Unlock()
	go func() {
		io.Copy(out, in)
		out.Close()
	}()
	io.Copy(in, out)
}

// authority makes certificates for the loopback address.
func authority(t *testing.T) *lab.Certificate {
	t.Helper()
	loopback := netip.MustParseAddr("127.0.0.1")
	certificates, err := lab.Certificates(t.TempDir(), loopback)
	if err != nil {
		t.Fatal(err)
	}
	return certificates[loopback]
}

func clientTLS(t *testing.T, c *lab.Certificate) *tls.Config {
	t.Helper()
	cfg, err := ClientTLS(c.CA, c.Cert, c.Key)
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// shortDir is a directory whose sockets' paths the kernel accepts.
func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "nd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func freeAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func testLog(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func put(t testing.TB, s store.Store, key, value string) int64 {
	t.Helper()
	rev, err := s.Commit(t.Context(), nil, store.Put(key, []byte(value)))
	if err != nil {
		t.Fatal(err)
	}
	return rev
}

// recorder keeps a log without times.
type recorder struct{ bytes.Buffer }

func (r *recorder) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(r, &slog.HandlerOptions{
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		},
	}))
}
