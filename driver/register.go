package driver

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/netdriver/netdriver/internal/plugin"
	"github.com/netdriver/netdriver/store"
)

// statusEvery is how often a node says at most what it has applied, so that many changes cost few writes: each is one
// to the disk, and may hold up one that a container waits for.
const statusEvery = time.Second

// retryEvery is the pause between two attempts to reach a store that is away.
const retryEvery = time.Second

// ErrTaken says that the node's name or address is that of another node of the cluster.
var ErrTaken = errors.New("taken by another node")

// ErrDisowned says that the store has no record of this node, though it registered: the store was emptied or restored,
// or the node was removed. Nothing is changed on the node then, since an empty store must not tear down what works.
var ErrDisowned = errors.New("the store does not know this node any more; nothing is changed on it: restore the " +
	"store, or restart netdriver to register the node anew")

// register writes the node's record, as soon as the store can be reached, and waits for the mirror to show it.
func (d *Driver) register(ctx context.Context) error {
	for {
		revision, err := d.enroll(ctx)
		if err == nil {
			err = d.cfg.Mirror.Wait(ctx, store.NodeKey(d.site.node), revision)
		}
		if err == nil {
			err = d.cfg.Mirror.WaitSynced(ctx, "")
		}
		if err == nil {
			close(d.registered)
			return nil
		}
		if errors.Is(err, ErrTaken) || ctx.Err() != nil {
			return err
		}
		d.log.Warn("cannot register this node yet", "node", d.site.node, "error", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(retryEvery):
		}
	}
}

// enroll is one attempt. A name whose holder is not alive is taken over: a host that was set up anew has a new ID.
func (d *Driver) enroll(ctx context.Context) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, plugin.StoreTimeout)
	defer cancel()
	me := d.cfg.Node
	nodes, _, err := d.cfg.Store.List(ctx, store.NodePrefix)
	if err != nil {
		return 0, err
	}
	cond := store.Absent(store.NodeKey(me.Name))
	for _, kv := range nodes {
		n, err := store.Decode[store.Node](kv)
		if err != nil {
			continue
		}
		if n.Name == me.Name {
			cond = store.Unchanged(kv)
		}
		if n.ID != me.ID && (n.Name == me.Name || n.VTEP == me.VTEP) {
			if err := d.takeOver(ctx, n); err != nil {
				return 0, err
			}
		}
	}
	revision, err := d.cfg.Store.Commit(ctx, []store.Cond{cond},
		store.Put(store.NodeKey(me.Name), store.Encode(me)), store.PutAlive(store.AliveKey(me.Name), []byte(me.ID)))
	if err == nil {
		d.log.Info("registered", "node", me.Name, "vtep", me.VTEP, "underlay_mtu", me.UnderlayMTU)
	}
	return revision, err
}

// owned says whether the store's records know this node, so that they may be acted upon.
func (d *Driver) owned() (owned bool) {
	d.cfg.Mirror.Read(func(r *store.Records) { owned = r.Nodes[d.site.node].ID == d.cfg.Node.ID })
	return owned
}

// takeOver says whether this node may use the name or address of another's record: not while that one is alive.
func (d *Driver) takeOver(ctx context.Context, other store.Node) error {
	kv, err := d.cfg.Store.Get(ctx, store.AliveKey(other.Name))
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if string(kv.Value) != other.ID {
		return nil
	}
	if other.Name == d.site.node {
		return fmt.Errorf("node name %s is %w, at %s; choose another with --node", other.Name, ErrTaken, other.VTEP)
	}
	return fmt.Errorf("underlay address %s is %w, %s; choose another with --underlay", other.VTEP, ErrTaken, other.Name)
}

// report publishes what this node has applied whenever that has changed.
func (d *Driver) report(ctx context.Context) {
	tick := time.NewTicker(statusEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		st, changed := d.status()
		if !changed {
			continue
		}
		if err := d.publishStatus(ctx, st); err != nil {
			d.log.Debug("cannot publish the node's status", "error", err)
			d.applied.mu.Lock()
			d.applied.changed = true
			d.applied.mu.Unlock()
		}
	}
}

// status returns what is to be published, and whether it differs from what was returned last.
func (d *Driver) status() (store.Status, bool) {
	d.applied.mu.Lock()
	defer d.applied.mu.Unlock()
	if !d.applied.changed {
		return store.Status{}, false
	}
	d.applied.changed = false
	st := store.Status{Applied: map[string]int64{}, Problems: map[string]string{}, Updated: d.cfg.Now()}
	for name, a := range d.applied.networks {
		st.Applied[name] = a.revision
		if a.problem != nil {
			st.Problems[name] = a.problem.Error()
		}
	}
	return st, true
}

func (d *Driver) publishStatus(ctx context.Context, st store.Status) error {
	ctx, cancel := context.WithTimeout(ctx, plugin.StoreTimeout)
	defer cancel()
	_, err := d.cfg.Store.Commit(ctx, nil, store.Put(store.StatusKey(d.site.node), store.Encode(st)))
	return err
}
