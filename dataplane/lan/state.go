// Package lan makes networks of the host's own: containers in the LAN that an interface is in (macvlan, ipvlan), bridges of
// one host, and the host's own place in a network. Like its parent package it makes the kernel match what is wanted: the
// kernel is read, plan (pure) says which operations are missing, and they are run.
//
// All devices are in the host's network namespace, where the parents are, until libnetwork moves a container's into its
// sandbox. A device leaves nothing behind on the host then, so the sandbox is looked into.
package lan

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/netdriver/netdriver/vxlan"
)

// Kind is the kind of a port's device, as `ip link` has it.
type Kind string

// The kinds of ports.
const (
	Macvlan Kind = "macvlan"
	IPvlan  Kind = "ipvlan"
	Veth    Kind = "veth" // one end is a port of a bridge
)

// Network is what this host has, or should have, of one network. Its slices are sorted, and what is not there is zero.
type Network struct {
	Name string
	// Parent is the host's interface that the network depends on: when its state changes, the network is to be wanted anew.
	// It is not read.
	Parent string
	// VLAN is the interface that netdriver makes for the network, perhaps together with others, when the host has none.
	VLAN VLAN
	// Bridge is the network's own.
	Bridge Bridge
	// Ports are the local endpoints' interfaces, sorted by Endpoint.
	Ports []Port
	// Seat is the host's own place in the network.
	Seat Seat
}

// VLAN is a VLAN interface (IEEE 802.1Q) of ours.
type VLAN struct {
	Device, Parent string
	ID             int
	Up             bool
}

// Bridge is a bridge of ours. Multicast snooping is off, so that multicast is flooded.
type Bridge struct {
	Device string
	MTU    int
	Up     bool
}

// Port is a container's interface, or the host's own one in a LAN.
type Port struct {
	// Endpoint is libnetwork's endpoint id; the devices' names are derived from it and the alias holds all of it.
	Endpoint string
	Kind     Kind
	// Parent is the device that it is on, or the bridge that has the other end of the pair as a port.
	Parent string
	// Mode is macvlan's or ipvlan's (man ip-link).
	Mode string
	MAC  vxlan.MAC
	MTU  int
	// Sandbox is the file of the network namespace that Docker has moved it into, empty before. If that namespace is gone, so
	// is the container, and nothing is wanted.
	Sandbox string
	// Addresses and Gateways are given to it when it has to be made anew in the sandbox: libnetwork does it only once.
	Addresses []netip.Prefix
	Gateways  []netip.Addr
	// Placed: netdriver itself makes it in the sandbox, for Docker does not move such a device.
	Placed bool
	// Attached: the pair's other end is up and a port of the bridge.
	Attached bool
	// Gone is set on a port that was read: its sandbox does not exist.
	Gone bool
}

// Seat is what a device of the host needs for the host to take part in the network: the port of its own endpoint, the
// network's bridge, or the end of a pair that the overlay's data plane made.
type Seat struct {
	Device string
	// Addresses of the device, sorted.
	Addresses []netip.Prefix
	// Routes through the device besides those that follow from its addresses, sorted: the containers here, whom the host
	// does not reach through the LAN's interface.
	Routes []netip.Prefix
	// Answers: the host answers ARP on the device for its addresses elsewhere, to those that it reaches there (arp_filter).
	Answers bool
	Up      bool
}

// ErrWant is wrapped by errors about a wanted network that no kernel could have.
var ErrWant = errors.New("impossible network")

func comparePorts(a, b Port) int { return cmp.Compare(a.Endpoint, b.Endpoint) }

func comparePrefixes(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

// Sort puts the slices of n into the order that Network promises, in place.
func (n *Network) Sort() {
	slices.SortFunc(n.Ports, comparePorts)
	for i := range n.Ports {
		slices.SortFunc(n.Ports[i].Addresses, comparePrefixes)
	}
	slices.SortFunc(n.Seat.Addresses, comparePrefixes)
	slices.SortFunc(n.Seat.Routes, comparePrefixes)
}

// Check says whether n can be wanted. The error wraps ErrWant.
func (n Network) Check() error {
	for i, p := range n.Ports {
		if err := p.check(); err != nil {
			return fmt.Errorf("%w %s: %w", ErrWant, n.Name, err)
		}
		if i > 0 && PortName(n.Ports[i-1].Endpoint) >= PortName(p.Endpoint) {
			return fmt.Errorf("%w %s: ports are not sorted, or two endpoints begin with the same %d characters as %s",
				ErrWant, n.Name, idInName, p.Endpoint)
		}
	}
	for _, prefixes := range [][]netip.Prefix{n.Seat.Addresses, n.Seat.Routes} {
		if len(prefixes) > 0 && n.Seat.Device == "" {
			return fmt.Errorf("%w %s: addresses of the host without a device", ErrWant, n.Name)
		}
		for i, p := range prefixes {
			if !p.IsValid() || i > 0 && comparePrefixes(prefixes[i-1], p) >= 0 {
				return fmt.Errorf("%w %s: addresses or routes are not sorted, or one is there twice", ErrWant, n.Name)
			}
		}
	}
	return nil
}

func (p Port) check() error {
	switch {
	case p.Endpoint == "":
		return errors.New("port without endpoint id")
	case p.Parent == "":
		return fmt.Errorf("endpoint %s without parent", p.Endpoint)
	case p.MAC.IsZero() && p.Kind != IPvlan:
		return fmt.Errorf("endpoint %s without MAC address", p.Endpoint)
	case p.Placed && len(p.Addresses) == 0:
		return fmt.Errorf("endpoint %s without address", p.Endpoint)
	}
	return nil
}

// clone returns a copy that shares nothing with n.
func (n Network) clone() Network {
	n.Ports = slices.Clone(n.Ports)
	for i, p := range n.Ports {
		n.Ports[i].Addresses, n.Ports[i].Gateways = slices.Clone(p.Addresses), slices.Clone(p.Gateways)
	}
	n.Seat.Addresses, n.Seat.Routes = slices.Clone(n.Seat.Addresses), slices.Clone(n.Seat.Routes)
	return n
}
