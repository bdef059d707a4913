package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/netdriver/netdriver/store"
	"github.com/netdriver/netdriver/store/etcd"
)

// ErrAgain is returned by Run when the node's part in its cluster has changed: the daemon has to open its store anew.
var ErrAgain = errors.New("the node's part in its cluster has changed")

// ErrNone says that the node is in no cluster that nodes can join.
var ErrNone = errors.New("this node is in no cluster of `netdriver cluster`; make one with `netdriver cluster " +
	"init`, or join one")

// FirstStore is the directory, in the data directory, of a store with one member, which becomes the first of several.
const FirstStore = "etcd"

// The numbers of members that the store of a cluster has, once it has that many nodes.
const (
	DefaultSize = 3
	MaxSize     = 5
)

// Config is what a Cluster is made of.
type Config struct {
	DataDir string
	// Node is this node's record.
	Node store.Node
	// Client is the store.
	Client *etcd.Client
	// State is what the node was started with; nil: it has a store of its own.
	State *State
	// External: the store is one that the user runs, whose members are not netdriver's business.
	External bool
	Log      *slog.Logger
	// Now is the clock, time.Now if nil.
	Now func() time.Time
}

// Cluster is this node's part in a cluster.
type Cluster struct {
	cfg   Config
	files Files
	again chan struct{}
	// changing is held by the one verb that changes the node's part.
	changing sync.Mutex
}

// New makes a Cluster. It does nothing by itself until Run.
func New(cfg Config) *Cluster {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Cluster{cfg: cfg, files: FilesIn(cfg.DataDir), again: make(chan struct{}, 1)}
}

// Run serves nodes that join, if this one is a member, and keeps certificates and the number of members as they are to
// be, until ctx ends. It returns ErrAgain when the node's part has changed.
func (c *Cluster) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		select {
		case <-c.again:
			return ErrAgain
		case <-ctx.Done():
			return nil
		}
	})
	if c.cfg.State == nil || c.cfg.External {
		return g.Wait()
	}
	if c.member() {
		s, err := c.signer()
		if err != nil {
			return err
		}
		x := &exchange{
			signer: s, files: c.files, ports: c.cfg.State.Ports, members: c.members, log: c.cfg.Log,
			limit: rate.NewLimiter(attempts, attempts),
		}
		g.Go(func() error { return x.serve(ctx, netip.AddrPortFrom(c.cfg.State.Address, c.cfg.State.Ports.Join)) })
	}
	g.Go(func() error { return c.tend(ctx) })
	return g.Wait()
}

func (c *Cluster) member() bool { return c.cfg.State != nil && c.cfg.State.Role == RoleMember }

// restart ends Run with ErrAgain.
func (c *Cluster) restart() {
	select {
	case c.again <- struct{}{}:
	default:
	}
}

func (c *Cluster) signer() (*signer, error) {
	a, err := c.files.authority()
	return &signer{store: c.cfg.Client, authority: a, now: c.cfg.Now}, err
}

// here says whether the verbs of a cluster make sense on this node.
func (c *Cluster) here() error {
	if c.cfg.External {
		return errors.New("this node uses a store of your own (--store, --store-listen): its members and certificates are " +
			"yours to manage, with etcd's tools")
	}
	return nil
}

// Init makes the node the first of a cluster that others can join. Its networks and containers stay. The addresses must
// be reachable from the other nodes.
func (c *Cluster) Init(ctx context.Context, address netip.Addr, ports Ports, size int) error {
	if err := c.here(); err != nil {
		return err
	}
	if err := checkSize(size); err != nil {
		return err
	}
	if c.cfg.State != nil {
		return errors.New("this node is in a cluster already: see `netdriver cluster status`")
	}
	if !address.IsValid() {
		address = c.cfg.Node.VTEP
	}
	a, err := NewAuthority(c.cfg.Node.Name, c.cfg.Now())
	if err != nil {
		return err
	}
	key, err := a.KeyPEM()
	if err != nil {
		return err
	}
	s := &signer{store: c.cfg.Client, authority: a, now: c.cfg.Now}
	if _, err := c.cfg.Client.Commit(ctx, nil, store.Put(store.ClusterSize, fmt.Append(nil, size))); err != nil {
		return err
	}
	nodeKey, request, err := newRequest(c.cfg.Node.Name)
	if err != nil {
		return err
	}
	certificate, err := s.sign(ctx, request, c.cfg.Node.Name, address)
	if err != nil {
		return err
	}
	crl, err := s.crl(ctx)
	if err != nil {
		return err
	}
	for path, text := range map[string][]byte{
		c.files.CA(): a.CertificatePEM(), c.files.caKey(): key, c.files.CRL(): crl,
		c.files.Cert(): certificate, c.files.Key(): nodeKey,
	} {
		if err := c.files.write(path, text); err != nil {
			return err
		}
	}
	err = c.files.save(State{
		Role: RoleMember, Address: address, Ports: ports, Members: []netip.Addr{address}, Store: FirstStore,
	})
	if err != nil {
		return err
	}
	c.cfg.Log.Info("this node is the first of a cluster", "address", address)
	return nil
}

func checkSize(size int) error {
	if size != 1 && size != 3 && size != 5 {
		return fmt.Errorf("a store of %d members: want 1, 3 or 5; an even number survives no more losses than the next "+
			"smaller one", size)
	}
	return nil
}

// Token returns a token with which nodes can join for some time.
func (c *Cluster) Token(ctx context.Context, life time.Duration) (Token, error) {
	switch {
	case c.here() != nil:
		return Token{}, c.here()
	case c.cfg.State == nil:
		return Token{}, ErrNone
	case !c.member():
		return Token{}, fmt.Errorf("only members sign certificates: make the token on one of them (%v)", c.cfg.State.Members)
	case life <= 0 || life > 30*24*time.Hour:
		return Token{}, fmt.Errorf("life of a token %s: want up to 720h", life)
	}
	s, err := c.signer()
	if err != nil {
		return Token{}, err
	}
	members, err := c.members(ctx)
	if err != nil {
		return Token{}, err
	}
	var at []netip.AddrPort
	for _, m := range members {
		at = append(at, netip.AddrPortFrom(m, c.cfg.State.Ports.Join))
	}
	return s.token(ctx, c.cfg.Node.Name, at, life)
}

// RevokeTokens makes all tokens useless and returns how many there were.
func (c *Cluster) RevokeTokens(ctx context.Context) (int64, error) {
	n, err := c.cfg.Client.Count(ctx, store.TokenPrefix)
	if err != nil {
		return 0, err
	}
	_, err = c.cfg.Client.Commit(ctx, nil, store.DeletePrefix(store.TokenPrefix))
	return n, err
}

// members returns the addresses of the store's members, as far as they have started.
func (c *Cluster) members(ctx context.Context) ([]netip.Addr, error) {
	list, err := c.cfg.Client.Members(ctx)
	if err != nil {
		return nil, err
	}
	return voters(list), nil
}

// voters returns the addresses of the members that have started and have a vote, sorted.
func voters(list []etcd.MemberInfo) []netip.Addr {
	var out []netip.Addr
	for _, m := range list {
		if a, err := addressOf(m.Peer); err == nil && m.Name != "" && !m.Learner {
			out = append(out, a)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

// Join makes the node a part of the cluster that a token is for. A node with networks of its own would lose them, so it
// is refused unless force is set; the kernel's devices of networks without containers go then.
func (c *Cluster) Join(ctx context.Context, text string, force bool) error {
	if err := c.here(); err != nil {
		return err
	}
	if c.cfg.State != nil {
		return errors.New("this node is in a cluster already: leave that one first with `netdriver cluster leave`")
	}
	t, err := ParseToken(text)
	if err != nil {
		return err
	}
	if err := c.mayDiscard(ctx, force); err != nil {
		return err
	}
	key, request, err := newRequest(c.cfg.Node.Name)
	if err != nil {
		return err
	}
	a, err := ask[joinAnswer](ctx, trustOnly(t.Authority, c.cfg.Now), t.Endpoints, "/v1/join", joinRequest{
		Token: t.ID, Secret: t.Secret, Node: c.cfg.Node.Name, ID: c.cfg.Node.ID, Address: c.cfg.Node.VTEP, Request: request,
	})
	if err != nil {
		return fmt.Errorf("join the cluster: %w", err)
	}
	for path, text := range map[string][]byte{
		c.files.CA(): a.Authority, c.files.Cert(): a.Certificate, c.files.Key(): key,
	} {
		if err := c.files.write(path, text); err != nil {
			return err
		}
	}
	err = c.files.save(State{Role: RoleClient, Address: c.cfg.Node.VTEP, Ports: a.Ports, Members: a.Members})
	if err != nil {
		return err
	}
	c.cfg.Log.Info("this node has joined a cluster", "members", a.Members)
	return nil
}

// mayDiscard says whether what the node's own store has can be given up.
func (c *Cluster) mayDiscard(ctx context.Context, force bool) error {
	networks, err := c.cfg.Client.Count(ctx, store.NetworkPrefix)
	if err != nil {
		return err
	}
	n, err := containers(ctx, c.cfg.Client, c.cfg.Node.Name)
	if err != nil {
		return err
	}
	switch {
	case n > 0:
		return fmt.Errorf("%d containers of this node are in networks that the cluster does not know: stop them first", n)
	case networks > 0 && !force:
		return fmt.Errorf("this node has %d networks that the cluster does not know: remove them with `docker network "+
			"rm`, or give them up with --force", networks)
	}
	return nil
}

// Leave takes the node out of its cluster; it has a store of its own afterwards. Containers would lose their addresses
// to others, so it is refused while there are some, unless force is set.
func (c *Cluster) Leave(ctx context.Context, force bool) error {
	if err := c.here(); err != nil {
		return err
	}
	if c.cfg.State == nil {
		return ErrNone
	}
	n, err := containers(ctx, c.cfg.Client, c.cfg.Node.Name)
	if err != nil {
		return err
	}
	if n > 0 && !force {
		return fmt.Errorf("%d containers of this node are in networks of the cluster: stop them first, or use --force", n)
	}
	list, err := c.cfg.Client.Members(ctx)
	if err != nil {
		return err
	}
	if c.member() && len(list) == 1 {
		return errors.New("this is the last member of the cluster, which would end: wait until another node is one " +
			"(`netdriver cluster status`), or end it with `netdriver uninstall --purge`")
	}
	if c.member() {
		if err := c.mayLeave(ctx, list); err != nil {
			return err
		}
	}
	if err := forget(ctx, c.cfg.Client, c.cfg.Node.Name); err != nil {
		return err
	}
	if c.member() {
		// From here on the node's own member does not answer any more.
		if err := c.dismiss(ctx, list, c.cfg.Node.Name, c.cfg.State.Address); err != nil {
			return err
		}
	}
	if err := Depart(c.cfg.DataDir, *c.cfg.State); err != nil {
		return err
	}
	c.cfg.Log.Info("this node has left its cluster")
	return nil
}

// mayLeave says whether the store goes on without this node's member, before anything has been changed.
func (c *Cluster) mayLeave(ctx context.Context, list []etcd.MemberInfo) error {
	config, err := mutual(c.files)
	if err != nil {
		return err
	}
	others := slices.DeleteFunc(slices.Clone(list), func(m etcd.MemberInfo) bool { return m.Name == c.cfg.Node.Name })
	if votes, answer := votes(probe(ctx, others, config)); answer <= votes/2 {
		return fmt.Errorf("only %d of the %d other members answer, too few to go on without this one: bring one back first, or "+
			"remove those that are lost", answer, votes)
	}
	return nil
}

// Depart removes what a node has of a cluster that it left, the member's data at last.
func Depart(dataDir string, s State) error {
	if err := FilesIn(dataDir).Remove(); err != nil {
		return fmt.Errorf("forget the cluster: %w", err)
	}
	if s.Store == "" {
		return nil
	}
	if err := os.RemoveAll(filepath.Join(dataDir, s.Store)); err != nil {
		return fmt.Errorf("forget the cluster: %w", err)
	}
	return nil
}

// dismiss removes a node's member from the store, if it has one. One that has not started yet has no name.
func (c *Cluster) dismiss(ctx context.Context, list []etcd.MemberInfo, node string, addr netip.Addr) error {
	for _, m := range list {
		if a, _ := addressOf(m.Peer); m.Name == node || m.Name == "" && a == addr && addr.IsValid() {
			return c.cfg.Client.RemoveMember(ctx, m.ID)
		}
	}
	return nil
}

// Remove takes another node out of the cluster, for example one that is lost. Its certificate is refused from then on.
// A node that is alive should leave by itself, so it is refused unless force is set.
func (c *Cluster) Remove(ctx context.Context, node string, force bool) error {
	if err := store.CheckName("node", node); err != nil {
		return err
	}
	if node == c.cfg.Node.Name {
		return errors.New("this is the node itself: use `netdriver cluster leave`")
	}
	kv, err := c.cfg.Client.Get(ctx, store.NodeKey(node))
	known := err == nil
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	if _, err := c.cfg.Client.Get(ctx, store.AliveKey(node)); err == nil && !force {
		return fmt.Errorf("node %s is alive: let it leave with `netdriver cluster leave` there, or remove it with "+
			"--force", node)
	}
	if !c.cfg.External {
		list, err := c.cfg.Client.Members(ctx)
		if err != nil {
			return err
		}
		for _, m := range list {
			known = known || m.Name == node
		}
		n, _ := store.Decode[store.Node](kv)
		if err := c.dismiss(ctx, list, node, n.VTEP); err != nil {
			return err
		}
	}
	if !known {
		return fmt.Errorf("there is no node %s: see `netdriver nodes`", node)
	}
	if err := forget(ctx, c.cfg.Client, node); err != nil {
		return fmt.Errorf("remove node %s: %w; run it again", node, err)
	}
	c.cfg.Log.Info("node removed from the cluster", "peer", node)
	return c.refreshCRL(ctx)
}

// Resize sets how many members the store is to have once there are that many nodes.
func (c *Cluster) Resize(ctx context.Context, size int) error {
	if err := errors.Join(c.here(), checkSize(size)); err != nil {
		return err
	}
	if c.cfg.State == nil {
		return ErrNone
	}
	_, err := c.cfg.Client.Commit(ctx, nil, store.Put(store.ClusterSize, fmt.Append(nil, size)))
	return err
}
