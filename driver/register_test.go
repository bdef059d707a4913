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
	_, err := d.enroll(t.Context())
	return err
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

// A store that has been emptied must not tear down what works; a node that registers anew may clear what is unused.
func TestAnEmptiedStoreTearsNothingDown(t *testing.T) {
	mem, h, n, c := running(t)
	if _, err := mem.Commit(t.Context(), nil, store.DeletePrefix(store.NodePrefix), store.DeletePrefix(store.NetworkPrefix),
		store.DeletePrefix(store.EndpointPrefix)); err != nil {
		t.Fatal(err)
	}
	h.eventually("the loss is seen", func() error {
		if h.driver.owned() {
			return errors.New("the node still trusts the store")
		}
		return nil
	})
	h.driver.check(t.Context())
	if ps := h.networks()[0].Ports; len(ps) != 1 {
		t.Errorf("ports %+v", ps)
	}
	h.restart()
	h.driver.check(t.Context())
	if ps := h.networks()[0].Ports; len(ps) != 1 {
		t.Errorf("after a restart: ports %+v", ps)
	}
	if err := h.remove(n, c); err != nil {
		t.Error(err)
	}
}
