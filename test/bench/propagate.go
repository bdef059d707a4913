package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/netdriver/netdriver/test/e2e/lab"
)

// arrivalLimit is how long one endpoint may take before the measurement counts as broken.
const arrivalLimit = 20 * time.Second

// A churn is endpoints that come, and perhaps go, at a steady rate on the nodes of a cluster.
type churn struct {
	nodes, endpoints int
	perSecond        int
	// goes: an endpoint is removed again once it is known everywhere.
	goes bool
	// limit is the target of the p99 in milliseconds.
	limit float64
}

// propagating measures how long after Docker's call on one node an endpoint is known to the kernels of all: of ten, and
// of 25 that lose as many endpoints meanwhile.
func propagating(ctx context.Context, b *bench) ([]Result, error) {
	var results []Result
	for _, c := range []churn{
		{nodes: 10, endpoints: 400, perSecond: 20, limit: 250},
		{nodes: 25, endpoints: 1000, perSecond: 50, goes: true, limit: 1000},
	} {
		r, err := withCluster(ctx, b, c.nodes, func(l *lab.Lab) ([]Result, error) { return c.measure(ctx, l) })
		if results = append(results, r...); err != nil {
			return results, err
		}
	}
	return results, nil
}

func (c churn) measure(ctx context.Context, l *lab.Lab) ([]Result, error) {
	networks := make([]*dockerNetwork, len(l.Nodes))
	for i, n := range l.Nodes {
		e := engineOf(n)
		defer e.close()
		var err error
		if networks[i], err = e.createNetwork(ctx, "bench", "10.8.0.0/16"); err != nil {
			return nil, fmt.Errorf("on %s: %w", n.Name, err)
		}
	}
	w, err := newWatch(ctx, l.Nodes)
	if err != nil {
		return nil, err
	}
	defer w.close()
	times, err := c.change(ctx, w, networks)
	if err != nil {
		return nil, err
	}
	what := fmt.Sprintf("an endpoint reaches the FDB of %d nodes, %d new ones per second", c.nodes, c.perSecond)
	if c.goes {
		what += " and as many that go"
	}
	return []Result{percentileResult(what, times, 99, "ms", c.limit)}, nil
}

// change makes endpoints on random nodes at a fixed rate, however long each takes, and returns how long each took to be
// everywhere.
func (c churn) change(ctx context.Context, w *watch, networks []*dockerNetwork) (sample, error) {
	times := make(sample, c.endpoints)
	var g errgroup.Group
	tick := time.NewTicker(time.Second / time.Duration(c.perSecond))
	defer tick.Stop()
	for i := range c.endpoints {
		<-tick.C
		home := rand.N(len(networks))
		g.Go(func() error {
			took, err := c.travel(ctx, w, networks[home], home)
			times[i] = milliseconds(took)
			if err != nil {
				return fmt.Errorf("endpoint %d of node n%d: %w", i+1, home+1, err)
			}
			return nil
		})
	}
	return times, g.Wait()
}

// travel makes one endpoint and returns the time from sending CreateEndpoint until it is everywhere.
func (c churn) travel(ctx context.Context, w *watch, n *dockerNetwork, home int) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, arrivalLimit)
	defer cancel()
	id, mac := newID(), newMAC()
	address, err := n.requestAddress(ctx, mac)
	if err != nil {
		return 0, err
	}
	f := w.expect(mac, home)
	start := time.Now()
	created := make(chan error, 1)
	go func() { created <- n.createEndpoint(ctx, id, address, mac) }()
	last, err := w.arrived(ctx, f)
	if err = errors.Join(<-created, err); err == nil && c.goes {
		err = n.removeEndpoint(ctx, id, address)
	}
	return last.Sub(start), err
}
