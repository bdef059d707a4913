package discovery

import (
	"encoding/binary"
	"net/netip"

	"github.com/netdriver/netdriver/vxlan"
)

const (
	headerSize = 14 // Ethernet's
	arpSize    = 28
	ipv6Size   = 40
)

// Probe is the frame that asks whether somebody has an address, without claiming it: an ARP request from 0.0.0.0 (RFC 5227
// §2.1.1), or a neighbour solicitation from :: (RFC 4862 §5.4.2). mac is what a reply goes to.
func Probe(a netip.Addr, mac vxlan.MAC) []byte {
	if a.Is4() {
		return arpProbe(a, mac)
	}
	target := a.As16()
	ns := append([]byte{neighborSolicitation, 0, 0, 0, 0, 0, 0, 0}, target[:]...)
	group := netip.AddrFrom16([16]byte{0: 0xff, 1: 2, 11: 1, 12: 0xff, 13: target[13], 14: target[14], 15: target[15]})
	return icmpv6(mac, netip.IPv6Unspecified(), group, ns)
}

func arpProbe(a netip.Addr, mac vxlan.MAC) []byte {
	ip := a.As4()
	b := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, mac[:]...)
	b = binary.BigEndian.AppendUint16(b, etherARP)
	b = append(b, 0, 1, 0x08, 0, 6, 4, 0, 1)
	b = append(append(b, mac[:]...), 0, 0, 0, 0)
	return append(append(b, 0, 0, 0, 0, 0, 0), ip[:]...)
}

// Holder returns the MAC of whoever a received frame shows to have an address: the sender of any ARP message that says so
// (RFC 5227 §2.1.1), the target of a neighbour advertisement.
func Holder(b []byte, a netip.Addr) (mac vxlan.MAC, found bool) {
	if len(b) < headerSize {
		return mac, false
	}
	body := b[headerSize:]
	switch binary.BigEndian.Uint16(b[12:]) {
	case etherARP:
		if !a.Is4() || len(body) < arpSize || netip.AddrFrom4([4]byte(body[14:18])) != a {
			return mac, false
		}
		return vxlan.MAC(body[8:14]), true
	case etherIPv6:
		if !a.Is6() || len(body) < ipv6Size+24 || body[6] != protoICMPv6 || body[ipv6Size] != neighborAdvertisement ||
			netip.AddrFrom16([16]byte(body[ipv6Size+8:ipv6Size+24])) != a {
			return mac, false
		}
		if option := body[ipv6Size+24:]; len(option) >= 8 && option[0] == targetLinkLayer {
			return vxlan.MAC(option[2:8]), true
		}
		return vxlan.MAC(b[6:12]), true
	}
	return mac, false
}
