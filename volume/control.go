package volume

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/netdriver/netdriver/internal/plugin"
	"github.com/netdriver/netdriver/store"
	"github.com/netdriver/netdriver/volume/mount"
	"github.com/netdriver/netdriver/volume/option"
)

// ControlPath is the socket, for root on this node, at which the daemon that uses a run directory answers the verbs of
// `netdriver volume`.
func ControlPath(runDir string) string { return filepath.Join(runDir, "volumes.sock") }

// The questions of the verbs; all are JSON posted to /Volumes.NAME, as Docker's are.
type (
	// NameRequest names a volume.
	NameRequest struct{ Name string }
	// ListResponse has all volumes, by name.
	ListResponse struct{ Volumes []Report }
	// UpdateRequest sets and removes options.
	UpdateRequest struct {
		Name  string
		Set   map[string]string
		Unset []string
	}
	// AbortRequest ends the FUSE connection of a volume, with Force also of one that answers.
	AbortRequest struct {
		Name  string
		Force bool
	}
	// HoldRequest asks for a volume's path, for as long as the process lives or until it gives it back.
	HoldRequest struct {
		Name string
		PID  int
	}
	// HoldResponse is where the volume is, and whether it can only be read.
	HoldResponse struct {
		Path     string
		ReadOnly bool
	}
)

// ControlMethods are the calls of the verbs that the driver answers.
func (d *Driver) ControlMethods() []plugin.Method {
	return []plugin.Method{
		plugin.Call("Volumes.List", d.reports),
		plugin.Call("Volumes.Inspect", d.inspect),
		plugin.Call("Volumes.Check", d.check),
		plugin.Call("Volumes.Abort", d.abort),
		plugin.Call("Volumes.Update", d.updateOptions),
		plugin.Call("Volumes.Remove", d.removeNamed),
		plugin.Call("Volumes.Hold", d.hold),
		plugin.Call("Volumes.Drop", d.dropHold),
		plugin.Call("Volumes.Backed", d.backed),
	}
}

func (d *Driver) reports(context.Context, *plugin.Empty) (ListResponse, error) {
	var out ListResponse
	for _, v := range d.catalog.list() {
		out.Volumes = append(out.Volumes, d.report(v))
	}
	return out, nil
}

func (d *Driver) inspect(ctx context.Context, r *NameRequest) (Report, error) {
	v, err := d.record(ctx, r.Name)
	if err != nil {
		return Report{}, err
	}
	return d.report(v), nil
}

// checker is the user that a check is, while it mounts a volume that nobody uses.
const checker = "check"

// check asks a volume's server now: by a probe if it is mounted here, else by mounting it for a moment.
func (d *Driver) check(ctx context.Context, r *NameRequest) (Report, error) {
	if _, err := d.acquire(ctx, r.Name, checker); err != nil {
		return Report{}, err
	}
	answer, err := d.inspect(ctx, r)
	answer.References = slices.DeleteFunc(answer.References, func(id string) bool { return id == checker })
	if use, ok := answer.Users[d.cfg.Node]; ok {
		use.Users = len(answer.References)
		answer.Users[d.cfg.Node] = use
		if use.Users == 0 {
			delete(answer.Users, d.cfg.Node)
		}
	}
	return answer, errors.Join(err, d.release(ctx, r.Name, checker))
}

// abort frees what waits for a volume whose FUSE daemon does not answer.
func (d *Driver) abort(ctx context.Context, r *AbortRequest) (Report, error) {
	answer, err := d.inspect(ctx, &NameRequest{r.Name})
	if err != nil {
		return answer, err
	}
	if err := d.engine.Abort(ctx, r.Name, r.Force); err != nil {
		return Report{}, fmt.Errorf("abort volume %s: %w", r.Name, err)
	}
	return d.inspect(ctx, &NameRequest{r.Name})
}

// updateOptions changes a volume's options. They take effect on each node once nobody there uses the volume any more.
func (d *Driver) updateOptions(ctx context.Context, r *UpdateRequest) (Report, error) {
	ctx, cancel := context.WithTimeout(ctx, plugin.StoreTimeout)
	defer cancel()
	for range retries {
		v, revision, err := d.updateOnce(ctx, r)
		if errors.Is(err, store.ErrConflict) {
			continue
		}
		if err == nil {
			err = d.catalog.wait(ctx, revision)
		}
		if err != nil {
			return Report{}, fmt.Errorf("update volume %s: %w", r.Name, err)
		}
		return d.report(v), nil
	}
	return Report{}, fmt.Errorf("update volume %s: %w, %d times", r.Name, store.ErrConflict, retries)
}

func (d *Driver) updateOnce(ctx context.Context, r *UpdateRequest) (store.Volume, int64, error) {
	kv, err := d.cfg.Store.Get(ctx, store.VolumeKey(r.Name))
	if errors.Is(err, store.ErrNotFound) {
		return store.Volume{}, 0, fmt.Errorf("%w %s", ErrNoVolume, r.Name)
	}
	if err != nil {
		return store.Volume{}, 0, err
	}
	v, err := store.Decode[store.Volume](kv)
	if err != nil {
		return v, 0, err
	}
	v.Options = maps.Clone(v.Options)
	if v.Options == nil {
		v.Options = map[string]string{}
	}
	maps.Copy(v.Options, r.Set)
	for _, key := range r.Unset {
		delete(v.Options, key)
	}
	if _, err := option.Parse(v.Options); err != nil {
		return v, 0, err
	}
	v.Updated = d.cfg.Now().UTC()
	v.Drift = slices.DeleteFunc(v.Drift, func(x store.VolumeDrift) bool { return option.Same(x.Options, v.Options) })
	revision, err := d.cfg.Store.Commit(ctx, []store.Cond{store.Unchanged(kv)}, store.Put(kv.Key, store.Encode(v)))
	if err == nil {
		d.log.Info("volume's options changed", "volume", r.Name)
	}
	return v, revision, err
}

func (d *Driver) removeNamed(ctx context.Context, r *NameRequest) (plugin.Empty, error) {
	ctx, cancel := context.WithTimeout(ctx, plugin.StoreTimeout)
	defer cancel()
	return plugin.Empty{}, d.removeRecord(ctx, r.Name)
}

// hold mounts a volume for a command of this node, such as a backup.
func (d *Driver) hold(ctx context.Context, r *HoldRequest) (HoldResponse, error) {
	id, err := holder(r.PID)
	if err != nil {
		return HoldResponse{}, fmt.Errorf("hold volume %s: %w", r.Name, err)
	}
	path, err := d.acquire(ctx, r.Name, id)
	if err != nil {
		return HoldResponse{}, err
	}
	v, err := d.record(ctx, r.Name)
	if err != nil {
		return HoldResponse{}, err
	}
	spec, err := option.Parse(v.Options)
	return HoldResponse{Path: path, ReadOnly: spec.ReadOnly()}, err
}

func (d *Driver) dropHold(ctx context.Context, r *HoldRequest) (plugin.Empty, error) {
	id, err := holder(r.PID)
	if err != nil {
		return plugin.Empty{}, fmt.Errorf("drop volume %s: %w", r.Name, err)
	}
	return plugin.Empty{}, d.release(ctx, r.Name, id)
}

// holderPrefix begins the ids of processes; Docker's are hexadecimal.
const holderPrefix = "process-"

// holder is the id of a process as a volume's user. Its start time tells it from a later process of the same number.
func holder(pid int) (string, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", err
	}
	// Field 22 of man 5 proc_pid_stat is the start time; the name, field 2 in parentheses, may have any byte.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	const startTime = 22 - 3
	if len(fields) <= startTime {
		return "", fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
	}
	return fmt.Sprintf("%s%d-%s", holderPrefix, pid, fields[startTime]), nil
}

// reapEvery is how often ended processes are looked for among the users.
const reapEvery = 10 * time.Second

// reap gives back what ended processes held.
func (d *Driver) reap(ctx context.Context) error {
	tick := time.NewTicker(reapEvery)
	defer tick.Stop()
	for {
		for name, s := range d.engine.InUse() {
			d.reapOne(ctx, name, s)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

func (d *Driver) reapOne(ctx context.Context, name string, s mount.State) {
	for _, id := range s.IDs {
		number, _, _ := strings.Cut(strings.TrimPrefix(id, holderPrefix), "-")
		pid, err := strconv.Atoi(number)
		if err != nil || !strings.HasPrefix(id, holderPrefix) {
			continue
		}
		if now, err := holder(pid); err == nil && now == id {
			continue
		}
		d.log.Info("a command that held a volume has ended without giving it back", "volume", name, "process", pid)
		if err := d.engine.Release(ctx, name, id); err != nil {
			d.log.Warn("cannot release a volume", "volume", name, "error", err)
		}
	}
}
