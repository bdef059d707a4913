package ipam

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// HostRoutes returns the destinations of this host's main routing table, without default routes. A pool must not
// overlap them: containers have a second interface to the host, and the host itself must keep reaching those
// destinations.
func HostRoutes() ([]netip.Prefix, error) {
	return hostRoutes(func(netlink.Route) bool { return true })
}

// HostSubnets returns those of them that interfaces of this host are in: the kernel made the routes with the addresses.
func HostSubnets() ([]netip.Prefix, error) {
	return hostRoutes(func(r netlink.Route) bool { return r.Protocol == unix.RTPROT_KERNEL && r.Gw == nil })
}

func hostRoutes(wanted func(netlink.Route) bool) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		main := &netlink.Route{Table: unix.RT_TABLE_MAIN}
		routes, err := netlink.RouteListFiltered(family, main, netlink.RT_FILTER_TABLE)
		if err != nil {
			return nil, fmt.Errorf("read the host's routes: %w", err)
		}
		for _, r := range routes {
			if r.Dst == nil || !wanted(r) {
				continue
			}
			a, ok := netip.AddrFromSlice(r.Dst.IP)
			bits, _ := r.Dst.Mask.Size()
			// A length of 1 is a default route in two halves, as VPN clients set it (OpenVPN's redirect-gateway def1).
			if !ok || bits <= 1 {
				continue
			}
			out = append(out, netip.PrefixFrom(a.Unmap(), bits))
		}
	}
	return out, nil
}
