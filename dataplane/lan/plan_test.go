package lan

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/netdriver/netdriver/internal/golden"
	"github.com/netdriver/netdriver/vxlan"
)

func equal() cmp.Options {
	return cmp.Options{cmpopts.EquateEmpty(), cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})}
}

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }

func endpointID(i int) string { return fmt.Sprintf("%010x%054x", i, i) }
func sandboxOf(i int) string  { return fmt.Sprintf("/var/run/docker/netns/%012x", i) }

func macOfEndpoint(i int) vxlan.MAC {
	return vxlan.MAC{2, 0x42, 10, byte(i >> 16), byte(i >> 8), byte(i)}
}

// macvlanPort is endpoint i's interface on a parent.
func macvlanPort(i int, parent string) Port {
	return Port{
		Endpoint: endpointID(i), Kind: Macvlan, Parent: parent, Mode: BridgeMode, MAC: macOfEndpoint(i), MTU: 1500,
		Addresses: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 24)},
		Gateways:  []netip.Addr{addr("192.0.2.254")},
	}
}

func inSandboxOf(p Port, i int) Port { p.Sandbox = sandboxOf(i); return p }

// onLAN is network "lan" with these ports.
func onLAN(ports ...Port) Network {
	n := Network{Name: "lan", Parent: "eth1", Ports: ports}
	n.Sort()
	return n
}

// onVLAN is network "lan" on a VLAN interface of ours.
func onVLAN(ids ...int) Network {
	n := Network{Name: "lan", VLAN: VLAN{Device: "eth1.10", Parent: "eth1", ID: 10, Up: true}}
	for _, i := range ids {
		n.Ports = append(n.Ports, macvlanPort(i, "eth1.10"))
	}
	return n
}

// withSeat gives the host access: its own port is endpoint 9's, and it reaches those that are routed.
func withSeat(n Network, routed ...int) Network {
	n = n.clone()
	n.Ports = append(n.Ports, macvlanPort(9, "eth1"))
	n.Seat = Seat{Device: PortName(endpointID(9)), Addresses: []netip.Prefix{prefix("192.0.2.9/32")}, Up: true, Answers: true}
	for _, i := range routed {
		n.Seat.Routes = append(n.Seat.Routes, netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 32))
	}
	n.Sort()
	return n
}

// bridged is network "apps" of one host.
func bridged(ids ...int) Network {
	n := Network{Name: "apps", Bridge: Bridge{Device: BridgeName("apps"), MTU: 1500, Up: true}}
	n.Seat = Seat{Device: n.Bridge.Device, Addresses: []netip.Prefix{prefix("10.1.0.1/24")}}
	for _, i := range ids {
		n.Ports = append(n.Ports, Port{
			Endpoint: endpointID(i), Kind: Veth, Parent: n.Bridge.Device, MAC: macOfEndpoint(i), MTU: 1500, Attached: true,
		})
	}
	return n
}

func TestPlansAreAsTheGoldenFilesSay(t *testing.T) {
	none := Network{Name: "lan"}
	moved := onLAN(inSandboxOf(macvlanPort(1, "eth1"), 1))
	lost := moved.clone()
	lost.Ports = nil
	gone := moved.clone()
	gone.Ports[0].Gone = true
	down := onVLAN(1)
	down.VLAN.Up = false
	elsewhere := onVLAN()
	elsewhere.VLAN.Parent = "eth0"
	placed := Port{
		Endpoint: endpointID(3), Kind: IPvlan, Parent: "eth1", Mode: "l2", MTU: 1500, Placed: true,
		Addresses: []netip.Prefix{prefix("192.0.2.3/24")},
	}
	torn := bridged(1)
	torn.Ports[0].Attached = false
	stranger := withSeat(onLAN(macvlanPort(1, "eth1")), 1)
	stranger.Seat.Addresses = append(stranger.Seat.Addresses, prefix("198.51.100.1/24"))
	stranger.Sort()
	for name, c := range map[string]struct{ have, want Network }{
		"create-on-vlan":                      {none, onVLAN(1, 2)},
		"vlan-is-down":                        {down, onVLAN(1)},
		"vlan-is-on-another-parent":           {elsewhere, onVLAN()},
		"last-network-of-a-vlan-goes":         {onVLAN(1), none},
		"container-starts":                    {onLAN(), onLAN(macvlanPort(1, "eth1"))},
		"docker-has-moved-it":                 {onLAN(macvlanPort(1, "eth1")), moved},
		"removed-in-the-container":            {lost, moved},
		"container-is-gone":                   {gone, moved},
		"container-ends":                      {onLAN(macvlanPort(1, "eth1")), onLAN()},
		"mode-differs":                        {onLAN(func() Port { p := macvlanPort(1, "eth1"); p.Mode = "vepa"; return p }()), onLAN(macvlanPort(1, "eth1"))},
		"ipvlan-waits-for-its-sandbox":        {none, Network{Name: "lan", Ports: []Port{placed}}},
		"ipvlan-is-placed":                    {none, Network{Name: "lan", Ports: []Port{inSandboxOf(placed, 3)}}},
		"host-access":                         {onLAN(macvlanPort(1, "eth1")), withSeat(onLAN(macvlanPort(1, "eth1")), 1)},
		"container-with-host-access-ends":     {withSeat(onLAN(macvlanPort(1, "eth1")), 1), withSeat(onLAN())},
		"foreign-address-on-the-hosts-device": {stranger, withSeat(onLAN(macvlanPort(1, "eth1")), 1)},
		"bridge":                              {Network{Name: "apps"}, bridged(1)},
		"bridge-lost-its-port":                {torn, bridged(1)},
		"bridge-goes":                         {bridged(1), Network{Name: "apps"}},
		"in-sync":                             {withSeat(onLAN(macvlanPort(1, "eth1")), 1), withSeat(onLAN(macvlanPort(1, "eth1")), 1)},
	} {
		t.Run(name, func(t *testing.T) { planned(t, name, c.have, c.want) })
	}
}

func planned(t *testing.T, name string, have, want Network) {
	t.Helper()
	if err := want.Check(); err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, op := range plan(have, want) {
		fmt.Fprintln(&b, op)
	}
	golden.Compare(t, name+".golden", b.String())
}

// anyNetwork draws a wanted network of one of the kinds.
func anyNetwork(t *rapid.T) Network {
	ids := rapid.SliceOfNDistinct(rapid.IntRange(1, 5), 0, 4, rapid.ID[int]).Draw(t, "endpoints")
	slices.Sort(ids)
	var n Network
	switch rapid.SampledFrom([]string{"lan", "vlan", "bridge", "none"}).Draw(t, "kind") {
	case "lan":
		for _, i := range ids {
			n.Ports = append(n.Ports, macvlanPort(i, "eth1"))
		}
		if rapid.Bool().Draw(t, "host access") {
			n = withSeat(n, ids...)
		}
	case "vlan":
		n = onVLAN(ids...)
	case "bridge":
		n = bridged(ids...)
	}
	n.Name = "lan"
	if n.Bridge.Device != "" {
		n.Bridge.Device, n.Seat.Device = BridgeName("lan"), BridgeName("lan")
		for i := range n.Ports {
			n.Ports[i].Parent = BridgeName("lan")
		}
	}
	n.Sort()
	return n
}

func TestAppliedToWhatIsThereAPlanGivesWhatIsWanted(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := NewFake(Interface{Name: "eth1", MTU: 1500, Up: true, Running: true, Ethernet: true})
		ctx := context.Background()
		known := Network{Name: "lan"}
		for range rapid.IntRange(1, 4).Draw(t, "steps") {
			want := anyNetwork(t)
			// What was made before is recognised by the names it had.
			look := want.clone()
			if look.VLAN.Device == "" {
				look.VLAN = known.VLAN
			}
			have, err := f.Read(ctx, look)
			if err != nil {
				t.Fatal(err)
			}
			if err := f.Run(ctx, plan(have, want)); err != nil {
				t.Fatalf("from %+v to %+v: %v", have, want, err)
			}
			if have, err = f.Read(ctx, look); err != nil {
				t.Fatal(err)
			}
			if ops := plan(have, want); len(ops) > 0 {
				t.Fatalf("still to be done: %v", ops)
			}
			known = want
		}
	})
}

func TestAnImpossibleNetworkIsRefused(t *testing.T) {
	for what, n := range map[string]Network{
		"no parent":        {Name: "lan", Ports: []Port{{Endpoint: "e1", Kind: Macvlan, MAC: macOfEndpoint(1)}}},
		"no MAC":           {Name: "lan", Ports: []Port{{Endpoint: "e1", Kind: Macvlan, Parent: "eth1"}}},
		"no endpoint":      {Name: "lan", Ports: []Port{{Kind: Macvlan, Parent: "eth1", MAC: macOfEndpoint(1)}}},
		"twice":            {Name: "lan", Ports: []Port{macvlanPort(1, "eth1"), macvlanPort(1, "eth1")}},
		"no device":        {Name: "lan", Seat: Seat{Addresses: []netip.Prefix{prefix("192.0.2.1/32")}}},
		"address twice":    {Name: "lan", Seat: Seat{Device: "x", Addresses: []netip.Prefix{prefix("192.0.2.1/32"), prefix("192.0.2.1/32")}}},
		"placed, homeless": {Name: "lan", Ports: []Port{{Endpoint: "e1", Kind: IPvlan, Parent: "eth1", Placed: true}}},
	} {
		if err := n.Check(); err == nil {
			t.Errorf("%s: accepted", what)
		}
	}
}

var quiet = slog.New(slog.DiscardHandler)
