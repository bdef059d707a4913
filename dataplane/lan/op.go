package lan

import (
	"fmt"
	"net/netip"

	"github.com/netdriver/netdriver/vxlan"
)

// Verb is what an Op does.
type Verb uint8

// The verbs, in the order in which a plan has them.
const (
	AddVLAN Verb = iota + 1
	AddBridge
	AddPort   // in the host's namespace, for Docker to move it
	PlacePort // in the container's sandbox, with its addresses and routes
	SetMaster // make the bridge's end of a pair a port of the bridge
	SetMTU
	SetAnswers // arp_filter
	SetUp
	AddAddress
	AddRoute
	DelRoute
	DelAddress
	DelLink
)

// Op is one change of one object in the kernel. It is a value: two equal Ops do the same.
type Op struct {
	Verb    Verb
	Network string
	// Device is what is changed, Endpoint is set if it is a port; Sandbox is the namespace that it is in, empty for the host's.
	Device, Endpoint, Sandbox string
	// Parent, Kind and Mode are those of an addition; ID of a VLAN.
	Parent, Mode string
	Kind         Kind
	ID           int
	MTU          int
	MAC          vxlan.MAC
	// Prefix is the address or the route.
	Prefix netip.Prefix
	// Addresses and Gateways are those of PlacePort, separated by spaces.
	Addresses, Gateways string
}

// String returns the command that does the same.
func (o Op) String() string {
	switch o.Verb {
	case AddVLAN:
		return fmt.Sprintf("ip link add link %s name %s alias %q type vlan id %d", o.Parent, o.Device, vlanAlias, o.ID)
	case AddBridge:
		return fmt.Sprintf("ip link add %s mtu %d alias %q type bridge mcast_snooping 0", o.Device, o.MTU, bridgeAlias(o.Network))
	case AddPort:
		return o.addPort()
	case PlacePort:
		s := fmt.Sprintf("%s && ip link set %s netns %s name eth && ip address add %s && ip link set eth up",
			o.addPort(), o.Device, o.Sandbox, o.Addresses)
		if o.Gateways != "" {
			s += " && ip route add default via " + o.Gateways
		}
		return s
	case SetMaster:
		return fmt.Sprintf("ip link set %s master %s", o.Device, o.Parent)
	case SetMTU:
		return o.in() + fmt.Sprintf("ip link set %s mtu %d", o.Device, o.MTU)
	case SetAnswers:
		return fmt.Sprintf("sysctl net.ipv4.conf.%s.arp_filter=1", o.Device)
	case SetUp:
		return fmt.Sprintf("ip link set %s up", o.Device)
	case AddAddress:
		return fmt.Sprintf("ip address add %s dev %s", o.Prefix, o.Device)
	case AddRoute:
		return fmt.Sprintf("ip route add %s dev %s", o.Prefix, o.Device)
	case DelRoute:
		return fmt.Sprintf("ip route del %s dev %s", o.Prefix, o.Device)
	case DelAddress:
		return fmt.Sprintf("ip address del %s dev %s", o.Prefix, o.Device)
	case DelLink:
		return o.in() + fmt.Sprintf("ip link del %s", o.Device)
	}
	return fmt.Sprintf("unknown operation %d on %s", o.Verb, o.Device)
}

// in is how a command begins that is run in a sandbox.
func (o Op) in() string {
	if o.Sandbox == "" {
		return ""
	}
	return "nsenter --net=" + o.Sandbox + " "
}

func (o Op) addPort() string {
	alias := portAlias(o.Endpoint, o.Network)
	switch o.Kind {
	case Veth:
		return fmt.Sprintf("ip link add %s mtu %d alias %q type veth peer name %s address %s mtu %d",
			pairName(o.Endpoint), o.MTU, alias, o.Device, o.MAC, o.MTU)
	case IPvlan:
		return fmt.Sprintf("ip link add link %s name %s mtu %d alias %q type ipvlan mode %s",
			o.Parent, o.Device, o.MTU, alias, o.Mode)
	}
	return fmt.Sprintf("ip link add link %s name %s address %s mtu %d alias %q type %s mode %s",
		o.Parent, o.Device, o.MAC, o.MTU, alias, o.Kind, o.Mode)
}

// OpError says which operation failed.
type OpError struct {
	Op  Op
	Err error
}

func (e *OpError) Error() string { return fmt.Sprintf("%s: %v", e.Op, e.Err) }
func (e *OpError) Unwrap() error { return e.Err }
