// Package dataplane makes the kernel match a wanted State. Read says what is there, plan (pure) says which operations
// lead from there to what is wanted, and the kernel runs them. Nothing else in netdriver changes the kernel.
//
// All devices of all networks live in one network namespace of ours, except the container's end of each veth, which
// waits in the host's namespace until libnetwork moves it (moby daemon/libnetwork/osl/interface_linux.go).
package dataplane

import (
	"net/netip"

	"github.com/netdriver/netdriver/dataplane/guard"
	"github.com/netdriver/netdriver/dataplane/rate"
	"github.com/netdriver/netdriver/vxlan"
)

// Network is one overlay network as this node's namespace holds it, or should hold it. Its slices are sorted and have
// no duplicates, so that two equal networks compare equal. What is not there is zero: the zero Network is "nothing".
type Network struct {
	// Name is the cluster network's name; it is kept in the devices' aliases.
	Name string
	VNI  vxlan.VNI
	// Bridge and VXLAN are the two devices of the network.
	Bridge Bridge
	VXLAN  VXLAN
	// Ports are the local endpoints' interfaces, sorted by Endpoint.
	Ports []Port
	// FDB is the forwarding database of both devices, sorted by Port, MAC, VTEP.
	FDB []FDBEntry
	// Neighbours let the bridge answer ARP and ND (RFC 826, RFC 4861) for everyone in the network; sorted by Address.
	Neighbours []Neighbour
	// Services are balanced at the local ports; sorted by ID. A service without VIP is not here.
	Services []Service
	// Guard is what the packet filter knows of the network: which frames the local ports may send, and to whom.
	Guard guard.Network
}

// Service is one service's virtual addresses and what stands behind them.
type Service struct {
	ID string
	// VIPs are the virtual addresses, at most one per family, IPv4 first. Each is balanced over the backends of its family.
	VIPs []netip.Addr
	// Backends are sorted by Address.
	Backends []Backend
	// Stale is set on a service that was read if a VIP's table is not what the backends make.
	Stale bool
}

// Backend is one address of a task behind a service.
type Backend struct {
	Address netip.Addr
	MAC     vxlan.MAC
	// Port is the endpoint id of the task's local port, or empty if it is on another node. It is not compared.
	Port string
	// Draining: open flows go on to it, new ones do not.
	Draining bool
}

// Bridge is a network's bridge device. It has no address; multicast snooping is off, so that multicast is flooded.
type Bridge struct {
	Present bool
	// MTU in bytes: the same on the bridge, the VXLAN device and both ends of every veth, so that the sender's own stack
	// refuses or fragments an oversize packet instead of a bridge dropping it in silence.
	MTU int
	Up  bool
}

// VXLAN is a network's VXLAN device: learning off, its socket in the host's namespace, where the underlay is.
type VXLAN struct {
	Present bool
	// Local is the VTEP address of this node, Underlay the name of the device that has it, Port the UDP port.
	Local    netip.Addr
	Underlay string
	Port     uint16
	MTU      int
	Up       bool
	// Enslaved: it is a port of the network's bridge, with learning off and neighbour suppression on.
	Enslaved bool
}

// Port is the host's side of one local endpoint's veth pair.
type Port struct {
	// Endpoint is libnetwork's endpoint id; the devices' names are derived from it and the alias holds all of it.
	Endpoint string
	// MAC is the address of the container's end; it is set when the pair is made and not compared afterwards.
	MAC vxlan.MAC
	MTU int
	Up  bool
	// Enslaved: it is a port of the network's bridge, with learning off.
	Enslaved bool
	// Balanced: the programs that balance the network's services are on it. What is wanted follows from the services.
	Balanced bool
	// Limit is how fast it may send and be sent to.
	Limit rate.Limit
	// Adopt is set on a wanted port whose container end Docker already has: it is repaired if it is there, never made.
	Adopt bool
}

// FDBEntry says where frames for a MAC go.
type FDBEntry struct {
	MAC vxlan.MAC
	// Port is the endpoint id of a local port, or empty for the VXLAN device.
	Port string
	// VTEP is set on an entry of the VXLAN device's own table (NTF_SELF): encapsulate to that address. A zero MAC there is
	// the flood list. Without VTEP it is an entry of the bridge's table (NTF_MASTER).
	VTEP netip.Addr
}

// Neighbour is a permanent neighbour entry on the bridge.
type Neighbour struct {
	Address netip.Addr
	MAC     vxlan.MAC
}
