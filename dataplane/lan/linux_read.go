//go:build linux

package lan

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	nl "github.com/netdriver/netdriver/internal/netlink"
)

// links lists the devices of a namespace; a dump that changes interrupted is repeated.
func links(h *netlink.Handle) ([]netlink.Link, error) {
	const tries = 50
	for range tries {
		all, err := h.LinkList()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return all, err
		}
	}
	return nil, netlink.ErrDumpInterrupted
}

// Interfaces implements Kernel.
func (l *Linux) Interfaces(context.Context) ([]Interface, error) {
	all, err := links(l.h)
	if err != nil {
		return nil, fmt.Errorf("list network interfaces: %w", err)
	}
	addrs, err := l.h.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	names := namesOf(all)
	out := make([]Interface, 0, len(all))
	for _, link := range all {
		out = append(out, describe(link, names, addrs))
	}
	for i := range out {
		for _, link := range all {
			if on := names[link.Attrs().ParentIndex]; on == out[i].Name && link.Attrs().NetNsID < 0 && isStacked(link.Type()) {
				out[i].Children = append(out[i].Children, link.Type())
			}
		}
	}
	return out, nil
}

func isStacked(kind string) bool {
	return kind == string(Macvlan) || kind == string(IPvlan) || kind == "macvtap"
}

func namesOf(all []netlink.Link) map[int]string {
	names := map[int]string{}
	for _, link := range all {
		names[link.Attrs().Index] = link.Attrs().Name
	}
	return names
}

func describe(link netlink.Link, names map[int]string, addrs []netlink.Addr) Interface {
	a := link.Attrs()
	i := Interface{
		Name: a.Name, MTU: a.MTU, Up: a.Flags&net.FlagUp != 0, Running: a.RawFlags&unix.IFF_RUNNING != 0,
		Loopback: a.Flags&net.FlagLoopback != 0, Wireless: wireless(a.Name), Ethernet: a.EncapType == "ether",
		Master: names[a.MasterIndex], Ours: a.Alias == vlanAlias,
	}
	if link.Type() != "device" {
		i.Kind = link.Type()
	}
	if v, ok := link.(*netlink.Vlan); ok {
		i.VLANParent, i.VLANID = names[a.ParentIndex], v.VlanId
	}
	for _, addr := range addrs {
		if p, ok := nl.Prefix(addr.IPNet); ok && addr.LinkIndex == a.Index && !p.Addr().IsLinkLocalUnicast() {
			i.Addrs = append(i.Addrs, p)
		}
	}
	return i
}

// Read implements Kernel.
func (l *Linux) Read(_ context.Context, want Network) (Network, error) {
	all, err := links(l.h)
	if err != nil {
		return Network{}, fmt.Errorf("list network interfaces: %w", err)
	}
	n := Network{Name: want.Name}
	names := namesOf(all)
	for _, link := range all {
		n.take(link, names)
		a := link.Attrs()
		if a.Name == want.VLAN.Device && a.Alias == vlanAlias {
			n.VLAN = vlanOf(link, names)
		}
		if a.Name == want.Seat.Device {
			if err := l.readSeat(link, &n.Seat); err != nil {
				return n, err
			}
		}
	}
	for _, p := range want.Ports { // after the host's: what Docker moves meanwhile is found there
		here := slices.ContainsFunc(n.Ports, func(h Port) bool { return h.Endpoint == p.Endpoint })
		if p.Sandbox == "" || here {
			continue
		}
		if err := n.readSandbox(p); err != nil {
			return n, err
		}
	}
	n.Sort()
	return n, nil
}

// take adds what a device is of the network, if it is of the network.
func (n *Network) take(link netlink.Link, names map[int]string) {
	a := link.Attrs()
	if a.Alias == bridgeAlias(n.Name) && link.Type() == "bridge" {
		n.Bridge = Bridge{Device: a.Name, MTU: a.MTU, Up: a.Flags&net.FlagUp != 0}
	}
	end := link.Type() == string(Veth) && !strings.HasPrefix(a.Name, pairPrefix) // the container's end follows the other
	if endpoint, network, ok := endpointOf(a.Alias); ok && network == n.Name && !end {
		n.Ports = append(n.Ports, portOf(link, endpoint, names))
	}
}

func portOf(link netlink.Link, endpoint string, names map[int]string) Port {
	a := link.Attrs()
	p := Port{Endpoint: endpoint, Kind: Kind(link.Type()), Parent: names[a.ParentIndex], MAC: macOf(link), MTU: a.MTU}
	switch l := link.(type) {
	case *netlink.Macvlan:
		p.Mode = macvlanModes()[l.Mode]
	case *netlink.IPVlan:
		p.Mode = "l2"
	case *netlink.Veth:
		p.Parent = names[a.MasterIndex]
		p.Attached = p.Parent != "" && a.Flags&net.FlagUp != 0
	}
	return p
}

func macvlanModes() map[netlink.MacvlanMode]string {
	return map[netlink.MacvlanMode]string{
		netlink.MACVLAN_MODE_BRIDGE: BridgeMode, netlink.MACVLAN_MODE_PRIVATE: "private",
		netlink.MACVLAN_MODE_VEPA: "vepa", netlink.MACVLAN_MODE_PASSTHRU: Passthru,
	}
}

func vlanOf(link netlink.Link, names map[int]string) VLAN {
	v, ok := link.(*netlink.Vlan)
	if !ok {
		return VLAN{}
	}
	return VLAN{Device: v.Name, Parent: names[v.ParentIndex], ID: v.VlanId, Up: v.Flags&net.FlagUp != 0}
}

// readSandbox looks for a port in the container.
func (n *Network) readSandbox(want Port) error {
	exists, err := inSandbox(want.Sandbox, func(_ netns.NsHandle, h *netlink.Handle) error {
		link, err := findPort(h, want.Endpoint)
		if err == nil && link != nil {
			p := portOf(link, want.Endpoint, nil)
			p.Sandbox = want.Sandbox
			n.Ports = append(n.Ports, p)
		}
		return err
	})
	if !exists && err == nil {
		n.Ports = append(n.Ports, Port{Endpoint: want.Endpoint, Kind: want.Kind, Sandbox: want.Sandbox, Gone: true})
	}
	return err
}

// findPort finds an endpoint's device by its alias, which it keeps when it is moved and renamed; nil if it is not there.
func findPort(h *netlink.Handle, endpoint string) (netlink.Link, error) {
	all, err := links(h)
	if err != nil {
		return nil, fmt.Errorf("list the interfaces of the container: %w", err)
	}
	for _, link := range all {
		if e, _, ok := endpointOf(link.Attrs().Alias); ok && e == endpoint {
			return link, nil
		}
	}
	return nil, nil
}

// readSeat reads what the host has on a device.
func (l *Linux) readSeat(link netlink.Link, s *Seat) error {
	a := link.Attrs()
	*s = Seat{Device: a.Name, Up: a.Flags&net.FlagUp != 0, Answers: answers(l.host, a.Name)}
	addrs, err := l.h.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list the addresses of %s: %w", a.Name, err)
	}
	for _, addr := range addrs {
		if p, ok := nl.Prefix(addr.IPNet); ok && !p.Addr().IsLinkLocalUnicast() {
			s.Addresses = append(s.Addresses, p)
		}
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		filter := &netlink.Route{LinkIndex: a.Index, Protocol: routeProtocol}
		routes, err := l.h.RouteListFiltered(family, filter, netlink.RT_FILTER_OIF|netlink.RT_FILTER_PROTOCOL)
		if err != nil {
			return fmt.Errorf("list the routes through %s: %w", a.Name, err)
		}
		for _, r := range routes {
			if p, ok := nl.Prefix(r.Dst); ok {
				s.Routes = append(s.Routes, p)
			}
		}
	}
	return nil
}

func answersFile(device string) string { return "/proc/sys/net/ipv4/conf/" + device + "/arp_filter" }

func answers(ns netns.NsHandle, device string) (on bool) {
	err := within(ns, func() error {
		text, err := os.ReadFile(answersFile(device))
		on = strings.TrimSpace(string(text)) == "1"
		return err
	})
	return on && err == nil
}

// Present implements Kernel.
func (l *Linux) Present(context.Context) ([]Network, error) {
	all, err := links(l.h)
	if err != nil {
		return nil, fmt.Errorf("list network interfaces: %w", err)
	}
	names := namesOf(all)
	found := map[string]*Network{}
	of := func(name string) *Network {
		if found[name] == nil {
			found[name] = &Network{Name: name}
		}
		return found[name]
	}
	var vlans []Network
	for _, link := range all {
		a := link.Attrs()
		if _, network, ok := endpointOf(a.Alias); ok {
			of(network).take(link, names)
		} else if network, ok := strings.CutPrefix(a.Alias, bridgeWord); ok {
			of(network).take(link, names)
		} else if v := vlanOf(link, names); a.Alias == vlanAlias || v.Device != "" && a.Alias == "" && strings.HasPrefix(a.Name, vlanPrefix) {
			vlans = append(vlans, Network{VLAN: v})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(found)) {
		found[name].Sort()
		vlans = append(vlans, *found[name])
	}
	return vlans, nil
}
