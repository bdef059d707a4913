// Package swarm publishes what services of a Docker swarm have in our networks: their virtual addresses, which Docker
// leaves dead on a remote driver's network, and the tasks behind them. Every daemon has a Publisher; the one whose engine
// leads the swarm writes.
package swarm

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/netdriver/netdriver/internal/engine"
	"github.com/netdriver/netdriver/store"
)

const (
	// leadEvery is how often a node asks whether it leads; Docker's node events wake it earlier.
	leadEvery = 2 * time.Second
	// Docker has no events for tasks, so the leader asks: every busyEvery as long as something has changed within
	// calmAfter, else every calmEvery. Every node drops a task whose endpoint is gone by itself, within milliseconds; this
	// bounds the time for one that is only unwanted or unhealthy.
	busyEvery = 200 * time.Millisecond
	calmEvery = 600 * time.Millisecond
	calmAfter = 5 * time.Second
	// plainEvery is how often tasks are asked for while no service has a virtual address: they are only shown then.
	plainEvery = 3 * time.Second
	// share bounds the part of Docker's time that the questions take: answers that took t are followed by a pause of at
	// least share×t.
	share = 4
	// rereadEvery is how often what is published is compared with the store itself.
	rereadEvery = 30 * time.Second
)

// Docker is the engine of this node.
type Docker interface {
	// Leads says whether it leads its swarm, and the swarm's id.
	Leads(ctx context.Context) (leads bool, swarm string, err error)
	// Services are all services of the swarm.
	Services(ctx context.Context) ([]engine.Service, error)
	// RunningTasks are those that the swarm wants to run, EndingTasks those that it wants to be over.
	RunningTasks(ctx context.Context) ([]engine.Task, error)
	EndingTasks(ctx context.Context) ([]engine.Task, error)
	// Wake reports that something may have changed.
	Wake(ctx context.Context) <-chan struct{}
}

// Config is what a Publisher is made of.
type Config struct {
	Store  store.Store
	Mirror *store.Mirror
	Docker Docker
	Log    *slog.Logger
}

// Publisher writes the swarm's services into the store as long as its engine leads the swarm.
type Publisher struct {
	cfg Config
	// published is what the store has, as far as is known; nil: it must be read.
	published map[string]store.Service
	readAt    time.Time
	// running are the ids of the tasks that ran when they were last asked for, nil before that; ending says that some
	// others still ran that are to end.
	running map[string]bool
	ending  bool
	// tasks are those that were last heard of, at tasksAt.
	tasks   tasks
	tasksAt time.Time
	// changedAt is when something was last written.
	changedAt time.Time
	leads     bool
	askedAt   time.Time
	swarm     string
}

// New makes a Publisher. It does nothing until Run.
func New(cfg Config) *Publisher { return &Publisher{cfg: cfg} }

// Run publishes until ctx ends. An engine or store that is away leaves in force what was published.
func (p *Publisher) Run(ctx context.Context) error {
	wake := p.cfg.Docker.Wake(ctx)
	var failing string
	for {
		begin := time.Now()
		pause, err := p.round(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil && err.Error() != failing {
			p.cfg.Log.Warn("cannot publish the swarm's services now; what is published stays", "error", err)
		}
		failing = ""
		if err != nil {
			failing, p.published = err.Error(), nil
		}
		if err := rest(ctx, wake, max(pause, share*time.Since(begin))); err != nil {
			return err
		}
	}
}

// rest waits for the pause to pass or, if that is long, for something to happen.
func rest(ctx context.Context, wake <-chan struct{}, pause time.Duration) error {
	first := min(pause, busyEvery) // events come in bursts
	if err := engine.Pause(ctx, nil, first); err != nil {
		return err
	}
	return engine.Pause(ctx, wake, pause-first)
}

// round publishes once if this node leads, and returns how long to wait until the next.
func (p *Publisher) round(ctx context.Context) (time.Duration, error) {
	if time.Since(p.askedAt) >= leadEvery {
		leads, swarm, err := p.cfg.Docker.Leads(ctx)
		if err != nil {
			return leadEvery, err
		}
		if leads && !p.leads {
			p.cfg.Log.Info("this node publishes the swarm's services", "swarm", swarm)
			p.published, p.running, p.ending, p.tasksAt = nil, nil, false, time.Time{}
		}
		p.leads, p.swarm, p.askedAt = leads, swarm, time.Now()
	}
	if !p.leads {
		return leadEvery, nil
	}
	networks := p.networks()
	if len(networks) == 0 {
		return calmEvery, nil
	}
	changed, err := p.publish(ctx, networks)
	if err != nil {
		return calmEvery, err
	}
	if changed || p.ending {
		p.changedAt = time.Now()
	}
	if time.Since(p.changedAt) < calmAfter {
		return busyEvery, nil
	}
	return calmEvery, nil
}

// networks returns the networks that can be this swarm's, by Docker's id: those of which a manager has said so, and those
// of which nobody has said yet whose they are.
func (p *Publisher) networks() map[string]store.Network {
	out := map[string]store.Network{}
	p.cfg.Mirror.Read(func(r *store.Records) {
		for _, nw := range r.Networks {
			if nw.Swarm != "" && (nw.SwarmCluster == "" || nw.SwarmCluster == p.swarm) {
				out[nw.Swarm] = nw
			}
		}
	})
	return out
}

// publish makes the store have what Docker says; changed is false if it had it already.
func (p *Publisher) publish(ctx context.Context, networks map[string]store.Network) (changed bool, err error) {
	want, err := p.ask(ctx, networks)
	if err != nil {
		return false, err
	}
	if p.published != nil && time.Since(p.readAt) < rereadEvery && maps.EqualFunc(want, p.published, equal) {
		return false, nil
	}
	have, err := p.read(ctx, networks, want)
	if err != nil {
		return false, err
	}
	changed, err = p.write(ctx, want, have)
	if err == nil {
		p.published, p.readAt = want, time.Now()
	}
	return changed, err
}

// ask returns the records that should be, by key.
func (p *Publisher) ask(ctx context.Context, networks map[string]store.Network) (map[string]store.Service, error) {
	services, err := p.cfg.Docker.Services(ctx)
	if err != nil {
		return nil, err
	}
	if now := time.Now(); now.Sub(p.tasksAt) >= plainEvery || balanced(networks, services) {
		if err := p.askTasks(ctx); err != nil {
			return nil, err
		}
		p.tasksAt = now
	}
	return records(networks, services, p.tasks.running, p.tasks.draining), nil
}

// balanced says whether a service has a virtual address in a network of ours, whose backends have to be known at once.
func balanced(networks map[string]store.Network, services []engine.Service) bool {
	for _, s := range services {
		for dockerID := range s.VIPs {
			if _, ours := networks[dockerID]; ours {
				return true
			}
		}
	}
	return false
}

// tasks are a swarm's that run, and of those that are to end the ones that still run.
type tasks struct{ running, draining []engine.Task }

func (p *Publisher) askTasks(ctx context.Context) error {
	running, err := p.cfg.Docker.RunningTasks(ctx)
	if err != nil {
		return err
	}
	draining, err := p.draining(ctx, running)
	if err != nil {
		return err
	}
	p.tasks = tasks{running, draining}
	return nil
}

// draining returns the tasks that still run and are to end. They are asked for only when some have left the list of those
// wanted: the whole history of tasks would have to be read each time.
func (p *Publisher) draining(ctx context.Context, running []engine.Task) ([]engine.Task, error) {
	now := map[string]bool{}
	for _, t := range running {
		if t.Running {
			now[t.ID] = true
		}
	}
	left := p.ending || p.running == nil
	for id := range p.running {
		left = left || !now[id]
	}
	if !left {
		p.running = now
		return nil, nil
	}
	ending, err := p.cfg.Docker.EndingTasks(ctx)
	if err != nil {
		return nil, err
	}
	ending = slices.DeleteFunc(ending, func(t engine.Task) bool { return !t.Running })
	p.running, p.ending = now, len(ending) > 0
	return ending, nil
}

// read returns what the store has for the networks, by key. A network that may be another swarm's is left out unless a
// service here has a place in it.
func (p *Publisher) read(
	ctx context.Context, networks map[string]store.Network, want map[string]store.Service,
) (map[string]store.KV, error) {
	mine := map[string]bool{}
	for _, nw := range networks {
		mine[nw.Name] = nw.SwarmCluster == p.swarm
	}
	for _, s := range want {
		mine[s.Network] = true
	}
	have := map[string]store.KV{}
	for network, own := range mine {
		if !own {
			continue
		}
		kvs, _, err := p.cfg.Store.List(ctx, store.NetworkServices(network))
		if err != nil {
			return nil, err
		}
		for _, kv := range kvs {
			have[kv.Key] = kv
		}
	}
	return have, nil
}

// write makes the store have want, in transactions that change nothing that another leader has written meanwhile. A
// network that is gone gets no records, which nobody would remove.
func (p *Publisher) write(ctx context.Context, want map[string]store.Service, have map[string]store.KV) (bool, error) {
	var changes []change
	for _, key := range slices.Sorted(maps.Keys(want)) {
		value := store.Encode(want[key])
		kv, there := have[key]
		switch {
		case !there:
			changes = append(changes, change{store.Absent(key), store.Put(key, value), want[key].Network})
		case string(kv.Value) != string(value):
			changes = append(changes, change{store.Unchanged(kv), store.Put(key, value), want[key].Network})
		}
	}
	for _, key := range slices.Sorted(maps.Keys(have)) {
		if _, wanted := want[key]; !wanted {
			changes = append(changes, change{store.Unchanged(have[key]), store.Delete(key), ""})
		}
	}
	for some := range slices.Chunk(changes, store.MaxOps/2) {
		if err := p.commit(ctx, some); err != nil {
			return true, err
		}
	}
	return len(changes) > 0, nil
}

// change is one record's, with the network that must exist for it.
type change struct {
	cond    store.Cond
	op      store.Op
	network string
}

func (p *Publisher) commit(ctx context.Context, changes []change) error {
	var conds []store.Cond
	var ops []store.Op
	networks := map[string]bool{}
	for _, c := range changes {
		conds, ops = append(conds, c.cond), append(ops, c.op)
		if c.network != "" && !networks[c.network] {
			networks[c.network] = true
			conds = append(conds, store.Exists(store.NetworkKey(c.network)))
		}
	}
	_, err := p.cfg.Store.Commit(ctx, conds, ops...)
	return err
}
