package diag

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/netdriver/netdriver/dataplane"
	"github.com/netdriver/netdriver/store"
)

const (
	// askStore bounds what a report waits for the store, so that it is there within 3 s when the store is away.
	askStore = 1500 * time.Millisecond
	// Nodes publish what they have applied a few times per second (driver's statusEvery): one that seems behind is asked
	// again, patience times, before it is called so; one that is away as well: it may only be being restarted.
	patience   = 7
	askAgainIn = 300 * time.Millisecond
)

// cluster is what is known of the whole cluster: from the store, or from this node's mirror if the store is away.
type cluster struct {
	nodes    map[string]store.Node
	alive    map[string]string
	statuses map[string]store.Status
	engines  map[string]store.Engine // of the nodes that are connected
	networks map[string]network
	pools    map[netip.Prefix]store.Pool
	bad      map[string]error // records that cannot be read, by key
	revision int64            // the store's
	taken    time.Time
	err      error // why it is not from the store
	whole    bool  // the mirror has read everything

	admission *Admission // of this node
}

// network is a record with the revision of its last change.
type network struct {
	store.Network
	modified int64
}

// endpoint is one too.
type endpoint struct {
	store.Endpoint
	modified int64
}

// service is another.
type service struct {
	store.Service
	modified int64
}

// facts is all that a network's report is judged from.
type facts struct {
	cluster
	me        store.Node
	stopped   bool // no daemon runs here
	hangs     bool // or it answers nothing
	network   network
	endpoints []endpoint
	counts    map[netip.Prefix]uint64 // leases of each pool
	leases    map[netip.Prefix][]store.Lease
	plan      []string
	planErr   error
	problem   error
	receipts  []dataplane.Receipt
	services  []service
	conflicts []store.Conflict
	names     map[string]store.Name // of endpoints, by id
	dropped   map[string]Drops      // at this node's ports, by device
	unheard   string                // why nobody is told of it
	sent      map[destination]Sent  // by clients here; nil if nothing was counted
	// protected is what the members of an encrypted network say of their encryption; this node's is fresh.
	protected  map[string]store.Protection
	protectErr error // why this node's is not known
}

// cluster reads what is needed for all reports.
func (d *Diagnosis) cluster(ctx context.Context) cluster {
	ctx, cancel := context.WithTimeout(ctx, askStore)
	defer cancel()
	c, err := d.fromStore(ctx)
	if err != nil {
		c = d.fromMirror()
		c.err = err
	}
	c.taken, c.whole = d.src.Now(), d.src.Mirror.Synced("")
	c.admission = d.admission(ctx)
	return c
}

func (d *Diagnosis) fromStore(ctx context.Context) (cluster, error) {
	s := d.src.Store
	c := cluster{bad: map[string]error{}, alive: map[string]string{}, networks: map[string]network{}}
	var err error
	if c.alive, err = d.alive(ctx); err != nil {
		return c, err
	}
	c.nodes, err = list(ctx, s, store.NodePrefix, c.bad, func(_ store.KV, n store.Node) (string, store.Node) {
		return n.Name, n
	})
	if err != nil {
		return c, err
	}
	if c.statuses, err = statuses(ctx, s, c.bad); err != nil {
		return c, err
	}
	c.engines, err = list(ctx, s, store.EnginePrefix, c.bad, func(_ store.KV, e store.Engine) (string, store.Engine) {
		return e.Node, e
	})
	if err != nil {
		return c, err
	}
	c.pools, err = list(
		ctx,
		s,
		store.PoolPrefix,
		c.bad,
		func(_ store.KV, p store.Pool) (netip.Prefix, store.Pool) { return p.Subnet, p },
	)
	if err != nil {
		return c, err
	}
	c.networks, err = list(ctx, s, store.NetworkPrefix, c.bad, func(kv store.KV, n store.Network) (string, network) {
		return n.Name, network{n, kv.Modified}
	})
	if err != nil {
		return c, err
	}
	_, c.revision, err = s.List(ctx, store.AliveKey(d.src.Node.Name))
	return c, err
}

// statuses reads what the nodes say of themselves.
func statuses(ctx context.Context, s store.Store, bad map[string]error) (map[string]store.Status, error) {
	return list(ctx, s, store.StatusPrefix, bad, func(kv store.KV, st store.Status) (string, store.Status) {
		return kv.Key[len(store.StatusPrefix):], st
	})
}

// list reads the records under a prefix into a map. Those that cannot be decoded are noted in bad.
func list[R store.Record, K comparable, V any](
	ctx context.Context, s store.Store, prefix string, bad map[string]error, entry func(store.KV, R) (K, V),
) (map[K]V, error) {
	kvs, _, err := s.List(ctx, prefix)
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", prefix, err)
	}
	out := make(map[K]V, len(kvs))
	for _, kv := range kvs {
		r, err := store.Decode[R](kv)
		if err != nil {
			bad[kv.Key] = err
			continue
		}
		k, v := entry(kv, r)
		out[k] = v
	}
	return out, nil
}

func (d *Diagnosis) fromMirror() cluster {
	c := cluster{networks: map[string]network{}, bad: d.src.Mirror.Bad()}
	d.src.Mirror.Read(func(r *store.Records) {
		c.nodes, c.alive, c.pools = maps.Clone(r.Nodes), maps.Clone(r.Alive), maps.Clone(r.Pools)
		for name, n := range r.Networks {
			c.networks[name] = network{n, 0}
		}
	})
	return c
}

// settle asks the nodes' statuses again while a node seems behind that may only not have said yet, and who is connected while
// a daemon is away: it may only be being restarted.
func (d *Diagnosis) settle(ctx context.Context, all []facts) {
	for range patience {
		unsettled := slices.ContainsFunc(all, func(f facts) bool {
			return f.err == nil && slices.ContainsFunc(f.peers(), func(p Peer) bool {
				return p.State == StateBehind || p.State == StateDown
			})
		})
		if !unsettled {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(askAgainIn):
		}
		ask, cancel := context.WithTimeout(ctx, askStore)
		st, err := statuses(ask, d.src.Store, map[string]error{}) // what cannot be read was noted the first time
		alive := map[string]string{}
		if err == nil {
			alive, err = d.alive(ask)
		}
		cancel()
		if err != nil {
			return
		}
		for i := range all {
			all[i].statuses, all[i].cluster.alive = st, alive
		}
	}
}

// alive reads which nodes are connected, with their ids.
func (d *Diagnosis) alive(ctx context.Context) (map[string]string, error) {
	out := map[string]string{}
	all, _, err := d.src.Store.List(ctx, store.AlivePrefix)
	for _, kv := range all {
		out[kv.Key[len(store.AlivePrefix):]] = string(kv.Value)
	}
	return out, err
}

// facts gathers what is known of one network; whole is false for a line of the summary.
func (d *Diagnosis) facts(ctx context.Context, c cluster, nw network, whole bool) facts {
	f := facts{
		cluster: c, me: d.src.Node, stopped: d.src.Stopped, hangs: d.src.Hangs, network: nw, problem: d.src.Driver.Problems()[nw.Name],
		receipts: d.receipts(nw.Network), counts: map[netip.Prefix]uint64{}, leases: map[netip.Prefix][]store.Lease{},
	}
	d.readRecords(ctx, &f, whole)
	if nw.Encrypted {
		d.protection(ctx, &f)
	}
	if whole {
		f.sent = d.sent(ctx, nw, len(f.services) > 0)
		f.dropped = d.dropped(ctx, nw)
		if d.src.Unheard != nil {
			f.unheard = d.src.Unheard()
		}
	}
	if slices.Contains(members(nw.Network), f.me.Name) {
		if d.src.Mirror.Synced(nw.Name) {
			f.plan, f.planErr = d.src.Driver.Diff(ctx, nw.Name)
		} else {
			f.planErr = fmt.Errorf("the network's records have not been read: %w", store.ErrUnavailable)
		}
	}
	return f
}

// readRecords reads a network's records from the store, or, if it does not answer, its endpoints and services from the mirror.
func (d *Diagnosis) readRecords(ctx context.Context, f *facts, whole bool) {
	if f.err == nil {
		ask, cancel := context.WithTimeout(ctx, askStore)
		defer cancel()
		f.err = d.readNetwork(ask, f, whole)
	}
	if f.err == nil {
		return
	}
	f.endpoints, f.services = f.endpoints[:0], f.services[:0]
	d.src.Mirror.Read(func(r *store.Records) {
		for _, e := range r.Endpoints[f.network.Name] {
			f.endpoints = append(f.endpoints, endpoint{e, 0})
		}
		for _, s := range r.Services[f.network.Name] {
			f.services = append(f.services, service{s, 0})
		}
	})
}

// readNetwork reads a network's endpoints and services from the store, and their leases and names if whole is set.
func (d *Diagnosis) readNetwork(ctx context.Context, f *facts, whole bool) error {
	es, err := list(
		ctx,
		d.src.Store,
		store.NetworkEndpoints(f.network.Name),
		f.bad,
		func(kv store.KV, e store.Endpoint) (string, endpoint) {
			return e.ID, endpoint{e, kv.Modified}
		},
	)
	if err != nil {
		return err
	}
	f.endpoints = slices.Collect(maps.Values(es))
	if err := d.readServices(ctx, f, whole); err != nil {
		return err
	}
	if err := d.readConflicts(ctx, f); err != nil {
		return err
	}
	for _, subnet := range f.network.Subnets {
		n, err := d.src.Store.Count(ctx, store.PoolLeases(subnet))
		if err != nil {
			return err
		}
		f.counts[subnet] = uint64(n)
		if !whole {
			continue
		}
		ls, err := list(
			ctx,
			d.src.Store,
			store.PoolLeases(subnet),
			f.bad,
			func(_ store.KV, l store.Lease) (netip.Addr, store.Lease) {
				return l.Address, l
			},
		)
		if err != nil {
			return err
		}
		f.leases[subnet] = slices.Collect(maps.Values(ls))
	}
	return nil
}

// members returns the nodes that have a network, by name.
func members(nw store.Network) []string {
	var out []string
	for _, m := range nw.Members {
		out = append(out, m.Node)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// data says where the cluster's records come from.
func (c cluster) data() Data {
	if c.err != nil {
		return Data{SourceMirror, c.taken}
	}
	return Data{SourceStore, c.taken}
}

// liveness is a node's state as far as its daemon's connection tells.
func (c cluster) liveness(me, node string) string {
	n, known := c.nodes[node]
	switch {
	case node == me:
		return StateLocal
	case c.err != nil:
		return StateUnknown
	case !known || c.alive[node] != n.ID:
		return StateDown
	}
	return StateOK
}
