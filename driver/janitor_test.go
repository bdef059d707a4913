package driver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/netdriver/netdriver/dataplane"
	"github.com/netdriver/netdriver/store"
	"github.com/netdriver/netdriver/vxlan"
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

// leave writes the records of a network and of an endpoint in it, an hour old, as a daemon leaves them whose host fails.
func leave(t *testing.T, mem *store.Memory) {
	t.Helper()
	long := time.Now().Add(-time.Hour)
	nw := store.Network{
		Name: "web", Mode: store.ModeOverlay, VNI: 1 << 20, Port: 4789, MTU: 1450, Subnets: []netip.Prefix{prefix("10.10.0.0/24")},
		Swarm: "d1", Members: []store.Member{{Node: "n1", DockerID: "d1", Since: long}},
	}
	e := store.Endpoint{
		ID: "e1", Network: "web", Node: "n1", DockerID: "d1", IPv4: prefix("10.10.0.5/24"), MAC: vxlan.MAC{2, 0, 0, 0, 0, 1},
		Phase: store.PhaseJoined, Created: long,
	}
	_, err := mem.Commit(t.Context(), nil, store.Put(store.NetworkKey("web"), store.Encode(nw)),
		store.Put(store.EndpointKey("web", "e1"), store.Encode(e)))
	if err != nil {
		t.Fatal(err)
	}
}

// runDriver runs a driver on a fake kernel until the returned function is called.
func runDriver(ctx context.Context, mem *store.Memory, docker Docker) (stop func()) {
	log := slog.New(slog.DiscardHandler)
	mirror, plane := store.NewMirror(mem, log), dataplane.NewPlane(dataplane.NewFake(), log)
	d := New(Config{
		Store: mem, Mirror: mirror, Plane: plane, Underlay: "eth0", Docker: docker, Log: log,
		Node: store.Node{Name: "n1", ID: "id-n1", VTEP: addr("192.0.2.1"), UnderlayMTU: 1500},
	})
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	for _, run := range []func(context.Context) error{mirror.Run, plane.Run, d.Run} {
		wg.Go(func() { _ = run(ctx) }) // they end with ctx's error
	}
	return func() { cancel(); wg.Wait() }
}

func TestADaemonThatStartsRemovesWhatDockerHasNoMoreWithinSecondsAndThenLooksSeldom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := store.NewMemory()
		gone := func() bool { n, err := mem.Count(t.Context(), store.EndpointPrefix); return n == 0 && err == nil }
		leave(t, mem)
		docker := &engine{down: true} // it starts after the daemon
		docker.add("d1")
		defer runDriver(t.Context(), mem, docker)()
		if time.Sleep(time.Minute); gone() {
			t.Error("removed though Docker was not asked")
		}
		docker.mu.Lock()
		docker.down = false
		docker.mu.Unlock()
		if time.Sleep(3*cleanFirst + time.Second); !gone() {
			t.Error("a returned host's dead endpoint is still there")
		}
		leave(t, mem)
		if time.Sleep(cleanEvery + time.Second); gone() {
			t.Error("removed in the first of the seldom rounds: it must be missing twice")
		}
		if time.Sleep(cleanEvery); !gone() {
			t.Error("still there after two rounds")
		}
	})
}
