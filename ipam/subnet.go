package ipam

import (
	"fmt"
	"net/netip"
)

// The sizes of a pool, as prefix lengths. Below a /30 or /126 no address would be left for containers beside the
// gateway's; above them the routes of most hosts would overlap.
const (
	largest4, smallest4 = 8, 30
	largest6, smallest6 = 48, 126
)

// reserved is a range that no container can have an address of.
type reserved struct {
	prefix netip.Prefix
	use    string
}

// reservedRanges are those of RFC 6890 (IPv4) and RFC 4291 §2.4 (IPv6) that are no unicast addresses of a network.
func reservedRanges() []reserved {
	return []reserved{
		{netip.MustParsePrefix("0.0.0.0/8"), "this network"},
		{netip.MustParsePrefix("127.0.0.0/8"), "loopback"},
		{netip.MustParsePrefix("169.254.0.0/16"), "link-local"},
		{netip.MustParsePrefix("224.0.0.0/4"), "multicast"},
		{netip.MustParsePrefix("240.0.0.0/4"), "reserved"},
		{netip.MustParsePrefix("::/8"), "loopback and mapped IPv4"},
		{netip.MustParsePrefix("fe80::/10"), "link-local"},
		{netip.MustParsePrefix("ff00::/8"), "multicast"},
	}
}

// parseSubnet reads the subnet of a pool.
func parseSubnet(s string) (netip.Prefix, error) {
	p, err := parsePrefix("subnet", s)
	if err != nil {
		return p, err
	}
	largest, smallest := largest4, smallest4
	if p.Addr().Is6() {
		largest, smallest = largest6, smallest6
	}
	if p.Bits() < largest || p.Bits() > smallest {
		return p, fmt.Errorf("subnet %s: the prefix length must be from /%d to /%d", p, largest, smallest)
	}
	for _, r := range reservedRanges() {
		if r.prefix.Overlaps(p) {
			return p, fmt.Errorf("subnet %s overlaps %s (%s); use a private one such as 10.10.0.0/24 or fd10:10::/64",
				p, r.prefix, r.use)
		}
	}
	return p, nil
}

// parseRange reads the part of a subnet in which a host allocates.
func parseRange(subnet netip.Prefix, s string) (netip.Prefix, error) {
	p, err := parsePrefix("range", s)
	if err != nil {
		return p, err
	}
	if !subnet.Contains(p.Addr()) || p.Bits() < subnet.Bits() {
		return p, fmt.Errorf("range %s is not inside subnet %s; choose an --ip-range that is", p, subnet)
	}
	if _, _, ok := within(subnet, p); !ok {
		return p, fmt.Errorf("range %s has no address that a container can use in subnet %s; choose a larger "+
			"--ip-range", p, subnet)
	}
	return p, nil
}

func parsePrefix(what, s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil || p.Addr().Is4In6() {
		return p, fmt.Errorf("%s %q: want a network address with prefix length such as 10.10.0.0/24 or fd10:10::/64",
			what, s)
	}
	if p != p.Masked() {
		return p, fmt.Errorf("%s %s has bits set behind its prefix length; use %s", what, p, p.Masked())
	}
	return p, nil
}

// parseAddr reads the address of a request, which may have a prefix length; "" is none.
func parseAddr(s string) (netip.Addr, error) {
	if s == "" {
		return netip.Addr{}, nil
	}
	if p, err := netip.ParsePrefix(s); err == nil {
		return p.Addr().Unmap(), nil
	}
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" {
		return a, fmt.Errorf("address %q: want one such as 10.10.0.5", s)
	}
	return a.Unmap(), nil
}

// checkUsable refuses an address that a host cannot have in a subnet.
func checkUsable(subnet netip.Prefix, a netip.Addr) error {
	if !subnet.Contains(a) {
		return fmt.Errorf("address %s is not in subnet %s", a, subnet)
	}
	if first, last := usable(subnet); a.Less(first) || last.Less(a) {
		return fmt.Errorf("address %s cannot be used in subnet %s, choose one from %s to %s", a, subnet, first, last)
	}
	return nil
}

// family names the IP version of a subnet.
func family(v6 bool) string {
	if v6 {
		return "IPv6"
	}
	return "IPv4"
}
