package vxlan

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
)

// MAC is an Ethernet address. Unlike net.HardwareAddr it is comparable and always 6 bytes.
type MAC [6]byte

// ErrMAC is wrapped by every error about an Ethernet address.
var ErrMAC = errors.New("bad MAC address")

// ParseMAC reads an endpoint's address such as 02:42:0a:0a:00:05. It must be unicast and not zero; the error wraps ErrMAC.
func ParseMAC(s string) (MAC, error) {
	hw, err := net.ParseMAC(s)
	if err != nil || len(hw) != len(MAC{}) {
		return MAC{}, fmt.Errorf("%w %q: want six hexadecimal bytes such as 02:42:0a:0a:00:05", ErrMAC, s)
	}
	m := MAC(hw)
	if m.IsZero() || m[0]&1 != 0 {
		return MAC{}, fmt.Errorf("%w %q: want a unicast address (the first byte even, not all zero)", ErrMAC, s)
	}
	return m, nil
}

// MACFor derives the locally administered address 02:42:a:b:c:d from an IPv4 address, as Docker does
// (moby daemon/libnetwork/netutils.GenerateMACFromIP); for IPv6 the last four bytes are used.
func MACFor(a netip.Addr) MAC {
	b := a.AsSlice()
	m := MAC{0x02, 0x42}
	copy(m[2:], b[len(b)-4:])
	return m
}

// IsZero says whether m is 00:00:00:00:00:00, which in a VXLAN FDB means "every destination without an entry".
func (m MAC) IsZero() bool { return m == MAC{} }

// HardwareAddr returns m for libraries that want a slice.
func (m MAC) HardwareAddr() net.HardwareAddr { return m[:] }

func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// MarshalText implements encoding.TextMarshaler.
func (m MAC) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (m *MAC) UnmarshalText(b []byte) error {
	v, err := ParseMAC(string(b))
	if err != nil {
		return err
	}
	*m = v
	return nil
}
