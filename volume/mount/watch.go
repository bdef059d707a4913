package mount

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// watchEvery is how often mounted volumes are asked for their health, and what nobody uses is looked for.
const watchEvery = 30 * time.Second

// Recover reads what the last daemon left and makes it agree with the kernel: users of an earlier boot are forgotten, and
// what is mounted without a user is unmounted. It asks no server.
func (e *Engine) Recover(ctx context.Context) error {
	entries, err := e.journal.read()
	if err != nil {
		return err
	}
	mounts, err := e.cfg.Mounter.Mounts(e.cfg.Dir)
	if err != nil {
		return err
	}
	var errs []error
	for name, entry := range entries {
		if entry.Boot != e.cfg.Boot {
			entry.IDs = nil
			errs = append(errs, e.journal.write(entry))
			continue
		}
		vol := e.volume(name)
		m := mounts[e.Path(name)]
		e.update(func() {
			vol.entry = entry
			vol.state = State{Mounted: m, Label: entry.Label, Since: entry.Since, IDs: entry.IDs}
		})
	}
	return errors.Join(append(errs, e.sweep(ctx))...)
}

// Run watches the health of mounted volumes until ctx ends. Each server is asked by its own, so that one that does not
// answer hides nothing of the others.
func (e *Engine) Run(ctx context.Context) error {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		if err := e.sweep(ctx); err != nil {
			e.cfg.Log.Warn("cannot unmount what nobody uses; it is tried again", "error", err)
		}
		e.Check(ctx)
	}
}

// Check asks the servers of all mounted volumes once and returns when each has answered or its time is over.
func (e *Engine) Check(ctx context.Context) {
	byServer := map[string][]string{}
	e.mu.Lock()
	for name, v := range e.volumes {
		if len(v.entry.IDs) > 0 {
			byServer[v.entry.Server] = append(byServer[v.entry.Server], name)
		}
	}
	e.mu.Unlock()
	done := make(chan struct{})
	for _, names := range byServer {
		go func() {
			slices.Sort(names)
			for _, name := range names {
				e.checkOne(ctx, name)
			}
			done <- struct{}{}
		}()
	}
	for range byServer {
		<-done
	}
}

// checkOne asks the server of one volume. What changes is told once.
func (e *Engine) checkOne(ctx context.Context, name string) {
	vol, unlock, err := e.lock(ctx, name)
	if err != nil {
		return
	}
	defer unlock()
	mounts, err := e.cfg.Mounter.Mounts(e.Path(name))
	m, mounted := mounts[e.Path(name)]
	if err != nil || len(vol.entry.IDs) == 0 {
		return
	}
	before := e.State(name).Health
	if !mounted {
		err = fmt.Errorf("%w: somebody else has unmounted it", ErrStale)
		e.update(func() { vol.state.Health, vol.state.Checked, vol.state.Problem = Stale, e.cfg.Now(), err })
	} else {
		err = e.probe(ctx, vol, m)
		e.lanes.note(e.lanes.lane(vol.entry.Server), err)
	}
	if after := e.State(name).Health; after != before && (before != "" || after != Healthy) {
		e.cfg.Log.Info("volume's health changed", "volume", name, "server", vol.entry.Server, "before", before, "now", after,
			"error", err)
	}
}

// sweep unmounts what is below our directory and has no user: a call was cut off by the daemon's end, or its umount did
// not succeed. Everything there is ours.
func (e *Engine) sweep(ctx context.Context) error {
	mounts, err := e.cfg.Mounter.Mounts(e.cfg.Dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, at := range slices.Sorted(maps.Keys(mounts)) {
		name := filepath.Base(at)
		if filepath.Dir(at) != e.cfg.Dir {
			continue
		}
		volumeName, staged := strings.CutPrefix(name, ".stage-")
		errs = append(errs, e.sweepOne(ctx, volumeName, at, mounts[at], staged))
	}
	return errors.Join(errs...)
}

func (e *Engine) sweepOne(ctx context.Context, name, at string, m Mounted, staged bool) error {
	vol := e.volume(name)
	select {
	case vol.lock <- struct{}{}:
		defer func() { <-vol.lock }()
	default:
		return nil // a call is at work on it
	}
	if staged {
		return e.detach(ctx, at, m)
	}
	return e.drop(ctx, vol, name)
}
