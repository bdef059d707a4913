//go:build linux

package firewall

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/internal/nettest"
	"github.com/netdriver/netdriver/vxlan"
)

// The node under test has 192.0.2.1 and 2001:db8::1 on eth0, and br-1 as if containers were there. Other ends of both are in
// a namespace that can send anything.
const nodeMAC, bridgeMAC = "02:00:00:00:00:01", "02:00:00:00:00:02"

// outside is the namespace around a node.
type outside struct {
	ns   string
	node string
}

const (
	ourVNI   = 1 << 20
	theirVNI = 4096 // where Docker's own overlay begins
)

// surround gives the host two interfaces and VXLAN devices for our VNI and another overlay's, on one port.
func surround(t *testing.T, h host) outside {
	t.Helper()
	o := outside{nettest.Namespace(t), h.ns}
	nettest.Sh(t, h.ns, `for i in all default; do echo 0 >/proc/sys/net/ipv4/conf/$i/rp_filter; done
		echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding
		ip link add eth0 address `+nodeMAC+` type veth peer name far netns `+o.ns+`
		ip link add br-1 address `+bridgeMAC+` type veth peer name near netns `+o.ns+`
		ip addr add 192.0.2.1/24 dev eth0; ip addr add 2001:db8::1/64 dev eth0 nodad; ip addr add 172.18.0.1/16 dev br-1
		ip link set eth0 up; ip link set br-1 up`)
	nettest.Sh(t, o.ns, `for i in far near; do ip link set $i up; done; ip addr add 192.0.2.2/24 dev far`)
	nettest.Sh(t, h.ns, fmt.Sprintf(`ip neigh replace 192.0.2.2 dev eth0 lladdr 02:00:00:00:00:03
		ip link add v4 type vxlan id %d dstport 4789 local 192.0.2.1 dev eth0 nolearning
		ip link add v6 type vxlan id %d dstport 4791 local 2001:db8::1 dev eth0 nolearning
		ip link add docker type vxlan id %d dstport 4789 local 192.0.2.1 dev eth0 nolearning
		ip link add locked type vxlan id 7 dstport 4790 local 192.0.2.1 dev eth0 nolearning
		for i in v4 v6 docker locked; do ip link set $i up; done
		bridge fdb append 00:00:00:00:00:00 dev locked dst 192.0.2.2`, ourVNI, ourVNI, theirVNI))
	return o
}

// frame is one VXLAN packet from outside.
type frame struct {
	via      string // far or near
	from, to string
	port     uint16
	vni      vxlan.VNI
	options  bool // IPv6 extension header
	pieces   int  // bytes in the first of two IPv4 fragments
}

// udp returns the UDP datagram.
func (f frame) udp() []byte {
	inner := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 9, 0x08, 0x00}, make([]byte, 60)...)
	v := []byte{8, 0, 0, 0, byte(f.vni >> 16), byte(f.vni >> 8), byte(f.vni), 0}
	b := binary.BigEndian.AppendUint16(nil, 50000)
	b = binary.BigEndian.AppendUint16(b, f.port)
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(v)+len(inner)))
	return append(append(append(b, 0, 0), v...), inner...)
}

func sum(b []byte) (s uint32) {
	for ; len(b) > 1; b = b[2:] {
		s += uint32(binary.BigEndian.Uint16(b))
	}
	return s
}

func fold(s uint32) uint16 {
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return ^uint16(s)
}

// packets are the IP packets.
func (f frame) packets() (out [][]byte) {
	src, dst, u := netip.MustParseAddr(f.from), netip.MustParseAddr(f.to), f.udp()
	if src.Is4() {
		piece := func(data []byte, offset int, more bool) {
			h := make([]byte, 20)
			h[0], h[8], h[9] = 0x45, 64, unix.IPPROTO_UDP
			binary.BigEndian.PutUint16(h[2:], uint16(20+len(data)))
			binary.BigEndian.PutUint16(h[4:], 77)
			flags := uint16(offset / 8)
			if more {
				flags |= 0x2000
			}
			binary.BigEndian.PutUint16(h[6:], flags)
			copy(h[12:], src.AsSlice())
			copy(h[16:], dst.AsSlice())
			binary.BigEndian.PutUint16(h[10:], fold(sum(h)))
			out = append(out, append(h, data...))
		}
		if f.pieces > 0 {
			piece(u[:f.pieces], 0, true)
			piece(u[f.pieces:], f.pieces, false)
		} else {
			piece(u, 0, false)
		}
		return out
	}
	check := sum(src.AsSlice()) + sum(dst.AsSlice()) + uint32(len(u)) + unix.IPPROTO_UDP + sum(u)
	binary.BigEndian.PutUint16(u[6:], fold(check))
	next := byte(unix.IPPROTO_UDP)
	if f.options { // RFC 8200 §4.6, with one PadN
		next = unix.IPPROTO_DSTOPTS
		u = append([]byte{unix.IPPROTO_UDP, 0, 1, 4, 0, 0, 0, 0}, u...)
	}
	h := []byte{0x60, 0, 0, 0, byte(len(u) >> 8), byte(len(u)), next, 64}
	h = append(append(h, src.AsSlice()...), dst.AsSlice()...)
	return [][]byte{append(h, u...)}
}

// send puts a frame's packets on the wire.
func (o outside) send(t *testing.T, f frame) {
	t.Helper()
	mac, err := net.ParseMAC(map[string]string{"far": nodeMAC, "near": bridgeMAC}[f.via])
	if err != nil {
		t.Fatal(err)
	}
	nettest.Send(t, o.ns, f.via, mac, f.packets()...)
}

// sniff counts the IPv4 packets to a UDP port that arrive at far until the test ends.
func (o outside) sniff(t *testing.T, port uint16) func() int64 {
	t.Helper()
	var seen atomic.Int64
	nettest.Listen(t, o.ns, "far", func(b []byte) {
		if len(b) >= 28 && b[0]>>4 == 4 && b[9] == unix.IPPROTO_UDP && binary.BigEndian.Uint16(b[22:]) == port {
			seen.Add(1)
		}
	})
	return seen.Load
}

// received is how many frames a device of a namespace has received.
func received(t *testing.T, ns, device string) int {
	t.Helper()
	for line := range strings.Lines(nettest.Sh(t, ns, "cat /proc/net/dev")) {
		if words := strings.Fields(line); len(words) > 10 && words[0] == device+":" {
			n, err := strconv.Atoi(words[2])
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("no device %s", device)
	return 0
}

// frames are VXLAN packets with the device that gets them if nobody objects.
func frames() map[string]struct {
	frame
	device  string
	counter string // that counts it; empty: it is delivered
} {
	type row = struct {
		frame
		device, counter string
	}
	four := func(via, from string, port uint16, vni vxlan.VNI) frame {
		return frame{via: via, from: from, to: "192.0.2.1", port: port, vni: vni}
	}
	six := func(via, from string, options bool) frame {
		return frame{via: via, from: from, to: "2001:db8::1", port: 4791, vni: ourVNI, options: options}
	}
	split := four("far", "192.0.2.66", 4789, ourVNI)
	split.pieces = 8
	return map[string]row{
		"a member":                          {four("far", "192.0.2.2", 4789, ourVNI), "v4", ""},
		"a stranger":                        {four("far", "192.0.2.66", 4789, ourVNI), "v4", "underlay-stranger"},
		"a stranger, in fragments":          {split, "v4", "underlay-stranger"},
		"a stranger of another overlay":     {four("far", "192.0.2.66", 4789, theirVNI), "docker", ""},
		"a container with its address":      {four("near", "172.18.0.2", 4789, ourVNI), "v4", "underlay-container"},
		"a container with a member's":       {four("near", "192.0.2.2", 4789, ourVNI), "v4", "underlay-container"},
		"a member, IPv6":                    {six("far", "2001:db8::2", false), "v6", ""},
		"a stranger, IPv6":                  {six("far", "2001:db8::66", false), "v6", "underlay-stranger"},
		"a stranger, IPv6, hidden":          {six("far", "2001:db8::66", true), "v6", "underlay-stranger"},
		"a container, IPv6, hidden":         {six("near", "2001:db8::2", true), "v6", "underlay-container"},
		"a member in clear at a locked one": {four("far", "192.0.2.2", 4790, 7), "locked", "lock-plain-in"},
	}
}

// eventually waits until a condition holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited 5 s for: %s", what)
		}
	}
}

func TestOnlyNodesOfTheClusterReachOurNetworks(t *testing.T) {
	kernels(t, true, func(t *testing.T, h host) {
		o := surround(t, h)
		u := Underlay{
			Device: "eth0", Nodes: addrs("192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2"),
			VNIs: map[uint16][]vxlan.VNI{4789: append(vnis(100, 15), ourVNI), 4791: {ourVNI}},
		}
		for name, f := range frames() { // the control: without the filter, all of them arrive
			before := received(t, h.ns, f.device)
			o.send(t, f.frame)
			eventually(t, name+": delivered without a filter", func() bool {
				return received(t, h.ns, f.device) == before+1
			})
		}
		hold(t, h, u.Ruleset())
		hold(t, h, Lock(4790))
		for name, f := range frames() {
			before := received(t, h.ns, f.device)
			counted, _ := h.Counts(t.Context())
			o.send(t, f.frame)
			if f.counter == "" {
				eventually(t, name+": delivered", func() bool {
					return received(t, h.ns, f.device) == before+1
				})
				continue
			}
			eventually(t, name+": counted by "+f.counter, func() bool {
				now, err := h.Counts(t.Context())
				return err == nil && now[f.counter].Packets == counted[f.counter].Packets+1
			})
			if now := received(t, h.ns, f.device); now != before {
				t.Errorf("%s: delivered", name)
			}
		}
	})
}

func TestAContainerCannotSendThroughItsHostToOurNetworksElsewhere(t *testing.T) {
	kernels(t, true, func(t *testing.T, h host) {
		o := surround(t, h)
		f := frame{via: "near", from: "192.0.2.3", to: "192.0.2.2", port: 4789, vni: ourVNI} // in another node's name
		through := o.sniff(t, 4789)
		o.send(t, f)
		eventually(t, "forwarded without a filter", func() bool { return through() == 1 })
		u := testUnderlay()
		hold(t, h, u.Ruleset())
		o.send(t, f)
		eventually(t, "counted", func() bool {
			now, err := h.Counts(t.Context())
			return err == nil && now["underlay-container"].Packets == 1
		})
		if n := through(); n != 1 {
			t.Errorf("%d more were forwarded", n-1)
		}
	})
}

func TestNothingLeavesInClearForALockedPort(t *testing.T) {
	kernels(t, true, func(t *testing.T, h host) {
		o := surround(t, h)
		send := func() {
			nettest.Sh(t, h.ns, "ip addr replace 10.0.0.1/24 dev locked && busybox arping -q -c 1 -w 1 -I locked 10.0.0.2 || true")
		}
		clear := o.sniff(t, 4790)
		send()
		eventually(t, "sent in clear without a filter", func() bool { return clear() > 0 })
		hold(t, h, Lock(4790))
		before := clear()
		send()
		eventually(t, "counted", func() bool {
			now, err := h.Counts(t.Context())
			return err == nil && now["lock-plain-out"].Packets > 0
		})
		if now := clear(); now != before {
			t.Errorf("%d packets left", now-before)
		}
	})
}

func TestCountersGoOnWhenNodesChange(t *testing.T) {
	kernels(t, true, func(t *testing.T, h host) {
		o := surround(t, h)
		u := testUnderlay()
		hold(t, h, u.Ruleset())
		f := frames()["a stranger"].frame
		for range 3 {
			o.send(t, f)
		}
		count := func() uint64 {
			now, err := h.Counts(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return now["underlay-stranger"].Packets
		}
		eventually(t, "three counted", func() bool { return count() == 3 })
		u.Nodes = append(u.Nodes, addrs("192.0.2.9")...)
		hold(t, h, u.Ruleset())
		if n := count(); n != 3 {
			t.Errorf("%d are counted after a node has joined", n)
		}
	})
}
