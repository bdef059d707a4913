package underlay

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func iface(name string, mtu int, cidrs ...string) Interface {
	i := Interface{Name: name, MTU: mtu, Up: true}
	for _, c := range cidrs {
		i.Addrs = append(i.Addrs, netip.MustParsePrefix(c))
	}
	return i
}

// host has what hosts have: a loopback, a bridge of Docker's, and two cards.
func host() Host {
	lo, docker := iface("lo", 65536, "127.0.0.1/8", "::1/128"), iface("docker0", 1500, "172.17.0.1/16")
	lo.Loopback, docker.Virtual = true, true
	down := iface("eth2", 1500, "192.0.2.9/24")
	down.Up = false
	return Host{
		Interfaces: []Interface{
			lo, docker, iface("eth0", 1500, "fe80::1/64", "2001:db8::1/64", "192.0.2.1/24"),
			iface("eth1", 9000, "198.51.100.1/24"),
			down, iface("eth3", 1500, "2001:db8:3::1/64"),
		},
		DefaultRoute: "eth1",
	}
}

func TestAnUnderlayIsNamedByAddressOrInterface(t *testing.T) {
	for want, expect := range map[string]Underlay{
		"192.0.2.1":       {VTEP: netip.MustParseAddr("192.0.2.1"), Device: "eth0", MTU: 1500},
		"::ffff:c000:201": {VTEP: netip.MustParseAddr("192.0.2.1"), Device: "eth0", MTU: 1500},
		"2001:db8::1":     {VTEP: netip.MustParseAddr("2001:db8::1"), Device: "eth0", MTU: 1500},
		"eth0":            {VTEP: netip.MustParseAddr("192.0.2.1"), Device: "eth0", MTU: 1500},
		"eth1":            {VTEP: netip.MustParseAddr("198.51.100.1"), Device: "eth1", MTU: 9000},
		"eth3":            {VTEP: netip.MustParseAddr("2001:db8:3::1"), Device: "eth3", MTU: 1500},
		"docker0":         {VTEP: netip.MustParseAddr("172.17.0.1"), Device: "docker0", MTU: 1500},
		"lo":              {VTEP: netip.MustParseAddr("127.0.0.1"), Device: "lo", MTU: 65536},
	} {
		got, err := host().Choose(want)
		if diff := cmp.Diff(expect, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); err != nil ||
			diff != "" {
			t.Errorf("%s: error %v (-want +got):\n%s", want, err, diff)
		}
	}
}

func TestWithoutAChoiceTheDefaultRouteThenARealInterfaceThenTheLoopbackIsTaken(t *testing.T) {
	h := host()
	step := func(device string, warns bool) {
		t.Helper()
		got, err := h.Choose("")
		if err != nil || got.Device != device || (got.Warning != "") != warns {
			t.Errorf("got %+v, error %v; want %s, warning %v", got, err, device, warns)
		}
	}
	step("eth1", false)
	h.DefaultRoute = "eth2" // down
	step("eth0", false)
	h.DefaultRoute = ""
	step("eth0", false)
	h.Interfaces = h.Interfaces[:2]
	step("lo", true)
	h.DefaultRoute = "docker0" // the route says so, whatever kind of interface it is
	step("docker0", false)
}

func TestAnUnderlayThatIsNotThereIsRefusedWithWhatTheHostHas(t *testing.T) {
	for want, reason := range map[string]string{
		"eth7":      "eth7: no such interface",
		"192.0.2.7": "192.0.2.7: no interface has this address",
		"eth2":      "eth2: it is down",
		"192.0.2.9": "192.0.2.9: its interface eth2 is down",
	} {
		_, err := host().Choose(want)
		if !errors.Is(err, ErrUnderlay) {
			t.Errorf("%s: error %v does not wrap ErrUnderlay", want, err)
			continue
		}
		eth0, eth2 := "eth0 2001:db8::1/64 192.0.2.1/24 mtu 1500", "eth2 192.0.2.9/24 mtu 1500 (down)"
		for _, w := range []string{reason, "this host has", eth0, eth2} {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("error %q does not say %q", err, w)
			}
		}
	}
	if _, err := (Host{}).Choose(""); !errors.Is(err, ErrUnderlay) ||
		!strings.Contains(err.Error(), "no interface with an address") {
		t.Errorf("a host without interfaces: error %v", err)
	}
}
