package store

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
)

// Records are the decoded records that a node follows. They belong to a Mirror and are valid only inside Mirror.Read.
type Records struct {
	Nodes    map[string]Node
	Networks map[string]Network
	Pools    map[netip.Prefix]Pool
	// Endpoints of the followed networks, by network and id.
	Endpoints map[string]map[string]Endpoint
	// Services of the followed networks, by network and id.
	Services map[string]map[string]Service
	// Alive has the Node.ID of each node whose daemon is connected.
	Alive map[string]string
}

// Mirror is an indexed copy of what a node follows in the store: all nodes, networks and pools, and the endpoints and
// services of those networks that it is told to follow. A record that cannot be decoded leaves the last good one in place, so that
// a bad writer does not take down what works.
type Mirror struct {
	store Store
	log   *slog.Logger

	changes chan struct{}

	mu      sync.RWMutex
	records Records
	bad     map[string]badRecord
	follows map[string]*follow // by prefix
	// start runs a follow; nil unless Run is running.
	start func(*follow)
	// moved is closed, and made anew, after each batch.
	moved chan struct{}
	// changed are the networks that TakeChanged has not returned yet.
	changed map[string]bool
	// revisions are those of the last change of a network's own records, nodeRevision that of a node's address.
	revisions    map[string]int64
	nodeRevision int64
	// generations number the changes that were marked, each network having that of its last; see Generation.
	generations    map[string]uint64
	lastGeneration uint64
}

// NewMirror returns a mirror of s that follows no network yet. It is empty until Run runs.
func NewMirror(s Store, log *slog.Logger) *Mirror {
	m := &Mirror{
		store:   s,
		log:     log,
		changes: make(chan struct{}, 1),
		records: Records{
			Nodes:     make(map[string]Node),
			Networks:  make(map[string]Network),
			Pools:     make(map[netip.Prefix]Pool),
			Endpoints: make(map[string]map[string]Endpoint),
			Services:  make(map[string]map[string]Service),
			Alive:     make(map[string]string),
		},
		bad:       make(map[string]badRecord),
		follows:   make(map[string]*follow),
		moved:     make(chan struct{}),
		changed:   make(map[string]bool),
		revisions: make(map[string]int64),

		generations: make(map[string]uint64),
	}
	for _, f := range m.base() {
		m.follows[f.prefix] = f
	}
	return m
}

// Run follows the store until ctx ends, and returns when all its goroutines have. The error is ctx's. A second Run
// after that reads everything again.
func (m *Mirror) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	m.mu.Lock()
	m.start = func(f *follow) {
		fctx, cancel := context.WithCancel(ctx)
		f.stop = cancel
		wg.Go(func() { f.run(fctx, f) })
	}
	for _, f := range m.follows {
		m.start(f)
	}
	m.mu.Unlock()

	<-ctx.Done()
	m.mu.Lock()
	m.start = nil
	for _, f := range m.follows {
		f.stop()
	}
	m.mu.Unlock()
	wg.Wait()
	return ctx.Err()
}

// Follow begins to follow the endpoints and services of network. Following it already is no error.
func (m *Mirror) Follow(network string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.follows[NetworkEndpoints(network)] != nil {
		return
	}
	m.records.Endpoints[network] = make(map[string]Endpoint)
	m.records.Services[network] = make(map[string]Service)
	for _, f := range []*follow{m.endpoints(network), m.services(network)} {
		m.follows[f.prefix] = f
		if m.start != nil {
			m.start(f)
		}
	}
}

// Unfollow forgets the endpoints and services of network. Whoever waits for one of them gets an error.
func (m *Mirror) Unfollow(network string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.follows[NetworkEndpoints(network)] == nil {
		return
	}
	for _, prefix := range []string{NetworkEndpoints(network), NetworkServices(network)} {
		if m.start != nil {
			m.follows[prefix].stop()
		}
		delete(m.follows, prefix)
		maps.DeleteFunc(m.bad, func(key string, _ badRecord) bool { return strings.HasPrefix(key, prefix) })
	}
	delete(m.records.Endpoints, network)
	delete(m.records.Services, network)
	m.forget(network)
	m.broadcast()
}

// Read calls f with the records, which f may neither change nor keep. Nothing is applied meanwhile, so f is short.
func (m *Mirror) Read(f func(*Records)) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	f(&m.records)
}

// Synced says whether nodes, networks and pools were read whole at least once and, unless network is empty, that
// network's endpoints and services too. Before that, an absent record means nothing.
func (m *Mirror) Synced(network string) bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.synced(network)
}

// WaitSynced returns when Synced(network) holds. If ctx ends first, the error wraps ErrUnavailable and ctx's error.
func (m *Mirror) WaitSynced(ctx context.Context, network string) error {
	what := "the records of the cluster"
	if network != "" {
		what = "network " + network
	}
	return m.wait(ctx, "read "+what, func() (bool, error) { return m.synced(network), nil })
}

// Wait returns when the watch that covers key has delivered everything up to revision, so that Read shows what a
// transaction with that revision wrote. The transaction must have changed something under the same prefix as key
// (nodes/, alive/, networks/, pools/, endpoints/NETWORK/ or services/NETWORK/): a watch does not hear of others. If ctx ends first, the
// error wraps ErrUnavailable and ctx's error; for a key that the mirror does not follow it wraps ErrInvalid.
func (m *Mirror) Wait(ctx context.Context, key string, revision int64) error {
	return m.wait(ctx, fmt.Sprintf("wait for %s at revision %d", key, revision), func() (bool, error) {
		f := m.follows[followed(key)]
		if f == nil {
			return false, fmt.Errorf("%w: this node does not follow %s", ErrInvalid, key)
		}
		return f.synced && f.revision >= revision, nil
	})
}

// Changes has something in it when TakeChanged has. It is meant for one reader.
func (m *Mirror) Changes() <-chan struct{} { return m.changes }

// TakeChanged returns, in order, the networks whose wanted state may have changed since the last call: their own
// record, an endpoint, a service, or, for all followed ones, the address of a node.
func (m *Mirror) TakeChanged() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	names := slices.Sorted(maps.Keys(m.changed))
	clear(m.changed)
	return names
}

// Revision returns the revision of the last delivered change that matters to network: its own record, its endpoints
// and services, the addresses of nodes. It is 0 if there was none.
func (m *Mirror) Revision(network string) int64 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return max(m.revisions[network], m.nodeRevision)
}

// Generation returns a number that grows with each change that TakeChanged would name network for. As long as it stays
// the same, Read shows the same of that network. Revision does not tell that: the watches are separate, and one may
// deliver a change that is older than what another has delivered already.
func (m *Mirror) Generation(network string) uint64 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.generations[network]
}

// Bad returns the keys whose present record could not be decoded, with the reason.
func (m *Mirror) Bad() map[string]error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	errs := make(map[string]error, len(m.bad))
	for k, b := range m.bad {
		errs[k] = b.err
	}
	return errs
}

// wait returns when done, which is called with the read lock held, says so or fails.
func (m *Mirror) wait(ctx context.Context, what string, done func() (bool, error)) error {
	for {
		m.mu.RLock()
		ok, err := done()
		moved := m.moved
		m.mu.RUnlock()
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		if ok {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return fmt.Errorf("%s: %w: %w", what, ErrUnavailable, ctx.Err())
		}
	}
}

func (m *Mirror) synced(network string) bool {
	for _, prefix := range []string{NodePrefix, AlivePrefix, NetworkPrefix, PoolPrefix} {
		if !m.follows[prefix].synced {
			return false
		}
	}
	if network == "" {
		return true
	}
	e, s := m.follows[NetworkEndpoints(network)], m.follows[NetworkServices(network)]
	return e != nil && e.synced && s.synced
}

// followed returns the prefix of the watch that covers key.
func followed(key string) string {
	kind, rest, _ := strings.Cut(key, "/")
	if kind += "/"; kind != EndpointPrefix && kind != ServicePrefix {
		return kind
	}
	network, _, _ := strings.Cut(rest, "/")
	return kind + network + "/"
}
