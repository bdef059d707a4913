package driver

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/netdriver/netdriver/store"
)

func TestTheJanitorRemovesWhatDockerHasNoMore(t *testing.T) {
	h := newHost(t, store.NewMemory(), "n1", "192.0.2.1")
	n := web(h)
	for i := range 3 {
		if _, err := h.run(n, container{id: fmt.Sprintf("e%d", i), mac: macN(i + 1)}); err != nil {
			t.Fatal(err)
		}
	}
	h.engine.remove("d1", "e0") // its Leave, DeleteEndpoint and ReleaseAddress were lost
	h.tidy("the two that live are left", func() error {
		if eps := h.driver.endpointsOf("web", "d1"); len(eps) != 2 {
			return fmt.Errorf("endpoints %v", eps)
		}
		return nil
	})
	if n, err := h.mem.Count(t.Context(), store.LeasePrefix); n != 3 || err != nil { // theirs and the gateway's
		t.Errorf("%d leases, error %v; its address is not free as soon as it is gone", n, err)
	}
	h.engine.remove("d1")
	h.tidy("nothing is left", h.empty)
}

func TestTheJanitorSparesWhatIsYoungOrMissingOnlyOnceOrWhenDockerIsAway(t *testing.T) {
	h := newHost(t, store.NewMemory(), "n1", "192.0.2.1")
	n := web(h)
	if _, err := h.run(n, container{id: "e1", mac: macN(1)}); err != nil {
		t.Fatal(err)
	}
	h.engine.remove("d1", "e1")
	round := func(suspects doubt) error { return h.driver.cleanOnce(context.Background(), suspects) }
	kept := func(when string) {
		t.Helper()
		if len(h.driver.endpointsOf("web", "d1")) != 1 {
			t.Errorf("%s: the endpoint is gone", when)
		}
	}
	young := doubt{}
	if err := errors.Join(round(young), round(young), round(young)); err != nil {
		t.Fatal(err)
	}
	kept("young")
	h.clock.Add(int64(time.Hour))
	once := doubt{}
	if err := round(once); err != nil {
		t.Fatal(err)
	}
	kept("missing once")
	h.engine.down = true
	if round(once) == nil {
		t.Error("no error from an engine that is away")
	}
	kept("Docker away")
	h.engine.down = false
	if err := round(once); err != nil { // the positive control: twice missing, old, Docker there
		t.Fatal(err)
	}
	if eps := h.driver.endpointsOf("web", "d1"); len(eps) != 0 {
		t.Errorf("still there: %v", eps)
	}
}

func TestTheJanitorFreesAnAddressWithoutEndpointAndKeepsThoseInUse(t *testing.T) {
	mem, h, n, c := running(t)
	lost := map[string]any{"PoolID": n.poolID, "Options": map[string]string{"com.docker.network.endpoint.macaddress": macN(2)}}
	if err := h.do("IpamDriver.RequestAddress", lost); err != nil { // no CreateEndpoint follows
		t.Fatal(err)
	}
	h.tidy("only the lease in use is left", func() error {
		var held []string
		kvs, _, err := mem.List(t.Context(), store.LeasePrefix)
		for _, kv := range kvs {
			if l, err := store.Decode[store.Lease](kv); err == nil && l.Kind == store.LeaseEndpoint {
				held = append(held, l.Address.String()+"/24")
			}
		}
		if err != nil || len(held) != 1 || held[0] != c.address {
			return fmt.Errorf("leases %v, want only %s; error %v", held, c.address, err)
		}
		return nil
	})
}
