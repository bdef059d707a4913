package ipam

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
)

// addrSet is a set of addresses of one pool. It is a bitmap of which only the words that are not zero are kept, so it
// serves a full IPv4 /8 as well as some addresses of an IPv6 /48.
type addrSet struct {
	subnet netip.Prefix
	words  map[number]uint64 // 64 addresses each, by number >> 6
	count  int
}

func newAddrSet(subnet netip.Prefix) *addrSet {
	return &addrSet{subnet: subnet, words: make(map[number]uint64)}
}

// add adds a; adding it again changes nothing.
func (s *addrSet) add(a netip.Addr) {
	word, bit := numberOf(a).split()
	if s.words[word]&bit == 0 {
		s.words[word] |= bit
		s.count++
	}
}

// remove removes a; removing what is not there changes nothing.
func (s *addrSet) remove(a netip.Addr) {
	word, bit := numberOf(a).split()
	if s.words[word]&bit == 0 {
		return
	}
	s.count--
	if s.words[word] &^= bit; s.words[word] == 0 {
		delete(s.words, word)
	}
}

// next returns the first address behind after that is in r, usable in the pool and not in the set, going round at the
// end of r; false if there is none. An after outside r, also the zero Addr, means to begin at r's first.
func (s *addrSet) next(r netip.Prefix, after netip.Addr) (netip.Addr, bool) {
	first, last, ok := within(s.subnet, r)
	if !ok {
		return netip.Addr{}, false
	}
	lo, hi, from := numberOf(first), numberOf(last), numberOf(first)
	if after.IsValid() && after.BitLen() == first.BitLen() && !after.Less(first) && after.Less(last) {
		from = numberOf(after.Next())
	}
	n, ok := s.free(from, hi)
	if !ok {
		n, ok = s.free(lo, hi)
	}
	return n.addr(first.Is4()), ok
}

// free returns the first number from lo to hi that is not in the set.
func (s *addrSet) free(lo, hi number) (number, bool) {
	word, bit := lo.split()
	open := ^(bit - 1) // those of the first word that are not below lo
	for {
		if unset := ^s.words[word] & open; unset != 0 {
			n := word.join(bits.TrailingZeros64(unset))
			return n, !hi.less(n)
		}
		word, open = word.next(), ^uint64(0)
		if hi.less(word.join(0)) {
			return number{}, false
		}
	}
}

// usable returns the first and the last address of a subnet that a host can have. Of IPv4 the network's and the
// broadcast address cannot be used, except in a /31 or /32 (RFC 3021); of IPv6 the first is the subnet-router anycast
// address (RFC 4291 §2.6.1).
func usable(subnet netip.Prefix) (first, last netip.Addr) {
	first, last = subnet.Addr(), lastOf(subnet)
	host := first.BitLen() - subnet.Bits()
	if host < 2 {
		return first, last
	}
	if first.Is4() {
		last = last.Prev()
	}
	return first.Next(), last
}

// within returns the first and the last usable address of subnet that r has, false if it has none.
func within(subnet, r netip.Prefix) (first, last netip.Addr, ok bool) {
	first, last = usable(subnet)
	if r.Addr().BitLen() != first.BitLen() {
		return first, last, false
	}
	if first.Less(r.Addr()) {
		first = r.Addr()
	}
	if end := lastOf(r); end.Less(last) {
		last = end
	}
	return first, last, !last.Less(first)
}

func lastOf(p netip.Prefix) netip.Addr {
	n := numberOf(p.Addr())
	switch host := p.Addr().BitLen() - p.Bits(); {
	case host > 64:
		n.hi |= 1<<(host-64) - 1
		n.lo = ^uint64(0)
	case host == 64:
		n.lo = ^uint64(0)
	default:
		n.lo |= 1<<host - 1
	}
	return n.addr(p.Addr().Is4())
}

// number is an address to calculate with. IPv4 has the form ::ffff:a.b.c.d.
type number struct{ hi, lo uint64 }

func numberOf(a netip.Addr) number {
	b := a.As16()
	return number{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}
}

func (n number) addr(is4 bool) netip.Addr {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], n.hi)
	binary.BigEndian.PutUint64(b[8:], n.lo)
	a := netip.AddrFrom16(b)
	if is4 {
		return a.Unmap()
	}
	return a
}

// split returns the word that has n, and its bit there.
func (n number) split() (word number, bit uint64) {
	return number{n.hi >> 6, n.hi<<58 | n.lo>>6}, 1 << (n.lo & 63)
}

// join undoes split.
func (n number) join(bit int) number { return number{n.hi<<6 | n.lo>>58, n.lo<<6 | uint64(bit)} }

func (n number) next() number {
	lo, carry := bits.Add64(n.lo, 1, 0)
	return number{n.hi + carry, lo}
}

func (n number) less(m number) bool { return n.hi < m.hi || n.hi == m.hi && n.lo < m.lo }
