// Package ipam answers libnetwork's IPAM calls: pools and addresses are leased from the store by transactions, so that
// no two hosts ever have the same one. Nothing is remembered but a copy of the used pools, which only saves questions.
package ipam

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/docker/go-plugins-helpers/ipam"

	"github.com/netdriver/netdriver/internal/plugin"
	"github.com/netdriver/netdriver/store"
)

// retries bounds how often a transaction that lost a race is tried again. Each loser's rival has won, so somebody
// always makes progress.
const retries = 32

// errRetry says that a transaction lost a race, or that what it was decided upon is not true any more.
var errRetry = errors.New("try again")

// Config is what a Service is made of.
type Config struct {
	Store store.Store
	// Node is this node's name.
	Node string
	// Routes returns the destinations of the host's routes, which no pool may overlap; HostRoutes is the real one.
	Routes func() ([]netip.Prefix, error)
	// Connected returns the subnets that the host's interfaces are in. A network in a LAN has the same one or a part of it; a
	// pool passes therefore, and whoever makes another kind of network of it refuses it. Nil: there are none.
	Connected func() ([]netip.Prefix, error)
	// Vet is asked before an address is given out for the first time; an error that wraps ErrOutside makes another be
	// chosen. Nil: there is nobody outside.
	Vet func(ctx context.Context, subnet netip.Prefix, a netip.Addr) error
	// Predefined are the IPv4 pools for networks without --subnet, DefaultPredefined if empty.
	Predefined []Predefined
	Log        *slog.Logger
	// Now is the clock, time.Now if nil.
	Now func() time.Time
}

// Service answers libnetwork's IPAM calls on one node.
type Service struct {
	cfg Config
	log *slog.Logger

	terms *terms

	mu    sync.Mutex
	views map[netip.Prefix]*view
	// ranges is where this host allocates; see noteRange.
	ranges map[netip.Prefix]netip.Prefix
	// start runs a view's watches; nil unless Run is running.
	start func(*view)
	// surveyed is true once Reclaim has looked at every pool of the cluster.
	surveyed bool
}

// New makes a Service. Calls that choose an address wait until Run runs.
func New(cfg Config) *Service {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if len(cfg.Predefined) == 0 {
		cfg.Predefined = DefaultPredefined()
	}
	return &Service{cfg: cfg, log: cfg.Log, views: make(map[netip.Prefix]*view), ranges: make(map[netip.Prefix]netip.Prefix), terms: newTerms()}
}

// Methods are the calls that the service answers, besides plugin.Constants.
func (s *Service) Methods() []plugin.Method {
	return []plugin.Method{
		timed("IpamDriver.RequestPool", s.requestPool),
		timed("IpamDriver.ReleasePool", s.releasePool),
		timed("IpamDriver.RequestAddress", s.requestAddress),
		timed("IpamDriver.ReleaseAddress", s.releaseAddress),
	}
}

// timed makes a method of a call that needs the store: it bounds its time and says what to do when the store is away. A
// swarm's leader is kept waiting for it.
func timed[Req, Resp any](name string, f func(context.Context, *Req) (Resp, error)) plugin.Method {
	return plugin.Call(name, func(ctx context.Context, req *Req) (resp Resp, err error) {
		limit, try := plugin.StoreTimeout, once
		if fromSwarm(req) {
			limit, try = plugin.SwarmTimeout, store.Insist
		}
		ctx, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		err = try(ctx, func() error {
			resp, err = f(ctx, req)
			return err
		})
		if errors.Is(err, store.ErrUnavailable) {
			err = fmt.Errorf("%w; existing traffic goes on, try again when the store is back", err)
		}
		return resp, err
	})
}

// once is store.Insist without patience: a user waits.
func once(_ context.Context, f func() error) error { return f() }

// fromSwarm says whether a request is that of a swarm's leader.
func fromSwarm(req any) bool {
	var pool string
	switch r := req.(type) {
	case *ipam.RequestPoolRequest:
		return r.AddressSpace == GlobalSpace
	case *ipam.ReleasePoolRequest:
		pool = r.PoolID
	case *ipam.RequestAddressRequest:
		pool = r.PoolID
	case *ipam.ReleaseAddressRequest:
		pool = r.PoolID
	}
	space, _, _ := strings.Cut(pool, "/")
	return space == GlobalSpace
}

// Run follows the pools in use until ctx ends, and returns when all its goroutines have. The error is ctx's.
func (s *Service) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	s.mu.Lock()
	s.start = func(v *view) {
		vctx, cancel := context.WithCancel(ctx)
		v.stop = cancel
		wg.Go(func() { v.followLeases(vctx, s.cfg.Store) })
		wg.Go(func() { v.followCursor(vctx, s.cfg.Store) })
	}
	for _, v := range s.views {
		s.start(v)
	}
	s.mu.Unlock()

	<-ctx.Done()
	s.mu.Lock()
	s.start = nil
	clear(s.views)
	s.mu.Unlock()
	wg.Wait()
	return ctx.Err()
}

// follow returns the view of a pool, and begins one if there is none.
func (s *Service) follow(subnet netip.Prefix) *view {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.views[subnet]
	if v == nil {
		v = newView(subnet, s.cfg.Node, s.log)
		s.views[subnet] = v
		if s.start != nil {
			s.start(v)
		}
	}
	return v
}

// unfollow forgets the view of a pool that this node does not use any more. A call that still needs it makes another.
func (s *Service) unfollow(subnet netip.Prefix) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.views[subnet]
	if v == nil {
		return
	}
	delete(s.views, subnet)
	close(v.gone)
	if v.stop != nil {
		v.stop()
	}
}

// again calls f until it succeeds or fails for another reason than a lost race.
func again(f func() error) error {
	for range retries {
		err := f()
		if !errors.Is(err, errRetry) && !errors.Is(err, store.ErrConflict) {
			return err
		}
	}
	return fmt.Errorf("%w %d times; try again", store.ErrConflict, retries)
}

// get reads and decodes one record.
func get[R store.Record](ctx context.Context, s store.Store, key string) (R, store.KV, error) {
	kv, err := s.Get(ctx, key)
	if err != nil {
		var none R
		return none, store.KV{}, err
	}
	r, err := store.Decode[R](kv)
	return r, kv, err
}
