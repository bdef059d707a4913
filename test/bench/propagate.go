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

const (
	clusterNodes = 10
	// changeEvery gives 20 new endpoints per second, for as long as changes of them take.
	changeEvery = time.Second / 20
	changes     = 400
	// arrivalLimit is how long one endpoint may take before the measurement counts as broken.
	arrivalLimit = 20 * time.Second
)

// propagating measures how long after Docker's call on one node an endpoint is known to the kernels of all ten.
func propagating(ctx context.Context, b *bench) ([]Result, error) {
	return withCluster(ctx, b, clusterNodes, func(l *lab.Lab) ([]Result, error) {
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
		times, err := change(ctx, w, networks)
		if err != nil {
			return nil, err
		}
		what := fmt.Sprintf("an endpoint reaches the FDB of %d nodes, at %d changes per second",
			clusterNodes, time.Second/changeEvery)
		return []Result{percentileResult(what, times, 99, "ms", 250)}, nil
	})
}

// change makes endpoints on random nodes at a fixed rate, however long each takes, and returns how long each took to be
// everywhere.
func change(ctx context.Context, w *watch, networks []*dockerNetwork) (sample, error) {
	times := make(sample, changes)
	var g errgroup.Group
	tick := time.NewTicker(changeEvery)
	defer tick.Stop()
	for i := range changes {
		<-tick.C
		home := rand.N(len(networks))
		g.Go(func() error {
			took, err := travel(ctx, w, networks[home], home)
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
func travel(ctx context.Context, w *watch, n *dockerNetwork, home int) (time.Duration, error) {
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
	return last.Sub(start), errors.Join(<-created, err)
}
