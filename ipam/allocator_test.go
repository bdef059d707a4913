package ipam

import (
	"net/netip"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }
func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// naive is the obvious allocator: it walks over every address of the range.
func naive(used map[netip.Addr]bool, subnet, r netip.Prefix, after netip.Addr) (netip.Addr, bool) {
	first, last := usable(subnet)
	var open []netip.Addr
	for a := r.Addr(); r.Contains(a); a = a.Next() {
		if !a.Less(first) && !last.Less(a) {
			open = append(open, a)
		}
	}
	start := 0
	for i, a := range open {
		if a == after {
			start = i + 1
		}
	}
	for i := range open {
		if a := open[(start+i)%len(open)]; !used[a] {
			return a, true
		}
	}
	return netip.Addr{}, false
}

func TestNextIsTheNextFreeAddressGoingRound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		base := rapid.SampledFrom([]string{"10.1.2.192/26", "10.1.2.0/25", "10.1.2.8/30", "10.255.255.0/24", "fd00::ffff:ff80/121",
			"fd00:0:0:1:ffff:ffff:ffff:ff00/120", "fd00::/122"}).Draw(t, "subnet")
		subnet := prefix(base)
		s, used := newAddrSet(subnet), map[netip.Addr]bool{}
		host := subnet.Addr().BitLen() - subnet.Bits()
		anyone := rapid.Custom(func(t *rapid.T) netip.Addr {
			a := subnet.Addr()
			for range rapid.IntRange(0, 1<<host-1).Draw(t, "n") {
				a = a.Next()
			}
			return a
		})
		bits := rapid.IntRange(subnet.Bits(), subnet.Addr().BitLen()).Draw(t, "range")
		r := netip.PrefixFrom(anyone.Draw(t, "in"), bits).Masked()
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				a := anyone.Draw(t, "add")
				s.add(a)
				used[a] = true
			},
			"remove": func(t *rapid.T) {
				a := anyone.Draw(t, "remove")
				s.remove(a)
				delete(used, a)
			},
			"fill": func(t *rapid.T) {
				for a := r.Addr(); r.Contains(a); a = a.Next() {
					s.add(a)
					used[a] = true
				}
			},
			"": func(t *rapid.T) {
				after := anyone.Draw(t, "after")
				got, ok := s.next(r, after)
				if want, wantOK := naive(used, subnet, r, after); ok != wantOK || ok && got != want {
					t.Fatalf("next in %s behind %s: %s %t, want %s %t", r, after, got, ok, want, wantOK)
				}
				if s.count != len(used) {
					t.Fatalf("count %d, want %d", s.count, len(used))
				}
			},
		})
	})
}

func TestUnusableAddressesAreNeverChosen(t *testing.T) {
	for subnet, want := range map[string][2]string{
		"10.0.0.0/24":     {"10.0.0.1", "10.0.0.254"},
		"10.0.0.0/30":     {"10.0.0.1", "10.0.0.2"},
		"10.0.0.4/31":     {"10.0.0.4", "10.0.0.5"}, // RFC 3021
		"10.0.0.4/32":     {"10.0.0.4", "10.0.0.4"},
		"10.0.0.0/8":      {"10.0.0.1", "10.255.255.254"},
		"fd00::/64":       {"fd00::1", "fd00::ffff:ffff:ffff:ffff"}, // no broadcast; RFC 4291 §2.6.1
		"fd00::/48":       {"fd00::1", "fd00::ffff:ffff:ffff:ffff:ffff"},
		"fd00::8/126":     {"fd00::9", "fd00::b"},
		"fd00:1::4/127":   {"fd00:1::4", "fd00:1::5"},
		"255.255.255.0/8": {"255.0.0.1", "255.255.255.254"},
	} {
		p := prefix(subnet).Masked()
		if first, last := usable(p); first != addr(want[0]) || last != addr(want[1]) {
			t.Errorf("%s: %s to %s, want %v", subnet, first, last, want)
		}
		s := newAddrSet(p)
		first, _ := s.next(p, netip.Addr{})
		round, _ := s.next(p, addr(want[1]))
		if first != addr(want[0]) || round != first {
			t.Errorf("%s: begins at %s, goes round to %s, want %s", subnet, first, round, want[0])
		}
	}
}

func TestARangeWithoutUsableAddressHasNoNext(t *testing.T) {
	s := newAddrSet(prefix("10.0.0.0/24"))
	for _, r := range []string{"10.0.0.0/32", "10.0.0.255/32", "10.0.1.0/24", "fd00::/64"} {
		if a, ok := s.next(prefix(r), netip.Addr{}); ok {
			t.Errorf("%s: %s", r, a)
		}
	}
	if a, ok := s.next(prefix("10.0.0.0/31"), netip.Addr{}); !ok || a != addr("10.0.0.1") {
		t.Errorf("a range with one usable address: %s %t", a, ok)
	}
}

// crowd is a /16 with 65,000 addresses in use, all but the last ones.
func crowd() (*addrSet, netip.Prefix) {
	p := prefix("10.1.0.0/16")
	s := newAddrSet(p)
	for a := p.Addr().Next(); s.count < 65000; a = a.Next() {
		s.add(a)
	}
	return s, p
}

func TestNextFreeAddressIsFoundWellUnderAMillisecondAmong65000(t *testing.T) {
	s, p := crowd()
	const rounds = 100
	start := time.Now()
	for range rounds {
		if a, ok := s.next(p, p.Addr()); !ok || a != addr("10.1.253.233") {
			t.Fatalf("next is %s %t", a, ok)
		}
	}
	if took := time.Since(start) / rounds; took > time.Millisecond {
		t.Errorf("%s for one", took)
	}
}

func BenchmarkNextAmong65000(b *testing.B) {
	s, p := crowd()
	for b.Loop() {
		s.next(p, p.Addr())
	}
}
