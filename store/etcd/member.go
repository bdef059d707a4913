package etcd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.uber.org/zap"
)

// promotePause is the time between two attempts to promote a learner, which first has to read all that the others have.
const promotePause = 200 * time.Millisecond

// apply makes etcd's configuration that of one member of several.
func (m *Member) apply(ec *embed.Config, cfg EmbedConfig) error {
	peer, err := url.Parse(m.Peer)
	if err != nil || peer.Scheme != "https" || cfg.Cert == "" {
		return fmt.Errorf("member %s: peer URL %q: want https://ADDRESS:PORT, with a certificate", m.Name, m.Peer)
	}
	ec.Name, ec.Dir = m.Name, filepath.Join(cfg.DataDir, m.Dir)
	ec.ListenPeerUrls, ec.AdvertisePeerUrls = []url.URL{*peer}, []url.URL{*peer}
	ec.PeerTLSInfo.CertFile, ec.PeerTLSInfo.KeyFile = cfg.Cert, cfg.Key
	ec.PeerTLSInfo.TrustedCAFile, ec.PeerTLSInfo.ClientCertAuth = cfg.CA, true
	ec.PeerTLSInfo.CRLFile, ec.ClientTLSInfo.CRLFile = m.CRL, m.CRL
	// The local sockets are nothing that another node could use.
	socket := func(u url.URL) bool { return u.Scheme == "unix" }
	ec.AdvertiseClientUrls = slices.DeleteFunc(slices.Clone(ec.ListenClientUrls), socket)
	ec.InitialCluster = m.Name + "=" + m.Peer
	if m.Initial != "" {
		ec.InitialCluster, ec.ClusterState = m.Initial, embed.ClusterStateFlagExisting
	}
	return nil
}

// announce tells the other members where this one is: a store with one member, which listened on a socket, becomes the
// first of several, or the node has another address.
func (s *Server) announce(ctx context.Context, m *Member) error {
	if m == nil {
		return nil
	}
	c := v3client.New(s.etcd.Server)
	defer c.Close()
	id := uint64(s.etcd.Server.MemberID())
	list, err := c.MemberList(ctx)
	if err != nil {
		return fmt.Errorf("embedded store: read the members: %w", err)
	}
	for _, have := range list.Members {
		if have.ID == id && !slices.Equal(have.PeerURLs, []string{m.Peer}) {
			if _, err := c.MemberUpdate(ctx, id, []string{m.Peer}); err != nil {
				return fmt.Errorf("embedded store: tell the members its URL %s: %w", m.Peer, err)
			}
		}
	}
	return nil
}

// MemberInfo is one member of the store as the members know it.
type MemberInfo struct {
	ID uint64
	// Name is the node's; empty as long as the member has not started.
	Name string
	// Peer and Client are its URLs.
	Peer, Client string
	// Learner: it has no vote yet.
	Learner bool
}

func info(m *etcdserverpb.Member) MemberInfo {
	first := func(urls []string) string {
		if len(urls) == 0 {
			return ""
		}
		return urls[0]
	}
	return MemberInfo{ID: m.ID, Name: m.Name, Peer: first(m.PeerURLs), Client: first(m.ClientURLs), Learner: m.IsLearner}
}

// Members returns the store's members in order of their names.
func (c *Client) Members(ctx context.Context) ([]MemberInfo, error) {
	ctx, cancel := withDeadline(ctx)
	defer cancel()
	list, err := c.etcd.MemberList(ctx)
	if err != nil {
		return nil, c.failed(ctx, "read the members", err)
	}
	var out []MemberInfo
	for _, m := range list.Members {
		out = append(out, info(m))
	}
	slices.SortFunc(out, func(a, b MemberInfo) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// SetEndpoints tells the client where the store is from now on. It is for one behind a connection.
func (c *Client) SetEndpoints(urls []string) {
	if c.cfg.Server == nil {
		c.etcd.SetEndpoints(urls...)
	}
}

// AddLearner adds a member that has no vote until PromoteLearner, and returns what Member.Initial has to be.
func (c *Client) AddLearner(ctx context.Context, name, peer string) (initial string, err error) {
	ctx, cancel := withDeadline(ctx)
	defer cancel()
	members, err := c.Members(ctx)
	if err != nil {
		return "", err
	}
	// One that was added before and never started is taken as it is.
	if !slices.ContainsFunc(members, func(m MemberInfo) bool { return m.Peer == peer }) {
		added, err := c.etcd.MemberAddAsLearner(ctx, []string{peer})
		if errors.Is(err, rpctypes.ErrUnhealthy) {
			// etcd wants all to have been connected for five seconds (server.go, HealthInterval).
			return "", fmt.Errorf("add %s to the members: those that there are do not all answer, or not for long: %w", name,
				err)
		}
		if err != nil {
			return "", c.failed(ctx, "add "+name+" to the members", err)
		}
		members = nil
		for _, m := range added.Members {
			members = append(members, info(m))
		}
	}
	var parts []string
	for _, m := range members {
		if m.Peer == peer {
			m.Name = name
		}
		if m.Name == "" {
			return "", fmt.Errorf("add %s to the members: the one at %s has not started yet; wait for it, or remove it",
				name, m.Peer)
		}
		parts = append(parts, m.Name+"="+m.Peer)
	}
	return strings.Join(parts, ","), nil
}

// unhealthyFor is how long etcd refuses to remove a member after another one has started or connected anew
// (HealthInterval of server/etcdserver is 5 s), with some time for a busy machine.
const unhealthyFor = 8 * time.Second

// RemoveMember removes a member. The store refuses it if too few others would be left that answer.
func (c *Client) RemoveMember(ctx context.Context, id uint64) error {
	ctx, cancel := withDeadline(ctx)
	defer cancel()
	_, err := c.etcd.MemberRemove(ctx, id)
	for end := time.Now().Add(unhealthyFor); errors.Is(err, rpctypes.ErrUnhealthy) && time.Now().Before(end); {
		select {
		case <-ctx.Done():
			return c.failed(ctx, "remove a member", err)
		case <-time.After(promotePause):
		}
		_, err = c.etcd.MemberRemove(ctx, id)
	}
	if errors.Is(err, rpctypes.ErrMemberNotFound) {
		return nil
	}
	if errors.Is(err, rpctypes.ErrUnhealthy) || errors.Is(err, rpctypes.ErrMemberNotEnoughStarted) {
		return fmt.Errorf("remove member %s: the members that would be left have no majority that answers; bring one "+
			"back first: %w", strconv.FormatUint(id, 16), err)
	}
	if err != nil {
		return c.failed(ctx, "remove a member", err)
	}
	return nil
}

// PromoteLearner gives a vote to the member of this process, through the members at endpoints, once it has read all
// that they have. One that has a vote already needs nothing.
func (s *Server) PromoteLearner(ctx context.Context, endpoints []string, config *tls.Config) error {
	if !s.etcd.Server.IsLearner() {
		return nil
	}
	c, err := clientv3.New(clientv3.Config{Context: ctx, Endpoints: endpoints, TLS: config, Logger: zap.NewNop()})
	if err != nil {
		return fmt.Errorf("become a member of the store: %w", err)
	}
	defer c.Close()
	for {
		_, err := c.MemberPromote(ctx, uint64(s.etcd.Server.MemberID()))
		if err == nil || errors.Is(err, rpctypes.ErrMemberNotLearner) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("become a member of the store at %s: %w: %w", strings.Join(endpoints, ", "), ctx.Err(), err)
		case <-time.After(promotePause):
		}
	}
}

// MemberStatus is what one member says of itself.
type MemberStatus struct {
	// Leader is the id of the member that it takes for the leader.
	Leader uint64
	// Size of its database in bytes, and Index of the last entry of the log that it has applied.
	Size  int64
	Index uint64
}

// Probe asks the member at a client URL for its status.
func Probe(ctx context.Context, endpoint string, config *tls.Config) (MemberStatus, error) {
	c, err := clientv3.New(clientv3.Config{Context: ctx, Endpoints: []string{endpoint}, TLS: config, Logger: zap.NewNop()})
	if err != nil {
		return MemberStatus{}, err
	}
	defer c.Close()
	st, err := c.Status(ctx, endpoint)
	if err != nil {
		return MemberStatus{}, err
	}
	return MemberStatus{Leader: st.Leader, Size: st.DbSize, Index: st.RaftAppliedIndex}, nil
}
