package ipsec

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// FailedSAs are the SAs that could not be added in one Run. A policy that would send with one is left as it was: the
// packets go on with the SA before it, or are blocked.
type FailedSAs map[SAID]bool

// Note takes in an operation that failed.
func (f *FailedSAs) Note(op Op) {
	if op.Verb != AddSA {
		return
	}
	if *f == nil {
		*f = FailedSAs{}
	}
	(*f)[op.SA.ID()] = true
}

// Needed says whether op needs an SA that could not be added.
func (f FailedSAs) Needed(op Op) bool {
	return op.Verb == SetPolicy && f[SAID{op.Policy.Dst.Addr(), op.Policy.SPI}]
}

func (f FailedSAs) before(op Op) error {
	if f.Needed(op) {
		return errors.New("its SA could not be added")
	}
	return nil
}

// Check says why no kernel would take the operation, nil if one may.
func (o Op) Check() error {
	switch o.Verb {
	case AddSA:
		return o.SA.check()
	case SetBlock, SetPolicy:
		return o.Policy.check()
	case DelSA, DelPolicy, DelBlock:
		return nil
	}
	return fmt.Errorf("unknown operation %d: %w", o.Verb, unix.EINVAL)
}

func (s SA) check() error {
	switch {
	case CheckCipher(s.Cipher) != nil:
		return CheckCipher(s.Cipher)
	case len(s.Key.Bytes()) != s.Cipher.KeySize():
		return fmt.Errorf("a key of %d bytes where %s takes %d: %w", len(s.Key.Bytes()), s.Cipher, s.Cipher.KeySize(), unix.EINVAL)
	case s.SPI < minSPI:
		return fmt.Errorf("SPI %#x is reserved (RFC 4303 §2.1): %w", s.SPI, unix.EINVAL)
	case !plain(s.Src) || !plain(s.Dst) || s.Src.Is4() != s.Dst.Is4():
		return fmt.Errorf("from %s to %s: want two addresses of one family: %w", s.Src, s.Dst, unix.EINVAL)
	case s.ESN && s.Window == 0:
		return fmt.Errorf("ESN without a replay window: %w", unix.EINVAL)
	case s.Window < 0 || s.Window > maxWindow:
		return fmt.Errorf("a replay window of %d packets: want 0 to %d: %w", s.Window, maxWindow, unix.EINVAL)
	case (s.Encap.Src == 0) != (s.Encap.Dst == 0):
		return fmt.Errorf("ESP-in-UDP wants both ports: %w", unix.EINVAL)
	}
	return nil
}

// maxWindow is the most that Linux takes (XFRMA_REPLAY_ESN_MAX of linux/xfrm.h), in packets.
const maxWindow = 4096

// plain says whether a is an address of a host, not IPv4 in IPv6's clothes.
func plain(a netip.Addr) bool { return a.IsValid() && !a.Is4In6() && a.Zone() == "" }

func (p Policy) check() error {
	switch {
	case p.Dir != In && p.Dir != Out:
		return fmt.Errorf("policy in direction %q: %w", p.Dir, unix.EINVAL)
	case !p.Src.IsValid() || !p.Dst.IsValid() || p.Src.Addr().Is4() != p.Dst.Addr().Is4():
		return fmt.Errorf("policy from %s to %s: want two prefixes of one family: %w", p.Src, p.Dst, unix.EINVAL)
	case !p.Block && (!p.Src.IsSingleIP() || !p.Dst.IsSingleIP()):
		return fmt.Errorf("policy from %s to %s: transport mode is between two addresses: %w", p.Src, p.Dst, unix.EINVAL)
	case p.Block != (p.Priority == BlockPriority) || !p.Block && p.Priority != PairPriority:
		return fmt.Errorf("policy with priority %d: it would not be ours: %w", p.Priority, unix.EINVAL)
	}
	return nil
}
