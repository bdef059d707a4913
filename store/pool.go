package store

import (
	"math"
	"net/netip"
)

// Usable is how many addresses of a subnet can be given out, at most 2^64−1: not IPv4's network and broadcast address
// (RFC 1122 §3.2.1.3), which a /31 or /32 has not (RFC 3021), nor IPv6's subnet-router anycast address (RFC 4291 §2.6.1).
func Usable(p netip.Prefix) uint64 {
	host := p.Addr().BitLen() - p.Bits()
	switch {
	case host >= 64:
		return math.MaxUint64
	case p.Addr().Is4() && host < 2, host == 0:
		return 1 << host
	case p.Addr().Is4():
		return 1<<host - 2
	}
	return 1<<host - 1
}
