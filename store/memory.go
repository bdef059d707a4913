package store

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
)

// Memory is a Store inside the process, for tests: it refuses what etcd refuses and counts revisions as etcd does. The
// extra methods make happen what an operator's etcd does by itself.
type Memory struct {
	mu       sync.Mutex
	revision int64
	keys     []string // sorted
	records  map[string]memoryRecord
	watches  map[*memoryWatch]bool
	// open is closed while the store is available.
	open chan struct{}
}

type memoryRecord struct {
	KV
	alive bool
}

// NewMemory returns an empty store. Its revision is 1, as that of an empty etcd is.
func NewMemory() *Memory {
	open := make(chan struct{})
	close(open)
	return &Memory{
		revision: 1,
		records:  make(map[string]memoryRecord),
		watches:  make(map[*memoryWatch]bool),
		open:     open,
	}
}

var _ Store = (*Memory)(nil)

// Get implements Store.
func (m *Memory) Get(ctx context.Context, key string) (KV, error) {
	if err := CheckKey(key); err != nil {
		return KV{}, err
	}
	if err := m.enter(ctx); err != nil {
		return KV{}, fmt.Errorf("get %s: %w", key, err)
	}
	defer m.mu.Unlock()
	r, ok := m.records[key]
	if !ok {
		return KV{}, fmt.Errorf("%s: %w", key, ErrNotFound)
	}
	return r.KV.clone(), nil
}

// List implements Store.
func (m *Memory) List(ctx context.Context, prefix string) ([]KV, int64, error) {
	if err := m.enter(ctx); err != nil {
		return nil, 0, fmt.Errorf("list %s: %w", prefix, err)
	}
	defer m.mu.Unlock()
	return m.list(prefix), m.revision, nil
}

// Count implements Store.
func (m *Memory) Count(ctx context.Context, prefix string) (int64, error) {
	if err := m.enter(ctx); err != nil {
		return 0, fmt.Errorf("count %s: %w", prefix, err)
	}
	defer m.mu.Unlock()
	return int64(len(m.under(prefix))), nil
}

// Commit implements Store.
func (m *Memory) Commit(ctx context.Context, conds []Cond, ops ...Op) (int64, error) {
	if err := Check(conds, ops); err != nil {
		return 0, err
	}
	if err := m.enter(ctx); err != nil {
		return 0, fmt.Errorf("commit: %w", err)
	}
	defer m.mu.Unlock()
	for _, c := range conds {
		if !m.holds(c) {
			return 0, fmt.Errorf("%s: %w", c.Key, ErrConflict)
		}
	}
	m.apply(ops)
	return m.revision, nil
}

// Watch implements Store.
func (m *Memory) Watch(ctx context.Context, prefix string) <-chan Batch {
	w := &memoryWatch{prefix: prefix, reset: true, wake: make(chan struct{}, 1)}
	w.wake <- struct{}{}
	m.mu.Lock()
	m.watches[w] = true
	m.mu.Unlock()
	out := make(chan Batch)
	go func() {
		defer close(out)
		defer m.forget(w)
		w.run(ctx, m, out)
	}()
	return out
}

// Compact makes every running watch deliver another Reset, as if the store had compacted what it has not seen yet.
func (m *Memory) Compact() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for w := range m.watches {
		w.reset, w.pending = true, nil
		w.notify()
	}
}

// SetAvailable says whether the store can be reached. While it cannot, calls wait for their context to end and then
// fail with ErrUnavailable, and watches pause.
func (m *Memory) SetAvailable(available bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if available == isClosed(m.open) {
		return
	}
	if available {
		close(m.open)
		return
	}
	m.open = make(chan struct{})
}

// DropAlive removes the keys that were written with PutAlive, as if their writers had died.
func (m *Memory) DropAlive() {
	m.mu.Lock()
	defer m.mu.Unlock()
	var ops []Op
	for _, k := range m.keys {
		if m.records[k].alive {
			ops = append(ops, Delete(k))
		}
	}
	m.apply(ops)
}

// enter waits until the store is available and returns with its lock held, or with an error when ctx ends first.
func (m *Memory) enter(ctx context.Context) error {
	for {
		if ctx.Err() != nil {
			return fmt.Errorf("%w: %w", ErrUnavailable, ctx.Err())
		}
		m.mu.Lock()
		open := m.open
		if isClosed(open) {
			return nil
		}
		m.mu.Unlock()
		select {
		case <-open:
		case <-ctx.Done():
		}
	}
}

// under returns the keys that start with prefix, in order. The caller holds the lock and does not change the slice.
func (m *Memory) under(prefix string) []string {
	from, _ := slices.BinarySearch(m.keys, prefix)
	n, _ := slices.BinarySearchFunc(m.keys[from:], prefix, func(k, p string) int {
		if strings.HasPrefix(k, p) {
			return -1
		}
		return 1
	})
	return m.keys[from : from+n]
}

func (m *Memory) list(prefix string) []KV {
	keys := m.under(prefix)
	kvs := make([]KV, 0, len(keys))
	for _, k := range keys {
		kvs = append(kvs, m.records[k].KV.clone())
	}
	return kvs
}

func (m *Memory) holds(c Cond) bool {
	r, ok := m.records[c.Key]
	if c.Modified == -1 {
		return ok
	}
	return r.Modified == c.Modified // that of an absent record is 0
}

// apply writes ops as one revision and hands the events to the watches. As with etcd, a transaction that changes
// nothing has no revision of its own.
func (m *Memory) apply(ops []Op) {
	rev := m.revision + 1
	var events []Event
	for _, o := range ops {
		switch {
		case !o.Delete:
			events = append(events, Event{KV: m.put(o, rev)})
		case o.Prefix:
			for _, k := range slices.Clone(m.under(o.Key)) {
				events = m.remove(events, k, rev)
			}
		default:
			events = m.remove(events, o.Key, rev)
		}
	}
	if len(events) == 0 {
		return
	}
	m.revision = rev
	for w := range m.watches {
		w.add(events)
	}
}

func (m *Memory) put(o Op, rev int64) KV {
	created := rev
	if r, ok := m.records[o.Key]; ok {
		created = r.Created
	} else {
		i, _ := slices.BinarySearch(m.keys, o.Key)
		m.keys = slices.Insert(m.keys, i, o.Key)
	}
	kv := KV{Key: o.Key, Value: bytes.Clone(o.Value), Created: created, Modified: rev}
	m.records[o.Key] = memoryRecord{KV: kv, alive: o.Alive}
	return kv
}

func (m *Memory) remove(events []Event, key string, rev int64) []Event {
	if _, ok := m.records[key]; !ok {
		return events
	}
	delete(m.records, key)
	i, _ := slices.BinarySearch(m.keys, key)
	m.keys = slices.Delete(m.keys, i, i+1)
	return append(events, Event{KV: KV{Key: key, Modified: rev}, Deleted: true})
}

func (m *Memory) forget(w *memoryWatch) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.watches, w)
}

// memoryWatch is one running watch; Memory's lock guards it.
type memoryWatch struct {
	prefix  string
	reset   bool    // the next batch is the whole content
	pending []Event // not delivered yet
	wake    chan struct{}
}

func (w *memoryWatch) run(ctx context.Context, m *Memory, out chan<- Batch) {
	for {
		select {
		case <-w.wake:
		case <-ctx.Done():
			return
		}
		if m.enter(ctx) != nil {
			return
		}
		b, ok := w.take(m)
		m.mu.Unlock()
		if !ok {
			continue
		}
		select {
		case out <- b:
		case <-ctx.Done():
			return
		}
	}
}

// take returns what is to be delivered now, false if nothing is.
func (w *memoryWatch) take(m *Memory) (Batch, bool) {
	b := Batch{Revision: m.revision, Reset: w.reset}
	if w.reset {
		for _, kv := range m.list(w.prefix) {
			b.Events = append(b.Events, Event{KV: kv})
		}
	} else {
		b.Events = w.pending
	}
	ok := w.reset || len(w.pending) > 0
	w.reset, w.pending = false, nil
	return b, ok
}

// add notes those events that the watch is about. Those before a reset are part of its content.
func (w *memoryWatch) add(events []Event) {
	if w.reset {
		return
	}
	n := len(w.pending)
	for _, e := range events {
		if strings.HasPrefix(e.KV.Key, w.prefix) {
			w.pending = append(w.pending, Event{KV: e.KV.clone(), Deleted: e.Deleted})
		}
	}
	if len(w.pending) > n {
		w.notify()
	}
}

func (w *memoryWatch) notify() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// clone returns kv with a value of its own.
func (kv KV) clone() KV {
	kv.Value = bytes.Clone(kv.Value)
	return kv
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
