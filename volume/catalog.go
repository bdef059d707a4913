package volume

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/netdriver/netdriver/store"
)

// catalog is this node's copy of the cluster's volumes: Docker's questions are answered from it. A copy on disk lets a
// daemon that starts without its store mount what it knows.
type catalog struct {
	store store.Store
	log   *slog.Logger
	// file has the copy on disk.
	file string

	mu       sync.RWMutex
	volumes  map[string]store.Volume
	uses     map[string]store.VolumeUses // by node
	backups  map[string]store.VolumeBackup
	revision int64
	// known: there is a copy, of the store or of the disk. synced: it is the store's.
	known, synced bool
	// moved is closed, and made anew, after each change.
	moved chan struct{}
}

func newCatalog(s store.Store, file string, log *slog.Logger) *catalog {
	return &catalog{
		store: s, log: log, file: file,
		volumes: map[string]store.Volume{}, uses: map[string]store.VolumeUses{},
		backups: map[string]store.VolumeBackup{}, moved: make(chan struct{}),
	}
}

// run follows the store until ctx ends.
func (c *catalog) run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { follow(ctx, c, store.VolumePrefix, &c.volumes, c.afterVolumes) })
	wg.Go(func() { follow(ctx, c, store.VolumeUsePrefix, &c.uses, func(int64) {}) })
	wg.Go(func() { follow(ctx, c, store.BackupPrefix, &c.backups, func(int64) {}) })
	wg.Wait()
	return ctx.Err()
}

// follow keeps one map as the store has it. A record that cannot be decoded leaves the last good one in place.
func follow[R store.Record](ctx context.Context, c *catalog, prefix string, into *map[string]R, after func(int64)) {
	for b := range c.store.Watch(ctx, prefix) {
		c.mu.Lock()
		have := *into
		if b.Reset {
			*into = make(map[string]R, len(b.Events))
		}
		for _, e := range b.Events {
			name := e.KV.Key[len(prefix):]
			if e.Deleted {
				delete(*into, name)
				continue
			}
			r, err := store.Decode[R](e.KV)
			if err == nil {
				(*into)[name] = r
				continue
			}
			c.log.Warn("bad record", "volume", name, "error", err)
			if old, ok := have[name]; ok {
				(*into)[name] = old
			}
		}
		after(b.Revision)
		close(c.moved)
		c.moved = make(chan struct{})
		c.mu.Unlock()
	}
}

// afterVolumes notes how far the copy is; the caller holds the lock.
func (c *catalog) afterVolumes(revision int64) {
	c.revision, c.known, c.synced = revision, true, true
	c.save()
}

// load reads the copy on disk, which serves until the store's arrives.
func (c *catalog) load() {
	text, err := os.ReadFile(c.file)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	volumes := map[string]store.Volume{}
	if err == nil {
		err = json.Unmarshal(text, &volumes)
	}
	if err != nil {
		c.log.Warn("cannot use this node's copy of the volumes; the store's is waited for", "file", c.file, "error", err)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.known {
		c.volumes, c.known = volumes, true
	}
}

// save writes the copy on disk. A failure costs only what load is for.
func (c *catalog) save() {
	text, err := json.Marshal(c.volumes)
	if err == nil {
		err = os.MkdirAll(filepath.Dir(c.file), 0o700)
	}
	if err == nil {
		err = os.WriteFile(c.file+".new", text, 0o600)
	}
	if err == nil {
		err = os.Rename(c.file+".new", c.file)
	}
	if err != nil {
		c.log.Warn("cannot keep a copy of the volumes on this node", "file", c.file, "error", err)
	}
}

// get returns a volume; the error wraps ErrNoVolume, or store.ErrUnavailable as long as nothing is known.
func (c *catalog) get(name string) (store.Volume, error) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	v, ok := c.volumes[name]
	switch {
	case ok:
		return v, nil
	case !c.known:
		return v, fmt.Errorf("volume %s: %w: the volumes have not been read yet", name, store.ErrUnavailable)
	}
	return v, fmt.Errorf("%w %s", ErrNoVolume, name)
}

// list returns all volumes by name.
func (c *catalog) list() []store.Volume {
	c.mu.RLock()
	defer c.mu.RUnlock()
	out := make([]store.Volume, 0, len(c.volumes))
	for _, name := range slices.Sorted(maps.Keys(c.volumes)) {
		out = append(out, c.volumes[name])
	}
	return out
}

// users returns the nodes that use a volume, with how many users each has.
func (c *catalog) users(name string) map[string]store.VolumeUse {
	c.mu.RLock()
	defer c.mu.RUnlock()
	out := map[string]store.VolumeUse{}
	for node, uses := range c.uses {
		if u, ok := uses.Volumes[name]; ok {
			out[node] = u
		}
	}
	return out
}

// backup returns what is known of a volume's backups.
func (c *catalog) backup(name string) (store.VolumeBackup, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	b, ok := c.backups[name]
	return b, ok
}

// changes is closed at the next change.
func (c *catalog) changes() <-chan struct{} {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.moved
}

// wait returns when the copy shows what a transaction wrote.
func (c *catalog) wait(ctx context.Context, revision int64) error {
	for {
		c.mu.RLock()
		done, moved := c.synced && c.revision >= revision, c.moved
		c.mu.RUnlock()
		if done {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return fmt.Errorf("wait for the volume's record: %w: %w", store.ErrUnavailable, ctx.Err())
		}
	}
}
