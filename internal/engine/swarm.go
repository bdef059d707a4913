package engine

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/swarm"
)

// Service is one service of the swarm with what it has in each network.
type Service struct {
	ID, Name string
	// Idle: it is scaled to 0.
	Idle bool
	// VIPs are its virtual addresses by Docker's network id; a network in endpoint mode dnsrr has none.
	VIPs map[string][]netip.Addr
}

// Task is one task of a service.
type Task struct {
	ID, Service string
	// Slot tells the tasks of a service apart: a number, or the node's id in mode global.
	Slot string
	// Running: the task runs; one with a health check only once it is healthy.
	Running bool
	// Addresses are its own by Docker's network id.
	Addresses map[string][]netip.Addr
}

// Swarm returns the id of the swarm that the engine is a manager of, or "" if it is none.
func (e *Engine) Swarm(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	s, err := e.api.SwarmInspect(ctx)
	if noManager(err) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("ask Docker for its swarm: %w", err)
	}
	return s.ID, nil
}

// Leads says whether the engine is the leader of its swarm's managers, and returns the swarm's id if so.
func (e *Engine) Leads(ctx context.Context) (leads bool, swarmID string, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	swarmID, err = e.Swarm(ctx)
	if err != nil || swarmID == "" {
		return false, "", err
	}
	node, err := e.node(ctx, swarmID)
	if err != nil {
		return false, "", err
	}
	n, _, err := e.api.NodeInspectWithRaw(ctx, node)
	switch {
	case noManager(err):
		return false, "", nil
	case err != nil:
		return false, "", fmt.Errorf("ask Docker who leads its swarm: %w", err)
	}
	if n.Status.State == swarm.NodeStateReady { // one that was left behind by leaving the swarm is down
		e.place.Store(&place{swarmID, node, time.Now()})
	}
	if n.ManagerStatus == nil || !n.ManagerStatus.Leader {
		return false, "", nil
	}
	return true, swarmID, nil
}

// place is an engine's place in a swarm.
type place struct {
	swarm, node string
	heard       time.Time
}

// placeEvery is how long a node's id counts after it was last heard of: one that leaves its swarm and joins it again has
// another.
const placeEvery = 30 * time.Second

// node returns the id of the engine's node in a swarm. Only GET /info tells it, which is slow on a busy engine, so it is
// not asked each time ("self" is a word of Docker's command, which the API does not know).
func (e *Engine) node(ctx context.Context, swarmID string) (string, error) {
	if p := e.place.Load(); p != nil && p.swarm == swarmID && time.Since(p.heard) < placeEvery {
		return p.node, nil
	}
	info, err := e.api.Info(ctx)
	if err != nil {
		return "", fmt.Errorf("ask Docker for its node in the swarm: %w", err)
	}
	if info.Swarm.NodeID == "" {
		return "", errors.New("ask Docker for its node in the swarm: it is leaving or joining")
	}
	e.place.Store(&place{swarmID, info.Swarm.NodeID, time.Now()})
	return info.Swarm.NodeID, nil
}

// noManager says whether an error is Docker's answer on a node that is no manager, or whose swarm has no leader now: 503,
// in both cases (moby daemon/cluster/errors.go). Other than GET /info, the questions that have it as an answer are quick on a
// busy engine.
func noManager(err error) bool { return errdefs.IsUnavailable(err) }

// Services returns all services of the swarm; only managers know them.
func (e *Engine) Services(ctx context.Context) ([]Service, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	list, err := e.api.ServiceList(ctx, swarm.ServiceListOptions{})
	if err != nil {
		return nil, fmt.Errorf("ask Docker for its services: %w", err)
	}
	out := make([]Service, 0, len(list))
	for _, s := range list {
		svc := Service{ID: s.ID, Name: s.Spec.Name, VIPs: map[string][]netip.Addr{}}
		if r := s.Spec.Mode.Replicated; r != nil && r.Replicas != nil {
			svc.Idle = *r.Replicas == 0
		}
		for _, v := range s.Endpoint.VirtualIPs {
			if p, err := netip.ParsePrefix(v.Addr); err == nil {
				svc.VIPs[v.NetworkID] = append(svc.VIPs[v.NetworkID], p.Addr())
			}
		}
		out = append(out, svc)
	}
	return out, nil
}

// RunningTasks returns the tasks that the swarm wants to run, whether they do already or not.
func (e *Engine) RunningTasks(ctx context.Context) ([]Task, error) {
	return e.tasks(ctx, swarm.TaskStateRunning)
}

// EndingTasks returns the tasks that the swarm wants to be over, also those that have been for long.
func (e *Engine) EndingTasks(ctx context.Context) ([]Task, error) {
	return e.tasks(ctx, swarm.TaskStateShutdown, swarm.TaskStateRemove)
}

func (e *Engine) tasks(ctx context.Context, desired ...swarm.TaskState) ([]Task, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	filter := filters.NewArgs()
	for _, d := range desired {
		filter.Add("desired-state", string(d))
	}
	list, err := e.api.TaskList(ctx, swarm.TaskListOptions{Filters: filter})
	if err != nil {
		return nil, fmt.Errorf("ask Docker for its tasks: %w", err)
	}
	out := make([]Task, 0, len(list))
	for _, t := range list {
		// An older engine may not know the filter's value and then lists all.
		if t.ServiceID == "" || !slices.Contains(desired, t.DesiredState) {
			continue
		}
		out = append(out, task(t))
	}
	return out, nil
}

func task(t swarm.Task) Task {
	out := Task{
		ID: t.ID, Service: t.ServiceID, Slot: t.NodeID, Running: t.Status.State == swarm.TaskStateRunning,
		Addresses: map[string][]netip.Addr{},
	}
	if t.Slot > 0 {
		out.Slot = fmt.Sprint(t.Slot)
	}
	for _, n := range t.NetworksAttachments {
		for _, a := range n.Addresses {
			if p, err := netip.ParsePrefix(a); err == nil {
				out.Addresses[n.Network.ID] = append(out.Addresses[n.Network.ID], p.Addr())
			}
		}
	}
	return out
}
