// Package discovery makes and reads the few Ethernet frames that netdriver sends itself: announcements and questions of ARP and
// neighbour discovery.
package discovery

import (
	"encoding/binary"
	"net/netip"

	"github.com/netdriver/netdriver/vxlan"
)

const (
	etherARP  = 0x0806
	etherIPv6 = 0x86dd
	// protoICMPv6 is the next-header value of ICMPv6, neighborAdvertisement its message type (RFC 4861 §4.4).
	protoICMPv6           = 58
	neighborSolicitation  = 135
	neighborAdvertisement = 136
	naOverride            = 0x20
	targetLinkLayer       = 2
)

// Announcement is the frame that tells the containers on a bridge which MAC an address has from now on: a gratuitous ARP
// request (RFC 5944 §4.6) or an unsolicited neighbour advertisement (RFC 4861 §7.2.6). Docker gives each container a MAC of
// its own, so when an address is used again whoever has talked to its former holder would send to that one's MAC until
// its own neighbour entry has failed, which takes eight seconds. The bridge does not flood such frames to a VXLAN port with
// neighbour suppression (net/bridge/br_arp_nd_proxy.c): each node announces to its own containers.
func Announcement(a netip.Addr, mac vxlan.MAC) []byte {
	if a.Is4() {
		return arpAnnouncement(a, mac)
	}
	return ndAnnouncement(a, mac)
}

func arpAnnouncement(a netip.Addr, mac vxlan.MAC) []byte {
	ip := a.As4()
	b := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, mac[:]...)
	b = binary.BigEndian.AppendUint16(b, etherARP)
	b = append(b, 0, 1, 0x08, 0, 6, 4, 0, 1) // Ethernet, IPv4, their lengths, request (RFC 826)
	b = append(append(b, mac[:]...), ip[:]...)
	return append(append(b, 0, 0, 0, 0, 0, 0), ip[:]...)
}

func ndAnnouncement(a netip.Addr, mac vxlan.MAC) []byte {
	target := a.As16()
	na := append([]byte{neighborAdvertisement, 0, 0, 0, naOverride, 0, 0, 0}, target[:]...)
	na = append(append(na, targetLinkLayer, 1), mac[:]...)
	return icmpv6(mac, a, netip.IPv6LinkLocalAllNodes(), na)
}

// icmpv6 puts a message into a frame to a multicast address. Hop limit 255 is what neighbour discovery wants.
func icmpv6(mac vxlan.MAC, from, to netip.Addr, message []byte) []byte {
	src, dst := from.As16(), to.As16()
	// The checksum covers a pseudo header, too: both addresses, the length, the protocol (RFC 8200 §8.1).
	pseudo := append(append([]byte{}, src[:]...), dst[:]...)
	pseudo = append(pseudo, 0, 0, 0, byte(len(message)), 0, 0, 0, protoICMPv6)
	binary.BigEndian.PutUint16(message[2:], checksum(append(pseudo, message...)))

	b := append([]byte{0x33, 0x33}, dst[12:]...) // RFC 2464 §7
	b = append(b, mac[:]...)
	b = binary.BigEndian.AppendUint16(b, etherIPv6)
	b = append(b, 0x60, 0, 0, 0, 0, byte(len(message)), protoICMPv6, 255)
	b = append(append(b, src[:]...), dst[:]...)
	return append(b, message...)
}

// checksum is the Internet checksum of RFC 1071; b has an even length.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
