package ipam

import (
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"net/netip"
)

// Predefined is a range that is cut into pools for networks without --subnet.
type Predefined struct {
	Base netip.Prefix
	// Bits is the prefix length of each pool.
	Bits int
}

// DefaultPredefined are IPv4 pools of 4,093 container addresses each. They keep clear of Docker's own choices on every
// host, 172.17.0.0/16 to 172.31.0.0/16 and 192.168.0.0/16 (moby daemon/libnetwork/ipamutils), since those appear on
// hosts only after the cluster has chosen. The second serves hosts that have a route to all of 10.0.0.0/8.
func DefaultPredefined() []Predefined {
	return []Predefined{
		{netip.MustParsePrefix("10.128.0.0/9"), 20},
		{netip.MustParsePrefix("172.16.0.0/16"), 20},
	}
}

// ulaTries bounds the search for a free IPv6 subnet; one collision among 2^56 is already unlikely.
const ulaTries = 16

// choose returns a subnet for a network without --subnet that overlaps none of taken.
func (s *Service) choose(w wish, taken []netip.Prefix) (netip.Prefix, error) {
	if w.v6 {
		seed := w.network
		if seed == "" {
			seed = rand.Text()
		}
		for n := range ulaTries {
			if p := ula(seed, n); !overlapsAny(p, taken) {
				return p, nil
			}
		}
		return netip.Prefix{}, fmt.Errorf("no free IPv6 subnet found in %d tries; choose one with --subnet", ulaTries)
	}
	tried := 0
	for _, d := range s.cfg.Predefined {
		for p := range cut(d) {
			if !overlapsAny(p, taken) {
				return p, nil
			}
			tried++
		}
	}
	return netip.Prefix{}, fmt.Errorf("all %d predefined subnets (%v) overlap pools of the cluster or routes of "+
		"this host; choose one with --subnet",
		tried, s.cfg.Predefined)
}

// cut yields the pools of d in order.
func cut(d Predefined) func(yield func(netip.Prefix) bool) {
	return func(yield func(netip.Prefix) bool) {
		for a := d.Base.Masked().Addr(); d.Base.Contains(a); {
			p := netip.PrefixFrom(a, d.Bits)
			if !yield(p) {
				return
			}
			a = lastOf(p).Next()
		}
	}
}

// String prints d for an error message.
func (d Predefined) String() string { return fmt.Sprintf("%s in /%d", d.Base, d.Bits) }

// ula returns the nth choice of a unique local /64 for seed: fd00::/8 with a pseudo-random global and subnet id (RFC
// 4193 §3.2). A network's name as seed gives each cluster that has such a network the same subnet, and others another.
func ula(seed string, n int) netip.Prefix {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s#%d", seed, n))
	var b [16]byte
	b[0] = 0xfd
	copy(b[1:8], sum[:])
	return netip.PrefixFrom(netip.AddrFrom16(b), 64)
}

func overlapsAny(p netip.Prefix, others []netip.Prefix) bool {
	_, found := overlap(p, others)
	return found
}

// overlap returns the first of others that shares addresses with p.
func overlap(p netip.Prefix, others []netip.Prefix) (netip.Prefix, bool) {
	for _, o := range others {
		if o.Overlaps(p) {
			return o, true
		}
	}
	return netip.Prefix{}, false
}
