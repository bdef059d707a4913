// Package underlay finds the address and the interface that a host's VXLAN packets use.
package underlay

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// ErrUnderlay is wrapped by every error about an underlay that cannot be used.
var ErrUnderlay = errors.New("no usable underlay")

// Underlay is what a node's VXLAN packets use.
type Underlay struct {
	// VTEP is the address that they come from and go to, Device the interface that has it, MTU that one's in bytes.
	VTEP   netip.Addr
	Device string
	MTU    int
	// Warning is not empty if the choice was a last resort.
	Warning string
}

// Interface is one of the host's network interfaces.
type Interface struct {
	Name string
	// MTU in bytes.
	MTU int
	Up  bool
	// Loopback and Virtual (bridges, veths, tunnels and the like) are not chosen by themselves.
	Loopback, Virtual bool
	Addrs             []netip.Prefix
}

// Host is what matters here of a host's network.
type Host struct {
	Interfaces []Interface
	// DefaultRoute is the interface of the best default route, IPv4's before IPv6's; empty if there is none.
	DefaultRoute string
}

// Choose returns the underlay that want names, an address or an interface. An empty want takes the interface of the
// default route, else the first one that is up, real and has a global address, else the loopback, where a single host
// works all the same. The error wraps ErrUnderlay and lists what the host has.
func (h Host) Choose(want string) (Underlay, error) {
	if want == "" {
		return h.automatic()
	}
	if a, err := netip.ParseAddr(want); err == nil {
		return h.byAddress(a.Unmap())
	}
	for _, i := range h.Interfaces {
		if i.Name == want {
			return h.of(i, "")
		}
	}
	return Underlay{}, h.fail("%s: no such interface", want)
}

func (h Host) byAddress(a netip.Addr) (Underlay, error) {
	for _, i := range h.Interfaces {
		for _, p := range i.Addrs {
			if p.Addr() != a {
				continue
			}
			if !i.Up {
				return Underlay{}, h.fail("%s: its interface %s is down", a, i.Name)
			}
			return Underlay{VTEP: a, Device: i.Name, MTU: i.MTU}, nil
		}
	}
	return Underlay{}, h.fail("%s: no interface has this address", a)
}

func (h Host) automatic() (Underlay, error) {
	loopback := func(i Interface) bool { return i.Loopback && i.Up && len(i.Addrs) > 0 }
	real := func(i Interface) bool { return i.Up && !i.Loopback && !i.Virtual && usable(i).IsValid() }
	routed := func(i Interface) bool { return i.Name == h.DefaultRoute && i.Up && usable(i).IsValid() }
	for _, good := range []func(Interface) bool{routed, real} {
		if n := slices.IndexFunc(h.Interfaces, good); n >= 0 {
			return h.of(h.Interfaces[n], "")
		}
	}
	if n := slices.IndexFunc(h.Interfaces, loopback); n >= 0 {
		return h.of(
			h.Interfaces[n],
			"no interface with a global address: using the loopback, which no other host can reach; "+
				"choose another with --underlay",
		)
	}
	return Underlay{}, h.fail("no interface is up and has an address")
}

// of returns interface i as underlay.
func (h Host) of(i Interface, warning string) (Underlay, error) {
	if !i.Up {
		return Underlay{}, h.fail("%s: it is down", i.Name)
	}
	a := usable(i)
	if !a.IsValid() && i.Loopback && len(i.Addrs) > 0 {
		a = i.Addrs[0].Addr()
	}
	if !a.IsValid() {
		return Underlay{}, h.fail("%s: it has no global address", i.Name)
	}
	return Underlay{VTEP: a, Device: i.Name, MTU: i.MTU, Warning: warning}, nil
}

// usable returns the interface's first global address, IPv4 before IPv6.
func usable(i Interface) netip.Addr {
	var first netip.Addr
	for _, p := range i.Addrs {
		a := p.Addr()
		if !a.IsGlobalUnicast() {
			continue
		}
		if a.Is4() {
			return a
		}
		if !first.IsValid() {
			first = a
		}
	}
	return first
}

func (h Host) fail(format string, args ...any) error {
	return fmt.Errorf("%w: underlay %s; %s", ErrUnderlay, fmt.Sprintf(format, args...), h)
}

// String lists what can be named as underlay.
func (h Host) String() string {
	var parts []string
	for _, i := range h.Interfaces {
		var addrs []string
		for _, p := range i.Addrs {
			if !p.Addr().IsLinkLocalUnicast() {
				addrs = append(addrs, p.String())
			}
		}
		state := ""
		if !i.Up {
			state = " (down)"
		}
		if len(addrs) > 0 {
			parts = append(parts, fmt.Sprintf("%s %s mtu %d%s", i.Name, strings.Join(addrs, " "), i.MTU, state))
		}
	}
	if len(parts) == 0 {
		return "this host has no interface with an address"
	}
	return "this host has " + strings.Join(parts, ", ")
}
