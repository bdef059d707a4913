package driver

import (
	"testing"

	"github.com/netdriver/netdriver/store"
)

// Nobody else would remove them: a record that is left names an endpoint that no node has.
func TestPublishedNamesAndServicesGoWithWhatTheyName(t *testing.T) {
	mem, h1, h2, n1, n2 := twoWeb(t)
	c, err := h1.run(n1, container{id: "e1", mac: macN(1)})
	if err != nil {
		t.Fatal(err)
	}
	put := func(ops ...store.Op) {
		t.Helper()
		if _, err := mem.Commit(t.Context(), nil, ops...); err != nil {
			t.Fatal(err)
		}
	}
	left := func() (n int64) {
		t.Helper()
		for _, prefix := range []string{store.NamePrefix, store.ServicePrefix} {
			count, err := mem.Count(t.Context(), prefix)
			if err != nil {
				t.Fatal(err)
			}
			n += count
		}
		return n
	}
	for _, id := range []string{"e1", "e2"} {
		put(store.Put(store.NameKey("web", id), store.Encode(store.Name{Network: "web", Endpoint: id, Container: "c"})))
	}
	if err := h1.remove(n1, c); err != nil || left() != 1 {
		t.Errorf("error %v, %d names after the endpoint's end, want the other one's", err, left())
	}
	put(store.Put(store.ServiceKey("web", "s1"), store.Encode(store.Service{ID: "s1", Name: "front", Network: "web"})))
	if err := h1.removeNetwork(n1); err != nil || left() != 2 {
		t.Errorf("error %v, %d records while a member is left, want both", err, left())
	}
	if err := h2.removeNetwork(n2); err != nil || left() != 0 {
		t.Errorf("error %v, %d records after the network's end", err, left())
	}
}
