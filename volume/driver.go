// Package volume is Docker's volume plugin: volumes are records of the cluster, made once and usable on every node; each
// node mounts what its containers use. Docker's questions are answered from memory, and what may block on a server is
// done elsewhere (volume/mount), so that a dead server never holds up Docker.
package volume

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/docker/go-plugins-helpers/volume"
	"golang.org/x/sync/errgroup"

	"github.com/netdriver/netdriver/internal/plugin"
	"github.com/netdriver/netdriver/store"
	"github.com/netdriver/netdriver/volume/backend"
	"github.com/netdriver/netdriver/volume/mount"
	"github.com/netdriver/netdriver/volume/option"
)

// Socket is the file in Docker's plugin directory by whose name users know the plugin: -d custom-volume.
const Socket = "custom-volume.sock"

// retries bounds how often a transaction that lost a race is tried again.
const retries = 16

var (
	// ErrNoVolume says that the cluster has no volume of that name. Docker knows it by "no such volume".
	ErrNoVolume = errors.New("no such volume")
	// ErrDrift says that a volume exists with other options than those asked for.
	ErrDrift = errors.New("the volume exists with other options")
	// ErrInUse says that a volume cannot go since somebody uses it.
	ErrInUse = errors.New("the volume is in use")
)

// Config is what a Driver is made of.
type Config struct {
	Store store.Store
	// Node is this node's name in the cluster.
	Node string
	// Dir is the directory that outlives the daemon: local volumes, the journal, the copy of the records.
	Dir string
	// Mounts has the mount points.
	Mounts  string
	Mounter mount.Mounter
	// Tunnel is the command line of a TLS tunnel's process, see package tunnel.
	Tunnel []string
	// Backup backs one volume up into another, as `netdriver volume backup` does; nil: nothing is backed up on schedule.
	Backup func(ctx context.Context, volume, to string, keep int) error
	// Docker is this node's engine; nil: it is not asked.
	Docker Docker
	Log    *slog.Logger
	// Now is the clock, time.Now if nil.
	Now func() time.Time
}

// Driver answers Docker's volume calls.
type Driver struct {
	cfg     Config
	host    backend.Host
	engine  *mount.Engine
	catalog *catalog
	log     *slog.Logger
}

// New makes a Driver. It does nothing until Run.
func New(cfg Config) (*Driver, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	engine, err := mount.New(mount.Config{
		Dir: cfg.Mounts, Journal: filepath.Join(cfg.Dir, "journal"), Mounter: cfg.Mounter, Log: cfg.Log, Now: cfg.Now,
	})
	if err != nil {
		return nil, err
	}
	return &Driver{
		cfg: cfg, engine: engine, log: cfg.Log,
		host: backend.Host{
			Data: filepath.Join(cfg.Dir, "data"), Logs: filepath.Join(cfg.Dir, "logs"),
			Tunnels: filepath.Join(cfg.Dir, "tunnels"), Tunnel: cfg.Tunnel,
		},
		catalog: newCatalog(cfg.Store, filepath.Join(cfg.Dir, "catalog.json"), cfg.Log),
	}, nil
}

// Recover makes what the last daemon knew and mounted this one's. It is called before calls are answered.
func (d *Driver) Recover(ctx context.Context) error {
	d.catalog.load()
	return d.engine.Recover(ctx)
}

// Run follows the records, watches the mounts and publishes what is used, until ctx ends. What is mounted stays.
func (d *Driver) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return d.catalog.run(ctx) })
	g.Go(func() error { return d.engine.Run(ctx) })
	g.Go(func() error { return d.publish(ctx) })
	g.Go(func() error { return d.reap(ctx) })
	g.Go(func() error { return d.schedule(ctx) })
	g.Go(func() error { return d.activate(ctx) })
	g.Go(func() error { return d.forget(ctx) })
	return g.Wait()
}

// Methods are the calls of Docker's that the driver answers.
func (d *Driver) Methods() []plugin.Method {
	return []plugin.Method{
		plugin.Call("VolumeDriver.Create", d.create),
		plugin.Call("VolumeDriver.Get", d.get),
		plugin.Call("VolumeDriver.List", d.list),
		plugin.Call("VolumeDriver.Remove", d.remove),
		plugin.Call("VolumeDriver.Path", d.path),
		plugin.Call("VolumeDriver.Mount", d.mount),
		plugin.Call("VolumeDriver.Unmount", d.unmount),
		plugin.Call("VolumeDriver.Capabilities", d.capabilities),
	}
}

// capabilities: global, since a volume that was made on one node is there on all.
func (d *Driver) capabilities(context.Context, *plugin.Empty) (volume.CapabilitiesResponse, error) {
	return volume.CapabilitiesResponse{Capabilities: volume.Capability{Scope: "global"}}, nil
}

// create makes the volume's record. Creating it again with the same options, or with none, changes nothing: each node of
// a swarm creates a service's volume anew.
func (d *Driver) create(ctx context.Context, r *volume.CreateRequest) (plugin.Empty, error) {
	ctx, cancel := context.WithTimeout(ctx, plugin.StoreTimeout)
	defer cancel()
	if err := store.CheckVolumeName(r.Name); err != nil {
		return plugin.Empty{}, err
	}
	spec, err := option.Parse(r.Options)
	if err == nil && spec.Backup.To == r.Name {
		err = fmt.Errorf("%w backup-to=%s: that is the volume itself", option.ErrOption, r.Name)
	}
	if err != nil {
		return plugin.Empty{}, fmt.Errorf("create volume %s: %w", r.Name, err)
	}
	for range retries {
		revision, err := d.createOnce(ctx, r.Name, r.Options)
		if errors.Is(err, store.ErrConflict) {
			continue
		}
		if err != nil {
			return plugin.Empty{}, fmt.Errorf("create volume %s: %w", r.Name, err)
		}
		return plugin.Empty{}, d.catalog.wait(ctx, revision)
	}
	return plugin.Empty{}, fmt.Errorf("create volume %s: %w, %d times", r.Name, store.ErrConflict, retries)
}

func (d *Driver) createOnce(ctx context.Context, name string, options map[string]string) (revision int64, err error) {
	key := store.VolumeKey(name)
	kv, err := d.cfg.Store.Get(ctx, key)
	if errors.Is(err, store.ErrNotFound) {
		v := store.Volume{Name: name, Options: options, Node: d.cfg.Node, Created: d.cfg.Now().UTC()}
		revision, err = d.cfg.Store.Commit(ctx, []store.Cond{store.Absent(key)}, store.Put(key, store.Encode(v)))
		if err == nil {
			d.log.Info("volume created", "volume", name, "node", d.cfg.Node)
		}
		return revision, err
	}
	if err != nil {
		return 0, err
	}
	v, err := store.Decode[store.Volume](kv)
	if err != nil {
		return 0, err
	}
	if len(options) == 0 || option.Same(v.Options, options) {
		return kv.Modified, nil
	}
	return 0, d.drift(ctx, kv, v, options)
}

// drift notes that this node asked for other options, and refuses them: a container that got another server's directory
// than it was started for could overwrite it.
func (d *Driver) drift(ctx context.Context, kv store.KV, v store.Volume, options map[string]string) error {
	v.Drift = slices.DeleteFunc(slices.Clone(v.Drift), func(x store.VolumeDrift) bool { return x.Node == d.cfg.Node })
	v.Drift = append(v.Drift, store.VolumeDrift{Node: d.cfg.Node, Options: options, Since: d.cfg.Now().UTC()})
	_, err := d.cfg.Store.Commit(ctx, []store.Cond{store.Unchanged(kv)}, store.Put(kv.Key, store.Encode(v)))
	if errors.Is(err, store.ErrConflict) {
		return err
	}
	return errors.Join(fmt.Errorf("%w: %s; change them with `netdriver volume update %s`, or remove the volume first",
		ErrDrift, difference(v.Options, options), v.Name), err)
}

// difference tells how two sets of options differ.
func difference(have, want map[string]string) string {
	var out []string
	keys := slices.Sorted(maps.Keys(have))
	for key := range want {
		if _, ok := have[key]; !ok {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	for _, key := range keys {
		if have[key] != want[key] {
			out = append(out, fmt.Sprintf("%s is %q and %q is wanted", key, have[key], want[key]))
		}
	}
	return strings.Join(out, ", ")
}

// remove removes the record. Data stays where it is: on the server, or in this node's directory.
func (d *Driver) remove(ctx context.Context, r *volume.RemoveRequest) (plugin.Empty, error) {
	ctx, cancel := context.WithTimeout(ctx, plugin.StoreTimeout)
	defer cancel()
	return plugin.Empty{}, d.removeRecord(ctx, r.Name)
}

func (d *Driver) removeRecord(ctx context.Context, name string) error {
	if err := store.CheckVolumeName(name); err != nil {
		return err
	}
	if users := d.engine.Users(name); len(users) > 0 {
		return fmt.Errorf("remove volume %s: %w by %d containers on this node", name, ErrInUse, len(users))
	}
	if err := d.usedElsewhere(ctx, name); err != nil {
		return fmt.Errorf("remove volume %s: %w", name, err)
	}
	revision, err := d.cfg.Store.Commit(ctx, []store.Cond{store.Exists(store.VolumeKey(name))}, store.Delete(store.VolumeKey(name)),
		store.Delete(store.BackupKey(name)))
	if errors.Is(err, store.ErrConflict) {
		return nil // it is gone: a repeated call
	}
	if err != nil {
		return fmt.Errorf("remove volume %s: %w", name, err)
	}
	d.log.Info("volume removed; its data stays", "volume", name)
	return d.catalog.wait(ctx, revision)
}

// usedElsewhere refuses a volume that another node uses, unless that node's daemon is gone: what it said last would keep
// the volume for ever, and removing the record takes no data away.
func (d *Driver) usedElsewhere(ctx context.Context, name string) error {
	for node, use := range d.catalog.users(name) {
		if node == d.cfg.Node {
			continue
		}
		_, err := d.cfg.Store.Get(ctx, store.AliveKey(node))
		if errors.Is(err, store.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		return fmt.Errorf("%w by %d containers on node %s: stop them first", ErrInUse, use.Users, node)
	}
	return nil
}

// mount mounts the volume for one more container.
func (d *Driver) mount(ctx context.Context, r *volume.MountRequest) (volume.MountResponse, error) {
	path, err := d.acquire(ctx, r.Name, r.ID)
	return volume.MountResponse{Mountpoint: path}, err
}

func (d *Driver) acquire(ctx context.Context, name, id string) (string, error) {
	if id == "" {
		return "", fmt.Errorf("mount volume %s: no id given", name)
	}
	v, explain, err := d.open(ctx, name)
	if err != nil {
		return "", fmt.Errorf("mount volume %s: %w", name, err)
	}
	path, err := d.engine.Acquire(ctx, v, id)
	if err != nil {
		return "", fmt.Errorf("mount volume %s: %w", name, explain(err))
	}
	return path, nil
}

// open returns how to mount a volume.
func (d *Driver) open(ctx context.Context, name string) (mount.Volume, func(error) error, error) {
	rec, err := d.record(ctx, name)
	if err != nil {
		return mount.Volume{}, nil, err
	}
	spec, err := option.Parse(rec.Options)
	if err != nil {
		return mount.Volume{}, nil, err
	}
	if spec.Type == option.Local && spec.Path == "" && rec.Node != d.cfg.Node {
		return mount.Volume{}, nil, fmt.Errorf("it is of type=local and its data is on node %s: start the container there, or "+
			"make a volume that every node can reach", rec.Node)
	}
	v, explain := d.host.Volume(name, spec)
	return v, explain, nil
}

// record returns a volume's record. The copy may be a moment behind another node's create, so the store is asked for what
// it lacks.
func (d *Driver) record(ctx context.Context, name string) (store.Volume, error) {
	v, err := d.catalog.get(name)
	if err == nil {
		return v, nil
	}
	if nameErr := store.CheckVolumeName(name); nameErr != nil {
		return v, nameErr
	}
	ctx, cancel := context.WithTimeout(ctx, plugin.StoreTimeout)
	defer cancel()
	kv, storeErr := d.cfg.Store.Get(ctx, store.VolumeKey(name))
	if errors.Is(storeErr, store.ErrNotFound) {
		return v, fmt.Errorf("%w %s", ErrNoVolume, name)
	}
	if storeErr != nil {
		return v, errors.Join(err, storeErr)
	}
	return store.Decode[store.Volume](kv)
}

// unmount notes that a container has ended. It needs no record: the volume may have been removed meanwhile.
func (d *Driver) unmount(ctx context.Context, r *volume.UnmountRequest) (plugin.Empty, error) {
	if err := d.release(ctx, r.Name, r.ID); err != nil {
		return plugin.Empty{}, fmt.Errorf("unmount volume %s: %w", r.Name, err)
	}
	return plugin.Empty{}, nil
}

func (d *Driver) release(ctx context.Context, name, id string) error {
	if err := store.CheckVolumeName(name); err != nil { // it becomes a path
		return err
	}
	return d.engine.Release(ctx, name, id)
}

func (d *Driver) path(_ context.Context, r *volume.PathRequest) (volume.PathResponse, error) {
	if _, err := d.catalog.get(r.Name); err != nil {
		return volume.PathResponse{}, err
	}
	return volume.PathResponse{Mountpoint: d.mountpoint(r.Name)}, nil
}

// mountpoint is where a volume is mounted on this node, "" if it is not.
func (d *Driver) mountpoint(name string) string {
	if len(d.engine.Users(name)) == 0 {
		return ""
	}
	return d.engine.Path(name)
}

func (d *Driver) get(_ context.Context, r *volume.GetRequest) (volume.GetResponse, error) {
	v, err := d.catalog.get(r.Name)
	if err != nil {
		return volume.GetResponse{}, err
	}
	answer := d.describe(v)
	answer.Status = d.report(v).status()
	return volume.GetResponse{Volume: &answer}, nil
}

func (d *Driver) list(context.Context, *plugin.Empty) (volume.ListResponse, error) {
	volumes := []*volume.Volume{}
	for _, v := range d.catalog.list() {
		answer := d.describe(v)
		volumes = append(volumes, &answer)
	}
	return volume.ListResponse{Volumes: volumes}, nil
}

func (d *Driver) describe(v store.Volume) volume.Volume {
	return volume.Volume{Name: v.Name, Mountpoint: d.mountpoint(v.Name), CreatedAt: v.Created.Format(time.RFC3339)}
}
