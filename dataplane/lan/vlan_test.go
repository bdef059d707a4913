//go:build linux

package lan

import (
	"errors"
	"net/netip"
	"os"
	"slices"
	"testing"

	"github.com/netdriver/netdriver/internal/nettest"
)

// full says whether the kernel must have VLANs and ipvlan: in a virtual node it has. Elsewhere what it lacks is refused by its
// name, which is tested then.
func full() bool { return os.Getenv("NETDRIVER_TEST_LAN") != "" }

// lacks says that the kernel refused something as it should if it does not know it.
func lacks(t *testing.T, err error) bool {
	t.Helper()
	if errors.Is(err, ErrUnsupported) && !full() {
		return true
	}
	if err != nil {
		t.Fatal(err)
	}
	return false
}

func TestAVLANIsMadeUsedAndRemovedUnlessItIsSomebodyElses(t *testing.T) {
	w := linuxWorld(t)
	want := onVLAN(1)
	if lacks(t, w.kernel.Run(t.Context(), plan(Network{Name: "lan"}, want))) {
		return
	}
	w.reach(t, want)
	host, far := w.ns[0], w.ns[1]
	// Else the far host would answer on each of its interfaces for all of its addresses.
	nettest.Sh(t, far, "echo 1 >/proc/sys/net/ipv4/conf/all/arp_ignore")
	nettest.Sh(t, far, "ip link add link far1 name far1.10 type vlan id 10 && ip address add 192.0.2.77/24 dev far1.10 && "+
		"ip link set far1.10 up && ip address add 192.0.2.78/24 dev far1")
	if _, found, err := w.kernel.Probe(t.Context(), "eth1.10", addr("192.0.2.77")); !found || err != nil {
		t.Errorf("in the VLAN: found %t, error %v", found, err)
	}
	for device, a := range map[string]netip.Addr{"eth1": addr("192.0.2.77"), "eth1.10": addr("192.0.2.78")} {
		if holder, found, err := w.kernel.Probe(t.Context(), device, a); found || err != nil {
			t.Errorf("%s is seen from %s, which is another VLAN: at %s, error %v", a, device, holder, err)
		}
	}
	nettest.Sh(t, host, "ip link add link eth1 name eth1.20 type vlan id 20")
	p := NewPlane(w.kernel, quiet)
	if err := p.Sweep(t.Context(), func(string) bool { return false }, nil); err != nil {
		t.Fatal(err)
	}
	is, err := w.kernel.Interfaces(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	has := func(name string) bool {
		return slices.ContainsFunc(is, func(i Interface) bool { return i.Name == name })
	}
	if has("eth1.10") || has(PortName(endpointID(1))) || !has("eth1.20") {
		t.Errorf("the sweep left %+v; only the user's eth1.20 was to stay", is)
	}
	if got, err := Resolve("eth1.20", nil, is); err != nil || got.VLAN.Device != "" {
		t.Errorf("the user's VLAN interface is not taken as it is: %+v, error %v", got, err)
	}
}

func TestAnIPvlanInterfaceIsPlacedInItsContainer(t *testing.T) {
	w := linuxWorld(t)
	if lacks(t, w.kernel.Supports(t.Context(), IPvlan)) {
		return
	}
	sandbox := w.path(3)
	box(t, sandbox)
	want := Network{Name: "lan", Parent: "eth1", Ports: []Port{{
		Endpoint: endpointID(3), Kind: IPvlan, Parent: "eth1", Mode: "l2", MTU: 1500, Placed: true, Sandbox: sandbox,
		Addresses: []netip.Prefix{prefix("192.0.2.3/24")}, Gateways: []netip.Addr{addr("192.0.2.77")},
	}}}
	w.reach(t, want)
	nettest.Sh(t, w.ns[1], "ip address add 192.0.2.77/24 dev far1 && busybox ping -c 1 -W 5 192.0.2.3")
	nettest.Sh(t, sandbox, "ip route get 198.51.100.1 | grep -q 'via 192.0.2.77 dev eth0'")
	err := w.kernel.Run(t.Context(), plan(onLAN(), onLAN(macvlanPort(1, "eth1"))))
	if !errors.Is(err, ErrTaken) {
		t.Errorf("macvlan on a parent that ipvlan has: %v", err)
	}
	w.lose(t, 3, sandbox)
	w.reach(t, want)
}
