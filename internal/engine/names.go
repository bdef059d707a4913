package engine

import (
	"context"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/swarm"

	"github.com/netdriver/netdriver/store"
)

// Container is one running container of this engine.
type Container struct {
	ID, Name string
	// Service and Task name what it runs for in a swarm; empty if it runs for nothing.
	Service, Task string
	// Endpoints are the ids of its endpoints, whatever their network.
	Endpoints []string
}

// The labels that Swarm puts on its containers (moby daemon/cluster/executor/container/container.go).
const (
	labelService = "com.docker.swarm.service.name"
	labelTask    = "com.docker.swarm.task.name"
)

// Containers returns the containers that run or are paused. Docker answers from a copy and waits for no call of ours.
func (e *Engine) Containers(ctx context.Context) ([]Container, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	list, err := e.api.ContainerList(ctx, container.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("ask Docker for its containers: %w", err)
	}
	out := make([]Container, 0, len(list))
	for _, c := range list {
		row := Container{ID: c.ID, Name: containerName(c.Names), Service: label(c, labelService), Task: label(c, labelTask)}
		if c.NetworkSettings != nil {
			for _, n := range c.NetworkSettings.Networks {
				if n != nil && n.EndpointID != "" {
					row.Endpoints = append(row.Endpoints, n.EndpointID)
				}
			}
		}
		out = append(out, row)
	}
	return out, nil
}

// containerName returns the container's own name: those with a second slash are links of others to it.
func containerName(names []string) string {
	for _, n := range names {
		if n = strings.TrimPrefix(n, "/"); !strings.Contains(n, "/") {
			return n
		}
	}
	return ""
}

// label returns a label that is a name. Anybody can put anything into a label.
func label(c container.Summary, key string) string {
	if v := c.Labels[key]; store.CheckShown("label", v) == nil {
		return v
	}
	return ""
}

// NetworkName returns the name of a Docker network; known is false if this engine does not have it. A manager knows all
// networks of its swarm.
func (e *Engine) NetworkName(ctx context.Context, dockerID string) (name string, known bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	nw, err := e.api.NetworkInspect(ctx, dockerID, network.InspectOptions{})
	if errdefs.IsNotFound(err) {
		return "", false, nil
	}
	if err != nil {
		return "", false, fmt.Errorf("ask Docker for the name of network %s: %w", dockerID, err)
	}
	return nw.Name, true, nil
}

// Self returns the engine's version and its role in a swarm, which is empty if it is in none.
func (e *Engine) Self(ctx context.Context) (version, role string, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	version, err = e.serverVersion(ctx)
	if err != nil {
		return "", "", err
	}
	leads, _, err := e.Leads(ctx)
	if err != nil {
		return version, "", err
	}
	if leads {
		return version, store.RoleLeader, nil
	}
	id, err := e.Swarm(ctx)
	if id != "" {
		return version, store.RoleManager, nil
	}
	if err == nil {
		role, err = e.otherRole(ctx)
	}
	return version, role, err
}

// serverVersion returns the version of the engine, which is another one only after its restart. GET /version starts
// processes for it (moby daemon/info_unix.go), so it is asked once for each stream of events.
func (e *Engine) serverVersion(ctx context.Context) (string, error) {
	if v := e.version.Load(); v != nil {
		return *v, nil
	}
	v, err := e.api.ServerVersion(ctx)
	if err != nil {
		return "", fmt.Errorf("ask Docker for its version: %w", err)
	}
	if e.listeners.streaming() {
		e.version.Store(&v.Version)
	}
	return v.Version, nil
}

// otherRole returns the role of an engine that cannot ask its swarm, because it is a worker, in none, or without a
// quorum.
func (e *Engine) otherRole(ctx context.Context) (string, error) {
	info, err := e.api.Info(ctx)
	switch {
	case err != nil:
		return "", fmt.Errorf("ask Docker for its role in the swarm: %w", err)
	case info.Swarm.ControlAvailable:
		return store.RoleManager, nil
	case info.Swarm.LocalNodeState == swarm.LocalNodeStateActive:
		return store.RoleWorker, nil
	}
	return "", nil
}
