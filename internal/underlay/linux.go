package underlay

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"

	nl "github.com/netdriver/netdriver/internal/netlink"
)

// Read returns this host's interfaces and its default route.
func Read() (Host, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return Host{}, fmt.Errorf("list network interfaces: %w", err)
	}
	var h Host
	names := map[int]string{}
	for _, l := range links {
		addrs, err := addresses(l)
		if err != nil {
			return Host{}, err
		}
		a := l.Attrs()
		names[a.Index] = a.Name
		h.Interfaces = append(h.Interfaces, Interface{
			Name: a.Name, MTU: a.MTU, Up: a.Flags&net.FlagUp != 0, Loopback: a.Flags&net.FlagLoopback != 0,
			Virtual: virtual(l.Type()), Addrs: addrs,
		})
	}
	routes, err := mainRoutes()
	if err != nil {
		return Host{}, err
	}
	routes = slices.DeleteFunc(routes, func(r netlink.Route) bool { return !isDefault(r) || names[device(r)] == "" })
	if len(routes) > 0 {
		h.DefaultRoute = names[device(slices.MinFunc(routes, preferred))]
	}
	return h, nil
}

func addresses(l netlink.Link) ([]netip.Prefix, error) {
	addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list addresses of %s: %w", l.Attrs().Name, err)
	}
	var out []netip.Prefix
	for _, a := range addrs {
		if p, ok := nl.Prefix(a.IPNet); ok {
			out = append(out, p)
		}
	}
	return out, nil
}

// virtual says whether a kind of link carries packets only within the host or over another interface. A link without a
// kind is hardware, or looks like it.
func virtual(kind string) bool {
	return !slices.Contains([]string{"device", "bond", "team", "vlan"}, kind)
}

// mainRoutes returns the routes of the main table, IPv4's first.
func mainRoutes() ([]netlink.Route, error) {
	var all []netlink.Route
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := netlink.RouteList(nil, family)
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		all = append(all, routes...)
	}
	return all, nil
}

func isDefault(r netlink.Route) bool {
	if r.Dst == nil {
		return true
	}
	ones, _ := r.Dst.Mask.Size()
	return ones == 0
}

// device returns the index of the interface that a route leads to, the first one of several.
func device(r netlink.Route) int {
	if r.LinkIndex == 0 && len(r.MultiPath) > 0 {
		return r.MultiPath[0].LinkIndex
	}
	return r.LinkIndex
}

// preferred is the kernel's order of routes with one destination, and IPv4 before IPv6.
func preferred(a, b netlink.Route) int {
	return cmp.Or(cmp.Compare(a.Family, b.Family), cmp.Compare(a.Priority, b.Priority))
}
