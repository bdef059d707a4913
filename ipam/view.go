package ipam

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"strings"
	"sync"

	"github.com/netdriver/netdriver/store"
)

// view is a copy of one pool's leases, kept by watches, from which the next address is chosen without a question to the
// store. It may be behind: whoever uses a choice does so under the condition that it is still free.
type view struct {
	subnet netip.Prefix
	node   string
	log    *slog.Logger
	stop   context.CancelFunc // set while the service runs

	// leasesRead and cursorRead are closed after the first batch, gone when nobody feeds the view any more.
	leasesRead, cursorRead, gone chan struct{}

	mu   sync.Mutex
	used *addrSet
	// own are the leases of this node.
	own map[netip.Addr]holding
	// taken are the addresses that calls of this process have chosen, with the lease once it is written; the watch
	// takes over from there.
	taken map[netip.Addr]holding
	// cursor is the address that was allocated last, by any node, and the revision that says so.
	cursor   netip.Addr
	cursorAt int64
}

// holding is a lease with the store's record of it.
type holding struct {
	lease store.Lease
	kv    store.KV
}

// written says whether the lease is in the store.
func (h holding) written() bool { return h.kv.Modified > 0 }

func newView(subnet netip.Prefix, node string, log *slog.Logger) *view {
	return &view{
		subnet:     subnet,
		node:       node,
		log:        log,
		leasesRead: make(chan struct{}),
		cursorRead: make(chan struct{}),
		gone:       make(chan struct{}),
		used:       newAddrSet(subnet),
		own:        make(map[netip.Addr]holding),
		taken:      make(map[netip.Addr]holding),
	}
}

// followLeases applies what the store says of the pool's leases until ctx ends.
func (v *view) followLeases(ctx context.Context, s store.Store) {
	read := sync.OnceFunc(func() { close(v.leasesRead) })
	for b := range s.Watch(ctx, store.PoolLeases(v.subnet)) {
		v.apply(b)
		read()
	}
}

// followCursor does so for the cursor. The watch is for a prefix, which other pools' cursors may have too.
func (v *view) followCursor(ctx context.Context, s store.Store) {
	read := sync.OnceFunc(func() { close(v.cursorRead) })
	key := store.CursorKey(v.subnet)
	for b := range s.Watch(ctx, key) {
		if b.Reset {
			v.resetCursor()
		}
		for _, e := range b.Events {
			if e.KV.Key == key {
				v.moveTo(cursorOf(e), e.KV.Modified)
			}
		}
		read()
	}
}

// cursorOf reads a cursor; a missing or malformed one is no address, which means to begin at the first.
func cursorOf(e store.Event) netip.Addr {
	a, err := netip.ParseAddr(string(e.KV.Value))
	if err != nil {
		return netip.Addr{}
	}
	return a
}

// wait returns when the view has been read whole once. The error is errRetry if the view is gone before that.
func (v *view) wait(ctx context.Context) error {
	for _, read := range []chan struct{}{v.leasesRead, v.cursorRead} {
		select {
		case <-read:
		case <-v.gone:
			return errRetry
		case <-ctx.Done():
			return fmt.Errorf("read the leases of pool %s: %w: %w", v.subnet, store.ErrUnavailable, ctx.Err())
		}
	}
	return nil
}

// apply takes over one batch of changes.
func (v *view) apply(b store.Batch) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if b.Reset {
		v.used = newAddrSet(v.subnet)
		clear(v.own)
	}
	for _, e := range b.Events {
		a, err := netip.ParseAddr(strings.TrimPrefix(e.KV.Key, store.PoolLeases(v.subnet)))
		if err != nil {
			v.log.Error("no such lease can be", "key", e.KV.Key, "error", err)
			continue
		}
		v.set(a, e)
	}
	maps.DeleteFunc(v.taken, func(_ netip.Addr, h holding) bool {
		return h.written() && (b.Reset || h.kv.Modified <= b.Revision)
	})
}

// set makes what one event says true. A lease that cannot be read is in use all the same. The caller holds the lock.
func (v *view) set(a netip.Addr, e store.Event) {
	delete(v.own, a)
	if e.Deleted {
		v.used.remove(a)
		return
	}
	v.used.add(a)
	l, err := store.Decode[store.Lease](e.KV)
	if err != nil {
		v.log.Error("cannot read a lease; its address stays in use", "key", e.KV.Key, "error", err)
		return
	}
	if l.Node == v.node {
		v.own[a] = holding{l, e.KV}
	}
}

// take chooses the next free address in r behind after, or behind the cursor if after is zero, and keeps it from other
// calls until settle.
func (v *view) take(r netip.Prefix, after netip.Addr) (netip.Addr, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !after.IsValid() {
		after = v.cursor
	}
	// Each step either ends the search or passes an address that another call has.
	for range len(v.taken) + 1 {
		a, ok := v.used.next(r, after)
		if !ok {
			return a, false
		}
		if _, busy := v.taken[a]; !busy {
			v.taken[a] = holding{}
			v.cursor = a
			return a, true
		}
		after = a
	}
	return netip.Addr{}, false
}

// settle ends take: the lease of a was written as h says, or not at all.
func (v *view) settle(a netip.Addr, h holding) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if h.written() {
		v.taken[a] = h
		return
	}
	delete(v.taken, a)
}

// moveTo moves the cursor, unless something later was known.
func (v *view) moveTo(a netip.Addr, revision int64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if revision >= v.cursorAt {
		v.cursor, v.cursorAt = a, revision
	}
}

// resetCursor forgets the cursor: a complete reading follows, perhaps of a store that was restored from an older copy.
func (v *view) resetCursor() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.cursor, v.cursorAt = netip.Addr{}, 0
}

// owned returns the leases of this node.
func (v *view) owned() []holding {
	v.mu.Lock()
	defer v.mu.Unlock()
	hs := make([]holding, 0, len(v.own))
	for _, h := range v.own {
		hs = append(hs, h)
	}
	for a, h := range v.taken {
		if _, seen := v.own[a]; !seen && h.written() {
			hs = append(hs, h)
		}
	}
	return hs
}
