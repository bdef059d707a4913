// Package vxlan holds the facts and the arithmetic of VXLAN (RFC 7348) that the rest of netdriver needs: identifier
// ranges, the encapsulation's overhead, the MTU that follows from it, and the validation of all of them. It is pure.
package vxlan

import (
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
)

// VNI is a VXLAN network identifier: 24 bits (RFC 7348 §5).
type VNI uint32

const (
	// MaxVNI is the largest VXLAN network identifier (RFC 7348 §5: 24 bits).
	MaxVNI VNI = 1<<24 - 1
	// FirstAutoVNI starts the range that netdriver chooses from by itself. Docker's own overlay driver counts up from
	// 4096 (moby daemon/libnetwork/drivers/overlay/ovmanager), swarm ingress included; staying far above it lets both
	// drivers share a host and a UDP port.
	FirstAutoVNI VNI = 1 << 20

	// DefaultPort is the UDP port that IANA assigned to VXLAN (RFC 7348 §8).
	DefaultPort uint16 = 4789
	// EncryptedPort is that of encrypted networks if nothing else is chosen: the next one. The kernel tells their packets by
	// the port alone, so no network in clear may use it.
	EncryptedPort uint16 = 4790

	// ethernetHeader is the inner Ethernet header that VXLAN carries, in bytes; vxlanHeader and udpHeader are the
	// headers before it (RFC 7348 §5, RFC 768), ipv4Header and ipv6Header the outer IP header without options.
	ethernetHeader = 14
	vxlanHeader    = 8
	udpHeader      = 8
	ipv4Header     = 20
	ipv6Header     = 40

	// MinMTU4 is the least MTU of an IPv4 link (RFC 791 §3.2), MinMTU6 that of an IPv6 link (RFC 8200 §5), in bytes.
	MinMTU4 = 68
	MinMTU6 = 1280
)

// ErrMTU is wrapped by every error about an MTU that cannot work.
var ErrMTU = errors.New("MTU does not fit")

// Overhead returns the bytes that VXLAN adds to an inner IP packet on an underlay whose VTEP addresses are like vtep:
// 50 for IPv4, 70 for IPv6 (RFC 7348 §5: inner Ethernet 14, VXLAN 8, UDP 8, IP 20 or 40).
func Overhead(vtep netip.Addr) int {
	ip := ipv4Header
	if vtep.Unmap().Is6() {
		ip = ipv6Header
	}
	return ethernetHeader + vxlanHeader + udpHeader + ip
}

// MTU returns the largest MTU, in bytes, that a container may use so that no packet is larger than the underlay's MTU
// after encapsulation. The error wraps ErrMTU if nothing useful is left.
func MTU(underlay int, vtep netip.Addr) (int, error) {
	mtu := underlay - Overhead(vtep)
	if mtu < MinMTU4 {
		return 0, fmt.Errorf("%w: underlay MTU %d leaves %d after %d bytes of VXLAN, at least %d is needed; raise the underlay's MTU",
			ErrMTU, underlay, mtu, Overhead(vtep), MinMTU4)
	}
	return mtu, nil
}

const (
	// espHeader is the SPI and the sequence number (RFC 4303 §2), espIV the explicit IV and espICV the integrity check
	// value of AES-GCM (RFC 4106 §3.1, §6) and ChaCha20-Poly1305 (RFC 7634 §2), espTrailer the pad length and the next
	// header, all in bytes. Padding brings payload and trailer to a multiple of espAlign (RFC 4303 §2.4).
	espHeader  = 8
	espIV      = 8
	espICV     = 16
	espTrailer = 2
	espAlign   = 4
)

// EncryptedMTU is MTU for a network whose packets travel as ESP in transport mode, over UDP if encap is true (RFC 3948:
// 8 bytes more):
//
//	M = ((U − H − 32) & ~3) − 2 − 30
//
// The underlay's U bytes hold the IP header, H = 20 (IPv4) or 40 (IPv6), with 8 more for the UDP header of ESP-in-UDP,
// and 32 bytes of ESP: header 8, IV 8, ICV 16. What is left is rounded down to whole words of 4, since ESP pads up to
// one, and holds 2 bytes of trailer and VXLAN's 30 within the encryption: inner Ethernet 14, VXLAN 8, UDP 8. So an
// underlay of 1500 gives 1416 with IPv4 and 1396 with IPv6, and 1408 and 1388 over UDP. The error wraps ErrMTU if
// nothing useful is left.
func EncryptedMTU(underlay int, vtep netip.Addr, encap bool) (int, error) {
	inside := ethernetHeader + vxlanHeader + udpHeader
	outside := Overhead(vtep) - inside
	if encap {
		outside += udpHeader
	}
	room := (underlay - outside - espHeader - espIV - espICV) &^ (espAlign - 1)
	mtu := room - espTrailer - inside
	if mtu < MinMTU4 {
		return 0, fmt.Errorf("%w: underlay MTU %d leaves %d after ESP and VXLAN, at least %d is needed; raise the underlay's",
			ErrMTU, underlay, mtu, MinMTU4)
	}
	return mtu, nil
}

// CheckMTU says whether a network can use mtu on an underlay with the given MTU and VTEP address; v6 is true if the
// network carries IPv6. The error wraps ErrMTU and names the bounds.
func CheckMTU(mtu, underlay int, vtep netip.Addr, v6 bool) error {
	most, err := MTU(underlay, vtep)
	if err != nil {
		return err
	}
	return within(mtu, most, underlay, Overhead(vtep), "VXLAN", v6)
}

// CheckEncryptedMTU is CheckMTU for a network as in EncryptedMTU.
func CheckEncryptedMTU(mtu, underlay int, vtep netip.Addr, encap, v6 bool) error {
	most, err := EncryptedMTU(underlay, vtep, encap)
	if err != nil {
		return err
	}
	return within(mtu, most, underlay, underlay-most, "ESP and VXLAN", v6)
}

// within compares an MTU with the largest one that an underlay allows.
func within(mtu, most, underlay, overhead int, what string, v6 bool) error {
	least := MinMTU4
	if v6 {
		least = MinMTU6
	}
	if mtu < least || mtu > most {
		return fmt.Errorf("%w: %d is not within %d..%d (underlay %d − %d bytes of %s); omit it to use %d",
			ErrMTU, mtu, least, most, underlay, overhead, what, most)
	}
	return nil
}

// CheckVNI says whether v can identify a network: 1..16777215.
func CheckVNI(v VNI) error {
	if v == 0 || v > MaxVNI {
		return fmt.Errorf("VNI %d is not within 1..%d", v, MaxVNI)
	}
	return nil
}

// AutoVNI returns the nth VNI to try for a network without a chosen one. The first is a hash of its name, so that two
// nodes that create the same network at once ask for the same one; the following ones step through the automatic range.
func AutoVNI(network string, n int) VNI {
	h := fnv.New32a()
	h.Write([]byte(network)) // fnv's Write cannot fail
	span := uint32(MaxVNI-FirstAutoVNI) + 1
	return FirstAutoVNI + VNI((h.Sum32()%span+uint32(n))%span)
}
