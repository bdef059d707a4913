package driver

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/netdriver/netdriver/store"
)

// maxSteps bounds the search for an operation's last step.
const maxSteps = 40

// killAtEachStep runs operation once for each of its steps on a fresh host and kills the daemon there, before and after
// the step takes effect; a new daemon then starts and check sees whether it finishes or undoes the operation. It ends when
// an operation outlives the step that was to kill it.
func killAtEachStep(t *testing.T, prepare func(*host), operation func(*host) error, check func(*testing.T, *host, error)) {
	t.Helper()
	for _, after := range []bool{false, true} {
		killed := 0
		for step := range maxSteps {
			done := false
			t.Run(fmt.Sprintf("step%d_after=%v", step, after), func(t *testing.T) {
				h := newHost(t, store.NewMemory(), "n1", "192.0.2.1")
				prepare(h)
				h.life.die(step, after)
				err := operation(h)
				if done = !h.life.dead() && h.deaths == 0; done {
					return
				}
				killed++
				if h.life.dead() {
					h.restart()
				}
				check(t, h, err)
			})
			if done {
				break
			}
		}
		if killed == 0 {
			t.Error("no step was killed: the operation changes nothing, or the test is broken")
		}
	}
}

// empty says whether nothing of any network is left: no record and no kernel object.
func (h *host) empty() error {
	ctx := context.Background()
	for _, prefix := range []string{
		store.NetworkPrefix, store.VNIPrefix, store.PoolPrefix, store.LeasePrefix, store.EndpointPrefix, store.MACPrefix, store.CursorPrefix,
	} {
		kvs, _, err := h.mem.List(ctx, prefix)
		if err != nil {
			return err
		}
		if len(kvs) > 0 {
			return fmt.Errorf("left in the store: %s (and %d more)", kvs[0].Key, len(kvs)-1)
		}
	}
	if ns := h.networks(); len(ns) > 0 {
		return fmt.Errorf("left in the kernel: %+v", ns)
	}
	return nil
}

// tidy lets the janitor run, an hour apart, until check is content.
func (h *host) tidy(what string, check func() error) {
	h.t.Helper()
	suspects := doubt{}
	h.eventually(what, func() error {
		h.clock.Add(int64(time.Hour))
		if err := h.driver.cleanOnce(context.Background(), suspects); err != nil {
			return err
		}
		return check()
	})
}

func nothing(*host) {}

func asksAgain(h *host) { h.again = true }

func TestADaemonKilledWhileCreatingANetworkFinishesWhenDockerAsksAgain(t *testing.T) {
	create := func(h *host) error { _, err := h.createNetwork("d1", "10.10.0.0/24", "network", "web"); return err }
	killAtEachStep(t, asksAgain, create, func(t *testing.T, h *host, err error) {
		if err != nil {
			t.Fatalf("asked again: %v", err)
		}
		if ns := h.networks(); len(ns) != 1 || ns[0].Name != "web" || !ns[0].VXLAN.Enslaved {
			t.Errorf("kernel has %+v", ns)
		}
	})
}

func TestADaemonKilledWhileCreatingANetworkLeavesNothingWhenDockerGivesUp(t *testing.T) {
	create := func(h *host) error { _, err := h.createNetwork("d1", "10.10.0.0/24", "network", "web"); return err }
	killAtEachStep(t, nothing, create, func(t *testing.T, h *host, err error) {
		if err == nil {
			h.engine.remove("d1") // the last answer arrived and the user removed the network while the daemon was away
		}
		h.tidy("nothing is left", h.empty)
	})
}

// web makes the network that the endpoint tests use.
func web(h *host) dockerNetwork {
	h.t.Helper()
	n, err := h.createNetwork("d1", "10.10.0.0/24", "network", "web")
	if err != nil {
		h.t.Fatal(err)
	}
	return n
}

// running is a host with that network and one container in it.
func running(t *testing.T) (*store.Memory, *host, dockerNetwork, container) {
	t.Helper()
	mem := store.NewMemory()
	h := newHost(t, mem, "n1", "192.0.2.1")
	n := web(h)
	c, err := h.run(n, container{id: "e1", mac: macN(1)})
	if err != nil {
		t.Fatal(err)
	}
	return mem, h, n, c
}

func TestADaemonKilledWhileAContainerStartsFinishesWhenDockerAsksAgain(t *testing.T) {
	var n dockerNetwork
	c := container{id: "e1", address: "10.10.0.5", mac: macN(1)}
	start := func(h *host) error { _, err := h.run(n, c); return err }
	killAtEachStep(t, func(h *host) { n = web(h); asksAgain(h) }, start, func(t *testing.T, h *host, err error) {
		if err != nil {
			t.Fatalf("asked again: %v", err)
		}
		if ps := h.networks()[0].Ports; len(ps) != 1 || ps[0].Endpoint != "e1" || !ps[0].Enslaved || !ps[0].Up {
			t.Errorf("ports %+v", ps)
		}
	})
}

func TestADaemonKilledWhileAContainerStartsLeaksNothingWhenDockerGivesUp(t *testing.T) {
	var n dockerNetwork
	start := func(h *host) error {
		_, err := h.run(n, container{id: "e1", address: "10.10.0.5", mac: macN(1)})
		return err
	}
	killAtEachStep(t, func(h *host) { n = web(h) }, start, func(t *testing.T, h *host, _ error) {
		h.engine.remove("d1", "e1")
		h.tidy("no port, lease, endpoint", func() error { return h.onlyNetwork("web") })
	})
}

func TestADaemonKilledWhileAContainerEndsFreesItsAddress(t *testing.T) {
	var n dockerNetwork
	c := container{id: "e1", address: "10.10.0.5/24", mac: macN(1)}
	prepare := func(h *host) {
		n = web(h)
		if _, err := h.run(n, c); err != nil {
			h.t.Fatal(err)
		}
	}
	killAtEachStep(t, prepare, func(h *host) error { return h.remove(n, c) }, func(t *testing.T, h *host, _ error) {
		h.tidy("no port, lease, endpoint", func() error { return h.onlyNetwork("web") })
	})
}

func TestADaemonKilledWhileRemovingANetworkLeavesNothing(t *testing.T) {
	var n dockerNetwork
	killAtEachStep(t, func(h *host) { n = web(h) }, func(h *host) error { return h.removeNetwork(n) }, func(t *testing.T, h *host, _ error) {
		h.tidy("nothing is left", h.empty)
	})
}

// onlyNetwork says whether the network is there and no endpoint, MAC or endpoint's lease is.
func (h *host) onlyNetwork(name string) error {
	ctx := context.Background()
	ns := h.networks()
	if len(ns) != 1 || ns[0].Name != name || len(ns[0].Ports) != 0 || len(ns[0].Neighbours) != 0 {
		return fmt.Errorf("kernel has %+v", ns)
	}
	for _, prefix := range []string{store.EndpointPrefix, store.MACPrefix} {
		if n, err := h.mem.Count(ctx, prefix); n != 0 || err != nil {
			return fmt.Errorf("%d records under %s, error %v", n, prefix, err)
		}
	}
	leases, _, err := h.mem.List(ctx, store.LeasePrefix)
	for _, kv := range leases {
		l, bad := store.Decode[store.Lease](kv)
		if err = errors.Join(err, bad); l.Kind == store.LeaseEndpoint {
			return fmt.Errorf("leaked lease %+v", l)
		}
	}
	return err
}
