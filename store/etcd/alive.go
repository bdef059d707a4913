package etcd

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/netdriver/netdriver/store"
)

const (
	// retryDelay is the pause after a failed attempt to get back what the store lost.
	retryDelay    = 500 * time.Millisecond
	revokeTimeout = time.Second
)

// alive owns the lease that the keys of PutAlive hang on. When the lease ends because the store was away for longer
// than its time, alive makes another and puts the keys again.
type alive struct {
	c *Client
	// wake has something in it when there is a new lease to keep.
	wake chan struct{}

	mu   sync.Mutex
	id   clientv3.LeaseID  // 0 if there is none
	keys map[string][]byte // what is to be there
}

func newAlive(c *Client) *alive {
	return &alive{c: c, wake: make(chan struct{}, 1), keys: make(map[string][]byte)}
}

// lease returns the lease, and makes it if there is none.
func (a *alive) lease(ctx context.Context) (clientv3.LeaseID, error) {
	a.mu.Lock()
	id := a.id
	a.mu.Unlock()
	if id != 0 {
		return id, nil
	}
	// Without the lock: the store may be slow. Of two leases made at once one is used, the other ends by itself.
	grant, err := a.c.etcd.Grant(ctx, int64(a.c.cfg.AliveTTL.Seconds()))
	if err != nil {
		return 0, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.id == 0 {
		a.id = grant.ID
	}
	select {
	case a.wake <- struct{}{}:
	default:
	}
	return a.id, nil
}

// lost forgets the lease, so that the next call of lease makes one.
func (a *alive) lost() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.id = 0
}

// committed notes which keys a transaction tied to the lease, and which it took from it.
func (a *alive) committed(ops []store.Op) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, o := range ops {
		switch {
		case o.Prefix:
			maps.DeleteFunc(a.keys, func(k string, _ []byte) bool { return strings.HasPrefix(k, o.Key) })
		case o.Alive:
			a.keys[o.Key] = bytes.Clone(o.Value)
		default:
			delete(a.keys, o.Key)
		}
	}
}

// run keeps the lease until ctx ends.
func (a *alive) run(ctx context.Context) {
	select {
	case <-a.wake:
	case <-ctx.Done():
		return
	}
	for ctx.Err() == nil {
		id, err := a.lease(ctx)
		if err == nil {
			err = a.restore(ctx, id)
		}
		if err == nil {
			a.keep(ctx, id)
			continue
		}
		if errors.Is(err, rpctypes.ErrLeaseNotFound) {
			a.lost()
		}
		pause(ctx, retryDelay)
	}
}

// keep returns when the lease has ended.
func (a *alive) keep(ctx context.Context, id clientv3.LeaseID) {
	answers, err := a.c.etcd.KeepAlive(ctx, id)
	if err == nil {
		for range answers { // until the lease has ended
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.id == id {
		a.id = 0
	}
}

// restore puts the keys that the end of the last lease has removed. A key that somebody else holds by now, which is one
// with another value, is theirs.
func (a *alive) restore(ctx context.Context, id clientv3.LeaseID) error {
	a.mu.Lock()
	keys := maps.Clone(a.keys)
	a.mu.Unlock()
	for _, k := range slices.Sorted(maps.Keys(keys)) {
		ctx, cancel := withDeadline(ctx)
		err := a.put(ctx, id, k, keys[k])
		cancel()
		if err != nil {
			return err
		}
	}
	return nil
}

func (a *alive) put(ctx context.Context, id clientv3.LeaseID, key string, value []byte) error {
	have, err := a.c.kv.Get(ctx, key)
	if err != nil {
		return err
	}
	modified := int64(0)
	if len(have.Kvs) > 0 {
		kv := have.Kvs[0]
		if clientv3.LeaseID(kv.Lease) == id {
			return nil
		}
		if !bytes.Equal(kv.Value, value) {
			a.c.cfg.Log.Warn("another process has taken a key of this one", "key", key)
			a.committed([]store.Op{store.Delete(key)})
			return nil
		}
		modified = kv.ModRevision
	}
	// If the condition fails somebody wrote just now; keep finds that out the next time.
	_, err = a.c.kv.Txn(ctx).
		If(clientv3.Compare(clientv3.ModRevision(key), "=", modified)).
		Then(clientv3.OpPut(key, string(value), clientv3.WithLease(id))).
		Commit()
	return err
}

// revoke ends the lease, and with it the keys, at once.
func (a *alive) revoke() {
	a.mu.Lock()
	id := a.id
	clear(a.keys)
	a.mu.Unlock()
	if id == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), revokeTimeout)
	defer cancel()
	if _, err := a.c.etcd.Revoke(ctx, id); err != nil {
		a.c.cfg.Log.Warn("could not say goodbye to the store", "err", err)
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}
