// Package storetest is the one suite that every store.Store passes.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/netdriver/netdriver/store"
)

// patience is how long a test waits for what comes by itself.
const patience = 20 * time.Second

// Store is a store with the faults that the suite needs.
type Store interface {
	store.Store
	// SetAvailable cuts the store off, or gives it back.
	SetAvailable(bool)
	// Compact makes running watches lose changes that they have not delivered.
	Compact()
}

// test is one promise of store.Store.
type test[S store.Store] struct {
	name string
	run  func(t *testing.T, s S)
}

// Run runs the suite. open returns an empty store for one test.
func Run(t *testing.T, open func(t *testing.T) Store) {
	RunWithoutFaults(t, func(t *testing.T) store.Store { return open(t) })
	for _, test := range []test[Store]{
		{"CallsFailWhileTheStoreIsAway", callsFailWhileTheStoreIsAway},
		{"CallWaitsForTheStoreToReturn", callWaitsForTheStoreToReturn},
		{"WatchResetsAfterCompaction", watchResetsAfterCompaction},
		{"WatchCatchesUpAfterAnOutage", watchCatchesUpAfterAnOutage},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, open(t)) })
	}
}

// RunWithoutFaults runs what can be asked of a store that cannot be cut off, such as one in this process.
func RunWithoutFaults(t *testing.T, open func(t *testing.T) store.Store) {
	for _, test := range []test[store.Store]{
		{"GetReturnsWhatWasWritten", getReturnsWhatWasWritten},
		{"ListIsOrderedAndStopsAtThePrefix", listIsOrderedAndStopsAtThePrefix},
		{"LongListIsComplete", longListIsComplete},
		{"ConditionsDecide", conditionsDecide},
		{"FailedTransactionChangesNothing", failedTransactionChangesNothing},
		{"EachTransactionIsOneRevision", eachTransactionIsOneRevision},
		{"DeletePrefixRemovesAllUnderIt", deletePrefixRemovesAllUnderIt},
		{"InvalidRequestsAreRefused", invalidRequestsAreRefused},
		{"LargestRequestsAreAccepted", largestRequestsAreAccepted},
		{"ValuesAreCopied", valuesAreCopied},
		{"OneOfManyClaimsWins", oneOfManyClaimsWins},
		{"NoUpdateIsLost", noUpdateIsLost},
		{"AliveKeyIsAKey", aliveKeyIsAKey},
		{"EndedContextEndsCalls", endedContextEndsCalls},
		{"WatchBeginsWithTheContent", watchBeginsWithTheContent},
		{"WatchDeliversWholeTransactions", watchDeliversWholeTransactions},
		{"WatchHearsOnlyItsPrefix", watchHearsOnlyItsPrefix},
		{"WatchMissesNothing", watchMissesNothing},
		{"WatchEndsWithItsContext", watchEndsWithItsContext},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, open(t)) })
	}
}

func getReturnsWhatWasWritten(t *testing.T, s store.Store) {
	first := commit(t, s, nil, store.Put("a", []byte("1")))
	second := commit(t, s, nil, store.Put("a", []byte("2")))
	want := store.KV{Key: "a", Value: []byte("2"), Created: first, Modified: second}
	if diff := cmp.Diff(want, get(t, s, "a")); diff != "" {
		t.Errorf("overwritten key (-want +got):\n%s", diff)
	}
	commit(t, s, nil, store.Delete("a"))
	if _, err := s.Get(t.Context(), "a"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("deleted key: %v, want ErrNotFound", err)
	}
	again := commit(t, s, nil, store.Put("a", nil))
	if kv := get(t, s, "a"); kv.Created != again || kv.Modified != again || len(kv.Value) != 0 {
		t.Errorf("key that came back: %+v, want it created and modified at %d, and empty", kv, again)
	}
}

func listIsOrderedAndStopsAtThePrefix(t *testing.T, s store.Store) {
	for _, k := range []string{"b/2", "b/10", "b", "c/1", "a/1", "b/1", "b0"} {
		commit(t, s, nil, store.Put(k, []byte(k)))
	}
	for prefix, want := range map[string][]string{
		"b/":  {"b/1", "b/10", "b/2"},
		"b":   {"b", "b/1", "b/10", "b/2", "b0"},
		"x/":  nil,
		"":    {"a/1", "b", "b/1", "b/10", "b/2", "b0", "c/1"},
		"c/1": {"c/1"},
	} {
		kvs, rev := list(t, s, prefix)
		if diff := cmp.Diff(want, keys(kvs), cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("list %q (-want +got):\n%s", prefix, diff)
		}
		if last := get(t, s, "b0").Modified; rev != last {
			t.Errorf("list %q: revision %d, want that of the last write, %d", prefix, rev, last)
		}
		if n, err := s.Count(t.Context(), prefix); err != nil || n != int64(len(want)) {
			t.Errorf("count %q: %d, %v; want %d", prefix, n, err, len(want))
		}
	}
}

func longListIsComplete(t *testing.T, s store.Store) {
	const n = 2500
	fill(t, s, "long/", n)
	commit(t, s, nil, store.Put("longer", nil))
	kvs, _ := list(t, s, "long/")
	if len(kvs) != n {
		t.Fatalf("%d records, want %d", len(kvs), n)
	}
	for i, kv := range kvs {
		if want := fmt.Sprintf("long/%05d", i); kv.Key != want {
			t.Fatalf("record %d is %s, want %s", i, kv.Key, want)
		}
	}
}

func conditionsDecide(t *testing.T, s store.Store) {
	commit(t, s, nil, store.Put("there", []byte("old")))
	old := get(t, s, "there")
	commit(t, s, nil, store.Put("there", []byte("new")))
	now := get(t, s, "there")
	for name, c := range map[string]struct {
		cond  store.Cond
		holds bool
	}{
		"absent, absent":     {store.Absent("missing"), true},
		"absent, there":      {store.Absent("there"), false},
		"exists, there":      {store.Exists("there"), true},
		"exists, absent":     {store.Exists("missing"), false},
		"unchanged, so":      {store.Unchanged(now), true},
		"unchanged, changed": {store.Unchanged(old), false},
		"unchanged, absent":  {store.Cond{Key: "missing", Modified: now.Modified}, false},
	} {
		_, err := s.Commit(t.Context(), []store.Cond{store.Exists("there"), c.cond}, store.Put("out", nil))
		if c.holds && err != nil {
			t.Errorf("%s: %v, want success", name, err)
		}
		if !c.holds && !errors.Is(err, store.ErrConflict) {
			t.Errorf("%s: %v, want ErrConflict", name, err)
		}
	}
}

func failedTransactionChangesNothing(t *testing.T, s store.Store) {
	commit(t, s, nil, store.Put("keep", []byte("1")))
	before, rev := list(t, s, "")
	_, err := s.Commit(t.Context(), []store.Cond{store.Absent("keep")}, store.Put("new", nil), store.Delete("keep"))
	if !errors.Is(err, store.ErrConflict) {
		t.Fatalf("%v, want ErrConflict", err)
	}
	after, now := list(t, s, "")
	if diff := cmp.Diff(before, after); diff != "" || now != rev {
		t.Errorf("revision %d became %d, content (-before +after):\n%s", rev, now, diff)
	}
}

func eachTransactionIsOneRevision(t *testing.T, s store.Store) {
	_, before := list(t, s, "")
	rev := commit(t, s, nil, store.Put("a", nil), store.Put("b", nil))
	if rev != before+1 || get(t, s, "a").Modified != rev || get(t, s, "b").Modified != rev {
		t.Errorf("two puts after revision %d: %d, want one revision for both", before, rev)
	}
	if got := commit(t, s, nil, store.Delete("missing")); got != rev {
		t.Errorf("a transaction that changes nothing has revision %d, want the present one, %d", got, rev)
	}
	if got := commit(t, s, []store.Cond{store.Exists("a")}); got != rev {
		t.Errorf("a transaction of conditions only has revision %d, want the present one, %d", got, rev)
	}
}

func deletePrefixRemovesAllUnderIt(t *testing.T, s store.Store) {
	for _, k := range []string{"p/1", "p/2", "p", "p0", "q/1"} {
		commit(t, s, nil, store.Put(k, nil))
	}
	commit(t, s, nil, store.DeletePrefix("p/"), store.Delete("q/1"), store.Put("r", nil))
	kvs, _ := list(t, s, "")
	if diff := cmp.Diff([]string{"p", "p0", "r"}, keys(kvs)); diff != "" {
		t.Errorf("what is left (-want +got):\n%s", diff)
	}
}

func invalidRequestsAreRefused(t *testing.T, s store.Store) {
	ops := make([]store.Op, store.MaxOps+1)
	conds := make([]store.Cond, store.MaxOps+1)
	for i := range ops {
		key := fmt.Sprintf("k%d", i)
		ops[i], conds[i] = store.Put(key, nil), store.Absent(key)
	}
	half := make([]byte, store.MaxRequest/2)
	for name, c := range map[string]struct {
		conds []store.Cond
		ops   []store.Op
	}{
		"put of empty key":           {ops: []store.Op{store.Put("", nil)}},
		"delete of empty key":        {ops: []store.Op{store.Delete("")}},
		"delete of everything":       {ops: []store.Op{store.DeletePrefix("")}},
		"condition on empty key":     {conds: []store.Cond{store.Absent("")}},
		"put twice":                  {ops: []store.Op{store.Put("a", nil), store.Put("a", nil)}},
		"put and delete":             {ops: []store.Op{store.Put("a", nil), store.Delete("a")}},
		"put under a deleted prefix": {ops: []store.Op{store.DeletePrefix("a"), store.Put("ab", nil)}},
		"put before such a deletion": {ops: []store.Op{store.Put("ab", nil), store.DeletePrefix("a")}},
		"too many operations":        {ops: ops},
		"too many conditions":        {conds: conds},
		"too large a value":          {ops: []store.Op{store.Put("a", make([]byte, store.MaxValue+1))}},
		"too large a transaction":    {ops: []store.Op{store.Put("a", half), store.Put("b", half)}},
	} {
		if _, err := s.Commit(t.Context(), c.conds, c.ops...); !errors.Is(err, store.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
	if _, err := s.Get(t.Context(), ""); !errors.Is(err, store.ErrInvalid) {
		t.Errorf("get of empty key: %v, want ErrInvalid", err)
	}
	if kvs, _ := list(t, s, ""); len(kvs) != 0 {
		t.Errorf("refused requests wrote %v", keys(kvs))
	}
}

func largestRequestsAreAccepted(t *testing.T, s store.Store) {
	ops := make([]store.Op, store.MaxOps)
	conds := make([]store.Cond, store.MaxOps)
	for i := range ops {
		key := fmt.Sprintf("k%d", i)
		ops[i], conds[i] = store.Put(key, nil), store.Absent(key)
	}
	commit(t, s, conds, ops...)
	commit(t, s, nil, store.Put("large", make([]byte, store.MaxValue)))
	rest := store.MaxRequest - store.MaxValue - len("ab")
	commit(t, s, nil, store.Put("a", make([]byte, store.MaxValue)), store.Put("b", make([]byte, rest)))
}

func valuesAreCopied(t *testing.T, s store.Store) {
	value := []byte("abc")
	commit(t, s, nil, store.Put("k", value))
	value[0] = 'X'
	get(t, s, "k").Value[1] = 'X'
	kvs, _ := list(t, s, "k")
	kvs[0].Value[2] = 'X'
	if got := get(t, s, "k"); string(got.Value) != "abc" {
		t.Errorf("a caller changed the stored value to %q", got.Value)
	}
}

func oneOfManyClaimsWins(t *testing.T, s store.Store) {
	const claimants = 16
	var wg sync.WaitGroup
	errs := make([]error, claimants)
	for i := range claimants {
		wg.Go(func() {
			_, errs[i] = s.Commit(t.Context(), []store.Cond{store.Absent("claim")}, store.Put("claim", fmt.Append(nil, i)))
		})
	}
	wg.Wait()
	winner := -1
	for i, err := range errs {
		switch {
		case err == nil && winner >= 0:
			t.Errorf("%d and %d both won", winner, i)
		case err == nil:
			winner = i
		case !errors.Is(err, store.ErrConflict):
			t.Errorf("%d: %v, want ErrConflict", i, err)
		}
	}
	if got := string(get(t, s, "claim").Value); got != fmt.Sprint(winner) {
		t.Errorf("the claim says %s, the winner is %d", got, winner)
	}
}

func noUpdateIsLost(t *testing.T, s store.Store) {
	const writers, each = 8, 10
	commit(t, s, nil, store.Put("list", nil))
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for range each {
				appendOne(t, s, "list")
			}
		})
	}
	wg.Wait()
	if got := len(get(t, s, "list").Value); got != writers*each {
		t.Errorf("%d updates are left of %d", got, writers*each)
	}
}

// appendOne adds a byte to the value of key, however often another writer is first.
func appendOne(t *testing.T, s store.Store, key string) {
	for {
		kv, err := s.Get(t.Context(), key)
		if err == nil {
			_, err = s.Commit(t.Context(), []store.Cond{store.Unchanged(kv)}, store.Put(key, append(kv.Value, '.')))
		}
		if errors.Is(err, store.ErrConflict) {
			continue
		}
		if err != nil {
			t.Error(err)
		}
		return
	}
}

func aliveKeyIsAKey(t *testing.T, s store.Store) {
	rev := commit(t, s, []store.Cond{store.Absent("alive/a")}, store.PutAlive("alive/a", []byte("1")))
	want := store.KV{Key: "alive/a", Value: []byte("1"), Created: rev, Modified: rev}
	if diff := cmp.Diff(want, get(t, s, "alive/a")); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	commit(t, s, nil, store.Delete("alive/a"))
	if _, err := s.Get(t.Context(), "alive/a"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("deleted key: %v, want ErrNotFound", err)
	}
}

// calls are all methods that ask the store once.
func calls(s store.Store) map[string]func(context.Context) error {
	return map[string]func(context.Context) error{
		"get":   func(ctx context.Context) error { _, err := s.Get(ctx, "k"); return err },
		"list":  func(ctx context.Context) error { _, _, err := s.List(ctx, "k"); return err },
		"count": func(ctx context.Context) error { _, err := s.Count(ctx, "k"); return err },
		"commit": func(ctx context.Context) error {
			_, err := s.Commit(ctx, nil, store.Put("k", nil))
			return err
		},
		"commit alive": func(ctx context.Context) error {
			_, err := s.Commit(ctx, nil, store.PutAlive("alive/k", nil))
			return err
		},
	}
}

func endedContextEndsCalls(t *testing.T, s store.Store) {
	commit(t, s, nil, store.Put("k", nil))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for name, call := range calls(s) {
		if err := call(ctx); !errors.Is(err, store.ErrUnavailable) || !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v, want ErrUnavailable and the context's error", name, err)
		}
	}
}

func callsFailWhileTheStoreIsAway(t *testing.T, s Store) {
	commit(t, s, nil, store.Put("k", nil))
	s.SetAvailable(false)
	var wg sync.WaitGroup
	for name, call := range calls(s) {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			start := time.Now()
			if err := call(ctx); !errors.Is(err, store.ErrUnavailable) {
				t.Errorf("%s: %v, want ErrUnavailable", name, err)
			}
			if d := time.Since(start); d > 3*time.Second {
				t.Errorf("%s took %s with a deadline of a second", name, d)
			}
		})
	}
	wg.Wait()
	s.SetAvailable(true)
	for name, call := range calls(s) {
		if err := call(t.Context()); err != nil {
			t.Errorf("%s after the store's return: %v", name, err)
		}
	}
}

func callWaitsForTheStoreToReturn(t *testing.T, s Store) {
	commit(t, s, nil, store.Put("k", nil))
	s.SetAvailable(false)
	done := make(chan error)
	go func() {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		_, err := s.Commit(ctx, nil, store.Put("k", []byte("new")))
		done <- err
	}()
	time.Sleep(300 * time.Millisecond)
	s.SetAvailable(true)
	if err := <-done; err != nil {
		// The request may have been cut on its way; then its outcome is unknown, which the store has to admit.
		if !errors.Is(err, store.ErrUnavailable) {
			t.Fatal(err)
		}
		commit(t, s, nil, store.Put("k", []byte("new")))
	}
	if got := string(get(t, s, "k").Value); got != "new" {
		t.Errorf("value %q, want that of the waiting call", got)
	}
}

func commit(t *testing.T, s store.Store, conds []store.Cond, ops ...store.Op) int64 {
	t.Helper()
	rev, err := s.Commit(t.Context(), conds, ops...)
	if err != nil {
		t.Fatal(err)
	}
	return rev
}

func get(t *testing.T, s store.Store, key string) store.KV {
	t.Helper()
	kv, err := s.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	return kv
}

func list(t *testing.T, s store.Store, prefix string) ([]store.KV, int64) {
	t.Helper()
	kvs, rev, err := s.List(t.Context(), prefix)
	if err != nil {
		t.Fatal(err)
	}
	return kvs, rev
}

// fill writes n records with five digits after prefix.
func fill(t testing.TB, s store.Store, prefix string, n int) {
	t.Helper()
	var ops []store.Op
	for i := range n {
		ops = append(ops, store.Put(fmt.Sprintf("%s%05d", prefix, i), []byte(strings.Repeat("x", 300))))
	}
	for batch := range slices.Chunk(ops, store.MaxOps) {
		if _, err := s.Commit(t.Context(), nil, batch...); err != nil {
			t.Fatal(err)
		}
	}
}

func keys(kvs []store.KV) []string {
	var ks []string
	for _, kv := range kvs {
		ks = append(ks, kv.Key)
	}
	return ks
}
