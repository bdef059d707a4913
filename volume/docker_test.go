package volume

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/docker/go-plugins-helpers/volume"

	"github.com/netdriver/netdriver/store"
	"github.com/netdriver/netdriver/volume/mount"
)

// dockerd is an engine that knows plugins and containers.
type dockerd struct {
	mu        sync.Mutex
	holders   map[string]int
	activated []string
	err       error
	wake      chan struct{}
}

func (d *dockerd) Holders(_ context.Context, name string) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.holders[name], d.err
}

func (d *dockerd) Activate(_ context.Context, plugin string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.activated = append(d.activated, plugin)
	return d.err
}

func (d *dockerd) Opened(context.Context) <-chan struct{} { return d.wake }

func TestAUserThatDockerHasForgottenIsReleasedAndNoOther(t *testing.T) {
	engine := &dockerd{holders: map[string]int{"kept": 1}, wake: make(chan struct{})}
	var passed atomic.Int64
	now := func() time.Time { return time.Unix(1e9, passed.Load()) }
	fake := mount.NewFake()
	n := startWith(t, Config{
		Store: store.NewMemory(), Node: "n1", Dir: t.TempDir(), Mounter: fake, Docker: engine, Now: now,
	}, fake)
	for _, name := range []string{"kept", "gone", "held"} {
		n.must(t, "Create", volume.CreateRequest{Name: name})
	}
	n.must(t, "Mount", volume.MountRequest{Name: "kept", ID: "aaaa"})
	n.must(t, "Mount", volume.MountRequest{Name: "gone", ID: "bbbb"})
	if _, err := n.acquire(t.Context(), "held", holderPrefix+"1-2"); err != nil {
		t.Fatal(err)
	}
	suspects := map[string]suspect{}
	look := func(later time.Duration) {
		passed.Add(int64(later))
		suspects = n.look(t.Context(), suspects)
	}
	mounted := func() (names []string) {
		for name := range n.engine.InUse() {
			names = append(names, name)
		}
		slices.Sort(names)
		return names
	}
	all := []string{"gone", "held", "kept"}
	look(0)
	look(staleAfter - time.Second)
	if got := mounted(); !slices.Equal(got, all) {
		t.Fatalf("released too early: left %v", got)
	}
	engine.err = errors.New("no answer")
	look(time.Hour)
	engine.err = nil
	look(0) // it has to be seen anew
	n.must(t, "Mount", volume.MountRequest{Name: "gone", ID: "cccc"})
	look(staleAfter) // other users: anew again
	if got := mounted(); !slices.Equal(got, all) {
		t.Fatalf("released without Docker's word: left %v", got)
	}
	look(staleAfter)
	if got := mounted(); !slices.Equal(got, []string{"held", "kept"}) || fake.Mounted(n.engine.Path("gone")) {
		t.Errorf("left %v", got)
	}
}

func TestDockerIsMadeToKnowThePluginAtOnceAndAfterItsRestart(t *testing.T) {
	engine := &dockerd{wake: make(chan struct{})}
	fake := mount.NewFake()
	startWith(t, Config{Store: store.NewMemory(), Node: "n1", Dir: t.TempDir(), Mounter: fake, Docker: engine}, fake)
	count := func() int {
		engine.mu.Lock()
		defer engine.mu.Unlock()
		return len(engine.activated)
	}
	eventually(t, func() bool { return count() == 1 && engine.activated[0] == "custom-volume" })
	engine.wake <- struct{}{}
	eventually(t, func() bool { return count() == 2 })
}
