package cluster

import (
	"context"
	"crypto/tls"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/netdriver/netdriver/store"
	"github.com/netdriver/netdriver/store/etcd"
)

// Schema names the version of Report's JSON.
const Schema = "netdriver.cluster/v1"

// probeTimeout bounds the question to one member.
const probeTimeout = 2 * time.Second

// Report is what `cluster status` shows.
type Report struct {
	Schema string `json:"schema"`
	Node   string `json:"node"`
	// Role of the node that made the report; empty if it is in no cluster.
	Role string `json:"role"`
	// Size is how many members the store is to have, once there are that many nodes.
	Size    int          `json:"size"`
	Members []MemberInfo `json:"members"`
	// Losses is how many more members can be lost before the store stops.
	Losses  int          `json:"losses"`
	Clients []ClientInfo `json:"clients"`
	// CertificateEnds and AuthorityEnds are when this node's certificate and the cluster's authority are not valid any
	// more.
	CertificateEnds time.Time `json:"certificateEnds,omitzero"`
	AuthorityEnds   time.Time `json:"authorityEnds,omitzero"`
	// Tokens is how many tokens there are, expired ones included.
	Tokens int64 `json:"tokens"`
}

// MemberInfo is one member of the store.
type MemberInfo struct {
	Node    string     `json:"node"`
	Address netip.Addr `json:"address,omitzero"`
	// State is "leader", "follower", "learner", "starting" or "DOWN".
	State string `json:"state"`
	// Size of its database in bytes; Behind is how many entries of the log it has not applied yet that another has.
	Size   int64  `json:"size"`
	Behind uint64 `json:"behind"`
	Error  string `json:"error,omitempty"`
}

// ClientInfo is a node without a member.
type ClientInfo struct {
	Node    string     `json:"node"`
	Address netip.Addr `json:"address"`
	Alive   bool       `json:"alive"`
}

// Status makes a report.
func (c *Cluster) Status(ctx context.Context) (Report, error) {
	r := Report{Schema: Schema, Node: c.cfg.Node.Name, Size: 1, Members: []MemberInfo{}, Clients: []ClientInfo{}}
	if err := c.here(); err != nil {
		return r, err
	}
	if c.cfg.State == nil {
		return r, ErrNone
	}
	r.Role = c.cfg.State.Role
	list, err := c.cfg.Client.Members(ctx)
	if err != nil {
		return r, err
	}
	config, err := mutual(c.files)
	if err != nil {
		return r, err
	}
	r.Members = probe(ctx, list, config)
	r.Losses = losses(r.Members)
	if r.Size, err = c.size(ctx); err != nil {
		return r, err
	}
	if r.Clients, err = c.clients(ctx, list); err != nil {
		return r, err
	}
	if r.Tokens, err = c.cfg.Client.Count(ctx, store.TokenPrefix); err != nil {
		return r, err
	}
	for path, end := range map[string]*time.Time{c.files.Cert(): &r.CertificateEnds, c.files.CA(): &r.AuthorityEnds} {
		text, err := os.ReadFile(path)
		if err != nil {
			return r, err
		}
		certificate, err := parseCertificate(text)
		if err != nil {
			return r, err
		}
		*end = certificate.NotAfter
	}
	return r, nil
}

// probe asks every member how it is, side by side.
func probe(ctx context.Context, list []etcd.MemberInfo, config *tls.Config) []MemberInfo {
	out := make([]MemberInfo, len(list))
	states := make([]etcd.MemberStatus, len(list))
	var wg sync.WaitGroup
	for i, m := range list {
		out[i] = MemberInfo{Node: m.Name, State: "DOWN"}
		out[i].Address, _ = addressOf(m.Peer)
		if m.Name == "" {
			out[i].Node, out[i].State = out[i].Address.String(), "starting"
			continue
		}
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, probeTimeout)
			defer cancel()
			st, err := etcd.Probe(ctx, m.Client, config)
			if err != nil {
				out[i].Error = err.Error()
				return
			}
			states[i], out[i].Size, out[i].State = st, st.Size, "follower"
			switch {
			case m.Learner:
				out[i].State = "learner"
			case st.Leader == m.ID:
				out[i].State = "leader"
			}
		})
	}
	wg.Wait()
	var last uint64
	for _, st := range states {
		last = max(last, st.Index)
	}
	for i, st := range states {
		if st.Index > 0 {
			out[i].Behind = last - st.Index
		}
	}
	return out
}

// losses returns how many more members with a vote can be lost: a majority has to answer.
func losses(members []MemberInfo) int {
	votes, answer := votes(members)
	return max(0, answer-(votes/2+1))
}

// votes returns how many members have a vote, and how many of those answer.
func votes(members []MemberInfo) (votes, answer int) {
	for _, m := range members {
		switch m.State {
		case "leader", "follower":
			votes, answer = votes+1, answer+1
		case "DOWN":
			votes++
		}
	}
	return votes, answer
}

// clients lists the nodes that have no member, in order of name.
func (c *Cluster) clients(ctx context.Context, list []etcd.MemberInfo) ([]ClientInfo, error) {
	nodes, _, err := c.cfg.Client.List(ctx, store.NodePrefix)
	if err != nil {
		return nil, err
	}
	alive, _, err := c.cfg.Client.List(ctx, store.AlivePrefix)
	if err != nil {
		return nil, err
	}
	out := []ClientInfo{}
	for _, kv := range nodes {
		n, err := store.Decode[store.Node](kv)
		if err != nil || slices.ContainsFunc(list, func(m etcd.MemberInfo) bool { return m.Name == n.Name }) {
			continue
		}
		lives := slices.ContainsFunc(alive, func(kv store.KV) bool {
			return strings.TrimPrefix(kv.Key, store.AlivePrefix) == n.Name
		})
		out = append(out, ClientInfo{n.Name, n.VTEP, lives})
	}
	return out, nil
}
