package keying

import (
	"context"
	"maps"
	"strings"
	"sync"

	"github.com/netdriver/netdriver/store"
)

// book is what a node has heard of the store's records under some prefixes, as the store keeps them.
type book struct {
	prefixes []string
	wake     func()

	mu      sync.Mutex
	records map[string]store.KV
	synced  map[string]bool
	// edition grows with every change.
	edition uint64
}

func newBook(wake func(), prefixes ...string) *book {
	return &book{prefixes: prefixes, wake: wake, records: map[string]store.KV{}, synced: map[string]bool{}}
}

// run follows the store until ctx ends.
func (b *book) run(ctx context.Context, s store.Store) {
	var wg sync.WaitGroup
	for _, prefix := range b.prefixes {
		wg.Go(func() {
			for batch := range s.Watch(ctx, prefix) {
				b.take(prefix, batch)
				b.wake()
			}
		})
	}
	wg.Wait()
}

func (b *book) take(prefix string, batch store.Batch) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if batch.Reset {
		maps.DeleteFunc(b.records, func(key string, _ store.KV) bool { return strings.HasPrefix(key, prefix) })
	}
	for _, e := range batch.Events {
		if e.Deleted {
			delete(b.records, e.KV.Key)
		} else {
			b.records[e.KV.Key] = e.KV
		}
	}
	b.synced[prefix] = true
	b.edition++
}

// read returns all records once every prefix has been read whole; before that an absent record means nothing. Nobody
// changes what it returns.
func (b *book) read() (records map[string]store.KV, edition uint64, synced bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range b.prefixes {
		if !b.synced[p] {
			return nil, 0, false
		}
	}
	return maps.Clone(b.records), b.edition, true
}
