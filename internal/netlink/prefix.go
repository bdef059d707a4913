package netlink

import (
	"net"
	"net/netip"
)

// Prefix is an address with its mask, as the netlink library gives it; false if that is none.
func Prefix(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	ones, bits := n.Mask.Size()
	if ok && bits == 8*net.IPv4len {
		a = a.Unmap()
	}
	return netip.PrefixFrom(a, ones), ok
}
