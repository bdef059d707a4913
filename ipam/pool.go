package ipam

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/docker/go-plugins-helpers/ipam"

	"github.com/netdriver/netdriver/internal/plugin"
	"github.com/netdriver/netdriver/store"
)

// optionNetwork names the cluster network that a pool is for: --ipam-opt network=NAME.
const optionNetwork = "network"

// labelPrefix begins the options that Docker adds by itself.
const labelPrefix = "com.docker."

// wish is what a RequestPool asks for.
type wish struct {
	space       string
	subnet, rng netip.Prefix // zero: choose, whole subnet
	network     string       // empty: not named
	v6          bool
}

// requestPool gives this node a claim on a pool: the one with the asked subnet, the one of the named network, or a new
// one. Asked again, also when the daemon starts anew, it answers the same.
func (s *Service) requestPool(ctx context.Context, req *ipam.RequestPoolRequest) (*ipam.RequestPoolResponse, error) {
	w, err := parseWish(req)
	if err != nil {
		return nil, err
	}
	var p store.Pool
	err = again(func() error {
		var err error
		p, err = s.acquire(ctx, w)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("request address pool: %w", err)
	}
	if w.space == LocalSpace {
		s.noteRange(p.Subnet, w.rng)
	}
	id := PoolID{Space: w.space, Subnet: p.Subnet, Range: w.rng}
	return &ipam.RequestPoolResponse{PoolID: id.String(), Pool: p.Subnet.String()}, nil
}

// parseWish validates a RequestPool; its error names every wrong part at once.
func parseWish(req *ipam.RequestPoolRequest) (wish, error) {
	w := wish{space: req.AddressSpace, v6: req.V6}
	errs := []error{checkSpace(req.AddressSpace)}
	for _, k := range slices.Sorted(maps.Keys(req.Options)) {
		switch {
		case k == optionNetwork:
			w.network = req.Options[k]
			errs = append(errs, store.CheckName("network", w.network))
		case !strings.HasPrefix(k, labelPrefix):
			errs = append(errs, fmt.Errorf("unknown option --ipam-opt %s=%s; the only one is %s=NAME, the cluster "+
				"network's name",
				k, req.Options[k], optionNetwork))
		}
	}
	return w, errors.Join(append(errs, w.parsePrefixes(req))...)
}

func (w *wish) parsePrefixes(req *ipam.RequestPoolRequest) (err error) {
	if req.Pool == "" {
		if req.SubPool != "" {
			return fmt.Errorf("range %s without a subnet; give --subnet with --ip-range", req.SubPool)
		}
		return nil
	}
	if w.subnet, err = parseSubnet(req.Pool); err != nil {
		return err
	}
	if w.subnet.Addr().Is6() != req.V6 {
		return fmt.Errorf("subnet %s was asked for as an %s one", w.subnet, family(req.V6))
	}
	if req.SubPool != "" {
		w.rng, err = parseRange(w.subnet, req.SubPool)
	}
	return err
}

// acquire does one try of requestPool. It reads the guard before the pools, so that a pool made after either reading
// makes the transaction fail.
func (s *Service) acquire(ctx context.Context, w wish) (store.Pool, error) {
	guard, err := s.guard(ctx)
	if err != nil {
		return store.Pool{}, err
	}
	all, err := s.pools(ctx)
	if err != nil {
		return store.Pool{}, err
	}
	named, err := s.named(ctx, w)
	if err != nil {
		return store.Pool{}, err
	}
	if e, ok := w.find(all); ok {
		return s.join(ctx, w, e)
	}
	if named != nil && w.subnet.IsValid() {
		return store.Pool{}, fmt.Errorf("network %s has the subnets %v, not %s; use one of them, omit --subnet, or "+
			"choose another name",
			w.network, named.Subnets, w.subnet)
	}
	if named != nil {
		return store.Pool{}, fmt.Errorf("network %s has the subnets %v and no %s one; create it without --ipv6, or "+
			"choose another name",
			w.network, named.Subnets, family(w.v6))
	}
	return s.create(ctx, w, guard, all)
}

// guard is the condition that no pool has been made since now.
func (s *Service) guard(ctx context.Context) (store.Cond, error) {
	kv, err := s.cfg.Store.Get(ctx, store.PoolGuard)
	if errors.Is(err, store.ErrNotFound) {
		return store.Absent(store.PoolGuard), nil
	}
	return store.Unchanged(kv), err
}

// entry is a pool with its record in the store. A record that cannot be read has an error, and only its subnet.
type entry struct {
	store.Pool
	kv  store.KV
	err error
}

// pools returns all pools of the cluster, in order of key.
func (s *Service) pools(ctx context.Context) ([]entry, error) {
	kvs, _, err := s.cfg.Store.List(ctx, store.PoolPrefix)
	if err != nil {
		return nil, err
	}
	all := make([]entry, 0, len(kvs))
	for _, kv := range kvs {
		p, err := store.Decode[store.Pool](kv)
		if err != nil {
			// The key still says which addresses it is about (store.PoolKey).
			subnet := strings.Replace(strings.TrimPrefix(kv.Key, store.PoolPrefix), "_", "/", 1)
			p = store.Pool{}
			if p.Subnet, _ = netip.ParsePrefix(subnet); !p.Subnet.IsValid() {
				s.log.Error("no such pool can be", "key", kv.Key, "error", err)
				continue
			}
		}
		all = append(all, entry{p, kv, err})
	}
	return all, nil
}

// named returns the network that w names, nil if it names none or there is none yet.
func (s *Service) named(ctx context.Context, w wish) (*store.Network, error) {
	if w.network == "" {
		return nil, nil
	}
	nw, _, err := get[store.Network](ctx, s.cfg.Store, store.NetworkKey(w.network))
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	return &nw, err
}

// find returns the pool that w is about, if it exists.
func (w wish) find(all []entry) (entry, bool) {
	for _, e := range all {
		bySubnet := w.subnet.IsValid() && e.Subnet == w.subnet
		byName := !w.subnet.IsValid() && w.network != "" && e.Network == w.network && e.Subnet.Addr().Is6() == w.v6
		if bySubnet || byName {
			return e, true
		}
	}
	return entry{}, false
}

// join gives this node a claim on a pool that exists. A node that is a member of the pool's network needs none: its
// daemon or engine has started anew, or it makes another Docker network of the same cluster network. Nor does a swarm
// whose network it is: another manager leads it now.
func (s *Service) join(ctx context.Context, w wish, e entry) (store.Pool, error) {
	if e.err != nil {
		return store.Pool{}, e.err
	}
	if w.network != "" && e.Network != "" && w.network != e.Network {
		return store.Pool{}, fmt.Errorf("subnet %s belongs to network %s, not to %s; choose another --subnet or "+
			"--ipam-opt network=%s",
			e.Subnet, e.Network, w.network, e.Network)
	}
	member, exists, err := s.membership(ctx, e.Pool, w.space)
	if err != nil || member {
		return e.Pool, err
	}
	mine := s.mine(w.space)
	claimed := slices.ContainsFunc(e.Claims, mine)
	if !claimed {
		if err := s.checkRoutes(e.Subnet); err != nil {
			return store.Pool{}, err
		}
	}
	conds := []store.Cond{store.Unchanged(e.kv)}
	if e.Network == "" && w.network != "" {
		e.Network = w.network
	} else if exists {
		conds = append(conds, store.Exists(store.NetworkKey(e.Network)))
	}
	// A claim that was left from an interrupted creation is dated anew, or it might expire during this one.
	e.Claims = append(slices.DeleteFunc(slices.Clone(e.Claims), mine), s.claim(w.space))
	if _, err := s.cfg.Store.Commit(ctx, conds, store.Put(e.kv.Key, store.Encode(e.Pool))); err != nil {
		return store.Pool{}, err
	}
	if !claimed {
		s.log.Info("joined address pool", "pool", e.Subnet, "network", e.Network)
	}
	return e.Pool, nil
}

// membership says whether the pool's network exists and whether who asks in that space has a part in it: this node as a
// member, or the swarm.
func (s *Service) membership(ctx context.Context, p store.Pool, space string) (member, exists bool, err error) {
	if p.Network == "" {
		return false, false, nil
	}
	nw, _, err := get[store.Network](ctx, s.cfg.Store, store.NetworkKey(p.Network))
	if errors.Is(err, store.ErrNotFound) {
		return false, false, nil
	}
	if space == GlobalSpace {
		return nw.Swarm != "", true, err
	}
	return s.member(nw), true, err
}

// create makes a new pool with a claim of this node.
func (s *Service) create(ctx context.Context, w wish, guard store.Cond, all []entry) (store.Pool, error) {
	subnet, err := s.place(w, all)
	if err != nil {
		return store.Pool{}, err
	}
	p := store.Pool{
		Subnet: subnet, Network: w.network, Claims: []store.Claim{s.claim(w.space)},
		Creator: s.cfg.Node, Created: s.cfg.Now(),
	}
	conds := []store.Cond{guard, store.Absent(store.PoolKey(subnet))}
	_, err = s.cfg.Store.Commit(ctx, conds,
		store.Put(store.PoolKey(subnet), store.Encode(p)), store.Put(store.PoolGuard, []byte(subnet.String())))
	if err != nil {
		return store.Pool{}, err
	}
	s.log.Info("made address pool", "pool", subnet, "network", w.network)
	return p, nil
}

// place returns the subnet of a new pool: the asked one if nothing is in its way, else a chosen one.
func (s *Service) place(w wish, all []entry) (netip.Prefix, error) {
	if w.subnet.IsValid() {
		for _, e := range all {
			if e.Subnet.Overlaps(w.subnet) {
				return w.subnet, fmt.Errorf("subnet %s overlaps pool %s of %s; choose another --subnet",
					w.subnet, e.Subnet, e.owner())
			}
		}
		return w.subnet, s.checkRoutes(w.subnet)
	}
	taken, err := s.cfg.Routes()
	if err != nil {
		return w.subnet, err
	}
	for _, e := range all {
		taken = append(taken, e.Subnet)
	}
	return s.choose(w, taken)
}

// owner says whose a pool is, for an error message.
func (e entry) owner() string {
	switch {
	case e.err != nil:
		return "a network whose record this node cannot read"
	case e.Network == "":
		return fmt.Sprintf("a network that node %s is creating", e.Creator)
	}
	return "network " + e.Network
}

// checkRoutes refuses a subnet that a route of this host overlaps, unless it is that of a LAN that the host is in, or a
// part of it.
func (s *Service) checkRoutes(subnet netip.Prefix) error {
	routes, err := s.cfg.Routes()
	if err != nil {
		return err
	}
	var connected []netip.Prefix
	if s.cfg.Connected != nil {
		if connected, err = s.cfg.Connected(); err != nil {
			return err
		}
	}
	routes = slices.DeleteFunc(slices.Clone(routes), func(r netip.Prefix) bool {
		return slices.Contains(connected, r) && r.Bits() <= subnet.Bits()
	})
	return CheckRoutes(subnet, routes, s.cfg.Node)
}

func (s *Service) member(nw store.Network) bool {
	return slices.ContainsFunc(nw.Members, func(m store.Member) bool { return m.Node == s.cfg.Node })
}

// mine returns what tells the claims that were made through this node in one address space.
func (s *Service) mine(space string) func(store.Claim) bool {
	return func(c store.Claim) bool { return c.Node == s.cfg.Node && c.Swarm == (space == GlobalSpace) }
}

func (s *Service) claim(space string) store.Claim {
	return store.Claim{Node: s.cfg.Node, Swarm: space == GlobalSpace, Since: s.cfg.Now()}
}

// releasePool gives up this node's claim. A pool of an existing network stays: its last member takes it along. Docker
// sends this before DeleteNetwork, and also when a creation failed; a swarm's leader sends it for a network that lives
// when it was refused a replay.
func (s *Service) releasePool(ctx context.Context, req *ipam.ReleasePoolRequest) (plugin.Empty, error) {
	if req.PoolID == "" {
		return plugin.Empty{}, nil
	}
	id, err := ParsePoolID(req.PoolID)
	if err != nil {
		return plugin.Empty{}, err
	}
	if err := again(func() error { return s.dropClaim(ctx, id.Subnet, id.Space) }); err != nil {
		return plugin.Empty{}, fmt.Errorf("release pool %s: %w", id.Subnet, err)
	}
	if !id.swarm() { // a manager may have tasks of its own there
		s.unfollow(id.Subnet)
	}
	return plugin.Empty{}, nil
}

// dropClaim removes this node's claim, and the pool with everything of it if it has neither claims nor a network.
func (s *Service) dropClaim(ctx context.Context, subnet netip.Prefix, space string) error {
	p, kv, err := get[store.Pool](ctx, s.cfg.Store, store.PoolKey(subnet))
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	had := len(p.Claims)
	p.Claims = slices.DeleteFunc(p.Claims, s.mine(space))
	_, exists, err := s.membership(ctx, p, space)
	if err != nil {
		return err
	}
	conds := []store.Cond{store.Unchanged(kv)}
	if exists || len(p.Claims) > 0 {
		if len(p.Claims) == had {
			return nil
		}
		_, err := s.cfg.Store.Commit(ctx, conds, store.Put(kv.Key, store.Encode(p)))
		return err
	}
	if p.Network != "" {
		conds = append(conds, store.Absent(store.NetworkKey(p.Network)))
	}
	_, err = s.cfg.Store.Commit(ctx, conds,
		store.Delete(kv.Key), store.DeletePrefix(store.PoolLeases(subnet)), store.Delete(store.CursorKey(subnet)))
	if err == nil {
		s.log.Info("removed address pool", "pool", subnet, "network", p.Network)
	}
	return err
}
