package main

import (
	"context"
	"fmt"
	"time"

	"github.com/netdriver/netdriver/test/e2e/lab"
)

// attached is the number of endpoints that are made on one node, one after the other.
const attached = 300

// attaching measures how long the daemon takes for the calls that Docker makes when a container starts, from sending
// each to having its answer: with the embedded etcd, its transactions on disk, and the kernel's devices made.
func attaching(ctx context.Context, b *bench) ([]Result, error) {
	return withCluster(ctx, b, 1, func(l *lab.Lab) ([]Result, error) {
		e := engineOf(l.Nodes[0])
		defer e.close()
		n, err := e.createNetwork(ctx, "bench", "10.8.0.0/16")
		if err != nil {
			return nil, err
		}
		address, attach, err := attach(ctx, n, attached)
		if err != nil {
			return nil, err
		}
		if err := devicesMade(l.Nodes[0], attached); err != nil {
			return nil, err
		}
		return []Result{
			percentileResult("CreateEndpoint and Join together, the daemon's part", attach, 99, "ms", 10),
			percentileResult("RequestAddress (for information)", address, 99, "ms", 0),
		}, nil
	})
}

// attach makes endpoints and returns how long each took, in milliseconds: RequestAddress, and CreateEndpoint with Join.
func attach(ctx context.Context, n *dockerNetwork, count int) (addresses, joins sample, err error) {
	for i := range count {
		address, join, err := n.attach(ctx)
		if err != nil {
			return nil, nil, fmt.Errorf("endpoint %d: %w", i+1, err)
		}
		addresses, joins = append(addresses, address), append(joins, join)
	}
	return addresses, joins, nil
}

// attach makes an endpoint and returns how long that took, as the function of that name does.
func (n *dockerNetwork) attach(ctx context.Context) (address, join float64, err error) {
	id, mac := newID(), newMAC()
	start := time.Now()
	at, err := n.requestAddress(ctx, mac)
	if err != nil {
		return 0, 0, err
	}
	asked := time.Now()
	if err := n.createEndpoint(ctx, id, at, mac); err != nil {
		return 0, 0, err
	}
	err = n.join(ctx, id)
	return milliseconds(asked.Sub(start)), milliseconds(time.Since(asked)), err
}

func milliseconds(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e6 }
