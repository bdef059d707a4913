package etcd

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/netdriver/netdriver/store"
)

// patience is how long a test waits for what comes by itself.
const patience = 20 * time.Second

func TestRestartKeepsTheDataAndTheWatch(t *testing.T) {
	t.Parallel()
	h := startHost(t, nil)
	c := dialTest(t, Config{Endpoints: []string{h.server.Endpoint()}})
	put(t, c, "w/1", "old")
	batches := c.Watch(t.Context(), "w/")
	next(t, batches)
	h.stop()
	h.start(t)
	if kv, err := c.Get(t.Context(), "w/1"); err != nil || string(kv.Value) != "old" {
		t.Fatalf("after the restart: %q, %v", kv.Value, err)
	}
	rev := put(t, c, "w/2", "new")
	if b := next(t, batches); b.Reset || b.Revision != rev || len(b.Events) != 1 {
		t.Errorf("%+v, want only the change at revision %d", b, rev)
	}
}

func TestWatchResetsWhenTheStoreLostItsData(t *testing.T) {
	t.Parallel()
	h := startHost(t, nil)
	c := dialTest(t, Config{Endpoints: []string{h.server.Endpoint()}})
	for range 10 {
		put(t, c, "w/old", "")
	}
	batches := c.Watch(t.Context(), "w/")
	last := next(t, batches).Revision
	h.stop()
	if err := os.RemoveAll(h.cfg.DataDir); err != nil {
		t.Fatal(err)
	}
	h.start(t)
	rev := put(t, c, "w/new", "")
	b := next(t, batches)
	if !b.Reset || b.Revision >= last {
		t.Fatalf("%+v, want a Reset with a revision below %d", b, last)
	}
	for b.Revision < rev {
		b = next(t, batches)
	}
	if len(b.Events) != 1 || b.Events[0].KV.Key != "w/new" {
		t.Errorf("%+v, want the new store's only key", b)
	}
}

func TestWatchIsNotDisturbedByTheSearchForLosses(t *testing.T) {
	t.Parallel()
	h := startHost(t, nil)
	c := dialTest(t, Config{Endpoints: []string{h.server.Endpoint()}})
	batches := c.Watch(t.Context(), "w/")
	next(t, batches)
	for range 20 {
		rev := put(t, c, "w/1", "")
		c.history.ask(t.Context())
		if b := next(t, batches); b.Reset || b.Revision != rev {
			t.Fatalf("%+v, want only the change at revision %d", b, rev)
		}
	}
}

func TestAliveKeyGoesWithItsWriter(t *testing.T) {
	t.Parallel()
	h := startHost(t, nil)
	observer := dialTest(t, Config{Endpoints: []string{h.server.Endpoint()}, Cluster: "alive"})
	writer := h.connectTo(t, "alive")
	putAlive(t, writer, "alive/a", "id")
	time.Sleep(3 * time.Second) // longer than the lease lasts by itself
	if _, err := observer.Get(t.Context(), "alive/a"); err != nil {
		t.Fatalf("the writer lives: %v", err)
	}
	writer.SetAvailable(false)
	waitAbsent(t, observer, "alive/a")
	writer.SetAvailable(true)
	waitValue(t, observer, "alive/a", "id") // put again by itself
	time.Sleep(3 * time.Second)
	waitValue(t, observer, "alive/a", "id")
	writer.Close()
	if _, err := observer.Get(t.Context(), "alive/a"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("after Close: %v, want ErrNotFound at once", err)
	}
}

func TestAliveKeyOfAnotherIsNotTakenBack(t *testing.T) {
	t.Parallel()
	h := startHost(t, nil)
	observer := dialTest(t, Config{Endpoints: []string{h.server.Endpoint()}, Cluster: "alive"})
	writer := h.connectTo(t, "alive")
	putAlive(t, writer, "alive/a", "mine")
	putAlive(t, writer, "alive/b", "mine")
	writer.SetAvailable(false)
	waitAbsent(t, observer, "alive/a")
	waitAbsent(t, observer, "alive/b")
	put(t, observer, "alive/a", "theirs")
	writer.SetAvailable(true)
	waitValue(t, observer, "alive/b", "mine") // written after a
	waitValue(t, observer, "alive/a", "theirs")
}

func TestAliveKeyIsBackAfterTheStoreLostItsData(t *testing.T) {
	t.Parallel()
	h := startHost(t, nil)
	c := dialTest(t, Config{Endpoints: []string{h.server.Endpoint()}, AliveTTL: 2 * time.Second})
	putAlive(t, c, "alive/a", "id")
	h.stop()
	if err := os.RemoveAll(h.cfg.DataDir); err != nil {
		t.Fatal(err)
	}
	h.start(t)
	waitValue(t, c, "alive/a", "id")
}

func TestCommitMakesANewLeaseWhenTheOldOneEnded(t *testing.T) {
	t.Parallel()
	h := startHost(t, nil)
	c := dialTest(t, Config{Endpoints: []string{h.server.Endpoint()}, AliveTTL: 2 * time.Second})
	putAlive(t, c, "alive/a", "1")
	id, err := c.alive.lease(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.admin(t).Revoke(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	putAlive(t, c, "alive/b", "2")
	waitValue(t, c, "alive/b", "2")
	waitValue(t, c, "alive/a", "1")
}

func TestEtcdsWarningsReachTheLog(t *testing.T) {
	t.Parallel()
	var out recorder
	var closing atomic.Bool
	log := logger(out.logger(), &closing).With(zap.String("member", "m"))
	log.Info("quiet")
	log.Warn("slow", zap.Duration("took", time.Second), zap.Error(errors.New("why")))
	log.Error("large", zap.String("request", strings.Repeat("x", 10*maxAttr)))
	closing.Store(true)
	log.Error("use of closed network connection")
	want := "level=WARN msg=slow part=etcd member=m took=1s error=why\n" +
		"level=ERROR msg=large part=etcd member=m request=" + strings.Repeat("x", maxAttr) + "…\n"
	if got := out.String(); got != want {
		t.Errorf("log:\n%swant:\n%s", got, want)
	}
}

// connectTo is connect for one cluster and with a short lease.
func (h *host) connectTo(t *testing.T, cluster string) *cuttable {
	t.Helper()
	c := h.connect(t, nil)
	c.Client = dialTest(t, Config{Endpoints: c.cfg.Endpoints, Cluster: cluster, AliveTTL: 2 * time.Second})
	return c
}

func putAlive(t *testing.T, s store.Store, key, value string) {
	t.Helper()
	if _, err := s.Commit(t.Context(), nil, store.PutAlive(key, []byte(value))); err != nil {
		t.Fatal(err)
	}
}

func next(t *testing.T, batches <-chan store.Batch) store.Batch {
	t.Helper()
	select {
	case b := <-batches:
		return b
	case <-time.After(patience):
		t.Fatal("nothing delivered")
	}
	panic("unreachable")
}

func waitAbsent(t *testing.T, s store.Store, key string) {
	t.Helper()
	waitFor(t, key+" to go", func(ctx context.Context) bool {
		_, err := s.Get(ctx, key)
		return errors.Is(err, store.ErrNotFound)
	})
}

func waitValue(t *testing.T, s store.Store, key, value string) {
	t.Helper()
	waitFor(t, key+" to be "+value, func(ctx context.Context) bool {
		kv, err := s.Get(ctx, key)
		return err == nil && string(kv.Value) == value
	})
}

func waitFor(t *testing.T, what string, done func(context.Context) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for !done(ctx) {
		if ctx.Err() != nil {
			t.Fatalf("waited %s for %s", patience, what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
