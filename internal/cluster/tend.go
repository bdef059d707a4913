package cluster

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/netdriver/netdriver/store"
	"github.com/netdriver/netdriver/store/etcd"
)

// tendEvery is how often a node looks after its certificate, the addresses of the members, and their number.
const tendEvery = 2 * time.Second

// tend keeps the node's part in the cluster as it is to be.
func (c *Cluster) tend(ctx context.Context) error {
	tick := time.NewTicker(tendEvery)
	defer tick.Stop()
	var failing string
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		round, cancel := context.WithTimeout(ctx, exchangeTimeout)
		err := c.tendOnce(round)
		cancel()
		if ctx.Err() != nil {
			return nil
		}
		// One that goes on is said once.
		if err != nil && err.Error() != failing {
			c.cfg.Log.Warn("cannot look after this node's part in the cluster", "error", err)
		}
		failing = ""
		if err != nil {
			failing = err.Error()
		}
	}
}

func (c *Cluster) tendOnce(ctx context.Context) error {
	list, err := c.cfg.Client.Members(ctx)
	if err != nil {
		return err
	}
	errs := []error{c.follow(list), c.renewCertificate(ctx)}
	if c.member() {
		errs = append(errs, c.refreshCRL(ctx))
	} else {
		errs = append(errs, c.grow(ctx, list))
	}
	return errors.Join(errs...)
}

// follow keeps the members' addresses, so that the node finds the store again when all that it knew are gone.
func (c *Cluster) follow(list []etcd.MemberInfo) error {
	now := voters(list)
	if len(now) == 0 || slices.Equal(now, c.cfg.State.Members) {
		return nil
	}
	s := *c.cfg.State
	s.Members = now
	if err := c.files.save(s); err != nil {
		return err
	}
	c.cfg.State = &s
	c.cfg.Client.SetEndpoints(Endpoints(s))
	return nil
}

// Endpoints returns the URLs of the store for a node of a cluster.
func Endpoints(s State) []string {
	var out []string
	for _, a := range s.Members {
		out = append(out, "https://"+netip.AddrPortFrom(a, s.Ports.Store).String())
	}
	return out
}

// addressOf returns the address in a URL.
func addressOf(text string) (netip.Addr, error) {
	u, err := url.Parse(text)
	if err != nil {
		return netip.Addr{}, err
	}
	return netip.ParseAddr(u.Hostname())
}

// renewCertificate gets the node another certificate when a third of the life of its own is left.
func (c *Cluster) renewCertificate(ctx context.Context) error {
	text, err := os.ReadFile(c.files.Cert())
	if err != nil {
		return err
	}
	have, err := parseCertificate(text)
	if err != nil {
		return fmt.Errorf("this node's certificate: %w", err)
	}
	if have.NotAfter.Sub(c.cfg.Now()) > CertificateLife/3 {
		return nil
	}
	key, request, err := newRequest(c.cfg.Node.Name)
	if err != nil {
		return err
	}
	var certificate []byte
	if c.member() {
		s, err := c.signer()
		if err != nil {
			return err
		}
		certificate, err = s.sign(ctx, request, c.cfg.Node.Name, c.cfg.State.Address)
		if err != nil {
			return err
		}
	} else {
		config, err := mutual(c.files)
		if err != nil {
			return err
		}
		a, err := ask[renewAnswer](ctx, config, c.joinPorts(), "/v1/renew", renewRequest{request, c.cfg.State.Address})
		if err != nil {
			return fmt.Errorf("renew this node's certificate, which ends %s: %w", have.NotAfter.Format(time.DateOnly), err)
		}
		certificate = a.Certificate
	}
	// A connection made between the two reads a key of another certificate, fails and is made again.
	if err := errors.Join(c.files.write(c.files.Key(), key), c.files.write(c.files.Cert(), certificate)); err != nil {
		return err
	}
	c.cfg.Log.Info("this node's certificate is renewed", "was valid until", have.NotAfter)
	return nil
}

func (c *Cluster) joinPorts() []netip.AddrPort {
	var out []netip.AddrPort
	for _, m := range c.cfg.State.Members {
		out = append(out, netip.AddrPortFrom(m, c.cfg.State.Ports.Join))
	}
	return out
}

// refreshCRL makes this member's own list of refused certificates that of the store.
func (c *Cluster) refreshCRL(ctx context.Context) error {
	if !c.member() {
		return nil
	}
	refused, err := revoked(ctx, c.cfg.Client)
	if err != nil {
		return err
	}
	have, err := listed(c.files)
	if err == nil && maps.Equal(have, refused) {
		return nil
	}
	return c.writeCRL(ctx)
}

// grow makes this node a member if the store has too few and it is this node's turn: the first by name of those that
// are alive and none. Two members would be worse than one, since the loss of either stops the store, so there are three
// once there are three nodes.
func (c *Cluster) grow(ctx context.Context, list []etcd.MemberInfo) error {
	wanted, err := c.wanted(ctx)
	if err != nil || len(list) >= wanted {
		return err
	}
	next, err := c.next(ctx, list)
	if err != nil || next != c.cfg.Node.Name {
		return err
	}
	// It goes with this node's connection: another one takes over if it dies.
	growing := store.PutAlive(store.ClusterGrowing, []byte(c.cfg.Node.Name))
	conds := []store.Cond{store.Absent(store.ClusterGrowing)}
	if kv, err := c.cfg.Client.Get(ctx, store.ClusterGrowing); err == nil {
		if string(kv.Value) != c.cfg.Node.Name {
			return nil
		}
		conds = []store.Cond{store.Unchanged(kv)}
	}
	if _, err := c.cfg.Client.Commit(ctx, conds, growing); err != nil {
		if errors.Is(err, store.ErrConflict) {
			return nil
		}
		return err
	}
	if err := c.become(ctx); err != nil {
		return fmt.Errorf("become a member of the store: %w", err)
	}
	return nil
}

// become makes this node a member: from its next start on, which follows at once.
func (c *Cluster) become(ctx context.Context) error {
	config, err := mutual(c.files)
	if err != nil {
		return err
	}
	key, err := ask[keyAnswer](ctx, config, c.joinPorts(), "/v1/authority", struct{}{})
	if err != nil {
		return err
	}
	if err := c.files.write(c.files.caKey(), key.Key); err != nil {
		return err
	}
	if err := c.writeCRL(ctx); err != nil {
		return err
	}
	peer := PeerURL(*c.cfg.State)
	initial, err := c.cfg.Client.AddLearner(ctx, c.cfg.Node.Name, peer)
	if err != nil {
		return err
	}
	s := *c.cfg.State
	s.Role, s.Initial = RoleMember, initial
	s.Store = filepath.Join("members", nonce()[:8]) // never one of an earlier time, whose data would contradict
	if err := c.files.save(s); err != nil {
		return err
	}
	c.cfg.Log.Info("this node becomes a member of the store", "members", initial)
	c.restart()
	return nil
}

// writeCRL gives a member its list of refused certificates.
func (c *Cluster) writeCRL(ctx context.Context) error {
	s, err := c.signer()
	if err != nil {
		return err
	}
	text, err := s.crl(ctx)
	if err != nil {
		return err
	}
	return c.files.write(c.files.CRL(), text)
}

// PeerURL is where the other members reach this one.
func PeerURL(s State) string {
	return "https://" + netip.AddrPortFrom(s.Address, s.Ports.Peer).String()
}

// wanted returns how many members the store is to have now.
func (c *Cluster) wanted(ctx context.Context) (int, error) {
	size, err := c.size(ctx)
	if err != nil {
		return 0, err
	}
	alive, err := c.cfg.Client.Count(ctx, store.AlivePrefix)
	if err != nil {
		return 0, err
	}
	return possible(size, int(alive)), nil
}

// size returns how many members were asked for.
func (c *Cluster) size(ctx context.Context) (int, error) {
	kv, err := c.cfg.Client.Get(ctx, store.ClusterSize)
	if errors.Is(err, store.ErrNotFound) {
		return DefaultSize, nil
	}
	if err != nil {
		return 0, err
	}
	size, err := strconv.Atoi(string(kv.Value))
	if err != nil {
		return 0, fmt.Errorf("record %s: %w", store.ClusterSize, err)
	}
	return size, nil
}

// possible returns how many of size members nodes can have: an odd number.
func possible(size, nodes int) int {
	if nodes < size {
		size = nodes
	}
	return max(1, size-(size+1)%2)
}

// next returns the node whose turn it is to become a member.
func (c *Cluster) next(ctx context.Context, list []etcd.MemberInfo) (string, error) {
	kvs, _, err := c.cfg.Client.List(ctx, store.AlivePrefix)
	if err != nil {
		return "", err
	}
	for _, kv := range kvs { // in order of name
		node := kv.Key[len(store.AlivePrefix):]
		if !slices.ContainsFunc(list, func(m etcd.MemberInfo) bool { return m.Name == node && !m.Learner }) {
			return node, nil
		}
	}
	return "", nil
}
