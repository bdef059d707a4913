package driver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/netdriver/netdriver/dataplane"
	"github.com/netdriver/netdriver/store"
	"github.com/netdriver/netdriver/vxlan"
)

const (
	// checkEvery is how often the kernel is read again in full, whatever events said.
	checkEvery = 30 * time.Second
	// gather is how long others' changes are gathered after one was applied. Under 100 changes per second, most of their cost was
	// waking up for each.
	gather = 20 * time.Millisecond
	// parallel is how many networks are applied at once in the background.
	parallel = 4
)

// applied is what this node's kernel has been made to hold.
type applied struct {
	mu       sync.Mutex
	networks map[string]appliedNetwork
	// changed is set when a revision or problem is other than in the last status written.
	changed bool
}

// appliedNetwork is one network of this node.
type appliedNetwork struct {
	mode string
	vni  vxlan.VNI
	// size is how many ports and entries it has.
	size int
	// revision of the records that the kernel agrees with, and the mirror's generation of them; the latter is 0 if the
	// kernel is in doubt.
	revision   int64
	generation uint64
	problem    error
}

// Run registers the node and keeps the kernel as the store says until ctx ends. It returns early only if the node must
// not run: its name or VTEP address is another node's. The kernel's state stays when it returns.
func (d *Driver) Run(ctx context.Context) error {
	if err := d.register(ctx); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { d.follow(ctx); return nil })
	g.Go(func() error { d.report(ctx); return nil })
	g.Go(func() error { d.recordJoins(ctx); return nil })
	g.Go(func() error { d.clean(ctx); return nil })
	g.Go(func() error { d.followBridges(ctx); return nil })
	g.Go(func() error { d.announceArrivals(ctx); return nil })
	return g.Wait()
}

// follow applies what changes in the store, what others change in the kernel, and everything every checkEvery.
func (d *Driver) follow(ctx context.Context) {
	tick := time.NewTicker(checkEvery)
	defer tick.Stop()
	changes := d.cfg.Mirror.Changes() // nil for a moment after each: the first change is applied at once, many together
	var gathered <-chan time.Time
	swept := d.sweep(ctx)
	for {
		select {
		case <-ctx.Done():
			return
		case <-changes:
			swept = swept || d.sweep(ctx)
			d.syncAll(ctx, d.cfg.Mirror.TakeChanged())
			changes, gathered = nil, time.After(gather)
		case <-gathered:
			changes = d.cfg.Mirror.Changes()
		case vni := <-d.cfg.Plane.Drifted():
			if name, ok := d.nameOf(vni); ok {
				d.doubt(name)
				d.syncAll(ctx, []string{name})
			}
		case name := <-d.lanDrifted():
			d.doubt(name)
			d.syncAll(ctx, []string{name})
		case <-tick.C:
			d.check(ctx)
		}
	}
}

// check reads every network's kernel state again, repairs it, and sweeps.
func (d *Driver) check(ctx context.Context) {
	d.applied.mu.Lock()
	known := maps.Clone(d.applied.networks)
	d.applied.mu.Unlock()
	for name, a := range known {
		if a.vni != 0 {
			d.cfg.Plane.Refresh(a.vni)
		}
		d.doubt(name)
	}
	d.syncAll(ctx, slices.Collect(maps.Keys(known)))
	d.sweep(ctx)
}

// syncAll applies networks side by side. One network's failure stays there: it is logged, shown and tried again.
func (d *Driver) syncAll(ctx context.Context, names []string) {
	var g errgroup.Group
	g.SetLimit(parallel)
	for _, name := range names {
		g.Go(func() error {
			if err := d.apply(ctx, name); err != nil && ctx.Err() == nil {
				d.log.Warn("network is not as wanted", "network", name, "error", err)
			}
			return nil
		})
	}
	_ = g.Wait() // the functions return nil
}

// await waits until the mirror has seen key at revision, then makes the kernel agree with it.
func (d *Driver) await(ctx context.Context, network, key string, revision int64) error {
	if key != store.NetworkKey(network) {
		d.cfg.Mirror.Follow(network)
	}
	if err := d.cfg.Mirror.Wait(ctx, key, revision); err != nil {
		return err
	}
	return d.sync(ctx, network)
}

// sync makes the kernel agree with the records of a network, for a call that needs it: it waits for the records.
func (d *Driver) sync(ctx context.Context, network string) error {
	if d.isMine(network) {
		d.cfg.Mirror.Follow(network)
		if err := d.cfg.Mirror.WaitSynced(ctx, network); err != nil {
			return err
		}
	}
	return d.apply(ctx, network)
}

// isMine says whether this node is a member of a network.
func (d *Driver) isMine(network string) (mine bool) {
	d.cfg.Mirror.Read(func(r *store.Records) { mine = isMember(r.Networks[network], d.site.node) })
	return mine
}

// apply makes the kernel agree with the records of a network as the mirror has them now. Records that have not been
// read whole are not acted upon: half of them would tear down the other half.
func (d *Driver) apply(ctx context.Context, network string) error {
	unlock := d.locks.lock(network)
	defer unlock()
	if !d.owned() {
		d.failed(network, nil, ErrDisowned)
		return fmt.Errorf("network %s: %w", network, ErrDisowned)
	}
	if !d.isMine(network) {
		return d.drop(ctx, network)
	}
	d.cfg.Mirror.Follow(network)
	if !d.cfg.Mirror.Synced(network) {
		return nil // Changes names the network once it is
	}
	revision, generation := d.cfg.Mirror.Revision(network), d.cfg.Mirror.Generation(network)
	if d.isApplied(network, generation) {
		return nil
	}
	nw := d.record(network)
	want, err := d.goal(ctx, nw)
	if err == nil && d.shrinks(network, want.size) {
		err = d.confirm(ctx)
	}
	if err != nil {
		d.failed(network, &nw, err)
		return fmt.Errorf("network %s: %w", network, err)
	}
	d.admit(ctx)
	start := time.Now()
	ops, err := want.apply(ctx)
	d.cfg.Observe(Reconciliation{Network: network, Ops: ops, Took: time.Since(start), Err: err})
	if err != nil {
		err = fmt.Errorf("make network %s on this node: %w", network, err)
		d.failed(network, &nw, err)
		return err
	}
	d.succeeded(nw, want.size, revision, generation)
	return nil
}

// record is a network's, the zero one if there is none.
func (d *Driver) record(network string) (nw store.Network) {
	d.cfg.Mirror.Read(func(r *store.Records) { nw = r.Networks[network] })
	return nw
}

// goal is what this node should have of a network.
func (d *Driver) goal(ctx context.Context, nw store.Network) (goal, error) {
	m, err := d.modeOf(nw.Mode)
	if err != nil {
		return goal{}, err
	}
	return m.goal(ctx, nw)
}

// want is the state that this node should have of a network, by the mirror's records.
func (d *Driver) want(network string) (want dataplane.Network) {
	d.cfg.Mirror.Read(func(r *store.Records) {
		want = desired(d.site, r.Networks[network], r.Nodes, r.Endpoints[network], r.Services[network])
	})
	return want
}

// drop removes a network that this node is no member of any more.
func (d *Driver) drop(ctx context.Context, network string) error {
	d.applied.mu.Lock()
	a, ok := d.applied.networks[network]
	d.applied.mu.Unlock()
	if !ok {
		d.cfg.Mirror.Unfollow(network)
		return nil
	}
	if err := d.confirm(ctx); err != nil {
		d.failed(network, nil, err)
		return fmt.Errorf("network %s: %w", network, err)
	}
	d.cfg.Mirror.Unfollow(network)
	m, err := d.modeOf(a.mode)
	if err == nil {
		err = m.remove(ctx, network, a)
	}
	if err != nil {
		return fmt.Errorf("remove network %s from this node: %w", network, err)
	}
	d.admit(ctx)
	d.applied.mu.Lock()
	delete(d.applied.networks, network)
	d.applied.changed = true
	d.applied.mu.Unlock()
	return nil
}

// confirm asks the store itself whether it knows this node. The mirror's watches are separate: when a store is emptied,
// it may show that a network is gone before it shows that the node is.
func (d *Driver) confirm(ctx context.Context) error {
	kv, err := d.cfg.Store.Get(ctx, store.NodeKey(d.site.node))
	if errors.Is(err, store.ErrNotFound) {
		return ErrDisowned
	}
	if err != nil {
		return err
	}
	if n, err := store.Decode[store.Node](kv); err != nil || n.ID != d.cfg.Node.ID {
		return ErrDisowned
	}
	return nil
}

// size is how many ports and entries a network has.
func size(n dataplane.Network) int { return len(n.Ports) + len(n.FDB) + len(n.Neighbours) }

// shrinks says whether a network is to have less than what was applied last, as it would if the store's records were lost.
func (d *Driver) shrinks(network string, size int) bool {
	d.applied.mu.Lock()
	defer d.applied.mu.Unlock()
	return size < d.applied.networks[network].size
}

// succeeded remembers what the kernel has been made to hold, and by which records.
func (d *Driver) succeeded(nw store.Network, size int, revision int64, generation uint64) {
	d.applied.mu.Lock()
	defer d.applied.mu.Unlock()
	a := d.applied.networks[nw.Name]
	d.applied.changed = d.applied.changed || a.problem != nil || a.revision != revision
	d.applied.networks[nw.Name] = appliedNetwork{
		mode: nw.Mode, vni: nw.VNI, size: size, revision: revision, generation: generation,
	}
}

// failed remembers why a network is not as wanted, besides what was reached before. It is noted only of networks that
// are here, or were to be made: then nw is the record.
func (d *Driver) failed(network string, nw *store.Network, problem error) {
	d.applied.mu.Lock()
	defer d.applied.mu.Unlock()
	a, here := d.applied.networks[network]
	if !here && nw == nil {
		return
	}
	if nw != nil {
		a.mode, a.vni = nw.Mode, nw.VNI
	}
	a.problem = problem
	d.applied.networks[network] = a
	d.applied.changed = true
}

// isApplied says whether the kernel has been made as the records of that generation want it, and is not in doubt.
func (d *Driver) isApplied(network string, generation uint64) bool {
	d.applied.mu.Lock()
	defer d.applied.mu.Unlock()
	a, here := d.applied.networks[network]
	return here && a.problem == nil && a.generation == generation && generation != 0
}

// doubt makes the next apply of a network look at the kernel, whatever the records say.
func (d *Driver) doubt(network string) {
	d.applied.mu.Lock()
	defer d.applied.mu.Unlock()
	if a, here := d.applied.networks[network]; here {
		a.generation = 0
		d.applied.networks[network] = a
	}
}

// sweep removes networks of ours from the kernel that no record wants: what a daemon left behind that was killed
// between its last transaction and its last kernel operation. Only once all records have been read, and only what has
// no containers: a store that is slow, cut off or empty must never tear a working network down. It says whether it could look.
func (d *Driver) sweep(ctx context.Context) bool {
	if !d.cfg.Mirror.Synced("") || !d.owned() {
		return false
	}
	present, err := d.cfg.Plane.Present(ctx)
	if err != nil {
		d.log.Warn("cannot read the kernel's networks", "error", err)
		return false
	}
	for _, p := range present {
		if err := d.sweepNetwork(ctx, p); err != nil {
			d.log.Warn("cannot remove network", "network", p.Name, "error", err)
		}
	}
	d.sweepLAN(ctx)
	return true
}

// sweepNetwork removes one network from the kernel if it is unwanted and unused. One that is wanted, and that this process
// has not applied yet, is noted, so that it is removed as well if it is unwanted before it was applied.
func (d *Driver) sweepNetwork(ctx context.Context, p dataplane.Network) error {
	unlock := d.locks.lock(p.Name)
	defer unlock()
	var nw store.Network
	d.cfg.Mirror.Read(func(r *store.Records) { nw = r.Networks[p.Name] })
	if nw.VNI == p.VNI && isMember(nw, d.site.node) {
		d.inherit(p)
		return nil
	}
	if len(p.Ports) > 0 {
		return fmt.Errorf("no record wants it, but it has %d containers: stop them, or restore the store", len(p.Ports))
	}
	d.log.Info("removing a network that no record wants", "network", p.Name, "vni", p.VNI)
	return d.cfg.Plane.Remove(ctx, p.VNI)
}

// inherit notes that the kernel has something of a network from before this process.
func (d *Driver) inherit(p dataplane.Network) {
	d.applied.mu.Lock()
	defer d.applied.mu.Unlock()
	if _, known := d.applied.networks[p.Name]; !known {
		d.applied.networks[p.Name] = appliedNetwork{vni: p.VNI, size: size(p)}
	}
}

// nameOf returns the network that has a VNI on this node.
func (d *Driver) nameOf(vni vxlan.VNI) (string, bool) {
	d.applied.mu.Lock()
	defer d.applied.mu.Unlock()
	for name, a := range d.applied.networks {
		if a.vni == vni {
			return name, true
		}
	}
	return "", false
}

// Problems returns the networks of this node that are not as wanted, with the reason.
func (d *Driver) Problems() map[string]error {
	d.applied.mu.Lock()
	defer d.applied.mu.Unlock()
	out := map[string]error{}
	for name, a := range d.applied.networks {
		if a.problem != nil {
			out[name] = a.problem
		}
	}
	return out
}

// Diff returns what would have to be done to the kernel for a network to be as wanted, freshly read; empty is in sync.
func (d *Driver) Diff(ctx context.Context, network string) ([]string, error) {
	unlock := d.locks.lock(network)
	defer unlock()
	if !d.isMine(network) {
		return nil, nil
	}
	want, err := d.goal(ctx, d.record(network))
	if err != nil {
		return nil, err
	}
	return want.diff(ctx)
}
