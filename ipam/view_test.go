package ipam

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"testing"

	"github.com/netdriver/netdriver/store"
)

// rendezvous is a store whose first readers of all pools wait for each other, so that each decides upon the same.
type rendezvous struct {
	store.Store
	readers sync.WaitGroup
}

func (r *rendezvous) List(ctx context.Context, prefix string) ([]store.KV, int64, error) {
	kvs, revision, err := r.Store.List(ctx, prefix)
	if prefix == store.PoolPrefix && len(kvs) == 0 {
		r.readers.Done()
		r.readers.Wait()
	}
	return kvs, revision, err
}

func TestOfTwoNodesThatSawNoPoolOnlyOneMakesIt(t *testing.T) {
	r := &rendezvous{Store: store.NewMemory()}
	subnets := []netip.Prefix{prefix("10.10.0.0/24"), prefix("10.10.0.0/16")}
	r.readers.Add(len(subnets))
	errs := make([]error, len(subnets))
	var wg sync.WaitGroup
	for i, subnet := range subnets {
		s := New(Config{
			Store: r, Node: "n1", Log: slog.New(slog.DiscardHandler),
			Routes: func() ([]netip.Prefix, error) { return nil, nil },
		})
		wg.Go(func() {
			errs[i] = again(func() error {
				_, err := s.acquire(context.Background(), wish{subnet: subnet})
				return err
			})
		})
	}
	wg.Wait()
	if (errs[0] == nil) == (errs[1] == nil) {
		t.Errorf("%v and %v, want one to fail", errs[0], errs[1])
	}
}

func TestAChosenAddressIsNotChosenAgainWhileItsLeaseIsWritten(t *testing.T) {
	subnet := prefix("10.10.0.0/29")
	v := newView(subnet, "n1", slog.New(slog.DiscardHandler))
	take := func() netip.Addr {
		t.Helper()
		v.moveTo(netip.Addr{}, 1) // another node's cursor, which does not know of ours yet
		a, _ := v.take(subnet, netip.Addr{})
		return a
	}
	first := take()
	if second := take(); second == first {
		t.Errorf("%s was chosen twice", first)
	}
	v.settle(first, holding{kv: store.KV{Modified: 7}})
	if third := take(); third == first {
		t.Errorf("%s is chosen again before the watch has told of its lease", first)
	}
	v.apply(store.Batch{Revision: 7}) // it has, and the lease is gone again
	if again := take(); again != first {
		t.Errorf("%s is chosen, want %s, which is free", again, first)
	}
}
