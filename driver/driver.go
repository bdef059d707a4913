// Package driver answers libnetwork's network-driver calls. A call records its intent in the store in one transaction;
// the pure function desired turns the records into the state that this node's kernel should have, and the data plane
// makes it so. The same path serves calls, other nodes' changes, repairs and a restart.
package driver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/netdriver/netdriver/dataplane"
	"github.com/netdriver/netdriver/internal/plugin"
	"github.com/netdriver/netdriver/store"
	"github.com/netdriver/netdriver/vxlan"
)

// retries bounds how often a transaction that lost a race is tried again. Each loser's rival has won, so somebody
// always makes progress.
const retries = 32

// ErrUnknown says that Docker named a network or endpoint that this node does not have.
var ErrUnknown = errors.New("not known to netdriver on this node")

// Config is what a Driver is made of.
type Config struct {
	Store  store.Store
	Mirror *store.Mirror
	Plane  Plane
	// LAN makes networks of the host's own; nil means that this node can have overlays only.
	LAN LAN
	// Parents are this node's names for its interfaces, which --opt parent may use.
	Parents map[string]string
	// Routes returns the destinations of the host's routes, which an overlay's subnet must not overlap; nil: there are none.
	Routes func() ([]netip.Prefix, error)
	// Node is this node's record; the driver registers it.
	Node store.Node
	// Underlay is the name of the device that has Node.VTEP.
	Underlay string
	// Port is the UDP port of the networks that this node creates without --opt port; 0 means 4789.
	Port uint16
	// EncryptedPort is that of encrypted ones; 0 means 4790.
	EncryptedPort uint16
	// Encryption guards encrypted networks; nil means that this node cannot be in any.
	Encryption Encryption
	// Filter is the host's packet filter; nil if it has none that can be used.
	Filter Filter
	// Allow is the old packet filter, through which Docker drops what is forwarded: only there can it be let pass. Nil if
	// the host does not have it.
	Allow Filter
	// Booted: the host has booted since a daemon last ran here. No endpoint of an earlier one can be alive.
	Booted bool
	// Docker is asked, outside of any call, what still lives; nil means that nothing is reclaimed by that knowledge.
	Docker Docker
	// Leases frees the addresses that nothing uses any more; nil means that nobody does. It hears of a swarm's leaders.
	Leases Leases
	Log    *slog.Logger
	// Now is the clock, time.Now if nil.
	Now func() time.Time
	// Observe is told of each reconciliation; may be nil.
	Observe func(Reconciliation)
}

// Plane is what the driver needs of the data plane; *dataplane.Plane is the real one.
type Plane interface {
	Apply(ctx context.Context, want dataplane.Network) ([]dataplane.Op, error)
	Diff(ctx context.Context, want dataplane.Network) ([]dataplane.Op, error)
	Remove(ctx context.Context, vni vxlan.VNI) error
	Present(ctx context.Context) ([]dataplane.Network, error)
	Refresh(vni vxlan.VNI)
	Drifted() <-chan vxlan.VNI
	// Guards says why what containers send cannot be judged on this node.
	Guards() error
	// Balances says why programs cannot be put on ports on this node.
	Balances() error
}

// Reconciliation is one pass over one network.
type Reconciliation struct {
	Network string
	// Ops is how many changes the kernel needed.
	Ops  []dataplane.Op
	Took time.Duration
	Err  error
}

// Driver answers libnetwork's calls and keeps this node's kernel as the store says.
type Driver struct {
	cfg  Config
	site site
	log  *slog.Logger

	// registered is closed once the mirror shows this node's record.
	registered chan struct{}
	// joins are to be recorded by recordJoins.
	joins chan joined
	// arrivals are to be announced by announceArrivals.
	arrivals chan arrival
	departed departed
	// locks has one lock per network, held while its state is computed and applied.
	locks keyed
	// applied is what this node's kernel has; see reconcile.go.
	applied applied
	// admitted is what the packet filter was told; see admission.go.
	admitted admitted
	// bridges are Docker's own.
	bridges bridges
}

// New makes a Driver. It does nothing until Run.
func New(cfg Config) *Driver {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Port == 0 {
		cfg.Port = vxlan.DefaultPort
	}
	if cfg.EncryptedPort == 0 {
		cfg.EncryptedPort = vxlan.EncryptedPort
	}
	if cfg.Observe == nil {
		cfg.Observe = func(Reconciliation) {}
	}
	return &Driver{
		cfg:  cfg,
		site: site{node: cfg.Node.Name, vtep: cfg.Node.VTEP, underlay: cfg.Underlay},
		log:  cfg.Log,

		registered: make(chan struct{}),
		joins:      make(chan joined, joinQueue),
		arrivals:   make(chan arrival, joinQueue),
		applied:    applied{networks: map[string]appliedNetwork{}},
	}
}

// Methods are the calls of an engine, besides plugin.Constants. AllocateNetwork and FreeNetwork are not among them: for
// those of a plain engine, libnetwork takes the 404 for "not implemented".
func (d *Driver) Methods() []plugin.Method {
	return []plugin.Method{
		plugin.Call("NetworkDriver.CreateNetwork", d.createNetwork),
		plugin.Call("NetworkDriver.DeleteNetwork", d.deleteNetwork),
		plugin.Call("NetworkDriver.CreateEndpoint", d.createEndpoint),
		plugin.Call("NetworkDriver.EndpointOperInfo", d.endpointOperInfo),
		plugin.Call("NetworkDriver.DeleteEndpoint", d.deleteEndpoint),
		plugin.Call("NetworkDriver.Join", d.join),
		plugin.Call("NetworkDriver.Leave", d.leave),
		plugin.Call("NetworkDriver.DiscoverNew", d.nothing),
		plugin.Call("NetworkDriver.DiscoverDelete", d.nothing),
		plugin.Call("NetworkDriver.ProgramExternalConnectivity", d.nothing),
		plugin.Call("NetworkDriver.RevokeExternalConnectivity", d.nothing),
		plugin.Call("NetworkDriver.GwAllocCheck", d.gwAllocCheck),
	}
}

// gwAllocCheck: a gateway address is never needed, since Docker's own gateway network gives the way out.
func (d *Driver) gwAllocCheck(context.Context, *plugin.GwAllocCheckRequest) (plugin.GwAllocCheckResponse, error) {
	return plugin.GwAllocCheckResponse{SkipIPv4: true, SkipIPv6: true}, nil
}

// nothing answers the calls that need nothing done. Their arguments are not read, so that the empty body of a repeated
// call will do:
//   - DiscoverNew, DiscoverDelete: the store says who is there, Docker only hints.
//   - ProgramExternalConnectivity, RevokeExternalConnectivity: Join names no gateway, so Docker publishes ports itself.
func (d *Driver) nothing(context.Context, *plugin.Empty) (plugin.Empty, error) {
	return plugin.Empty{}, nil
}

// SwarmMethods are those that a swarm's managers call besides.
func (d *Driver) SwarmMethods() []plugin.Method {
	return append(d.Methods(),
		plugin.Call("NetworkDriver.AllocateNetwork", d.allocateNetwork),
		plugin.Call("NetworkDriver.FreeNetwork", d.freeNetwork),
	)
}

// begin prepares a call that needs the store: it bounds its time and waits until the node is registered, which includes
// that the records have been read once.
func (d *Driver) begin(ctx context.Context) (context.Context, context.CancelFunc, error) {
	return d.beginWithin(ctx, plugin.StoreTimeout)
}

func (d *Driver) beginWithin(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	select {
	case <-d.registered:
		return ctx, cancel, nil
	case <-ctx.Done():
		cancel()
		return nil, nil, fmt.Errorf("this node has not registered yet: %w; existing traffic goes on, try again when it can",
			store.ErrUnavailable)
	}
}

// networkOf returns the cluster network that a Docker network on this node stands for. It asks the store itself if the
// mirror does not know, since a call may follow close upon the one that wrote the record.
func (d *Driver) networkOf(ctx context.Context, dockerID string) (store.Network, error) {
	if err := store.CheckID("network", dockerID); err != nil {
		return store.Network{}, err
	}
	var nw store.Network
	d.cfg.Mirror.Read(func(r *store.Records) {
		for _, n := range r.Networks {
			if d.member(n, dockerID) >= 0 {
				nw = n
				return
			}
		}
	})
	if nw.Name != "" {
		return nw, nil
	}
	kvs, _, err := d.cfg.Store.List(ctx, store.NetworkPrefix)
	if err != nil {
		return store.Network{}, err
	}
	for _, kv := range kvs {
		if n, err := store.Decode[store.Network](kv); err == nil && d.member(n, dockerID) >= 0 {
			return n, nil
		}
	}
	return store.Network{}, fmt.Errorf("network %s is %w; remove it with `docker network rm` and create it again",
		dockerID, ErrUnknown)
}

// member returns the index of this node's member with that Docker network, or -1.
func (d *Driver) member(nw store.Network, dockerID string) int {
	for i, m := range nw.Members {
		if m.Node == d.site.node && m.DockerID == dockerID {
			return i
		}
	}
	return -1
}

// keyed is a set of locks by name. Locks are few (one per network) and kept.
type keyed struct {
	mu    sync.Mutex
	locks map[string]*sync.Mutex
}

// lock takes the lock of key and returns what releases it.
func (k *keyed) lock(key string) (unlock func()) {
	k.mu.Lock()
	if k.locks == nil {
		k.locks = map[string]*sync.Mutex{}
	}
	l := k.locks[key]
	if l == nil {
		l = &sync.Mutex{}
		k.locks[key] = l
	}
	k.mu.Unlock()
	l.Lock()
	return l.Unlock
}

// parseCIDR reads an address with its prefix length as libnetwork passes it; "" is none.
func parseCIDR(what, s string) (netip.Prefix, error) {
	if s == "" {
		return netip.Prefix{}, nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%s %q: want an address with prefix length such as 10.10.0.5/24: %w", what, s, err)
	}
	return p, nil
}
