package driver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/docker/go-plugins-helpers/network"

	"github.com/netdriver/netdriver/internal/plugin"
	"github.com/netdriver/netdriver/store"
)

// interfacePrefix begins the interface's name inside the container; libnetwork adds the number.
const interfacePrefix = "eth"

// join hands the interface to Docker, in the way of the network's mode.
func (d *Driver) join(ctx context.Context, req *network.JoinRequest) (*network.JoinResponse, error) {
	ctx, cancel, err := d.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer cancel()
	nw, err := d.networkOf(ctx, req.NetworkID)
	if err != nil {
		return nil, err
	}
	m, err := d.modeOf(nw.Mode)
	if err != nil {
		return nil, err
	}
	res, err := m.join(ctx, nw, req)
	if err != nil {
		return nil, fmt.Errorf("join endpoint %s to network %s: %w", req.EndpointID, nw.Name, err)
	}
	return res, nil
}

// joinQueue is how many joins may wait for being recorded; beyond it, Join itself records its endpoint.
const joinQueue = 256

// joined is an endpoint whose interface Docker has, in a sandbox if that is to be recorded.
type joined struct{ network, endpoint, sandbox string }

// handOver sees to it that the endpoint's interface exists, and has it recorded that Docker has it from now on. Docker
// need not wait for that record: without it, a daemon that starts anew would only make the interface of a container
// that is gone, until Docker deletes the endpoint.
func (d *Driver) handOver(ctx context.Context, nw store.Network, id, sandbox string) error {
	e, err := d.ready(ctx, nw, id)
	if err != nil || e.Phase == store.PhaseJoined {
		return err
	}
	j := joined{network: nw.Name, endpoint: id, sandbox: sandbox}
	select {
	case d.joins <- j:
		return nil
	default:
		return d.recordJoin(ctx, j)
	}
}

// ready returns an endpoint of this node whose interface Docker may take.
func (d *Driver) ready(ctx context.Context, nw store.Network, id string) (e store.Endpoint, err error) {
	if err := store.CheckID("endpoint", id); err != nil {
		return e, err
	}
	if err := d.sync(ctx, nw.Name); err != nil {
		return e, err
	}
	d.cfg.Mirror.Read(func(r *store.Records) { e = r.Endpoints[nw.Name][id] })
	switch {
	case e.ID == "":
		return e, fmt.Errorf("it is %w; start the container again", ErrUnknown)
	case e.Node != d.site.node:
		return e, fmt.Errorf("it is an endpoint of node %s", e.Node)
	}
	return e, nil
}

// joinDelay is how long joins are collected before they are recorded. A container's start waits for three calls in a
// row; their disk writes should not queue behind one that nobody waits for.
const joinDelay = 2 * time.Second

// recordJoins records joins until ctx ends, those of one delay together.
func (d *Driver) recordJoins(ctx context.Context) {
	tick := time.NewTicker(joinDelay)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		var joins []joined
		for range len(d.joins) {
			joins = append(joins, <-d.joins)
		}
		for some := range slices.Chunk(joins, store.MaxOps) {
			d.recordTogether(ctx, some)
		}
	}
}

// recordTogether records joins in one transaction, which costs all nodes as much as one join would. If an endpoint has
// just gone, each is recorded by itself.
func (d *Driver) recordTogether(ctx context.Context, joins []joined) {
	var t txn
	d.cfg.Mirror.Read(func(r *store.Records) {
		for _, j := range joins {
			e, there := r.Endpoints[j.network][j.endpoint]
			if !there || e.Node != d.site.node {
				continue
			}
			// The mirror's is the last: what is in an endpoint's record, only its node writes.
			e.Phase, e.Sandbox = store.PhaseJoined, j.sandbox
			key := store.EndpointKey(j.network, j.endpoint)
			t.require(store.Exists(key))
			t.write(store.Put(key, store.Encode(e)))
		}
	})
	if len(t.ops) == 0 {
		return
	}
	limited, cancel := context.WithTimeout(ctx, plugin.StoreTimeout)
	defer cancel()
	_, err := d.cfg.Store.Commit(limited, t.conds, t.ops...)
	if errors.Is(err, store.ErrConflict) {
		err = nil
		for _, j := range joins {
			err = errors.Join(err, d.recordJoin(ctx, j))
		}
	}
	if err != nil && ctx.Err() == nil {
		d.log.Warn("cannot record that Docker has interfaces", "endpoints", len(joins), "error", err)
	}
}

// recordJoin records that Docker has an endpoint's interface. An endpoint that is gone again needs no record.
func (d *Driver) recordJoin(ctx context.Context, j joined) error {
	ctx, cancel := context.WithTimeout(ctx, plugin.StoreTimeout)
	defer cancel()
	_, err := d.markJoined(ctx, j)
	return err
}

// markJoined is the transaction; it returns its revision.
func (d *Driver) markJoined(ctx context.Context, j joined) (int64, error) {
	return d.commit(ctx, func() (t txn, err error) {
		e, kv, found, err := read[store.Endpoint](ctx, d.cfg.Store, store.EndpointKey(j.network, j.endpoint))
		if err != nil || !found {
			return t, err
		}
		e.Phase, e.Sandbox = store.PhaseJoined, j.sandbox
		t.require(store.Unchanged(kv))
		t.write(store.Put(kv.Key, store.Encode(e)))
		return t, nil
	})
}
