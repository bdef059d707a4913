package driver

import (
	"context"
	"errors"
	"sync"

	"github.com/netdriver/netdriver/dataplane"
	"github.com/netdriver/netdriver/store"
)

var errKilled = errors.New("killed")

// mortal is a daemon's life. It ends by kill, or by itself around its nth step, a step being a transaction or a batch of
// kernel operations: before it has any effect, or after it took effect and before the daemon learns of it.
type mortal struct {
	mu    sync.Mutex
	ended bool
	steps int
	at    int
	after bool
}

func (m *mortal) kill() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ended = true
}

func (m *mortal) dead() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ended
}

// die ends the life at the nth step from now, counted from 0.
func (m *mortal) die(n int, after bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.steps, m.at, m.after = 0, n, after
}

// step runs f as one step of the life.
func (m *mortal) step(f func() error) error {
	m.mu.Lock()
	if m.ended {
		m.mu.Unlock()
		return errKilled
	}
	last := m.steps == m.at
	m.steps++
	m.ended = last
	after := m.after
	m.mu.Unlock()
	if last && !after {
		return errKilled
	}
	err := f()
	if last {
		return errKilled
	}
	return err
}

// mortalStore is the store as a mortal daemon reaches it.
type mortalStore struct {
	store.Store
	life *mortal
}

func (s *mortalStore) Commit(ctx context.Context, conds []store.Cond, ops ...store.Op) (revision int64, err error) {
	err = s.life.step(func() error {
		revision, err = s.Store.Commit(ctx, conds, ops...)
		return err
	})
	return revision, err
}

func (s *mortalStore) Get(ctx context.Context, key string) (store.KV, error) {
	if s.life.dead() {
		return store.KV{}, errKilled
	}
	return s.Store.Get(ctx, key)
}

func (s *mortalStore) List(ctx context.Context, prefix string) ([]store.KV, int64, error) {
	if s.life.dead() {
		return nil, 0, errKilled
	}
	return s.Store.List(ctx, prefix)
}

// mortalKernel is the kernel as a mortal daemon reaches it.
type mortalKernel struct {
	dataplane.Kernel
	life *mortal
}

func (k *mortalKernel) Run(ctx context.Context, ops []dataplane.Op) error {
	return k.life.step(func() error { return k.Kernel.Run(ctx, ops) })
}

// engine is what Docker itself has: networks and endpoints.
type engine struct {
	mu   sync.Mutex
	nets map[string]map[string]bool
	down bool
	// swarm is the id of the swarm that it is a manager of.
	swarm string
	// bridges are those of its own networks, wake tells of news.
	bridges []string
	wake    chan struct{}
}

func (e *engine) add(network string, endpoints ...string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.nets == nil {
		e.nets = map[string]map[string]bool{}
	}
	if e.nets[network] == nil {
		e.nets[network] = map[string]bool{}
	}
	for _, id := range endpoints {
		e.nets[network][id] = true
	}
}

// remove removes endpoints, or the network if none is named.
func (e *engine) remove(network string, endpoints ...string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(endpoints) == 0 {
		delete(e.nets, network)
	}
	for _, id := range endpoints {
		delete(e.nets[network], id)
	}
}

func (e *engine) Bridges(context.Context) ([]string, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.down {
		return nil, errors.New("docker is away")
	}
	return e.bridges, nil
}

func (e *engine) Wake(context.Context) <-chan struct{} { return e.wake }

func (e *engine) Swarm(context.Context) (string, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.down {
		return "", errors.New("docker is away")
	}
	return e.swarm, nil
}

func (e *engine) Endpoints(_ context.Context, dockerID string) ([]string, bool, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.down {
		return nil, false, errors.New("docker is away")
	}
	eps, known := e.nets[dockerID]
	var ids []string
	for id := range eps {
		ids = append(ids, id)
	}
	return ids, known, nil
}
