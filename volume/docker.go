package volume

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/netdriver/netdriver/internal/engine"
	"github.com/netdriver/netdriver/volume/mount"
)

// Docker is the engine on this node. It is asked outside of its own calls only.
type Docker interface {
	// Holders returns how many containers have a volume and run, or may be about to.
	Holders(ctx context.Context, volume string) (int, error)
	// Activate makes sure that Docker knows a volume plugin by its name.
	Activate(ctx context.Context, plugin string) error
	// Opened reports that Docker may have started.
	Opened(ctx context.Context) <-chan struct{}
}

const (
	// activateEvery is how often Docker is asked whether it knows the plugin, and activatePause how long at least passes
	// between two questions.
	activateEvery, activatePause = 30 * time.Second, time.Second
	// lookEvery is how often users are looked for whose containers are gone.
	lookEvery = time.Minute
	// staleAfter is for how long no container may have a volume before Docker's users of it are taken to be gone. Docker mounts
	// volumes for `docker cp` as well, for a container that does not run.
	staleAfter = 10 * time.Minute
)

// pluginName is how Docker knows the plugin.
func pluginName() string { return strings.TrimSuffix(Socket, ".sock") }

// activate keeps the plugin activated: Docker looks at a socket only when somebody asks for it by name, and until then Swarm
// finds no node that has the plugin.
func (d *Driver) activate(ctx context.Context) error {
	if d.cfg.Docker == nil {
		<-ctx.Done()
		return ctx.Err()
	}
	opened := d.cfg.Docker.Opened(ctx)
	for {
		pause := activateEvery
		if err := d.cfg.Docker.Activate(ctx, pluginName()); err != nil {
			d.log.Debug("cannot activate the volume plugin", "error", err)
			pause = activatePause
		}
		for _, pause := range []struct {
			wake <-chan struct{}
			d    time.Duration
		}{{nil, activatePause}, {opened, pause}} {
			if err := engine.Pause(ctx, pause.wake, pause.d); err != nil {
				return err
			}
		}
	}
}

// suspect is a volume that Docker's users hold, while no container has it.
type suspect struct {
	ids   []string
	since time.Time
}

// forget gives back what Docker has forgotten: an engine that was killed asks for no unmount of what it had mounted, and mounts
// with new ids after its start.
func (d *Driver) forget(ctx context.Context) error {
	if d.cfg.Docker == nil {
		<-ctx.Done()
		return ctx.Err()
	}
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	suspects := map[string]suspect{}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		suspects = d.look(ctx, suspects)
	}
}

// look looks once, and returns who is suspected from then on.
func (d *Driver) look(ctx context.Context, before map[string]suspect) map[string]suspect {
	after := map[string]suspect{}
	for name, s := range d.engine.InUse() {
		ids := dockers(s)
		if len(ids) == 0 {
			continue
		}
		n, err := d.cfg.Docker.Holders(ctx, name)
		if err != nil || n > 0 { // an engine that does not answer may have containers that run
			continue
		}
		was, known := before[name]
		if !known || !slices.Equal(was.ids, ids) {
			was = suspect{ids, d.cfg.Now()}
		}
		if d.cfg.Now().Sub(was.since) < staleAfter {
			after[name] = was
			continue
		}
		for _, id := range ids {
			d.log.Info("Docker has forgotten a user of a volume, which is released", "volume", name, "id", id)
			if err := d.engine.Release(ctx, name, id); err != nil {
				d.log.Warn("cannot release a volume", "volume", name, "error", err)
			}
		}
	}
	return after
}

// dockers are the users that are Docker's.
func dockers(s mount.State) []string {
	return slices.DeleteFunc(slices.Clone(s.IDs), func(id string) bool {
		return id == checker || strings.HasPrefix(id, holderPrefix)
	})
}
