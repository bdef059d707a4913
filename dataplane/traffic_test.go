//go:build linux

package dataplane

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/internal/netlink"
	"github.com/netdriver/netdriver/internal/nettest"
	"github.com/netdriver/netdriver/vxlan"
)

// pair is two hosts with an underlay between them and a container on each: 1 and 2 on a, 3 on b.
type pair struct {
	a, b  *host
	vteps [2]netip.Addr
	mtu   int            // of the containers
	c     map[int]string // containers' namespaces
}

func newPair(t *testing.T, underlayMTU int, vteps ...string) *pair {
	t.Helper()
	p := &pair{a: &host{path: newNamespace(t), runDir: t.TempDir()}, b: &host{path: newNamespace(t), runDir: t.TempDir()},
		vteps: [2]netip.Addr{netip.MustParseAddr(vteps[0]), netip.MustParseAddr(vteps[1])}, c: map[int]string{}}
	p.a.sh(t, fmt.Sprintf("ip link add eth0 mtu %d type veth peer name eth0 mtu %[1]d netns %s", underlayMTU, p.b.path))
	for i, h := range []*host{p.a, p.b} {
		nodad, bits := "", 24
		if p.vteps[i].Is6() {
			nodad, bits = "nodad", 64
		}
		h.sh(t, fmt.Sprintf("ip addr add %s/%d dev eth0 %s && ip link set eth0 up", p.vteps[i], bits, nodad))
		h.open(t)
	}
	var err error
	if p.mtu, err = vxlan.MTU(underlayMTU, p.vteps[0]); err != nil {
		t.Fatal(err)
	}
	p.apply(t, p.a, 0, []int{1, 2}, []int{3})
	p.apply(t, p.b, 1, []int{3}, []int{1, 2})
	p.attach(t, p.a, 1)
	p.attach(t, p.a, 2)
	p.attach(t, p.b, 3)
	return p
}

func insideIP6(i int) netip.Addr { return netip.MustParseAddr(fmt.Sprintf("fd00::%d", i)) }

func (p *pair) apply(t *testing.T, h *host, me int, local, remote []int) {
	t.Helper()
	if _, err := NewPlane(h.kernel, quiet()).Apply(t.Context(), p.network(me, local, remote)); err != nil {
		t.Fatal(err)
	}
}

// network is what host number me has.
func (p *pair) network(me int, local, remote []int) Network {
	n := newTestNet(p.vteps[me].String())
	n.Bridge.MTU, n.VXLAN.MTU = p.mtu, p.mtu
	n.local(local...).peer(p.vteps[1-me].String(), remote...)
	for i := range 3 {
		n.Neighbours = append(n.Neighbours, Neighbour{insideIP6(i + 1), endpointMAC(i + 1)})
	}
	return n.network()
}

// attach does what libnetwork does after Join.
func (p *pair) attach(t *testing.T, h *host, i int) {
	t.Helper()
	p.c[i] = newNamespace(t)
	h.sh(t, fmt.Sprintf("ip link set %s netns %s name eth0", ContainerEnd(endpointID(i)), p.c[i]))
	shell(t, p.c[i], fmt.Sprintf("ip addr add %s/24 dev eth0 && ip link set eth0 up && "+
		"ip addr add %s/64 dev eth0 nodad && ip route add 224.0.0.0/4 dev eth0", endpointIP(i), insideIP6(i)))
}

func (p *pair) ping(t *testing.T, from int, to netip.Addr) {
	t.Helper()
	shell(t, p.c[from], fmt.Sprintf("busybox ping -c 2 -i 0.05 -W 2 %s", to))
}

// sniffer counts what passes eth0 of a host inside VXLAN.
type sniffer struct{ arp, solicit, all atomic.Int64 }

// sniff counts until the test ends.
func sniff(t *testing.T, h *host, v6 bool) *sniffer {
	t.Helper()
	inner := 20 + 8 + 8 // outer IPv4, UDP, VXLAN
	if v6 {
		inner += 20
	}
	s := &sniffer{}
	nettest.Listen(t, h.path, "eth0", func(b []byte) {
		if len(b) < inner+14 || binary.BigEndian.Uint16(b[inner-14:]) != vxlan.DefaultPort {
			return
		}
		s.all.Add(1)
		in := b[inner:]
		switch binary.BigEndian.Uint16(in[12:]) {
		case unix.ETH_P_ARP:
			s.arp.Add(1)
		case unix.ETH_P_IPV6:
			if len(in) > 54 && in[20] == unix.IPPROTO_ICMPV6 && in[54] == 135 { // neighbour solicitation, RFC 4861 §4.3
				s.solicit.Add(1)
			}
		}
	})
	return s
}

// underlays are the kinds of underlay that everything is tested on.
func underlays(t *testing.T, test func(t *testing.T, p *pair)) {
	for _, u := range []struct {
		name  string
		mtu   int
		vteps []string
	}{
		{"IPv4", 1500, []string{"192.0.2.1", "192.0.2.2"}},
		{"IPv6", 1500, []string{"2001:db8::1", "2001:db8::2"}},
		{"jumbo", 9000, []string{"192.0.2.1", "192.0.2.2"}},
	} {
		t.Run(u.name, func(t *testing.T) {
			t.Parallel()
			test(t, newPair(t, u.mtu, u.vteps...))
		})
	}
}

func TestContainersReachEachOther(t *testing.T) {
	underlays(t, func(t *testing.T, p *pair) {
		p.ping(t, 1, endpointIP(3))
		p.ping(t, 3, endpointIP(1))
		p.ping(t, 1, insideIP6(3))
		p.ping(t, 1, endpointIP(2)) // on the same host
		p.ping(t, 1, insideIP6(2))
	})
}

// Docker gives a container a MAC of its own, so the next holder of an address has another one than whoever has talked to
// the last holder remembers.
func TestAnAddressThatIsUsedAgainIsReachableAtOnce(t *testing.T) {
	underlays(t, func(t *testing.T, p *pair) {
		p.ping(t, 1, endpointIP(3))
		p.ping(t, 1, insideIP6(3))
		old, next := endpointMAC(3), vxlan.MAC{0x02, 0x42, 0xff, 0, 0, 3}
		shell(t, p.c[3], "ip link set eth0 address "+next.String())
		var news []Op
		for me, h := range []*host{p.a, p.b} {
			want := p.network(me, [][]int{{1, 2}, {3}}[me], [][]int{{3}, {1, 2}}[me])
			for i := range want.FDB {
				if want.FDB[i].MAC == old {
					want.FDB[i].MAC = next
				}
			}
			for i := range want.Neighbours {
				if want.Neighbours[i].MAC == old {
					want.Neighbours[i].MAC = next
				}
			}
			want.Sort()
			have, err := h.kernel.ReadNetwork(t.Context(), want.VNI)
			if err != nil {
				t.Fatal(err)
			}
			ops := plan(have, want)
			announces := func(op Op) bool { return op.Verb == Announce }
			if me == 0 {
				news = slices.DeleteFunc(slices.Clone(ops), func(op Op) bool { return !announces(op) })
			}
			if err := h.kernel.Run(t.Context(), slices.DeleteFunc(ops, announces)); err != nil {
				t.Fatal(err)
			}
		}
		// The control: the entries alone do not help, since container 1 remembers.
		for _, to := range []netip.Addr{endpointIP(3), insideIP6(3)} {
			if out, err := try(p.c[1], fmt.Sprintf("busybox ping -c 1 -W 1 %s", to)); err == nil {
				t.Errorf("%s is reached without an announcement: %s", to, out)
			}
		}
		if err := p.a.kernel.Run(t.Context(), news); err != nil {
			t.Fatal(err)
		}
		p.ping(t, 1, endpointIP(3))
		p.ping(t, 1, insideIP6(3))
	})
}

func TestKnownAddressesAreNotAskedForOnTheUnderlay(t *testing.T) {
	underlays(t, func(t *testing.T, p *pair) {
		s := sniff(t, p.a, p.vteps[0].Is6())
		p.ping(t, 1, endpointIP(3))
		p.ping(t, 1, insideIP6(3))
		eventually(t, "the pings on the underlay", func() bool { return s.all.Load() >= 8 })
		if s.arp.Load() > 0 || s.solicit.Load() > 0 {
			t.Errorf("%d ARP and %d ND questions for known addresses", s.arp.Load(), s.solicit.Load())
		}
		// The control: questions for unknown addresses are flooded and seen.
		try(p.c[1], "busybox ping -c 1 -W 1 10.0.0.99; busybox ping -c 1 -W 1 fd00::99")
		eventually(t, "an ARP question", func() bool { return s.arp.Load() > 0 })
		eventually(t, "an ND question", func() bool { return s.solicit.Load() > 0 })
	})
}

// udp opens sockets in two containers: send sends from one, and receive waits for a datagram at the other.
func udp(t *testing.T, p *pair, from, to int, group string) (send func(size int) error, receive func() int) {
	t.Helper()
	target := &net.UDPAddr{IP: endpointIP(to).AsSlice(), Port: 7777}
	if group != "" {
		target.IP = net.ParseIP(group)
	}
	var in, out *net.UDPConn
	open := func(ns string, f func() error) {
		fd, err := openBound(ns)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		if err := netlink.In(fd, f); err != nil {
			t.Fatal(err)
		}
	}
	open(p.c[to], func() (err error) {
		if group == "" {
			in, err = net.ListenUDP("udp4", target)
			return err
		}
		dev, err := net.InterfaceByName("eth0")
		if err == nil {
			in, err = net.ListenMulticastUDP("udp4", dev, target)
		}
		return err
	})
	open(p.c[from], func() (err error) { out, err = net.DialUDP("udp4", nil, target); return err })
	t.Cleanup(func() { in.Close(); out.Close() })
	raw, err := out.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) { // never fragment
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
	})
	if err != nil {
		t.Fatal(err)
	}
	send = func(size int) error { _, err := out.Write(make([]byte, size)); return err }
	receive = func() int {
		in.SetReadDeadline(time.Now().Add(time.Second))
		n, _ := in.Read(make([]byte, 1<<16))
		return n
	}
	return send, receive
}

func TestPacketAtTheMTUPassesAndOneByteMoreIsRefusedByTheSender(t *testing.T) {
	underlays(t, func(t *testing.T, p *pair) {
		send, receive := udp(t, p, 1, 3, "")
		fits := p.mtu - 20 - 8 // IPv4 and UDP headers
		arrives(t, send, receive, fits)
		if err := send(fits + 1); !errors.Is(err, unix.EMSGSIZE) {
			t.Errorf("packet of %d bytes: %v, want EMSGSIZE", p.mtu+1, err)
		}
	})
}

func TestMulticastReachesARemoteContainer(t *testing.T) {
	underlays(t, func(t *testing.T, p *pair) {
		send, receive := udp(t, p, 1, 3, "239.1.1.1")
		arrives(t, send, receive, 10)
	})
}

// arrives sends a datagram until it is received: the first may come before the links are up.
func arrives(t *testing.T, send func(size int) error, receive func() int, size int) {
	t.Helper()
	within(t, 10*time.Second, fmt.Sprintf("a datagram of %d bytes arrives", size), func() bool {
		if err := send(size); err != nil {
			t.Fatalf("datagram of %d bytes: %v", size, err)
		}
		return receive() == size
	})
}

// TestTrafficFlowsOnWhileTheDaemonIsDead: closing is all that a kill does to the kernel.
func TestTrafficFlowsOnWhileTheDaemonIsDead(t *testing.T) {
	p := newPair(t, 1500, "192.0.2.1", "192.0.2.2")
	p.a.kernel.Close()
	p.b.kernel.Close()
	p.ping(t, 1, endpointIP(3))
	p.a.open(t)
	p.apply(t, p.a, 0, []int{1, 2}, []int{3}) // and a new one changes nothing
	p.ping(t, 1, endpointIP(3))
}

// TestNetworksHaveNoPathBetweenThem: two networks on one host, a container in each, and a third as the control.
func TestNetworksHaveNoPathBetweenThem(t *testing.T) {
	p := newPair(t, 1500, "192.0.2.1", "192.0.2.2")
	other := newTestNet("192.0.2.1")
	other.VNI, other.Name = testVNI+1, "db"
	if _, err := NewPlane(p.a.kernel, quiet()).Apply(t.Context(), other.local(7).network()); err != nil {
		t.Fatal(err)
	}
	p.attach(t, p.a, 7)
	p.ping(t, 1, endpointIP(2))
	out, err := try(p.c[7], "busybox ping -c 1 -W 1 "+endpointIP(1).String())
	if err == nil || !strings.Contains(out, "100% packet loss") {
		t.Errorf("a container of another network is reached: %v\n%s", err, out)
	}
}
