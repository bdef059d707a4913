//go:build linux

package dataplane

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/dataplane/guard"
	"github.com/netdriver/netdriver/internal/golden"
	"github.com/netdriver/netdriver/internal/netlink"
	"github.com/netdriver/netdriver/vxlan"
)

// frame is an Ethernet frame under construction.
type frame []byte

func ethernet(to, from vxlan.MAC, kind uint16) frame {
	return binary.BigEndian.AppendUint16(append(append(frame{}, to[:]...), from[:]...), kind)
}

func (f frame) add(b ...byte) frame { return append(f, b...) }

// sum is an Internet checksum (RFC 1071).
func sum(parts ...[]byte) uint16 {
	var s uint32
	for _, b := range parts {
		for i := 0; i+1 < len(b); i += 2 {
			s += uint32(b[i])<<8 | uint32(b[i+1])
		}
	}
	for s > 0xffff {
		s = s&0xffff + s>>16
	}
	return ^uint16(s)
}

// udp4 is a datagram to port 9 (discard).
func udp4(to, from vxlan.MAC, src, dst netip.Addr) frame {
	ip := []byte{0x45, 0, 0, 32, 0, 0, 0x40, 0, 64, unix.IPPROTO_UDP, 0, 0}
	ip = append(append(ip, src.AsSlice()...), dst.AsSlice()...)
	binary.BigEndian.PutUint16(ip[10:], sum(ip))
	return ethernet(to, from, unix.ETH_P_IP).add(ip...).add(0x10, 0, 0, 9, 0, 12, 0, 0, 'm', 'a', 'r', 'k')
}

func ip6(to, from vxlan.MAC, src, dst netip.Addr, next byte, body ...byte) frame {
	h := []byte{0x60, 0, 0, 0, 0, byte(len(body)), next, 255}
	return ethernet(to, from, unix.ETH_P_IPV6).add(h...).add(src.AsSlice()...).add(dst.AsSlice()...).add(body...)
}

// icmp6 is a message of ICMPv6; its body follows the checksum.
func icmp6(to, from vxlan.MAC, src, dst netip.Addr, kind byte, body ...byte) frame {
	m := append([]byte{kind, 0, 0, 0}, body...)
	pseudo := append(append(src.AsSlice(), dst.AsSlice()...), 0, 0, 0, byte(len(m)), 0, 0, 0, unix.IPPROTO_ICMPV6)
	binary.BigEndian.PutUint16(m[2:], sum(pseudo, m))
	return ip6(to, from, src, dst, unix.IPPROTO_ICMPV6, m...)
}

// neighbour is the body of a solicitation or advertisement with one option, or none if kind is 0.
func neighbour(target netip.Addr, kind byte, mac vxlan.MAC) []byte {
	b := append(make([]byte, 4), target.AsSlice()...)
	if kind != 0 {
		b = append(append(b, kind, 1), mac[:]...)
	}
	return b
}

func arpFrame(to, from vxlan.MAC, op byte, sha vxlan.MAC, spa netip.Addr, tpa netip.Addr) frame {
	return ethernet(to, from, unix.ETH_P_ARP).add(0, 1, 8, 0, 6, 4, 0, op).add(sha[:]...).add(spa.AsSlice()...).
		add(0, 0, 0, 0, 0, 0).add(tpa.AsSlice()...)
}

// wire is a container's interface as a packet socket has it.
type wire struct {
	fd    int
	index int
}

func open(t *testing.T, ns string) wire {
	t.Helper()
	w := wire{fd: -1}
	fd, err := unix.Open(ns, unix.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	err = netlink.In(fd, func() (err error) {
		const all = unix.ETH_P_ALL>>8 | unix.ETH_P_ALL<<8&0xff00 // in network byte order
		if w.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all); err != nil {
			return err
		}
		ifreq, err := unix.NewIfreq("eth0")
		if err != nil {
			return err
		}
		err = unix.IoctlIfreq(w.fd, unix.SIOCGIFINDEX, ifreq)
		w.index = int(ifreq.Uint32())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(w.fd) })
	return w
}

func (w wire) send(t *testing.T, f frame) {
	t.Helper()
	if err := unix.Sendto(w.fd, f, 0, &unix.SockaddrLinklayer{Ifindex: w.index}); err != nil {
		t.Fatal(err)
	}
}

// receives says whether f arrives before the frame last.
func (w wire) receives(t *testing.T, f, last frame) bool {
	t.Helper()
	b := make([]byte, 1<<16)
	seen := false
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		tv := unix.NsecToTimeval(int64(time.Second))
		if err := unix.SetsockoptTimeval(w.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
			t.Fatal(err)
		}
		n, err := unix.Read(w.fd, b)
		if err != nil {
			continue
		}
		seen = seen || bytes.HasPrefix(b[:n], f)
		if bytes.HasPrefix(b[:n], last) {
			return seen
		}
	}
	t.Fatal("the frame that shows that all has arrived did not")
	return false
}

// guardedPair is a pair whose ports are guarded on both hosts.
func guardedPair(t *testing.T) *pair {
	p := newPair(t, 1500, "192.0.2.1", "192.0.2.2")
	for i, h := range []*host{p.a, p.b} {
		local, remote := []int{1, 2}, []int{3}
		if i == 1 {
			local, remote = remote, local
		}
		n := with(p.network(i, local, remote), func(n *Network) { (&testNet{*n}).guardTo(n) })
		if _, err := NewPlane(h.kernel, quiet()).Apply(t.Context(), n); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

func (n *testNet) guardTo(out *Network) { out.Guard = n.guarded().Guard }

func TestContainersCannotSpeakForOthers(t *testing.T) {
	p := guardedPair(t)
	me, other, far := endpointMAC(1), endpointMAC(2), endpointMAC(3)
	myIP, otherIP, farIP := endpointIP(1), endpointIP(2), endpointIP(3)
	my6, other6 := insideIP6(1), insideIP6(2)
	myLL, otherLL := guard.LinkLocal(me), guard.LinkLocal(other)
	none4, none6 := netip.IPv4Unspecified(), netip.IPv6Unspecified()
	stranger := vxlan.MAC{2, 0x66, 0, 0, 0, 1}
	const solicit, advertise, routerAdvert, routerSolicit, redirect, report = 135, 136, 134, 133, 137, 143
	const source, target = 1, 2 // options
	tests := []struct {
		name   string
		f      func(to vxlan.MAC) frame
		passes bool
	}{
		{"IPv4 of its own", func(to vxlan.MAC) frame { return udp4(to, me, myIP, farIP) }, true},
		{"IPv4 with a neighbour's MAC", func(to vxlan.MAC) frame { return udp4(to, other, myIP, farIP) }, false},
		{"IPv4 with a remote container's MAC", func(to vxlan.MAC) frame { return udp4(to, far, myIP, otherIP) }, false},
		{"IPv4 with a MAC that nobody has", func(to vxlan.MAC) frame { return udp4(to, stranger, myIP, farIP) }, false},
		{"a neighbour's IPv4 address", func(to vxlan.MAC) frame { return udp4(to, me, otherIP, farIP) }, false},
		{"a neighbour's IPv4 address and MAC", func(to vxlan.MAC) frame { return udp4(to, other, otherIP, farIP) }, false},
		{"an IPv4 address that nobody has", func(to vxlan.MAC) frame { return udp4(to, me, endpointIP(99), farIP) }, false},
		{"no IPv4 address", func(to vxlan.MAC) frame { return udp4(to, me, none4, farIP) }, false},
		{"ARP of its own", func(to vxlan.MAC) frame { return arpFrame(to, me, 1, me, myIP, otherIP) }, true},
		{"ARP answer of its own", func(to vxlan.MAC) frame { return arpFrame(to, me, 2, me, myIP, otherIP) }, true},
		{"gratuitous ARP of its own", func(to vxlan.MAC) frame { return arpFrame(to, me, 1, me, myIP, myIP) }, true},
		{"ARP probe for its own address", func(to vxlan.MAC) frame { return arpFrame(to, me, 1, me, none4, myIP) }, true},
		{"ARP probe for a neighbour's", func(to vxlan.MAC) frame { return arpFrame(to, me, 1, me, none4, otherIP) }, false},
		{"ARP for a neighbour's address", func(to vxlan.MAC) frame { return arpFrame(to, me, 2, me, otherIP, farIP) }, false},
		{"gratuitous ARP for a neighbour's", func(to vxlan.MAC) frame { return arpFrame(to, me, 1, me, otherIP, otherIP) }, false},
		{"ARP with a neighbour's MAC inside", func(to vxlan.MAC) frame { return arpFrame(to, me, 2, other, myIP, farIP) }, false},
		{"ARP with a neighbour's MAC outside", func(to vxlan.MAC) frame { return arpFrame(to, other, 2, me, myIP, farIP) }, false},
		{"ARP for another kind of address", func(to vxlan.MAC) frame {
			f := arpFrame(to, me, 2, me, myIP, farIP)
			f[15] = 6
			return f
		}, false},
		{"IPv6 of its own", func(to vxlan.MAC) frame { return ip6(to, me, my6, other6, unix.IPPROTO_NONE) }, true},
		{"IPv6 link-local of its own", func(to vxlan.MAC) frame { return ip6(to, me, myLL, otherLL, unix.IPPROTO_NONE) }, true},
		{"a neighbour's IPv6 address", func(to vxlan.MAC) frame { return ip6(to, me, other6, my6, unix.IPPROTO_NONE) }, false},
		{"a neighbour's link-local", func(to vxlan.MAC) frame { return ip6(to, me, otherLL, myLL, unix.IPPROTO_NONE) }, false},
		{"IPv6 with a neighbour's MAC", func(to vxlan.MAC) frame { return ip6(to, other, my6, other6, unix.IPPROTO_NONE) }, false},
		{"no IPv6 address", func(to vxlan.MAC) frame { return ip6(to, me, none6, other6, unix.IPPROTO_NONE) }, false},
		{"multicast report before it has an address", func(to vxlan.MAC) frame {
			return icmp6(to, me, none6, netip.MustParseAddr("ff02::16"), report, 0, 0, 0, 0)
		}, true},
		{"router solicitation", func(to vxlan.MAC) frame { return icmp6(to, me, myLL, other6, routerSolicit, 0, 0, 0, 0) }, true},
		{"router advertisement", func(to vxlan.MAC) frame {
			return icmp6(to, me, myLL, other6, routerAdvert, make([]byte, 12)...)
		}, false},
		{"redirect", func(to vxlan.MAC) frame { return icmp6(to, me, myLL, other6, redirect, make([]byte, 36)...) }, false},
		{"advertisement of its own", func(to vxlan.MAC) frame {
			return icmp6(to, me, my6, other6, advertise, neighbour(my6, target, me)...)
		}, true},
		{"advertisement without MAC", func(to vxlan.MAC) frame {
			return icmp6(to, me, my6, other6, advertise, neighbour(my6, 0, me)...)
		}, true},
		{"advertisement for a neighbour", func(to vxlan.MAC) frame {
			return icmp6(to, me, my6, other6, advertise, neighbour(other6, target, me)...)
		}, false},
		{"advertisement with a neighbour's MAC", func(to vxlan.MAC) frame {
			return icmp6(to, me, my6, other6, advertise, neighbour(my6, target, other)...)
		}, false},
		{"advertisement for a neighbour without MAC", func(to vxlan.MAC) frame {
			return icmp6(to, me, my6, other6, advertise, neighbour(other6, 0, me)...)
		}, false},
		{"solicitation", func(to vxlan.MAC) frame {
			return icmp6(to, me, my6, other6, solicit, neighbour(insideIP6(9), source, me)...)
		}, true},
		{"solicitation with a neighbour's MAC", func(to vxlan.MAC) frame {
			return icmp6(to, me, my6, other6, solicit, neighbour(insideIP6(9), source, other)...)
		}, false},
		{"probe for its own IPv6 address", func(to vxlan.MAC) frame {
			return icmp6(to, me, none6, netip.MustParseAddr("ff02::1:ff00:1"), solicit, neighbour(my6, 0, me)...)
		}, true},
		{"probe for a neighbour's", func(to vxlan.MAC) frame {
			return icmp6(to, me, none6, netip.MustParseAddr("ff02::1:ff00:2"), solicit, neighbour(other6, 0, me)...)
		}, false},
		{"another protocol", func(to vxlan.MAC) frame { return ethernet(to, me, 0x88b5).add(make([]byte, 46)...) }, false},
		{"a VLAN in a VLAN", func(to vxlan.MAC) frame {
			return ethernet(to, me, unix.ETH_P_8021AD).add(0, 5, 0x81, 0, 0, 6, 8, 0).add(udp4(to, me, otherIP, farIP)[14:]...)
		}, false},
	}
	from := open(t, p.c[1])
	before := drops(t, p.a, 1)
	refused := uint64(0)
	for k, to := range []int{2, 3} {
		for i, tt := range tests {
			t.Run(fmt.Sprintf("%s to %d", tt.name, to), func(t *testing.T) {
				at := open(t, p.c[to])
				mac := endpointMAC(to)
				f := tt.f(mac)
				last := udp4(mac, me, myIP, netip.AddrFrom4([4]byte{10, 99, byte(k), byte(i)}))
				from.send(t, f)
				from.send(t, last)
				if got := at.receives(t, f, last); got != tt.passes {
					t.Errorf("arrives: %v, want %v", got, tt.passes)
				}
			})
			if !tt.passes {
				refused++
			}
		}
	}
	if got := drops(t, p.a, 1) - before; got != refused {
		t.Errorf("%d counted, want %d", got, refused)
	}
	if got := drops(t, p.a, 2); got != 0 {
		t.Errorf("%d counted at the port of a container that did nothing", got)
	}
}

func drops(t *testing.T, h *host, endpoint int) uint64 {
	t.Helper()
	all, err := h.kernel.Drops(t.Context(), testVNI)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range all {
		if d.Port == PortName(endpointID(endpoint)) {
			return d.Spoofed
		}
	}
	t.Fatalf("port of endpoint %d is not counted: %+v", endpoint, all)
	return 0
}

// TestGuardedContainersSpeakToEachOther: what the kernel itself sends passes, duplicate address detection included.
func TestGuardedContainersSpeakToEachOther(t *testing.T) {
	p := guardedPair(t)
	for i := range 3 {
		shell(t, p.c[i+1], fmt.Sprintf("ip addr del %s/64 dev eth0; ip addr add %[1]s/64 dev eth0", insideIP6(i+1)))
	}
	for i := range 3 {
		within(t, 10*time.Second, "no address tentative any more", func() bool {
			out, err := try(p.c[i+1], "ip -6 addr show dev eth0 tentative")
			return err == nil && out == ""
		})
		if out := shell(t, p.c[i+1], "ip -6 -o addr show dev eth0 dadfailed; ip -6 -o addr show dev eth0"); bytes.Contains([]byte(out), []byte("dadfailed")) {
			t.Errorf("container %d: %s", i+1, out)
		}
	}
	for _, from := range []int{1, 2, 3} {
		for _, to := range []int{1, 2, 3} {
			if from != to {
				p.ping(t, from, endpointIP(to))
				p.ping(t, from, insideIP6(to))
			}
		}
	}
	for i, h := range []*host{p.a, p.a, p.b} {
		if n := drops(t, h, i+1); n != 0 {
			t.Errorf("%d frames of container %d were dropped", n, i+1)
		}
	}
}

// TestOthersChangesOfTheTableAreRepaired also looks that each is recorded, and that tables of others stay.
func TestOthersChangesOfTheTableAreRepaired(t *testing.T) {
	n := newTestNet("192.0.2.1").local(1, 2).guarded().classes(map[int]uint32{1: 1, 2: 2, 9: 1}).network()
	port := PortName(endpointID(1))
	tests := []struct{ do, repair string }{
		{"delete element bridge netdriver own4 { P . 02:42:0a:00:00:01 . 10.0.0.1 }",
			"nft add element bridge netdriver own4 { P . 02:42:0a:00:00:01 . 10.0.0.1 }"},
		{"add element bridge netdriver own4 { P . 02:42:0a:00:00:02 . 10.0.0.2 }",
			"nft delete element bridge netdriver own4 { P . 02:42:0a:00:00:02 . 10.0.0.2 }"},
		{"delete element bridge netdriver spoofed { P }", "add element bridge netdriver spoofed { P }"},
		{"flush set bridge netdriver own6", "nft add element bridge netdriver own6 { P . 02:42:0a:00:00:01 . fd00::1 }"},
		{"flush chain bridge netdriver prerouting", "nft add table bridge netdriver"},
		{"insert rule bridge netdriver prerouting accept", "nft add table bridge netdriver"},
		{"add rule bridge netdriver admitted drop", "nft add table bridge netdriver"},
		{"delete element bridge netdriver class4-100001 { 10.0.0.9 }",
			"nft 'add element bridge netdriver class4-100001 { 10.0.0.9 : 1 }'"},
		{"delete element bridge netdriver class4-100001 { 10.0.0.9 }; add element bridge netdriver class4-100001 { 10.0.0.9 : 2 }",
			"add element bridge netdriver class4-100001 { 10.0.0.9 : 1 }'"},
		{"delete element bridge netdriver to { P }", "nft 'add element bridge netdriver to { P : goto to-100001-web }'"},
		{"delete element bridge netdriver learns { P }", "add element bridge netdriver to { P : goto to-100001-web }'"},
		{"flush set bridge netdriver admit-100001-db", "nft 'add chain bridge netdriver to-100001-db"},
		{"flush set bridge netdriver kin-100001-db", "nft 'add chain bridge netdriver to-100001-db"},
		{"insert rule bridge netdriver to-100001-db accept", "nft 'add chain bridge netdriver to-100001-db"},
		{"delete table bridge netdriver", "nft add table bridge netdriver"},
		{"delete table bridge netdriver; add table bridge netdriver; add set bridge netdriver own4 { type ipv4_addr; }",
			"nft add table bridge netdriver"},
	}
	h := newHost(t)
	p := NewPlane(h.kernel, quiet())
	h.in(t, "nft add table bridge mine && nft add chain bridge mine c '{ type filter hook forward priority 0; }'")
	if _, err := p.Apply(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	mine := h.in(t, "nft -a list table bridge mine")
	follow(t, p, n)
	intact := func() bool {
		now, err := h.kernel.ReadNetwork(t.Context(), testVNI)
		return err == nil && cmp.Equal(n.asRead(), now, equal())
	}
	for _, tt := range tests {
		t.Run(tt.do, func(t *testing.T) {
			eventually(t, "a sound start", intact)
			before := p.Drift(testVNI)
			h.in(t, "nft '"+strings.ReplaceAll(tt.do, " P", " "+port)+"'")
			eventually(t, "a repair", func() bool { return p.Drift(testVNI) > before })
			eventually(t, "the wanted state", intact)
			var got []string
			for _, r := range p.Receipts(testVNI) {
				got = append(got, r.Op)
			}
			if repair := strings.ReplaceAll(tt.repair, " P", " "+port); !strings.Contains(strings.Join(got, "\n"), repair) {
				t.Errorf("no receipt with %q among\n%s", repair, strings.Join(got, "\n"))
			}
		})
	}
	before := p.Drift(testVNI)
	h.in(t, "nft add chain bridge mine d")
	time.Sleep(50 * time.Millisecond)
	if got := p.Drift(testVNI); got != before {
		t.Errorf("%d repairs after a change of another table", got-before)
	}
	h.in(t, "nft delete chain bridge mine d")
	if now := h.in(t, "nft -a list table bridge mine"); now != mine {
		t.Errorf("the other table was\n%sand is\n%s", mine, now)
	}
}

// TestOneEndpointMoreIsOneElementMore: nothing that is there is written again.
func TestOneEndpointMoreIsOneElementMore(t *testing.T) {
	few := newTestNet("192.0.2.1").local(1, 2, 3).guarded().network()
	more := newTestNet("192.0.2.1").local(1, 2, 3, 4).guarded().network()
	n := 0
	for _, op := range plan(few.asRead(), more) {
		if op.Verb == PutGuard {
			n++
		} else if op.Verb == MakeGuard || op.Verb == DelGuard {
			t.Errorf("unexpected: %s", op)
		}
	}
	if n != 5 {
		t.Errorf("%d changes of the table, want the port and four sources", n)
	}
}

func TestTableReadsAsWritten(t *testing.T) {
	h := newHost(t)
	n := newTestNet("192.0.2.1").local(1).guarded().classes(map[int]uint32{1: 2}).network()
	if err := h.kernel.Run(t.Context(), plan(Network{}, n)); err != nil {
		t.Fatal(err)
	}
	golden.Compare(t, "table.golden", h.in(t, "nft -t list table bridge netdriver"))
}
