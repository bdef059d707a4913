package host

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	nl "github.com/netdriver/netdriver/internal/netlink"
	"github.com/netdriver/netdriver/vxlan"
)

// Token marks the frames of one trace; it is the first thing in their payload.
type Token [8]byte

// NewToken returns a random one.
func NewToken() (t Token) {
	rand.Read(t[:]) // never fails (crypto/rand)
	return t
}

// MarshalText writes it in hexadecimal.
func (t Token) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(t[:])), nil }

// UnmarshalText reads what MarshalText wrote.
func (t *Token) UnmarshalText(text []byte) error {
	n, err := hex.Decode(t[:], text)
	if err != nil || n != len(t) {
		return fmt.Errorf("token %q: want %d hexadecimal digits", text, 2*len(t))
	}
	return nil
}

// Probe is one frame with an echo request in it (RFC 792, RFC 4443 §4.1), which the kernel at its destination answers.
type Probe struct {
	Sequence            uint16     `json:"sequence"`
	Source, Destination netip.Addr // of one family
	From, To            vxlan.MAC
	// Size is the IP packet's length in bytes.
	Size int `json:"size"`
}

const (
	etherSize = 14
	icmpSize  = 8
	ip4Size   = 20
	ip6Size   = 40
	hops      = 64
)

// MinSize is the shortest packet that has room for the token.
func MinSize(a netip.Addr) int { return headers(a) + icmpSize + len(Token{}) }

func headers(a netip.Addr) int {
	if a.Is4() {
		return ip4Size
	}
	return ip6Size
}

// Frame returns the bytes of p.
func (p Probe) Frame(token Token) []byte {
	size := max(p.Size, MinSize(p.Source))
	f := make([]byte, etherSize+size)
	copy(f, p.To[:])
	copy(f[6:], p.From[:])
	ip := f[etherSize:]
	icmp := ip[headers(p.Source):]
	binary.BigEndian.PutUint16(icmp[4:], binary.BigEndian.Uint16(token[6:]))
	binary.BigEndian.PutUint16(icmp[6:], p.Sequence)
	copy(icmp[icmpSize:], token[:])
	if p.Source.Is4() {
		binary.BigEndian.PutUint16(f[12:], unix.ETH_P_IP)
		p.header4(ip, size)
		icmp[0] = 8
		binary.BigEndian.PutUint16(icmp[2:], checksum(0, icmp))
		return f
	}
	binary.BigEndian.PutUint16(f[12:], unix.ETH_P_IPV6)
	ip[0], ip[6], ip[7] = 6<<4, unix.IPPROTO_ICMPV6, hops
	binary.BigEndian.PutUint16(ip[4:], uint16(len(icmp)))
	copy(ip[8:], p.Source.AsSlice())
	copy(ip[24:], p.Destination.AsSlice())
	icmp[0] = 128
	pseudo := sum(uint32(len(icmp))+unix.IPPROTO_ICMPV6, ip[8:ip6Size])
	binary.BigEndian.PutUint16(icmp[2:], checksum(pseudo, icmp))
	return f
}

// Inert is Frame with a type that no protocol has: local experimental (IEEE 802 9.2.4).
func (p Probe) Inert(token Token) []byte {
	const experimental = 0x88b5
	f := p.Frame(token)
	binary.BigEndian.PutUint16(f[12:], experimental)
	return f
}

// header4 writes an IPv4 header that forbids fragmentation: what does not fit is to be seen.
func (p Probe) header4(ip []byte, size int) {
	ip[0], ip[6], ip[8], ip[9] = 4<<4|ip4Size/4, 0x40, hops, unix.IPPROTO_ICMP
	binary.BigEndian.PutUint16(ip[2:], uint16(size))
	copy(ip[12:], p.Source.AsSlice())
	copy(ip[16:], p.Destination.AsSlice())
	binary.BigEndian.PutUint16(ip[10:], checksum(0, ip[:ip4Size]))
}

// sum and checksum are those of RFC 1071.
func sum(start uint32, b []byte) uint32 {
	for i := 0; i+1 < len(b); i += 2 {
		start += uint32(b[i])<<8 | uint32(b[i+1])
	}
	if len(b)%2 == 1 {
		start += uint32(b[len(b)-1]) << 8
	}
	return start
}

func checksum(start uint32, b []byte) uint16 {
	s := sum(start, b)
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return ^uint16(s)
}

// Speak gives an echo request to the kernel of a namespace as a program there would: it is routed, filtered and addressed by
// that kernel, and not fragmented. The error wraps the kernel's refusal.
func (s *Space) Speak(token Token, p Probe) error {
	domain, protocol := unix.AF_INET, unix.IPPROTO_ICMP
	if p.Source.Is6() {
		domain, protocol = unix.AF_INET6, unix.IPPROTO_ICMPV6
	}
	var fd int
	err := nl.In(s.fd, func() (err error) {
		fd, err = unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
		return err
	})
	if err != nil {
		return fmt.Errorf("open a raw socket: %w", err)
	}
	defer unix.Close(fd)
	if err := p.whole(fd); err != nil {
		return err
	}
	if err := unix.Bind(fd, sockaddr(p.Source)); err != nil {
		return fmt.Errorf("bind to %s: %w", p.Source, err)
	}
	if err := unix.Sendto(fd, p.Frame(token)[etherSize+headers(p.Source):], 0, sockaddr(p.Destination)); err != nil {
		return fmt.Errorf("send to %s: %w", p.Destination, err)
	}
	return nil
}

// whole forbids a socket to fragment, and to wait.
func (p Probe) whole(fd int) error {
	if p.Source.Is4() {
		return errors.Join(unix.SetNonblock(fd, true), unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO))
	}
	return errors.Join(unix.SetNonblock(fd, true),
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO),
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_DONTFRAG, 1))
}

func sockaddr(a netip.Addr) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Addr: a.As4()}
	}
	return &unix.SockaddrInet6{Addr: a.As16()}
}
