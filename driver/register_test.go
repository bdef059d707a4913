package driver

import (
	"errors"
	"log/slog"
	"testing"

	"github.com/netdriver/netdriver/store"
)

// enlist registers a node on a cluster's store.
func enlist(t *testing.T, mem *store.Memory, name, id, vtep string) error {
	t.Helper()
	d := New(Config{Store: mem, Log: slog.New(slog.DiscardHandler), Node: store.Node{Name: name, ID: id, VTEP: addr(vtep)}})
	return d.enroll(t.Context())
}

func TestANamesOrAddressesSecondLivingOwnerIsRefused(t *testing.T) {
	mem := store.NewMemory()
	if err := enlist(t, mem, "n1", "a", "192.0.2.1"); err != nil {
		t.Fatal(err)
	}
	if err := enlist(t, mem, "n1", "b", "192.0.2.2"); !errors.Is(err, ErrTaken) {
		t.Errorf("the name: error %v", err)
	}
	if err := enlist(t, mem, "n2", "b", "192.0.2.1"); !errors.Is(err, ErrTaken) {
		t.Errorf("the address: error %v", err)
	}
	if err := enlist(t, mem, "n2", "b", "192.0.2.2"); err != nil {
		t.Errorf("own name and address: %v", err)
	}
	if err := enlist(t, mem, "n1", "a", "192.0.2.9"); err != nil {
		t.Errorf("the same node at another address: %v", err)
	}
}

func TestADeadNodesNameIsTakenOver(t *testing.T) {
	mem := store.NewMemory()
	if err := enlist(t, mem, "n1", "a", "192.0.2.1"); err != nil {
		t.Fatal(err)
	}
	mem.DropAlive()
	if err := enlist(t, mem, "n1", "b", "192.0.2.2"); err != nil {
		t.Fatal(err)
	}
	if n := record[store.Node](t, mem, store.NodeKey("n1")); n.ID != "b" {
		t.Errorf("record %+v", n)
	}
}
