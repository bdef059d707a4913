package driver

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/netdriver/netdriver/dataplane"
	"github.com/netdriver/netdriver/dataplane/lan"
	"github.com/netdriver/netdriver/store"
	"github.com/netdriver/netdriver/vxlan"
)

// onLAN is a host with an interface in the LAN 192.0.2.0/24.
func onLAN(t *testing.T, mem *store.Memory, name, vtep string) *host {
	t.Helper()
	h := newHost(t, mem, name, vtep)
	h.lan.Set(lan.Interface{
		Name: "eth1", MTU: 1500, Up: true, Running: true, Ethernet: true, Addrs: []netip.Prefix{netip.PrefixFrom(addr(vtep), 24)},
	})
	return h
}

// joinAt hands a container's interface over, as Docker does before it moves it.
func (h *host) joinAt(n dockerNetwork, id, sandbox string) (gateway string, err error) {
	res, err := call[struct {
		InterfaceName struct{ SrcName string }
		Gateway       string
	}](h, "NetworkDriver.Join", map[string]any{"NetworkID": n.id, "EndpointID": id, "SandboxKey": sandbox})
	return res.Gateway, err
}

func TestMacvlanContainersOfTwoHostsNeverHaveOneAddressOrMAC(t *testing.T) {
	mem := store.NewMemory()
	seen := map[string]bool{}
	for i, name := range []string{"n1", "n2"} {
		h := onLAN(t, mem, name, fmt.Sprintf("192.0.2.%d", 201+i))
		n, err := h.createNetwork("d"+name, "192.0.2.0/24", "network", "lan", "mode", "macvlan", "parent", "eth1")
		if err != nil {
			t.Fatal(err)
		}
		for k := range 3 {
			c, err := h.run(n, container{id: fmt.Sprintf("e%s%d", name, k), mac: macN(10*i + k)})
			if err != nil {
				t.Fatal(err)
			}
			if seen[c.address] {
				t.Errorf("%s twice", c.address)
			}
			seen[c.address] = true
		}
		// The same MAC on the other host, or in another network of the LAN, is refused.
		if i == 1 {
			_, err := h.run(n, container{id: "rival", mac: macN(0)})
			if err == nil || !strings.Contains(err.Error(), "MAC address") {
				t.Errorf("a MAC of the other host: %v", err)
			}
		}
	}
}

func TestAnAddressThatIsHeldOutsideIsSkippedRefusedRecordedAndForgotten(t *testing.T) {
	h := onLAN(t, store.NewMemory(), "n1", "192.0.2.201")
	n, err := h.createNetwork("d1", "192.0.2.0/24", "network", "lan", "mode", "macvlan", "parent", "192.0.2.0/24")
	if err != nil {
		t.Fatal(err)
	}
	mac := vxlan.MAC{2, 9, 9, 9, 9, 9}
	h.lan.Hold(addr("192.0.2.2"), mac)
	h.lan.Hold(addr("192.0.2.50"), mac)
	if c, err := h.run(n, container{id: "e1", mac: macN(1)}); err != nil || c.address != "192.0.2.3/24" {
		t.Errorf("address %s, error %v; want .3, since .2 is held outside", c.address, err)
	}
	if _, err := h.run(n, container{id: "e2", mac: macN(2), address: "192.0.2.50"}); err == nil ||
		!strings.Contains(err.Error(), mac.String()) {
		t.Errorf("an address held outside: %v", err)
	}
	if _, err := h.run(n, container{id: "e3", mac: macN(3), address: "192.0.2.201"}); err == nil {
		t.Error("the host's own address was given out")
	}
	conflicts := func() []string {
		kvs, _, err := h.mem.List(t.Context(), store.NetworkConflicts("lan"))
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, kv := range kvs {
			out = append(out, kv.Key)
		}
		return out
	}
	if got := conflicts(); len(got) != 2 {
		t.Errorf("conflicts %v, want two", got)
	}
	h.lan.Hold(addr("192.0.2.50"), vxlan.MAC{})
	if err := h.driver.recheckConflicts(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := conflicts(); !slices.Equal(got, []string{store.ConflictKey("lan", addr("192.0.2.2"))}) {
		t.Errorf("conflicts %v, want that of .2 only", got)
	}
	if _, err := h.run(n, container{id: "e4", mac: macN(4), address: "192.0.2.50"}); err != nil {
		t.Error(err)
	}
}

func TestAContainersInterfaceIsFollowedRepairedAndNotAfterLeave(t *testing.T) {
	h := onLAN(t, store.NewMemory(), "n1", "192.0.2.201")
	n, err := h.createNetwork("d1", "192.0.2.0/24", "network", "lan", "mode", "macvlan", "parent", "eth1")
	if err != nil {
		t.Fatal(err)
	}
	c, err := h.run(n, container{id: "e1", mac: macN(1)})
	if err != nil {
		t.Fatal(err)
	}
	const box = "/var/run/docker/netns/1"
	if gateway, err := h.joinAt(n, "e1", box); err != nil || gateway != "192.0.2.1" {
		t.Fatalf("gateway %q, error %v; want the pool's", gateway, err)
	}
	if err := h.lan.Move("e1", box); err != nil {
		t.Fatal(err)
	}
	has := func() error {
		if got := h.lan.Inside(box); !slices.Equal(got, []string{"e1"}) {
			return fmt.Errorf("the container has %v", got)
		}
		return nil
	}
	h.lan.Break("e1")
	h.eventually("the interface is back", has)
	h.restart()
	h.lan.Break("e1")
	h.eventually("the interface is back after a restart", has)
	if err := h.do("NetworkDriver.Leave", map[string]string{"NetworkID": n.id, "EndpointID": "e1"}); err != nil {
		t.Fatal(err)
	}
	h.lan.Break("e1")
	if err := h.deleteEndpoint(n, c); err != nil {
		t.Fatal(err)
	}
	if got := h.lan.Inside(box); len(got) > 0 {
		t.Errorf("after Leave the container got %v again", got)
	}
}

func TestADaemonKilledWhileAMacvlanNetworkIsMadeLeavesNothingOrFinishes(t *testing.T) {
	create := func(h *host) error {
		_, err := h.createNetwork("d1", "192.0.2.0/24", "network", "lan", "mode", "macvlan", "parent", "eth1.10", "host_access", "true")
		return err
	}
	prepare := func(h *host) {
		h.lan.Set(lan.Interface{Name: "eth1", MTU: 1500, Up: true, Running: true, Ethernet: true})
	}
	killAtEachStep(t, prepare, create, func(t *testing.T, h *host, err error) {
		if err == nil {
			h.engine.remove("d1")
		}
		h.tidy("nothing is left", func() error {
			is, err := h.lan.Interfaces(t.Context())
			if err == nil && len(is) > 1 {
				err = fmt.Errorf("interfaces %+v", is)
			}
			h.driver.sweep(t.Context())
			return errors.Join(err, h.empty())
		})
	})
}

func TestANodeWithHostAccessHasAnAddressUntilItLeaves(t *testing.T) {
	mem := store.NewMemory()
	h := newHost(t, mem, "n1", "192.0.2.201")
	id := store.HostEndpoint("n1", "web")
	// The two fakes know nothing of each other: this is the end of the pair that the overlay's makes.
	h.lan.Set(lan.Interface{Name: dataplane.ContainerEnd(id), MTU: 1450, Ethernet: true})
	n, err := h.createNetwork("d1", "10.10.0.0/24", "network", "web", "host_access", "true")
	if err != nil {
		t.Fatal(err)
	}
	e, _, found, err := read[store.Endpoint](t.Context(), mem, store.EndpointKey("web", id))
	if err != nil || !found || !e.Host {
		t.Fatalf("endpoint %+v, found %t, error %v", e, found, err)
	}
	l, _, _, err := read[store.Lease](t.Context(), mem, store.LeaseKey(prefix("10.10.0.0/24"), e.IPv4.Addr()))
	if err != nil || l.Kind != store.LeaseNode || l.Node != "n1" {
		t.Errorf("lease %+v, error %v; want one of the node itself", l, err)
	}
	if _, err := h.run(n, container{id: "e1", mac: macN(1), address: e.IPv4.Addr().String()}); err == nil ||
		!strings.Contains(err.Error(), "node n1 itself") {
		t.Errorf("the node's own address for a container: %v", err)
	}
	h.restart()
	if err := h.removeNetwork(n); err != nil {
		t.Fatal(err)
	}
	if err := h.empty(); err != nil {
		t.Error(err)
	}
}
