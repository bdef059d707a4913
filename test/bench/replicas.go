package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/swarm"
	"github.com/docker/docker/client"

	"github.com/netdriver/netdriver/test/e2e/lab"
)

const (
	// replicas of a service, on three nodes.
	replicas = 30
	// replicaRounds is how often a service with each network is measured at most: a round takes more than a minute.
	replicaRounds = 5
	// replicasLimit is how long all tasks of a service may take to start, or to end, before the measurement counts as
	// broken.
	replicasLimit = 3 * time.Minute
)

// The networks of the services that are measured in turns; the first is none, whose time the others' have in theirs.
const (
	withoutNetwork = iota
	withBuiltin
	withOurs
	networkKinds
)

// replicating measures how much longer the tasks of a swarm take to start because they have a network: netdriver's
// against that of Docker's own overlay, with real Docker engines.
func replicating(ctx context.Context, b *bench) ([]Result, error) {
	const plugin = "custom-overlay:latest"
	return withDaemons(ctx, b, lab.Config{Nodes: 3}, nil, func(l *lab.Lab) ([]Result, error) {
		if err := l.StartDocker(ctx); err != nil {
			return nil, err
		}
		if err := l.StartSwarm(ctx, plugin); err != nil {
			return nil, err
		}
		manager := l.Nodes[0]
		docker, err := client.NewClientWithOpts(client.WithHost("unix://"+manager.Path("/run/docker.sock")),
			client.WithAPIVersionNegotiation())
		if err != nil {
			return nil, err
		}
		defer docker.Close()
		s := scaled{l.Nodes, manager, docker}
		if err := s.prepare(ctx, plugin); err != nil {
			return nil, err
		}
		took, used, err := s.rounds(ctx, min(b.rounds, replicaRounds))
		if err != nil {
			return nil, err
		}
		return took.results(used)
	})
}

// byNetwork is what was measured of each kind, per task, in milliseconds.
type byNetwork [networkKinds]sample

// parts are what the networks add to a task without one: netdriver's, and Docker's own.
func (n byNetwork) parts() (ours, theirs sample) {
	return n[withOurs].beyond(n[withoutNetwork]), n[withBuiltin].beyond(n[withoutNetwork])
}

// results are those of times from the command until all tasks run, and of the CPU time used. On a busy machine the first may
// be no result while the second is one.
func (took byNetwork) results(used byNetwork) ([]Result, error) {
	ours, theirs := used.parts()
	cpu, err := ratioResult("a network's part of a task's start and end, of 30 on 3 nodes, in CPU time of all processes ÷ "+
		"that of Docker's overlay (for information)", ours, theirs, "ms", 0)
	if err != nil {
		return nil, err
	}
	ours, theirs = took.parts()
	wall, err := ratioResult("a network's part of the time until a task runs, of 30 on 3 nodes ÷ that of Docker's overlay",
		ours, theirs, "ms", 0.7)
	if err != nil {
		return []Result{cpu}, err
	}
	return []Result{wall, cpu}, nil
}

// scaled is a swarm with one service per kind of network.
type scaled struct {
	nodes   []*lab.Node
	manager *lab.Node
	// docker is asked how far it is, since starting its command each time would take a good part of the CPUs.
	docker *client.Client
}

func (scaled) service(kind int) string { return fmt.Sprintf("service%d", kind) }

// prepare makes the networks and the services, which have no tasks yet.
func (s scaled) prepare(ctx context.Context, plugin string) error {
	commands := [][]string{
		{"swarm", "update", "--dispatcher-heartbeat", "20s"}, // a busy dockerd is not a lost one
		{"network", "create", "--driver", "overlay", "--subnet", "10.9.0.0/16", "net1"},
		{"network", "create", "--driver", plugin, "--ipam-driver", plugin, "--subnet", "10.8.0.0/16", "net2"},
	}
	for kind := range networkKinds {
		command := []string{"service", "create", "--detach", "--no-resolve-image", "--name", s.service(kind), "--replicas", "0",
			"--restart-condition", "none", "--stop-grace-period", "0s", "--endpoint-mode", "dnsrr"}
		if kind != withoutNetwork {
			command = append(command, "--network", fmt.Sprintf("net%d", kind))
		}
		commands = append(commands, append(command, lab.Image, "sleep", "10000"))
	}
	for _, c := range commands {
		if _, err := s.manager.Docker(ctx, c...); err != nil {
			return err
		}
	}
	return nil
}

// rounds starts and ends the tasks of each service in turns. It returns how long the start took, and how much CPU time start
// and end used. The first round, in which networks are made on the nodes, does not count.
func (s scaled) rounds(ctx context.Context, rounds int) (took, used byNetwork, err error) {
	for round := range rounds + 1 {
		for _, kind := range rand.Perm(networkKinds) {
			start, cpu, err := s.life(ctx, kind)
			if err != nil {
				return took, used, err
			}
			if round > 0 {
				took[kind] = append(took[kind], milliseconds(start)/replicas)
				used[kind] = append(used[kind], milliseconds(cpu)/replicas)
			}
		}
	}
	return took, used, nil
}

// life starts all tasks of a service and ends them.
func (s scaled) life(ctx context.Context, kind int) (start, cpu time.Duration, err error) {
	var idle []int // netdriver's own time counts for its own network only, there whole
	for _, n := range s.nodes {
		if kind != withOurs {
			idle = append(idle, n.DaemonPID())
		}
	}
	before, err := familyTime(idle...)
	if err != nil {
		return 0, 0, err
	}
	begin := time.Now()
	if err := s.scale(ctx, kind, replicas); err != nil {
		return 0, 0, err
	}
	start = time.Since(begin)
	if err := s.scale(ctx, kind, 0); err != nil {
		return 0, 0, err
	}
	time.Sleep(3 * time.Second) // what is tidied up afterwards is not the next one's
	after, err := familyTime(idle...)
	return start, time.Duration(after-before) * 10 * time.Millisecond, err
}

// scale changes the number of a service's tasks, and waits until exactly so many run.
func (s scaled) scale(ctx context.Context, kind, tasks int) error {
	ctx, cancel := context.WithTimeout(ctx, replicasLimit)
	defer cancel()
	name := s.service(kind)
	if _, err := s.manager.Docker(ctx, "service", "scale", "--detach", fmt.Sprintf("%s=%d", name, tasks)); err != nil {
		return err
	}
	for {
		services, err := s.docker.ServiceList(ctx, swarm.ServiceListOptions{
			Filters: filters.NewArgs(filters.Arg("name", name)), Status: true,
		})
		if err != nil {
			return err
		}
		if len(services) != 1 || services[0].ServiceStatus == nil {
			return fmt.Errorf("docker does not say how many tasks of %s run", name)
		}
		status := *services[0].ServiceStatus
		if status.RunningTasks == uint64(tasks) && status.DesiredTasks == uint64(tasks) {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), fmt.Errorf("%s has %d tasks that run and %d that should", name, status.RunningTasks,
				status.DesiredTasks))
		case <-time.After(100 * time.Millisecond):
		}
	}
}
