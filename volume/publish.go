package volume

import (
	"context"
	"maps"
	"time"

	"github.com/netdriver/netdriver/internal/plugin"
	"github.com/netdriver/netdriver/store"
	"github.com/netdriver/netdriver/volume/mount"
)

// publishEvery is how often a node says at most what it uses.
const publishEvery = time.Second

// publish writes what this node uses whenever that has changed. A store that is away is tried again: nothing waits for it.
func (d *Driver) publish(ctx context.Context) error {
	tick := time.NewTicker(publishEvery)
	defer tick.Stop()
	var last map[string]store.VolumeUse
	for first := true; ; {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		now := d.uses()
		if !first && maps.Equal(last, now) {
			continue
		}
		if err := d.writeUses(ctx, now); err != nil {
			d.log.Debug("cannot publish the volumes in use", "error", err)
			continue
		}
		last, first = now, false
	}
}

func (d *Driver) writeUses(ctx context.Context, uses map[string]store.VolumeUse) error {
	ctx, cancel := context.WithTimeout(ctx, plugin.StoreTimeout)
	defer cancel()
	record := store.VolumeUses{Node: d.cfg.Node, Volumes: uses, Updated: d.cfg.Now().UTC()}
	_, err := d.cfg.Store.Commit(ctx, nil, store.Put(store.VolumeUseKey(d.cfg.Node), store.Encode(record)))
	return err
}

// uses returns this node's volumes in use.
func (d *Driver) uses() map[string]store.VolumeUse {
	out := map[string]store.VolumeUse{}
	for name, s := range d.engine.InUse() {
		out[name] = use(s)
	}
	return out
}

func use(s mount.State) store.VolumeUse {
	return store.VolumeUse{Users: len(s.IDs), Health: string(s.Health), Since: s.Since.UTC()}
}
