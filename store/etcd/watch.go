package etcd

import (
	"context"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/netdriver/netdriver/store"
)

// historyInterval is how often the store is asked whether it still has the history that the watches know.
const historyInterval = 3 * time.Second

// Watch implements store.Store. After anything that may have lost a change (compaction, an error of the watch, a store
// that was restored from an older copy) it reads all again and delivers that with Reset.
func (c *Client) Watch(ctx context.Context, prefix string) <-chan store.Batch {
	out := make(chan store.Batch)
	go func() {
		defer close(out)
		for ctx.Err() == nil {
			// Asked for before the list is read, so that a loss in between is not missed.
			lost := c.history.lost()
			kvs, revision, err := c.List(ctx, prefix)
			if err != nil {
				c.cfg.Log.Debug("watch: cannot read the store, trying again", "prefix", prefix, "err", err)
				pause(ctx, retryDelay)
				continue
			}
			if send(ctx, out, snapshot(kvs, revision)) {
				c.stream(ctx, prefix, revision, lost, out)
			}
		}
	}()
	return out
}

// stream delivers what changes after revision, until ctx ends or a change may have been lost.
func (c *Client) stream(ctx context.Context, prefix string, revision int64, lost <-chan struct{},
	out chan<- store.Batch) {
	// A member that has lost its cluster would be silent for ever: with a leader required, the watch moves to another.
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	responses := c.etcd.Watch(ctx, c.prefix+prefix, clientv3.WithPrefix(), clientv3.WithRev(revision+1), clientv3.WithFragment())
	for {
		select {
		case <-lost:
			c.cfg.Log.Warn("the store has lost its latest changes, reading all again", "prefix", prefix)
			return
		case r, ok := <-responses:
			if !ok {
				return
			}
			if err := r.Err(); err != nil {
				if ctx.Err() == nil {
					c.cfg.Log.Debug("watch ended, reading all again", "prefix", prefix, "err", err)
					pause(ctx, retryDelay)
				}
				return
			}
			if len(r.Events) == 0 {
				continue
			}
			if r.Events[0].Kv.ModRevision <= revision {
				return // the store began anew, and has come so far already
			}
			b := c.batch(r)
			if !send(ctx, out, b) {
				return
			}
			revision = b.Revision
		}
	}
}

// batch translates a response. Its keys are whole: etcd's namespace.NewWatcher would shorten them in place, and a server in
// this process hands the same events to every watch. The header's revision may be ahead of the events of a watch that catches up, so that the
// last event's counts.
func (c *Client) batch(r clientv3.WatchResponse) store.Batch {
	c.history.note(r.Header)
	b := store.Batch{Events: make([]store.Event, 0, len(r.Events))}
	for _, e := range r.Events {
		kv := record(e.Kv)
		kv.Key = kv.Key[len(c.prefix):]
		if e.Type == clientv3.EventTypeDelete {
			kv = store.KV{Key: kv.Key, Modified: kv.Modified}
		}
		b.Events = append(b.Events, store.Event{KV: kv, Deleted: e.Type == clientv3.EventTypeDelete})
	}
	b.Revision = b.Events[len(b.Events)-1].KV.Modified
	return b
}

func snapshot(kvs []store.KV, revision int64) store.Batch {
	b := store.Batch{Reset: true, Revision: revision, Events: make([]store.Event, 0, len(kvs))}
	for _, kv := range kvs {
		b.Events = append(b.Events, store.Event{KV: kv})
	}
	return b
}

func send(ctx context.Context, out chan<- store.Batch, b store.Batch) bool {
	select {
	case out <- b:
		return true
	case <-ctx.Done():
		return false
	}
}

// history notices that the store's history has become shorter: it was restored from an older copy, or began anew. etcd
// accepts a watch from a revision that it has not reached and is silent until it does, so that only asking helps.
type history struct {
	c *Client

	mu       sync.Mutex
	revision int64  // the latest that was seen
	cluster  uint64 // etcd's id of the cluster that has it
	gone     chan struct{}
}

func newHistory(c *Client) *history { return &history{c: c, gone: make(chan struct{})} }

// lost returns a channel that is closed when changes are lost that were seen before or since this call.
func (h *history) lost() <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.gone
}

// note remembers what an answer of the store says of its history.
func (h *history) note(header *pb.ResponseHeader) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.cluster == 0 || header.ClusterId == h.cluster {
		h.cluster = header.ClusterId
		h.revision = max(h.revision, header.Revision)
	}
}

func (h *history) run(ctx context.Context) {
	for ctx.Err() == nil {
		pause(ctx, historyInterval)
		h.ask(ctx)
	}
}

// ask compares the store's revision with the latest seen before asking. The read is linearizable, so that a smaller one
// cannot come from a member that is behind.
func (h *history) ask(ctx context.Context) {
	h.mu.Lock()
	seen := h.revision
	h.mu.Unlock()
	ctx, cancel := withDeadline(ctx)
	defer cancel()
	resp, err := h.c.kv.Get(ctx, "history", clientv3.WithCountOnly())
	if err != nil {
		return // calls say so
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if resp.Header.Revision < seen || (h.cluster != 0 && resp.Header.ClusterId != h.cluster) {
		h.revision, h.cluster = resp.Header.Revision, resp.Header.ClusterId
		close(h.gone)
		h.gone = make(chan struct{})
	}
}
