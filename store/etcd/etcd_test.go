package etcd

import (
	"context"
	"crypto/tls"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/netdriver/netdriver/store"
	"github.com/netdriver/netdriver/store/storetest"
	"github.com/netdriver/netdriver/test/e2e/lab"
)

func TestEmbedded(t *testing.T) {
	t.Parallel()
	h := startHost(t, nil)
	storetest.Run(t, func(t *testing.T) storetest.Store { return h.connect(t, nil) })
}

// The daemon that carries the store calls it without a connection.
func TestEmbeddedInThisProcess(t *testing.T) {
	t.Parallel()
	h := startHost(t, nil)
	open := func(t *testing.T) store.Store {
		return dialTest(t, Config{Endpoints: []string{h.server.Endpoint()}, Server: h.server})
	}
	storetest.RunWithoutFaults(t, open)
	t.Run("WatchesOfOneKeyDoNotDisturbEachOther", func(t *testing.T) {
		s := open(t)
		first, second := s.Watch(t.Context(), "a/"), s.Watch(t.Context(), "a/")
		<-first
		<-second
		if _, err := s.Commit(t.Context(), nil, store.Put("a/1", []byte("x"))); err != nil {
			t.Fatal(err)
		}
		for i, w := range []<-chan store.Batch{first, second} {
			if b := <-w; len(b.Events) != 1 || b.Events[0].KV.Key != "a/1" {
				t.Errorf("watch %d: %+v", i, b)
			}
		}
	})
}

func TestRemoteOverMutualTLS(t *testing.T) {
	t.Parallel()
	certificate := authority(t)
	h := startHost(t, certificate)
	storetest.Run(t, func(t *testing.T) storetest.Store { return h.connect(t, clientTLS(t, certificate)) })
}

func TestDialWorksWithoutTheStore(t *testing.T) {
	t.Parallel()
	c := dialTest(t, Config{Endpoints: []string{"https://127.0.0.1:1", "unix:///nowhere/sock"}, TLS: &tls.Config{}})
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	_, err := c.Get(ctx, "k")
	if !errors.Is(err, store.ErrUnavailable) {
		t.Fatalf("%v, want ErrUnavailable", err)
	}
	for _, want := range []string{"https://127.0.0.1:1", "unix:///nowhere/sock", "dialing: dial", "check that etcd runs"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not say %q: %v", want, err)
		}
	}
}

func TestDialRefusesBadConfig(t *testing.T) {
	t.Parallel()
	for name, cfg := range map[string]Config{
		"no endpoint": {Cluster: "c"},
		"no cluster":  {Endpoints: []string{"unix:///sock"}},
		"bad cluster": {Endpoints: []string{"unix:///sock"}, Cluster: "a/b"},
	} {
		if c, err := Dial(cfg); err == nil {
			c.Close()
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestClustersDoNotSeeEachOther(t *testing.T) {
	t.Parallel()
	h := startHost(t, nil)
	a := dialTest(t, Config{Endpoints: []string{h.server.Endpoint()}, Cluster: "a"})
	ab := dialTest(t, Config{Endpoints: []string{h.server.Endpoint()}, Cluster: "ab"})
	put(t, a, "k", "of a")
	if _, err := ab.Get(t.Context(), "k"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("cluster ab reads a's key: %v", err)
	}
	if kvs, _, err := ab.List(t.Context(), ""); err != nil || len(kvs) != 0 {
		t.Errorf("cluster ab lists %v, %v; want nothing", kvs, err)
	}
	if kv, err := a.Get(t.Context(), "k"); err != nil || string(kv.Value) != "of a" {
		t.Errorf("cluster a reads %q, %v", kv.Value, err)
	}
}

func TestStoreAsksForACertificateOfItsAuthority(t *testing.T) {
	t.Parallel()
	right, wrong := authority(t), authority(t)
	h := startHost(t, right)
	anonymous := clientTLS(t, right)
	anonymous.GetClientCertificate = nil
	for name, c := range map[string]struct {
		tls *tls.Config
		ok  bool
	}{
		"right certificate":         {clientTLS(t, right), true},
		"no certificate":            {anonymous, false},
		"another authority's":       {clientTLS(t, &lab.Certificate{CA: right.CA, Cert: wrong.Cert, Key: wrong.Key}), false},
		"server of another one":     {clientTLS(t, &lab.Certificate{CA: wrong.CA, Cert: right.Cert, Key: right.Key}), false},
		"no TLS's system authority": {nil, false},
	} {
		client := dialTest(t, Config{Endpoints: h.cfg.Listen, TLS: c.tls})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		_, err := client.Commit(ctx, nil, store.Put("k", nil))
		cancel()
		if c.ok && err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if !c.ok && !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("%s: %v, want ErrUnavailable", name, err)
		}
	}
}

func TestRenewedCertificateIsUsedWithoutRestart(t *testing.T) {
	t.Parallel()
	right, wrong := authority(t), authority(t)
	h := startHost(t, right)
	dir := t.TempDir()
	mine := &lab.Certificate{CA: right.CA, Cert: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem")}
	install := func(c *lab.Certificate) {
		for from, to := range map[string]string{c.Cert: mine.Cert, c.Key: mine.Key} {
			b, err := os.ReadFile(from)
			if err == nil {
				err = os.WriteFile(to, b, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	install(wrong)
	c := dialTest(t, Config{Endpoints: h.cfg.Listen, TLS: clientTLS(t, mine)})
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := c.Get(ctx, "k"); !errors.Is(err, store.ErrUnavailable) {
		t.Fatalf("with the wrong certificate: %v, want ErrUnavailable", err)
	}
	install(right)
	put(t, c, "k", "")
}

func TestClientTLSSaysWhichFileIsBad(t *testing.T) {
	t.Parallel()
	good := authority(t)
	empty := filepath.Join(t.TempDir(), "empty.pem")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ ca, cert, key, want string }{
		"no CA file":     {"/none/ca.pem", good.Cert, good.Key, "/none/ca.pem"},
		"empty CA":       {empty, good.Cert, good.Key, empty},
		"no certificate": {good.CA, "/none/cert.pem", good.Key, "/none/cert.pem"},
		"empty key":      {good.CA, good.Cert, empty, empty},
	} {
		if _, err := ClientTLS(c.ca, c.cert, c.key); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want an error that names %s", name, err, c.want)
		}
	}
}

func TestEmbedRefusesWhatIsUnsafe(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(*EmbedConfig)
		want   string
	}{
		"https without certificate": {func(c *EmbedConfig) { c.Listen = []string{"https://127.0.0.1:2379"} }, "certificate"},
		"plain http":                {func(c *EmbedConfig) { c.Listen = []string{"http://127.0.0.1:2379"} }, "use https"},
		"other scheme":              {func(c *EmbedConfig) { c.Listen = []string{"127.0.0.1:2379"} }, "127.0.0.1:2379"},
		"long run directory":        {func(c *EmbedConfig) { c.RunDir = "/" + strings.Repeat("d", 100) }, "shorter"},
	} {
		cfg := EmbedConfig{DataDir: t.TempDir(), RunDir: shortDir(t), Log: testLog(t)}
		c.change(&cfg)
		s, err := Embed(t.Context(), cfg)
		if err == nil {
			s.Close()
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want an error with %q", name, err, c.want)
		}
	}
}

func TestPlainHTTPOnlyWhenAskedFor(t *testing.T) {
	t.Parallel()
	dir := shortDir(t) // for both
	cfg := EmbedConfig{DataDir: dir, RunDir: dir, Log: testLog(t), Plain: true}
	cfg.Listen = []string{"http://" + freeAddress(t)}
	h := &host{cfg: cfg}
	h.start(t)
	defer h.stop()
	put(t, dialTest(t, Config{Endpoints: cfg.Listen}), "k", "")
}

func TestTwoStoresNeverShareADirectory(t *testing.T) {
	t.Parallel()
	h := startHost(t, nil)
	for name, cfg := range map[string]EmbedConfig{
		"data": {DataDir: h.cfg.DataDir, RunDir: shortDir(t), Log: testLog(t)},
		"run":  {DataDir: t.TempDir(), RunDir: h.cfg.RunDir, Log: testLog(t)},
	} {
		if s, err := Embed(t.Context(), cfg); err == nil {
			s.Close()
			t.Errorf("a second store shares the %s directory", name)
		} else if !strings.Contains(err.Error(), "in use") {
			t.Errorf("%s directory: %v, want that it is in use", name, err)
		}
	}
	put(t, dialTest(t, Config{Endpoints: []string{h.server.Endpoint()}}), "k", "") // the first is unharmed
	startHost(t, nil)                                                              // others run beside it
}
