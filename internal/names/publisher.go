// Package names publishes what users call things: Docker's calls carry ids only, so each daemon looks the names of its
// own containers and networks up in Docker's API, outside of any call, and writes them into the store, for every node's
// inspect.
package names

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/netdriver/netdriver/internal/engine"
	"github.com/netdriver/netdriver/store"
)

const (
	// gather is the shortest pause between two rounds, since events come in bursts: many names are one transaction.
	gather = 200 * time.Millisecond
	// askEvery is how often Docker is asked at most, and share bounds the part of its time that this takes: an answer that
	// took t is followed by a pause of at least share×t.
	askEvery = time.Second
	share    = 4
	// Endpoints without a name beyond burst are containers that start together, which goes on: Docker is asked again after
	// burstEvery.
	burst      = 3
	burstEvery = 3 * time.Second
	// lookEvery is how often everything is compared: Docker's event of a renamed container or a new leader is one of many
	// that mean nothing here. It is also the longest pause before an endpoint is asked for again that Docker did not name.
	lookEvery = 15 * time.Second
	// rereadEvery is how often what is published is compared with the store itself, which may have been restored.
	rereadEvery = 10 * time.Minute
)

// Docker is the engine of this node.
type Docker interface {
	// Containers are those that run here.
	Containers(ctx context.Context) ([]engine.Container, error)
	// NetworkName is the name of a Docker network; known is false if the engine does not have it.
	NetworkName(ctx context.Context, dockerID string) (name string, known bool, err error)
	// Self returns the engine's version and role in a swarm.
	Self(ctx context.Context) (version, role string, err error)
	// Wake reports that something may have changed.
	Wake(ctx context.Context) <-chan struct{}
}

// Config is what a Publisher is made of.
type Config struct {
	Store  store.Store
	Mirror *store.Mirror
	Docker Docker
	// Node is this node's name.
	Node string
	// Balances says why this node's kernel cannot balance virtual addresses; nil if it can.
	Balances func() error
	Log      *slog.Logger
}

// Publisher writes the names of this node's endpoints and networks.
type Publisher struct {
	cfg Config
	// published are the names that the store has of this node's endpoints, by key; nil: they must be read.
	published map[string]store.Name
	readAt    time.Time
	engine    store.Engine
	// lookedAt is when everything was compared last; asked, that Docker was asked in this round.
	lookedAt time.Time
	asked    bool
	// An endpoint that Docker did not name is asked for again at askAt, after patience.
	askAt    time.Time
	patience time.Duration
}

// New makes a Publisher. It does nothing until Run.
func New(cfg Config) *Publisher { return &Publisher{cfg: cfg, patience: askEvery} }

// Run publishes until ctx ends. An engine or store that is away leaves in force what was published.
func (p *Publisher) Run(ctx context.Context) error {
	wake := p.cfg.Docker.Wake(ctx)
	if err := p.cfg.Mirror.WaitSynced(ctx, ""); err != nil {
		return ctx.Err()
	}
	var failing string
	for {
		begin := time.Now()
		err := p.round(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		switch {
		case err == nil:
			failing = ""
		case err.Error() != failing:
			failing = err.Error()
			p.cfg.Log.Warn("cannot publish names now; those that are published stay", "error", err)
		}
		if err := p.rest(ctx, wake, time.Since(begin)); err != nil {
			return err
		}
	}
}

// rest waits until something has happened, or it is time to ask again; took is what the last round took.
func (p *Publisher) rest(ctx context.Context, wake <-chan struct{}, took time.Duration) error {
	pause := gather
	if p.asked {
		pause = max(askEvery, share*took)
	}
	if err := engine.Pause(ctx, nil, pause); err != nil {
		return err
	}
	return engine.Pause(ctx, wake, time.Until(p.next()))
}

// next is when a round is due although nothing has happened.
func (p *Publisher) next() time.Time {
	due := p.lookedAt.Add(lookEvery)
	if !p.askAt.IsZero() && p.askAt.Before(due) {
		return p.askAt
	}
	return due
}

// round publishes what is new. A full one, every lookEvery, compares what is published too.
func (p *Publisher) round(ctx context.Context) error {
	now := time.Now()
	full := now.Sub(p.lookedAt) >= lookEvery
	p.asked = false
	errs := []error{p.endpoints(ctx, now, full), p.networks(ctx, full)}
	if full {
		errs = append(errs, p.describe(ctx))
		p.lookedAt = now
	}
	return errors.Join(errs...)
}

// endpoints publishes the names of this node's endpoints. Docker is asked only if one has none, or in a full round.
func (p *Publisher) endpoints(ctx context.Context, now time.Time, full bool) error {
	if !p.synced() { // after a start: what is not there yet is not missing
		p.askAt = now.Add(askEvery)
		return nil
	}
	local := p.local()
	if len(local) == 0 {
		p.published, p.askAt = map[string]store.Name{}, time.Time{}
		return nil
	}
	if p.published == nil || now.Sub(p.readAt) >= rereadEvery {
		if err := p.read(ctx, local); err != nil {
			return err
		}
		p.readAt = now
	}
	maps.DeleteFunc(p.published, func(key string, _ store.Name) bool { _, there := local[key]; return !there })
	if !full && (len(p.published) == len(local) || now.Before(p.askAt)) {
		return nil
	}
	p.asked = true
	containers, err := p.cfg.Docker.Containers(ctx)
	if err != nil {
		return err
	}
	named, err := p.write(ctx, found(local, containers))
	if err != nil {
		p.published = nil // something may have been written all the same
		return err
	}
	p.hurry(now, named > 0, len(local)-len(p.published))
	return nil
}

// hurry decides when endpoints are asked for again that Docker did not name: soon if something moves, since a container
// is listed only when it has started; later and later if not.
func (p *Publisher) hurry(now time.Time, moved bool, unnamed int) {
	switch {
	case unnamed == 0:
		p.askAt, p.patience = time.Time{}, askEvery
		return
	case moved && unnamed > burst:
		p.patience = burstEvery
	case moved:
		p.patience = askEvery
	}
	p.askAt = now.Add(p.patience)
	p.patience = min(2*p.patience, lookEvery)
}

// synced says whether the endpoints of all networks that this node has were read.
func (p *Publisher) synced() bool {
	var here []string
	p.cfg.Mirror.Read(func(r *store.Records) {
		for _, nw := range r.Networks {
			if slices.ContainsFunc(nw.Members, func(m store.Member) bool { return m.Node == p.cfg.Node }) {
				here = append(here, nw.Name)
			}
		}
	})
	return !slices.ContainsFunc(here, func(name string) bool { return !p.cfg.Mirror.Synced(name) })
}

// local returns this node's endpoints by the key of their name.
func (p *Publisher) local() map[string]store.Endpoint {
	out := map[string]store.Endpoint{}
	p.cfg.Mirror.Read(func(r *store.Records) {
		for network, endpoints := range r.Endpoints {
			for id, e := range endpoints {
				if e.Node == p.cfg.Node {
					out[store.NameKey(network, id)] = e
				}
			}
		}
	})
	return out
}

// found returns the names that containers give to local endpoints, by key.
func found(local map[string]store.Endpoint, containers []engine.Container) map[string]store.Name {
	keys := make(map[string]string, len(local))
	for key, e := range local {
		keys[e.ID] = key
	}
	out := map[string]store.Name{}
	for _, c := range containers {
		for _, id := range c.Endpoints {
			key, ours := keys[id]
			if !ours || store.CheckShown("container", c.Name) != nil {
				continue
			}
			out[key] = store.Name{
				Network: local[key].Network, Endpoint: id, Container: c.Name, ContainerID: c.ID, Service: c.Service, Task: c.Task,
			}
		}
	}
	return out
}

// describe publishes what this node's engine and kernel are.
func (p *Publisher) describe(ctx context.Context) error {
	p.asked = true
	is := store.Engine{Node: p.cfg.Node}
	if err := p.cfg.Balances(); err != nil {
		is.Unbalanced = err.Error()
	}
	var err error
	if is.Version, is.Role, err = p.cfg.Docker.Self(ctx); err != nil {
		is.Version, is.Role = p.engine.Version, p.engine.Role
	}
	if is == p.engine {
		return err
	}
	_, failed := p.cfg.Store.Commit(ctx, []store.Cond{store.Exists(store.NodeKey(p.cfg.Node))},
		store.PutAlive(store.EngineKey(p.cfg.Node), store.Encode(is)))
	if failed == nil {
		p.engine = is
	}
	return errors.Join(err, failed)
}
