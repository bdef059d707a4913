package driver

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/netdriver/netdriver/dataplane"
	"github.com/netdriver/netdriver/store"
	"github.com/netdriver/netdriver/vxlan"
)

// record reads one record of a cluster's store.
func record[R store.Record](t *testing.T, mem *store.Memory, key string) R {
	t.Helper()
	kv, err := mem.Get(t.Context(), key)
	if err != nil {
		t.Fatalf("%s: %v", key, err)
	}
	r, err := store.Decode[R](kv)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// two is a cluster of two hosts.
func two(t *testing.T) (*store.Memory, *host, *host) {
	mem := store.NewMemory()
	return mem, newHost(t, mem, "n1", "192.0.2.1"), newHost(t, mem, "n2", "192.0.2.2")
}

func TestDockerNetworksOfTwoHostsBecomeOneClusterNetwork(t *testing.T) {
	for what, options := range map[string][]string{"by name": {"network", "web"}, "by subnet": nil} {
		t.Run(what, func(t *testing.T) {
			mem, h1, h2 := two(t)
			if _, err := h1.createNetwork("d1", "10.10.0.0/24", options...); err != nil {
				t.Fatal(err)
			}
			if _, err := h2.createNetwork("d2", "10.10.0.0/24", options...); err != nil {
				t.Fatal(err)
			}
			if n, err := mem.Count(t.Context(), store.NetworkPrefix); n != 1 || err != nil {
				t.Errorf("%d networks, error %v; want 1", n, err)
			}
			flooded := func(h *host, peer string) func() error {
				return func() error {
					if e := (dataplane.FDBEntry{VTEP: addr(peer)}); !slices.Contains(h.networks()[0].FDB, e) {
						return fmt.Errorf("no flood entry to %s in %v", peer, h.networks()[0].FDB)
					}
					return nil
				}
			}
			h1.eventually("the hosts flood to each other", flooded(h1, "192.0.2.2"))
			h2.eventually("the hosts flood to each other", flooded(h2, "192.0.2.1"))
		})
	}
}

func TestANetworkWithoutNameIsNamedAfterItsDockerNetwork(t *testing.T) {
	mem, h1, _ := two(t)
	if _, err := h1.createNetwork("0123456789abcdef", "10.10.0.0/24"); err != nil {
		t.Fatal(err)
	}
	record[store.Network](t, mem, store.NetworkKey("net-0123456789ab"))
}

func TestALaterCreatorThatContradictsGetsBothValuesAndLeavesNothing(t *testing.T) {
	mem, h1, h2 := two(t)
	if _, err := h1.createNetwork("d1", "10.10.0.0/24", "network", "web", "mtu", "1400"); err != nil {
		t.Fatal(err)
	}
	_, err := h2.createNetwork("d2", "10.10.0.0/24", "network", "web", "mtu", "1300")
	if err == nil || !strings.Contains(err.Error(), "mtu is 1400") || !strings.Contains(err.Error(), "1300") {
		t.Errorf("error %v, want both values", err)
	}
	if ms := record[store.Network](t, mem, store.NetworkKey("web")).Members; len(ms) != 1 {
		t.Errorf("members %v", ms)
	}
	if ns := h2.networks(); len(ns) != 0 {
		t.Errorf("kernel of the refused host has %v", ns)
	}
}

func TestAnotherIPAMDriverIsRefused(t *testing.T) {
	mem, h1, h2 := two(t)
	if _, err := h1.createNetwork("d1", "10.10.0.0/24", "network", "web"); err != nil { // the positive control, with ours
		t.Fatal(err)
	}
	for _, subnet := range []string{"10.10.0.0/24", "10.11.0.0/24"} {
		req := request("d2", subnet)
		req.IPv4Data[0].AddressSpace = "LocalDefault"
		err := h2.do("NetworkDriver.CreateNetwork", req)
		if err == nil || !strings.Contains(err.Error(), "--ipam-driver custom-overlay") {
			t.Errorf("%s: error %v, want the remedy", subnet, err)
		}
	}
	if ms := record[store.Network](t, mem, store.NetworkKey("web")).Members; len(ms) != 1 || len(h2.networks()) != 0 {
		t.Errorf("members %v, and the refused host has %v", ms, h2.networks())
	}
}

func TestDeletingOnOneHostRemovesThatHostsPartAndTheLastOneTakesTheNetworkAlong(t *testing.T) {
	mem, h1, h2 := two(t)
	n1, err1 := h1.createNetwork("d1", "10.10.0.0/24", "network", "web")
	n2, err2 := h2.createNetwork("d2", "10.10.0.0/24", "network", "web")
	if err := errors.Join(err1, err2, h1.removeNetwork(n1)); err != nil {
		t.Fatal(err)
	}
	if ns := h1.networks(); len(ns) != 0 {
		t.Errorf("the host that left still has %v", ns)
	}
	if ns := h2.networks(); len(ns) != 1 {
		t.Errorf("the host that stayed has %v", ns)
	}
	record[store.Network](t, mem, store.NetworkKey("web"))
	if err := h2.removeNetwork(n2); err != nil {
		t.Fatal(err)
	}
	if err := h2.empty(); err != nil {
		t.Error(err)
	}
}

func TestHostsThatCreateAndLeaveAtOnceNeverLoseOrLeakTheNetwork(t *testing.T) {
	mem := store.NewMemory()
	hosts := []*host{newHost(t, mem, "n1", "192.0.2.1"), newHost(t, mem, "n2", "192.0.2.2"), newHost(t, mem, "n3", "192.0.2.3")}
	for round := range 5 {
		var wg sync.WaitGroup
		for i, h := range hosts {
			wg.Go(func() {
				n, err := h.createNetwork(fmt.Sprintf("d%d%d", i, round), "10.10.0.0/24", "network", "web")
				if err != nil {
					t.Errorf("round %d, create: %v", round, err)
					return
				}
				if _, err := h.run(n, container{id: fmt.Sprintf("e%d%d", i, round), mac: macN(i + 1)}); err != nil {
					t.Errorf("round %d, run: %v", round, err)
				}
				if err := h.removeNetwork(n); err != nil {
					t.Errorf("round %d, remove: %v", round, err)
				}
			})
		}
		wg.Wait()
		if err := hosts[0].empty(); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
	}
}

func TestCreatingTheSameDockerNetworkTwiceChangesNothing(t *testing.T) {
	mem, h1, _ := two(t)
	n := web(h1)
	before := record[store.Network](t, mem, store.NetworkKey("web"))
	if err := h1.do("NetworkDriver.CreateNetwork", n.req); err != nil {
		t.Fatal(err)
	}
	if after := record[store.Network](t, mem, store.NetworkKey("web")); len(after.Members) != len(before.Members) {
		t.Errorf("members %v", after.Members)
	}
}

func TestAVNIBelongsToOneNetwork(t *testing.T) {
	_, h1, h2 := two(t)
	if _, err := h1.createNetwork("d1", "10.10.0.0/24", "network", "web", "vni", "77"); err != nil {
		t.Fatal(err)
	}
	if _, err := h2.createNetwork("d2", "10.11.0.0/24", "network", "db", "vni", "77"); err == nil || !strings.Contains(err.Error(), "belongs to network web") {
		t.Errorf("error %v, want the owner", err)
	}
	if _, err := h2.createNetwork("d3", "10.11.0.0/24", "network", "db", "vni", "78"); err != nil {
		t.Errorf("another VNI is refused: %v", err)
	}
}

func TestAKernelThatRefusesUndoesTheNetwork(t *testing.T) {
	mem := store.NewMemory()
	h := newHost(t, mem, "n1", "192.0.2.1")
	h.kernel.Take(77, vxlan.DefaultPort) // another driver's VXLAN device
	if _, err := h.createNetwork("d1", "10.10.0.0/24", "network", "web", "vni", "77"); err == nil {
		t.Fatal("no error")
	}
	if err := h.empty(); err != nil {
		t.Error(err)
	}
	if _, err := h.createNetwork("d1", "10.10.0.0/24", "network", "web", "vni", "78"); err != nil {
		t.Errorf("another VNI is refused: %v", err)
	}
}

func TestAnMTUThatDoesNotFitTheUnderlayIsRefused(t *testing.T) {
	h := newHost(t, store.NewMemory(), "n1", "192.0.2.1")
	if _, err := h.createNetwork("d1", "10.10.0.0/24", "mtu", "1451"); err == nil || !strings.Contains(err.Error(), "1450") {
		t.Errorf("error %v, want the largest possible MTU", err)
	}
	if _, err := h.createNetwork("d1", "10.10.0.0/24", "mtu", "1450"); err != nil {
		t.Errorf("the largest possible one is refused: %v", err)
	}
}
