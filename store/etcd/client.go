// Package etcd keeps the cluster's truth in etcd: a Client for any etcd, and an embedded Server for a cluster that has
// none. Both ways lead through the same Client.
package etcd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/namespace"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.uber.org/zap"

	"github.com/netdriver/netdriver/store"
)

const (
	// DefaultAliveTTL is how long a key of PutAlive outlives its writer.
	DefaultAliveTTL = 15 * time.Second
	// callTimeout ends a call whose context has no deadline: Docker's caller waits for it.
	callTimeout = 10 * time.Second
	// page is how many records List reads at once: client and embedded server share one process, and a large answer
	// would be in its memory several times.
	page = 1000
)

// Config says where the store is.
type Config struct {
	// Endpoints are URLs: unix:///path, https://host:port or http://host:port.
	Endpoints []string
	// TLS is for https endpoints; see ClientTLS. Without it the system's authorities are trusted.
	TLS *tls.Config
	// Cluster names the cluster; all keys are under /netdriver/CLUSTER/.
	Cluster string
	Log     *slog.Logger
	// Server, if it is set, is in this process: it is called directly, without a connection, and Endpoints only name it.
	Server *Server
	// AliveTTL is DefaultAliveTTL if zero. etcd counts it in whole seconds, at least 2.
	AliveTTL time.Duration
}

// Client is a store.Store in etcd.
//
// A Commit that fails with ErrUnavailable may have been applied all the same: the answer can be lost on the way. Who
// needs to know reads the key again.
type Client struct {
	cfg     Config
	etcd    *clientv3.Client
	prefix  string
	kv      clientv3.KV
	link    *link
	alive   *alive
	history *history

	stop context.CancelFunc
	wg   sync.WaitGroup
}

var _ store.Store = (*Client)(nil)

// Dial returns a client of the store. It does not wait for the store to answer, so that a daemon starts without it; the
// error is about cfg. Close it when done.
func Dial(cfg Config) (*Client, error) {
	if len(cfg.Endpoints) == 0 {
		return nil, errors.New("store: no endpoint given; want unix:///path or https://host:port")
	}
	if err := store.CheckName("cluster", cfg.Cluster); err != nil {
		return nil, err
	}
	if cfg.AliveTTL == 0 {
		cfg.AliveTTL = DefaultAliveTTL
	}
	ctx, stop := context.WithCancel(context.Background())
	l := &link{}
	e, err := connect(ctx, cfg, l)
	if err != nil {
		stop()
		return nil, fmt.Errorf("store at %s: %w", strings.Join(cfg.Endpoints, ", "), err)
	}
	prefix := "/netdriver/" + cfg.Cluster + "/"
	c := &Client{
		cfg:    cfg,
		etcd:   e,
		prefix: prefix,
		kv:     namespace.NewKV(e.KV, prefix),
		link:   l,
		stop:   stop,
	}
	c.alive = newAlive(c)
	c.history = newHistory(c)
	c.wg.Go(func() { c.alive.run(ctx) })
	c.wg.Go(func() { c.history.run(ctx) })
	return c, nil
}

// connect returns etcd's own client: of the server in this process, or of one behind a connection.
func connect(ctx context.Context, cfg Config, l *link) (*clientv3.Client, error) {
	if cfg.Server != nil {
		return v3client.New(cfg.Server.etcd.Server), nil
	}
	return clientv3.New(clientv3.Config{
		Context:              ctx,
		Endpoints:            cfg.Endpoints,
		TLS:                  cfg.TLS,
		DialKeepAliveTime:    keepAliveTime,
		DialKeepAliveTimeout: keepAliveTimeout,
		DialOptions:          l.options(),
		Logger:               zap.NewNop(), // it warns of each retry; callers get the errors
	})
}

// Close gives up what PutAlive wrote and closes the connection.
func (c *Client) Close() error {
	c.alive.revoke()
	c.stop()
	c.wg.Wait()
	err := c.etcd.Close()
	if errors.Is(err, context.Canceled) {
		return nil // by stop, above
	}
	return err
}

// Get implements store.Store.
func (c *Client) Get(ctx context.Context, key string) (store.KV, error) {
	if err := store.CheckKey(key); err != nil {
		return store.KV{}, err
	}
	ctx, cancel := withDeadline(ctx)
	defer cancel()
	resp, err := c.kv.Get(ctx, key)
	if err != nil {
		return store.KV{}, c.failed(ctx, "get "+key, err)
	}
	c.history.note(resp.Header)
	if len(resp.Kvs) == 0 {
		return store.KV{}, fmt.Errorf("%s: %w", key, store.ErrNotFound)
	}
	return record(resp.Kvs[0]), nil
}

// List implements store.Store. A long list is read in pages, all of one revision.
func (c *Client) List(ctx context.Context, prefix string) ([]store.KV, int64, error) {
	ctx, cancel := withDeadline(ctx)
	defer cancel()
	for {
		kvs, rev, err := c.pages(ctx, prefix)
		if errors.Is(err, rpctypes.ErrCompacted) {
			continue // the revision of the first page is gone: begin with a newer one
		}
		if err != nil {
			return nil, 0, c.failed(ctx, "list "+prefix, err)
		}
		return kvs, rev, nil
	}
}

func (c *Client) pages(ctx context.Context, prefix string) ([]store.KV, int64, error) {
	from, end := interval(prefix)
	kvs, rev := []store.KV{}, int64(0)
	for {
		resp, err := c.kv.Get(ctx, from, clientv3.WithRange(end), clientv3.WithLimit(page), clientv3.WithRev(rev))
		if err != nil {
			return nil, 0, err
		}
		if rev == 0 {
			rev = resp.Header.Revision
			c.history.note(resp.Header)
			kvs = slices.Grow(kvs, int(resp.Count))
		}
		for _, kv := range resp.Kvs {
			kvs = append(kvs, record(kv))
		}
		if !resp.More {
			return kvs, rev, nil
		}
		from = kvs[len(kvs)-1].Key + "\x00"
	}
}

// Count implements store.Store.
func (c *Client) Count(ctx context.Context, prefix string) (int64, error) {
	ctx, cancel := withDeadline(ctx)
	defer cancel()
	from, end := interval(prefix)
	resp, err := c.kv.Get(ctx, from, clientv3.WithRange(end), clientv3.WithCountOnly())
	if err != nil {
		return 0, c.failed(ctx, "count "+prefix, err)
	}
	return resp.Count, nil
}

// Commit implements store.Store. See Client for what ErrUnavailable means here.
func (c *Client) Commit(ctx context.Context, conds []store.Cond, ops ...store.Op) (int64, error) {
	if err := store.Check(conds, ops); err != nil {
		return 0, err
	}
	ctx, cancel := withDeadline(ctx)
	defer cancel()
	resp, err := c.commit(ctx, conds, ops)
	if errors.Is(err, rpctypes.ErrLeaseNotFound) {
		// The lease ended while the store was away, and nothing was applied: once more, with a new one.
		c.alive.lost()
		resp, err = c.commit(ctx, conds, ops)
	}
	if err != nil {
		return 0, c.failed(ctx, "commit "+names(conds, ops), err)
	}
	c.history.note(resp.Header)
	if !resp.Succeeded {
		return 0, fmt.Errorf("commit %s: %w", names(conds, ops), store.ErrConflict)
	}
	c.alive.committed(ops)
	return resp.Header.Revision, nil
}

func (c *Client) commit(ctx context.Context, conds []store.Cond, ops []store.Op) (*clientv3.TxnResponse, error) {
	var lease clientv3.LeaseID
	if slices.ContainsFunc(ops, func(o store.Op) bool { return o.Alive }) {
		var err error
		if lease, err = c.alive.lease(ctx); err != nil {
			return nil, err
		}
	}
	var cmps []clientv3.Cmp
	for _, cond := range conds {
		if cond.Modified == -1 {
			cmps = append(cmps, clientv3.Compare(clientv3.CreateRevision(cond.Key), ">", 0))
		} else {
			cmps = append(cmps, clientv3.Compare(clientv3.ModRevision(cond.Key), "=", cond.Modified))
		}
	}
	var then []clientv3.Op
	for _, o := range ops {
		then = append(then, operation(o, lease))
	}
	return c.kv.Txn(ctx).If(cmps...).Then(then...).Commit()
}

func operation(o store.Op, lease clientv3.LeaseID) clientv3.Op {
	switch {
	case o.Prefix:
		return clientv3.OpDelete(o.Key, clientv3.WithPrefix())
	case o.Delete:
		return clientv3.OpDelete(o.Key)
	case o.Alive:
		return clientv3.OpPut(o.Key, string(o.Value), clientv3.WithLease(lease))
	default:
		return clientv3.OpPut(o.Key, string(o.Value))
	}
}

// failed says what was tried, where, and what to do about it.
func (c *Client) failed(ctx context.Context, what string, err error) error {
	for _, refusal := range []error{rpctypes.ErrDuplicateKey, rpctypes.ErrTooManyOps, rpctypes.ErrRequestTooLarge} {
		if errors.Is(err, refusal) {
			return fmt.Errorf("%s: %w: %w", what, store.ErrInvalid, err)
		}
	}
	if errors.Is(err, rpctypes.ErrNoSpace) {
		return fmt.Errorf("%s: %w: %w; compact and defragment etcd at %s, then disarm its alarm",
			what, store.ErrUnavailable, err, c.endpoints())
	}
	if ctx.Err() != nil && !errors.Is(err, ctx.Err()) {
		err = fmt.Errorf("%w: %w", ctx.Err(), err)
	}
	why := ""
	if cause := c.link.cause(); cause != nil {
		why = fmt.Sprintf(" (%v)", cause)
	}
	const remedy = "containers keep their connections; check that etcd runs there and can be reached"
	return fmt.Errorf("%s: %w at %s: %w%s; "+remedy,
		what, store.ErrUnavailable, c.endpoints(), err, why)
}

func (c *Client) endpoints() string { return strings.Join(c.cfg.Endpoints, ", ") }

// names lists the keys of a transaction for an error.
func names(conds []store.Cond, ops []store.Op) string {
	var keys []string
	for _, o := range ops {
		keys = append(keys, o.Key)
	}
	for _, c := range conds {
		keys = append(keys, c.Key)
	}
	slices.Sort(keys)
	keys = slices.Compact(keys)
	if n := len(keys); n > 4 {
		keys = append(keys[:3], fmt.Sprintf("%d more", n-3))
	}
	return strings.Join(keys, ", ")
}

// interval returns the first key and the first key beyond those that start with prefix, as etcd wants them.
func interval(prefix string) (from, end string) {
	if prefix == "" {
		return "\x00", "\x00" // all keys
	}
	return prefix, clientv3.GetPrefixRangeEnd(prefix)
}

func record(kv *mvccpb.KeyValue) store.KV {
	return store.KV{Key: string(kv.Key), Value: kv.Value, Created: kv.CreateRevision, Modified: kv.ModRevision}
}

func withDeadline(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, callTimeout)
}
