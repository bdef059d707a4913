package storetest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/netdriver/netdriver/store"
)

// follower applies what a watch delivers and fails the test where a batch breaks its promises.
type follower struct {
	t        *testing.T
	batches  <-chan store.Batch
	content  map[string]store.KV
	revision int64
	resets   int
}

func follow(t *testing.T, s store.Store, prefix string) *follower {
	return &follower{t: t, batches: s.Watch(t.Context(), prefix), content: make(map[string]store.KV)}
}

// next applies and returns one batch.
func (f *follower) next() store.Batch {
	f.t.Helper()
	select {
	case b, ok := <-f.batches:
		if !ok {
			f.t.Fatal("the watch ended")
		}
		f.apply(b)
		return b
	case <-time.After(patience):
		f.t.Fatalf("nothing delivered after revision %d", f.revision)
	}
	panic("unreachable")
}

func (f *follower) apply(b store.Batch) {
	f.t.Helper()
	if b.Reset {
		f.resets++
		clear(f.content)
	} else if f.resets == 0 {
		f.t.Fatal("the first batch is no Reset")
	}
	last := f.revision
	for _, e := range b.Events {
		if b.Reset && e.Deleted {
			f.t.Fatalf("a Reset with the deletion of %s", e.KV.Key)
		}
		if !b.Reset && (e.KV.Modified < last || e.KV.Modified == f.revision || e.KV.Modified > b.Revision) {
			f.t.Fatalf("event at revision %d in a batch up to %d, after %d", e.KV.Modified, b.Revision, last)
		}
		if e.Deleted {
			if len(e.KV.Value) != 0 || e.KV.Modified == 0 {
				f.t.Fatalf("deletion %+v, want only key and revision", e.KV)
			}
			delete(f.content, e.KV.Key)
		} else {
			f.content[e.KV.Key] = e.KV
		}
		if !b.Reset {
			last = e.KV.Modified
		}
	}
	f.revision = b.Revision
}

// until applies batches up to revision.
func (f *follower) until(revision int64) {
	f.t.Helper()
	for f.revision < revision {
		f.next()
	}
}

// compare fails the test unless the follower's content is that of the store.
func (f *follower) compare(s store.Store, prefix string) {
	f.t.Helper()
	want, _ := list(f.t, s, prefix)
	got := slices.Collect(maps.Values(f.content))
	less := cmpopts.SortSlices(func(a, b store.KV) bool { return a.Key < b.Key })
	if diff := cmp.Diff(want, got, less, cmpopts.EquateEmpty()); diff != "" {
		f.t.Errorf("the watch's content differs (-store +watch):\n%s", diff)
	}
}

func watchBeginsWithTheContent(t *testing.T, s store.Store) {
	empty := follow(t, s, "w/")
	if b := empty.next(); !b.Reset || len(b.Events) != 0 || b.Revision < 1 {
		t.Errorf("first batch of an empty prefix: %+v, want an empty Reset with the store's revision", b)
	}
	commit(t, s, nil, store.Put("w/1", []byte("1")))
	rev := commit(t, s, nil, store.Put("w/2", []byte("2")))
	full := follow(t, s, "w/")
	if b := full.next(); !b.Reset || len(b.Events) != 2 || b.Revision != rev {
		t.Errorf("first batch: %+v, want a Reset with two events at revision %d", b, rev)
	}
	full.compare(s, "w/")
	empty.until(rev)
	empty.compare(s, "w/")
}

func watchDeliversWholeTransactions(t *testing.T, s store.Store) {
	commit(t, s, nil, store.Put("w/old", []byte("1")), store.Put("w/p/1", nil), store.Put("w/p/2", nil))
	f := follow(t, s, "w/")
	f.next()
	rev := commit(t, s, nil, store.Put("w/new", []byte("2")), store.Delete("w/old"), store.DeletePrefix("w/p/"))
	want := store.Batch{Revision: rev, Events: []store.Event{
		{KV: store.KV{Key: "w/new", Value: []byte("2"), Created: rev, Modified: rev}},
		{KV: store.KV{Key: "w/old", Modified: rev}, Deleted: true},
		{KV: store.KV{Key: "w/p/1", Modified: rev}, Deleted: true},
		{KV: store.KV{Key: "w/p/2", Modified: rev}, Deleted: true},
	}}
	less := cmpopts.SortSlices(func(a, b store.Event) bool { return a.KV.Key < b.KV.Key })
	if diff := cmp.Diff(want, f.next(), less, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func watchHearsOnlyItsPrefix(t *testing.T, s store.Store) {
	f := follow(t, s, "w/a/")
	f.next()
	commit(t, s, nil, store.Put("w/b/1", nil), store.Put("w/a", nil))
	rev := commit(t, s, nil, store.Put("w/a/1", nil), store.Put("w/b/2", nil))
	b := f.next()
	if len(b.Events) != 1 || b.Events[0].KV.Key != "w/a/1" || b.Revision != rev {
		t.Errorf("%+v, want only w/a/1 at revision %d", b, rev)
	}
}

func watchMissesNothing(t *testing.T, s store.Store) {
	const writers, each = 4, 50
	f := follow(t, s, "w/")
	f.next()
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				key := fmt.Sprintf("w/%d/%d", w, i%7)
				op := store.Put(key, fmt.Append(nil, i))
				if i%5 == 4 {
					op = store.Delete(fmt.Sprintf("w/%d/%d", w, (i-1)%7))
				}
				last := store.Put(fmt.Sprintf("w/last/%d", w), fmt.Append(nil, i))
				if _, err := s.Commit(t.Context(), nil, op, last); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	late := follow(t, s, "w/") // begins in the middle
	wg.Wait()
	last := commit(t, s, nil, store.Put("w/end", nil))
	for _, f := range []*follower{f, late} {
		f.until(last)
		f.compare(s, "w/")
		if f.resets != 1 {
			t.Errorf("%d resets, want only the first batch", f.resets)
		}
	}
}

func watchEndsWithItsContext(t *testing.T, s store.Store) {
	ctx, cancel := context.WithCancel(t.Context())
	batches := s.Watch(ctx, "w/")
	<-batches
	commit(t, s, nil, store.Put("w/undelivered", nil))
	cancel()
	deadline := time.After(patience)
	for {
		select {
		case _, ok := <-batches:
			if !ok {
				return
			}
		case <-deadline:
			t.Fatal("the channel is still open")
		}
	}
}

func watchResetsAfterCompaction(t *testing.T, s Store) {
	commit(t, s, nil, store.Put("w/1", nil), store.Put("w/2", nil))
	f := follow(t, s, "w/")
	f.next()
	rev := commit(t, s, nil, store.Delete("w/1"))
	f.until(rev)
	s.Compact()
	if b := f.next(); !b.Reset || b.Revision < rev {
		t.Errorf("%+v, want a Reset at revision %d or later", b, rev)
	}
	f.compare(s, "w/")
	f.until(commit(t, s, nil, store.Put("w/3", nil)))
	f.compare(s, "w/")
}

func watchCatchesUpAfterAnOutage(t *testing.T, s Store) {
	f := follow(t, s, "w/")
	f.next()
	f.until(commit(t, s, nil, store.Put("w/1", nil)))
	s.SetAvailable(false)
	time.Sleep(300 * time.Millisecond)
	s.SetAvailable(true)
	f.until(commit(t, s, nil, store.Put("w/2", nil), store.Delete("w/1")))
	f.compare(s, "w/")
}
