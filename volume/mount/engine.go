package mount

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// mountTimeout bounds one mount, with what is waited for others of its server. Docker puts no deadline on a volume
	// plugin's call; its user waits.
	mountTimeout = 20 * time.Second
	// unmountTimeout bounds umount(2), after which the mount is detached.
	unmountTimeout = 5 * time.Second
	// probeTimeout is what a server may take to answer statfs(2).
	probeTimeout = 3 * time.Second
	// fresh is how long an answer of a server is believed.
	fresh = time.Second
)

// Config is what an Engine is made of.
type Config struct {
	// Dir has the mount points, one directory per volume; the daemon's own, in the mount namespace of dockerd.
	Dir string
	// Journal is the directory that outlives the daemon.
	Journal string
	Mounter Mounter
	Log     *slog.Logger
	// Now is the clock, time.Now if nil.
	Now func() time.Time
	// Boot identifies the kernel's run; read from the kernel if empty.
	Boot string
}

// Volume is what the engine has to know to mount one.
type Volume struct {
	Name string
	// Server names the lane.
	Server string
	// Options tells mounts with other options apart.
	Options string
	// Prepare finds out how to mount: it resolves names and dials, within its context.
	Prepare func(context.Context) (Plan, error)
}

// Engine mounts volumes at their first user and unmounts them after their last.
type Engine struct {
	cfg     Config
	journal journal
	lanes   *lanes

	mu      sync.Mutex
	volumes map[string]*volume
}

// volume is one volume on this node. lock is held while it is mounted or unmounted; Engine.mu guards the rest, which is
// read at any time.
type volume struct {
	lock  chan struct{}
	entry Entry
	state State
}

// Health is what the last question to a volume's server brought.
type Health string

// The healths of a mounted volume; that of others is empty.
const (
	Healthy Health = "healthy"
	Stale   Health = "stale"
	Hung    Health = "hung"
)

// State is what is known of a volume on this node, without asking anybody.
type State struct {
	// Mounted is the kernel's line at the time of mounting, zero if it is not mounted.
	Mounted Mounted
	Label   string
	Since   time.Time
	IDs     []string
	Health  Health
	// Checked is when Health was found out; Problem is the error with which the last mount or probe ended.
	Checked time.Time
	Problem error
	// Outdated: it is mounted with options that have changed since.
	Outdated bool
}

// New makes an Engine. Recover has to be called before anything else.
func New(cfg Config) (*Engine, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Boot == "" {
		boot, err := bootID()
		if err != nil {
			return nil, fmt.Errorf("volumes: %w", err)
		}
		cfg.Boot = boot
	}
	cfg.Dir = filepath.Clean(cfg.Dir)
	return &Engine{
		cfg: cfg, journal: journal{cfg.Journal}, lanes: newLanes(cfg.Now), volumes: map[string]*volume{},
	}, nil
}

// Path is where a volume is, or would be, mounted.
func (e *Engine) Path(name string) string { return filepath.Join(e.cfg.Dir, name) }

// Acquire makes sure that the volume is mounted, notes its user and returns its path. A user who is noted already changes
// nothing. On an error the user is not noted.
func (e *Engine) Acquire(ctx context.Context, v Volume, id string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, mountTimeout)
	defer cancel()
	vol, unlock, err := e.lock(ctx, v.Name)
	if err != nil {
		return "", err
	}
	defer unlock()
	err = e.present(ctx, vol, v, id)
	if err != nil {
		e.update(func() { vol.state.Problem = err })
		return "", err
	}
	entry := vol.entry.with(id)
	if err := e.journal.write(entry); err != nil {
		return "", errors.Join(err, e.drop(ctx, vol, v.Name))
	}
	e.update(func() { vol.entry, vol.state.IDs, vol.state.Problem = entry, entry.IDs, nil })
	return e.Path(v.Name), nil
}

// present makes sure that the volume is mounted and that its server answers.
func (e *Engine) present(ctx context.Context, vol *volume, v Volume, id string) error {
	mounts, err := e.cfg.Mounter.Mounts(e.Path(v.Name))
	if err != nil {
		return err
	}
	m, mounted := mounts[e.Path(v.Name)]
	others := vol.entry.usedBy(id)
	if !mounted {
		return e.mount(ctx, vol, v)
	}
	outdated := vol.entry.Options != v.Options
	if !outdated || len(others) > 0 {
		err := e.ask(ctx, vol, v.Server, m)
		switch {
		case err == nil:
			e.update(func() { vol.state.Outdated = outdated })
			return nil
		case !errors.Is(err, ErrStale):
			return err
		case len(others) > 0:
			return fmt.Errorf("%w, and %d other users hold it: stop their containers, then start them again", err, len(others))
		}
	}
	if err := e.unmount(ctx, v.Name, m); err != nil {
		return err
	}
	return e.mount(ctx, vol, v)
}

// mount mounts what is not mounted.
func (e *Engine) mount(ctx context.Context, vol *volume, v Volume) error {
	leave, err := e.lanes.enter(ctx, v.Server)
	if err != nil {
		return err
	}
	plan, err := v.Prepare(ctx)
	var r Result
	if err == nil {
		r, err = e.cfg.Mounter.Do(ctx, Task{Do: DoMount, Target: e.Path(v.Name), Plan: plan})
	}
	leave(err)
	if err != nil {
		return errors.Join(err, e.clean(ctx, v.Name))
	}
	mounts, err := e.cfg.Mounter.Mounts(e.Path(v.Name))
	if err != nil {
		return err
	}
	m, ok := mounts[e.Path(v.Name)]
	if !ok {
		return fmt.Errorf("mount %s: it was reported as done, but nothing is mounted", e.Path(v.Name))
	}
	now := e.cfg.Now()
	label := plan.Attempts[r.Attempt].Label
	e.update(func() {
		vol.entry.Boot, vol.entry.Server, vol.entry.Options = e.cfg.Boot, v.Server, v.Options
		vol.entry.Label, vol.entry.Since = label, now
		vol.state = State{Mounted: m, Label: label, Since: now, IDs: vol.entry.IDs, Health: Healthy, Checked: now}
	})
	e.cfg.Log.Info("volume mounted", "volume", v.Name, "server", v.Server, "as", label)
	return nil
}

// clean takes away what a mount that failed may have left: a child that was killed cleans up nothing.
func (e *Engine) clean(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), unmountTimeout)
	defer cancel()
	var errs []error
	for _, at := range []string{stage(e.Path(name)), e.Path(name)} {
		mounts, err := e.cfg.Mounter.Mounts(at)
		if m, ok := mounts[at]; ok {
			err = e.detach(ctx, at, m)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// ask asks the server behind a mount, unless it answered a moment ago.
func (e *Engine) ask(ctx context.Context, vol *volume, server string, m Mounted) error {
	if now := e.cfg.Now(); vol.state.Health == Healthy && now.Sub(vol.state.Checked) < fresh {
		return nil
	}
	leave, err := e.lanes.enter(ctx, server)
	if err != nil {
		return err
	}
	err = e.probe(ctx, vol, m)
	leave(err)
	return err
}

// probe asks the server behind a mount and notes the answer. The error wraps ErrStale or ErrDeadline accordingly.
func (e *Engine) probe(ctx context.Context, vol *volume, m Mounted) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	_, err := e.cfg.Mounter.Do(ctx, Task{Do: DoProbe, Target: e.Path(vol.entry.Name)})
	health := Healthy
	switch {
	case errors.Is(err, ErrDeadline):
		health = Hung
	case err != nil:
		// ESTALE: the exported directory was made anew; ENOTCONN: the FUSE daemon died; EIO after an abort.
		health, err = Stale, fmt.Errorf("%w: %w", ErrStale, err)
	}
	e.update(func() {
		vol.state.Health, vol.state.Checked, vol.state.Problem, vol.state.Mounted = health, e.cfg.Now(), err, m
	})
	return err
}

// Release notes that a user is gone, and unmounts after the last one. An unknown user is no error: Docker may repeat a
// call whose answer it did not get.
func (e *Engine) Release(ctx context.Context, name, id string) error {
	vol, unlock, err := e.lock(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	entry := vol.entry.without(id)
	if err := e.journal.write(entry); err != nil {
		return err
	}
	e.update(func() { vol.entry, vol.state.IDs = entry, entry.IDs })
	if len(entry.IDs) > 0 {
		return nil
	}
	return e.drop(ctx, vol, name)
}

// drop unmounts a volume that nobody uses.
func (e *Engine) drop(ctx context.Context, vol *volume, name string) error {
	if len(vol.entry.IDs) > 0 {
		return nil
	}
	mounts, err := e.cfg.Mounter.Mounts(e.Path(name))
	if err != nil {
		return err
	}
	if m, ok := mounts[e.Path(name)]; ok {
		if err := e.unmount(ctx, name, m); err != nil {
			e.update(func() { vol.state.Problem = err })
			return err
		}
		e.cfg.Log.Info("volume unmounted", "volume", name)
	}
	e.update(func() { vol.entry, vol.state = Entry{Name: name}, State{} })
	return nil
}

// unmount takes a mount away, if need be by detaching it: Docker always gets its answer.
func (e *Engine) unmount(ctx context.Context, name string, m Mounted) error {
	first, cancel := context.WithTimeout(context.WithoutCancel(ctx), unmountTimeout)
	defer cancel()
	_, err := e.cfg.Mounter.Do(first, Task{Do: DoUnmount, Target: e.Path(name)})
	if err == nil {
		return nil
	}
	e.cfg.Log.Warn("volume is detached, since umount failed", "volume", name, "error", err)
	second, cancel := context.WithTimeout(context.WithoutCancel(ctx), unmountTimeout)
	defer cancel()
	return e.detach(second, e.Path(name), m)
}

// detach takes a mount away at once. What waits for a frozen FUSE daemon is freed, which only the end of its connection
// does; nobody else has a use for it.
func (e *Engine) detach(ctx context.Context, at string, m Mounted) error {
	_, err := e.cfg.Mounter.Do(ctx, Task{Do: DoDetach, Target: at})
	if m.FUSE() {
		_, abortErr := e.cfg.Mounter.Do(ctx, Task{Do: DoAbort, Target: at, Device: m.Minor})
		err = errors.Join(err, abortErr)
	}
	return err
}

// State returns what is known of a volume; it asks nobody and waits for nobody.
func (e *Engine) State(name string) State {
	e.mu.Lock()
	defer e.mu.Unlock()
	if v := e.volumes[name]; v != nil {
		s := v.state
		s.IDs = slices.Clone(s.IDs)
		return s
	}
	return State{}
}

// Users returns who uses a volume on this node.
func (e *Engine) Users(name string) []string { return e.State(name).IDs }

// lock takes a volume's lock, within ctx.
func (e *Engine) lock(ctx context.Context, name string) (*volume, func(), error) {
	v := e.volume(name)
	select {
	case v.lock <- struct{}{}:
		return v, func() { <-v.lock }, nil
	case <-ctx.Done():
		return nil, nil, fmt.Errorf("wait for another call for volume %s: %w (%w)", name, ErrDeadline, ctx.Err())
	}
}

func (e *Engine) volume(name string) *volume {
	e.mu.Lock()
	defer e.mu.Unlock()
	v := e.volumes[name]
	if v == nil {
		v = &volume{lock: make(chan struct{}, 1), entry: Entry{Name: name}}
		e.volumes[name] = v
	}
	return v
}

func (e *Engine) update(f func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	f()
}

// Refused says whether an error of Acquire is an answer of the server's, with the system's number for it.
func Refused(err error) (unix.Errno, bool) {
	var f Failure
	if errors.As(err, &f) && f.Errno != 0 {
		return f.Errno, true
	}
	return 0, false
}

// InUse returns the states of the volumes that have a user.
func (e *Engine) InUse() map[string]State {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := map[string]State{}
	for name, v := range e.volumes {
		if len(v.entry.IDs) > 0 {
			out[name] = v.state
		}
	}
	return out
}
