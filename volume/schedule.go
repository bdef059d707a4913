package volume

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/netdriver/netdriver/internal/plugin"
	"github.com/netdriver/netdriver/store"
	"github.com/netdriver/netdriver/volume/option"
)

const (
	// scheduleEvery is how often volumes are looked for whose backup is due.
	scheduleEvery = 30 * time.Second
	// retryAfter is the pause after a backup that failed.
	retryAfter = time.Hour
	// backupLimit is how long a backup may run before another node takes it to be lost.
	backupLimit = 24 * time.Hour
)

// backed notes how a backup went. What the last good one was is kept when one fails.
func (d *Driver) backed(ctx context.Context, b *store.VolumeBackup) (plugin.Empty, error) {
	ctx, cancel := context.WithTimeout(ctx, plugin.StoreTimeout)
	defer cancel()
	b.Node = d.cfg.Node
	if err := d.writeBackup(ctx, *b); err != nil {
		return plugin.Empty{}, fmt.Errorf("note the backup of volume %s: %w", b.Volume, err)
	}
	return plugin.Empty{}, nil
}

func (d *Driver) writeBackup(ctx context.Context, b store.VolumeBackup) error {
	for range retries {
		old, cond, err := d.readBackup(ctx, b.Volume)
		if err != nil {
			return err
		}
		if b.Error != "" {
			b.Succeeded, b.File, b.Entries, b.Bytes, b.Unchanged = old.Succeeded, old.File, old.Entries, old.Bytes, old.Unchanged
		}
		_, err = d.cfg.Store.Commit(ctx, []store.Cond{store.Exists(store.VolumeKey(b.Volume)), cond},
			store.Put(store.BackupKey(b.Volume), store.Encode(b)))
		if !errors.Is(err, store.ErrConflict) {
			return err
		}
	}
	return store.ErrConflict
}

// readBackup returns a volume's record, and what has to hold for writing another.
func (d *Driver) readBackup(ctx context.Context, name string) (b store.VolumeBackup, unchanged store.Cond, err error) {
	kv, err := d.cfg.Store.Get(ctx, store.BackupKey(name))
	if errors.Is(err, store.ErrNotFound) {
		return b, store.Absent(store.BackupKey(name)), nil
	}
	if err != nil {
		return b, store.Cond{}, err
	}
	b, err = store.Decode[store.VolumeBackup](kv)
	return b, store.Unchanged(kv), err
}

// schedule makes the backups that are due, one after the other.
func (d *Driver) schedule(ctx context.Context) error {
	if d.cfg.Backup == nil {
		<-ctx.Done()
		return ctx.Err()
	}
	tick := time.NewTicker(scheduleEvery)
	defer tick.Stop()
	for {
		moved := d.catalog.changes()
		for _, v := range d.catalog.list() {
			d.backUp(ctx, v)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-moved: // a volume is new, or has other options
		case <-tick.C:
		}
	}
}

// backUp makes a volume's backup, if it is due and this node's to make.
func (d *Driver) backUp(ctx context.Context, v store.Volume) {
	spec, err := option.Parse(v.Options)
	if err != nil || spec.Backup.Every == 0 || d.away(v, spec) {
		return
	}
	if last, _ := d.catalog.backup(v.Name); !d.due(ctx, last, spec.Backup.Every) {
		return
	}
	mine, err := d.take(ctx, v.Name, spec.Backup.Every)
	if err != nil || !mine {
		if err != nil {
			d.log.Warn("cannot begin a backup", "volume", v.Name, "error", err)
		}
		return
	}
	d.log.Info("backup begins", "volume", v.Name, "to", spec.Backup.To)
	err = d.cfg.Backup(ctx, v.Name, spec.Backup.To, spec.Backup.Keep)
	if err == nil {
		d.log.Info("backup made", "volume", v.Name, "to", spec.Backup.To)
		return
	}
	d.log.Warn("backup failed", "volume", v.Name, "to", spec.Backup.To, "error", err)
	if ctx.Err() != nil { // the next daemon, or another node, makes it
		return
	}
	now := d.cfg.Now().UTC()
	_, err = d.backed(ctx, &store.VolumeBackup{Volume: v.Name, Started: now, Finished: now, Error: err.Error()})
	if err != nil {
		d.log.Warn("cannot note that a backup failed", "volume", v.Name, "error", err)
	}
}

// away: the data is on another node.
func (d *Driver) away(v store.Volume, spec option.Spec) bool {
	return spec.Type == option.Local && v.Node != d.cfg.Node
}

// due says whether it is time, and nobody is at it.
func (d *Driver) due(ctx context.Context, last store.VolumeBackup, every time.Duration) bool {
	since := d.cfg.Now().Sub(last.Started)
	switch {
	case last.Started.IsZero():
		return true
	case last.Finished.IsZero():
		return since > backupLimit || last.Node == d.cfg.Node || d.gone(ctx, last.Node)
	case last.Error != "":
		return since >= min(every, retryAfter)
	}
	return since >= every
}

// gone says whether a node's daemon has ended, and a backup that it has begun with it.
func (d *Driver) gone(ctx context.Context, node string) bool {
	ctx, cancel := context.WithTimeout(ctx, plugin.StoreTimeout)
	defer cancel()
	_, err := d.cfg.Store.Get(ctx, store.AliveKey(node))
	return errors.Is(err, store.ErrNotFound)
}

// take takes a backup upon this node, by a record that says so. It looks once more: the copy of the records may be behind.
func (d *Driver) take(ctx context.Context, name string, every time.Duration) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, plugin.StoreTimeout)
	defer cancel()
	last, cond, err := d.readBackup(ctx, name)
	if err != nil || !d.due(ctx, last, every) {
		return false, err
	}
	last.Volume, last.Node, last.Started, last.Finished, last.Error = name, d.cfg.Node, d.cfg.Now().UTC(), time.Time{}, ""
	_, err = d.cfg.Store.Commit(ctx, []store.Cond{store.Exists(store.VolumeKey(name)), cond},
		store.Put(store.BackupKey(name), store.Encode(last)))
	if errors.Is(err, store.ErrConflict) {
		return false, nil
	}
	return err == nil, err
}
