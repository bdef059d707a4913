package store_test

import (
	"errors"
	"testing"

	"github.com/netdriver/netdriver/store"
	"github.com/netdriver/netdriver/store/storetest"
)

func TestMemory(t *testing.T) {
	storetest.Run(t, func(*testing.T) storetest.Store { return store.NewMemory() })
}

func TestMemoryDropsOnlyAliveKeys(t *testing.T) {
	m := store.NewMemory()
	before, err := m.Commit(t.Context(), nil,
		store.PutAlive("alive/a", nil), store.PutAlive("alive/b", nil),
		store.PutAlive("alive/kept", nil), store.Put("c", nil))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Commit(t.Context(), nil, store.Put("alive/kept", nil)); err != nil { // without Alive: it stays
		t.Fatal(err)
	}
	m.DropAlive()
	for _, key := range []string{"alive/a", "alive/b"} {
		if _, err := m.Get(t.Context(), key); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("%s: %v, want ErrNotFound", key, err)
		}
	}
	for _, key := range []string{"alive/kept", "c"} {
		if _, err := m.Get(t.Context(), key); err != nil {
			t.Errorf("%s: %v", key, err)
		}
	}
	if _, rev, _ := m.List(t.Context(), ""); rev != before+2 {
		t.Errorf("revision %d, want %d: both keys go in one transaction", rev, before+2)
	}
}
