package volume

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/docker/go-plugins-helpers/volume"

	"github.com/netdriver/netdriver/store"
	"github.com/netdriver/netdriver/volume/mount"
)

// scheduled are two nodes with one clock, which make backups by noting that they do.
type scheduled struct {
	t     *testing.T
	store store.Store
	nodes []*node
	mu    sync.Mutex
	now   time.Time
	made  []string
	err   error
}

func newScheduled(t *testing.T) *scheduled {
	s := &scheduled{t: t, store: store.NewMemory(), now: time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)}
	for _, name := range []string{"n1", "n2"} {
		var n *node
		now := func() time.Time { s.mu.Lock(); defer s.mu.Unlock(); return s.now }
		backup := func(ctx context.Context, volume, to string, keep int) error {
			s.mu.Lock()
			s.made = append(s.made, fmt.Sprintf("%s to %s by %s, keep %d", volume, to, name, keep))
			err := s.err
			s.mu.Unlock()
			if err != nil {
				return err
			}
			b := store.VolumeBackup{Volume: volume, Started: now(), Finished: now(), Succeeded: now(), File: "f"}
			_, err = n.backed(ctx, &b)
			return err
		}
		fake := mount.NewFake()
		n = startWith(t, Config{Store: s.store, Node: name, Dir: t.TempDir(), Mounter: fake, Now: now}, fake)
		// Its own schedule has nothing to make: the test says when nodes look.
		looks := *n.Driver
		looks.cfg.Backup = backup
		n.Driver = &looks
		s.nodes = append(s.nodes, n)
	}
	return s
}

// after lets time pass, has all nodes look at once for what is due, and returns what was made.
func (s *scheduled) after(d time.Duration, nodes ...*node) string {
	s.t.Helper()
	s.mu.Lock()
	s.now, s.made = s.now.Add(d), nil
	s.mu.Unlock()
	var wg sync.WaitGroup
	for _, n := range nodes {
		eventually(s.t, func() bool { return len(n.catalog.list()) > 0 })
		for _, v := range n.catalog.list() {
			wg.Go(func() { n.backUp(s.t.Context(), v) })
		}
	}
	wg.Wait()
	s.settle()
	return strings.Join(s.made, "; ")
}

// settle waits until every node's copy has the store's record of the backup.
func (s *scheduled) settle() {
	s.t.Helper()
	for _, n := range s.nodes {
		eventually(s.t, func() bool {
			kept, _, err := n.readBackup(s.t.Context(), "data")
			seen, _ := n.catalog.backup("data")
			return err == nil && seen == kept
		})
	}
}

func TestAScheduledBackupIsMadeWhenItIsDueByOneNodeOnly(t *testing.T) {
	s := newScheduled(t)
	n1, n2 := s.nodes[0], s.nodes[1]
	n1.must(t, "Create", volume.CreateRequest{Name: "data", Options: opts{
		"type": "nfs", "o": "addr=192.0.2.1", "device": ":/x", "backup": "daily", "backup-to": "archive", "backup-keep": "3",
	}})
	if got := s.after(0, n1, n2); strings.Count(got, "data to archive by n") != 1 || !strings.Contains(got, "keep 3") {
		t.Errorf("at first: %q", got)
	}
	if got := s.after(23*time.Hour, n1, n2); got != "" {
		t.Errorf("before the day is over: %q", got)
	}
	s.err = errors.New("the archive's server is away")
	if got := s.after(time.Hour, n1); got == "" {
		t.Error("not made after a day")
	}
	status := n2.must(t, "Get", volume.GetRequest{Name: "data"})
	for _, want := range []string{`"lastBackup":"2026-11-01T00:00:00Z in f"`, "the archive's server is away"} {
		if !strings.Contains(status, want) {
			t.Errorf("status lacks %s: %s", want, status)
		}
	}
	s.err = nil
	if got := s.after(59*time.Minute, n1, n2); got != "" {
		t.Errorf("too soon after a failure: %q", got)
	}
	if got := s.after(time.Minute, n2); got == "" {
		t.Error("a failure is not followed by another try")
	}
	if status := n1.must(t, "Get", volume.GetRequest{Name: "data"}); strings.Contains(status, "away") {
		t.Errorf("the failure is still shown after a success: %s", status)
	}
}

func TestABackupThatADeadNodeHasBegunIsMadeByAnother(t *testing.T) {
	s := newScheduled(t)
	n1, n2 := s.nodes[0], s.nodes[1]
	n1.must(t, "Create", volume.CreateRequest{Name: "data", Options: opts{
		"type": "nfs", "o": "addr=192.0.2.1", "device": ":/x", "backup": "hourly", "backup-to": "archive",
	}})
	if _, err := s.store.Commit(t.Context(), nil, store.Put(store.AliveKey("n1"), []byte("{}"))); err != nil {
		t.Fatal(err)
	}
	if mine, err := n1.take(t.Context(), "data", time.Hour); err != nil || !mine {
		t.Fatal(mine, err)
	}
	s.settle()
	if got := s.after(2*time.Hour, n2); got != "" {
		t.Errorf("while its node lives, another makes it as well: %q", got)
	}
	if _, err := s.store.Commit(t.Context(), nil, store.Delete(store.AliveKey("n1"))); err != nil {
		t.Fatal(err)
	}
	if got := s.after(0, n2); got == "" {
		t.Error("nobody makes it")
	}
}

func TestALocalVolumeIsBackedUpWhereItsDataIs(t *testing.T) {
	s := newScheduled(t)
	n1, n2 := s.nodes[0], s.nodes[1]
	n1.must(t, "Create", volume.CreateRequest{Name: "data", Options: opts{"backup": "weekly", "backup-to": "archive"}})
	if got := s.after(0, n2); got != "" {
		t.Errorf("by the other node: %q", got)
	}
	if got := s.after(0, n1); got == "" {
		t.Error("not by its own node")
	}
	_, err := n1.call("Create", volume.CreateRequest{Name: "loop", Options: opts{"backup": "daily", "backup-to": "loop"}})
	if err == nil || !strings.Contains(err.Error(), "that is the volume itself") {
		t.Errorf("a volume backed up into itself: %v", err)
	}
	n1.must(t, "Remove", volume.RemoveRequest{Name: "data"})
	if _, err := s.store.Get(t.Context(), store.BackupKey("data")); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("the record of its backups outlives the volume: %v", err)
	}
}
