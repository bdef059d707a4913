// Package engine asks the Docker engine on this node what lives. It is used only outside of plugin calls: an engine that
// waits for a plugin does not answer that plugin's questions.
package engine

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/client"
)

// timeout bounds one question; a healthy engine answers in milliseconds.
const timeout = 5 * time.Second

// Engine is the Docker engine behind one socket.
type Engine struct {
	api *client.Client
	// place is what was last heard of the engine's place in a swarm.
	place atomic.Pointer[place]
	// version is the engine's since the stream of events was opened.
	version   atomic.Pointer[string]
	listeners listeners
}

// Open returns the engine at host, such as unix:///var/run/docker.sock. It does not connect yet.
func Open(host string) (*Engine, error) {
	api, err := client.NewClientWithOpts(client.WithHost(host), client.WithAPIVersionNegotiation())
	if err != nil {
		return nil, fmt.Errorf("docker engine %s: %w", host, err)
	}
	return &Engine{api: api}, nil
}

// Endpoints returns the ids of the endpoints that a Docker network has; known is false if there is no such network.
func (e *Engine) Endpoints(ctx context.Context, dockerID string) (ids []string, known bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	nw, err := e.api.NetworkInspect(ctx, dockerID, network.InspectOptions{})
	if errdefs.IsNotFound(err) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("ask Docker for network %s: %w", dockerID, err)
	}
	for _, c := range nw.Containers {
		ids = append(ids, c.EndpointID)
	}
	return ids, true, nil
}

// bridgeName is the option of Docker's bridge driver by which a user names a bridge.
const bridgeName = "com.docker.network.bridge.name"

// Bridges returns the names of the bridges of Docker's own bridge networks, sorted.
func (e *Engine) Bridges(ctx context.Context) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	all, err := e.api.NetworkList(ctx, network.ListOptions{Filters: filters.NewArgs(filters.Arg("driver", "bridge"))})
	if err != nil {
		return nil, fmt.Errorf("ask Docker for its bridge networks: %w", err)
	}
	var names []string
	for _, nw := range all {
		const short = 12
		names = append(names, cmp.Or(nw.Options[bridgeName], "br-"+nw.ID[:min(short, len(nw.ID))]))
	}
	slices.Sort(names)
	return names, nil
}

// Alive asks the engine for a sign of life.
func (e *Engine) Alive(ctx context.Context) error {
	if _, err := e.api.Ping(ctx); err != nil {
		return fmt.Errorf("ask Docker for a sign of life: %w", err)
	}
	return nil
}

// Close ends the connection.
func (e *Engine) Close() error { return e.api.Close() }
