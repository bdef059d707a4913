package dataplane

import (
	"fmt"
	"net/netip"

	"github.com/netdriver/netdriver/dataplane/guard"
	"github.com/netdriver/netdriver/dataplane/rate"
	"github.com/netdriver/netdriver/vxlan"
)

// Verb is what an Op does.
type Verb uint8

// The verbs, in the order in which a plan has them.
const (
	AddBridge Verb = iota + 1
	AddVXLAN
	AddPort
	SetMaster // make the device a port of the network's bridge
	SetFlags  // set the bridge port's flags: learning off, and neighbour suppression on for the VXLAN device
	SetMTU
	SetUp
	SetRate      // limit what a port's container sends and is sent
	PutFDB       // add the entry, or change what its MAC has
	PutNeighbour // add the entry, or change what its address has
	Announce     // tell the containers here which MAC an address has from now on
	PutBackend   // add a backend of a service, or change whether it drains
	PutVIP       // balance new flows to a virtual address over these backends from now on
	Attach       // put the programs that balance on a port
	MakeGuard    // make the packet filter's table, which all networks share
	PutGuard     // put into the table what belongs to the network
	DelFDB
	DelNeighbour
	DelVIP
	DelBackend // its open flows end
	Detach
	DelGuard
	DelRate
	DelLink // with all entries on the device
)

// Op is one change of one object in the kernel. It is a value: two equal Ops do the same.
type Op struct {
	Verb Verb
	VNI  vxlan.VNI
	// Network is the network's name, Device the device's; Endpoint is set if the device is a port.
	Network, Device, Endpoint string
	// MTU in bytes, of AddBridge, AddVXLAN, AddPort, SetMTU.
	MTU int
	// Local, Underlay and UDPPort are those of AddVXLAN. For SetMTU of a VXLAN device Underlay and Local say what the
	// MTU must fit into.
	Local    netip.Addr
	Underlay string
	UDPPort  uint16
	// MAC of AddPort (the container's end), PutFDB, DelFDB, PutNeighbour, Announce; VTEP of the first two of those entries if they
	// are the VXLAN device's own; Address of the neighbour verbs.
	MAC     vxlan.MAC
	VTEP    netip.Addr
	Address netip.Addr
	// Service is the id of the service that PutBackend, PutVIP and their opposites are about; Address is the virtual one
	// or the backend's, MAC and Draining are the backend's. Backends are those of PutVIP: see formatTargets.
	Service  string
	Draining bool
	Backends string
	// Guard is the change that the verbs of that name make.
	Guard guard.Change
	// Limit of SetRate.
	Limit rate.Limit
}

// String returns the command that does the same inside our namespace, which it calls "netdriver"; "host" stands for the
// host's own, in which a VXLAN device is made so that its socket stays there.
func (o Op) String() string {
	switch o.Verb {
	case AddBridge:
		return fmt.Sprintf("ip link add %s address %s mtu %d type bridge mcast_snooping 0 vlan_default_pvid 0%s",
			o.Device, bridgeMAC(o.VNI), o.MTU, o.thenAlias())
	case AddVXLAN:
		return fmt.Sprintf("ip -n host link add %s netns netdriver mtu %d"+
			" type vxlan id %d dstport %d local %s dev %s nolearning%s",
			o.Device, o.MTU, o.VNI, o.UDPPort, o.Local, o.Underlay, o.thenAlias())
	case AddPort:
		return fmt.Sprintf("ip link add %s mtu %d type veth peer name %s address %s mtu %d netns host%s",
			o.Device, o.MTU, ContainerEnd(o.Endpoint), o.MAC, o.MTU, o.thenAlias())
	case SetMaster:
		return fmt.Sprintf("ip link set %s master %s", o.Device, BridgeName(o.VNI))
	case SetFlags:
		if o.Endpoint == "" {
			return fmt.Sprintf("bridge link set dev %s learning off neigh_suppress on", o.Device)
		}
		return fmt.Sprintf("bridge link set dev %s learning off", o.Device)
	case SetMTU:
		return fmt.Sprintf("ip link set %s mtu %d", o.Device, o.MTU)
	case SetUp:
		return fmt.Sprintf("ip link set %s up", o.Device)
	case DelLink:
		return fmt.Sprintf("ip link del %s", o.Device)
	case SetRate:
		return fmt.Sprintf("limit dev %s %s", o.Device, o.Limit)
	case DelRate:
		return fmt.Sprintf("limit dev %s none", o.Device)
	case MakeGuard, PutGuard, DelGuard:
		return o.Guard.String()
	}
	return o.entryString()
}

// alias is what marks the new device as ours.
func (o Op) alias() string {
	if o.Endpoint != "" {
		return portAlias(o.Endpoint, o.Network, o.VNI)
	}
	return networkAlias(o.Network)
}

// thenAlias is the rest of an addition: the kernel ignores an alias in the message that makes a device.
func (o Op) thenAlias() string {
	return fmt.Sprintf(" && ip link set %s alias %q", o.Device, o.alias())
}

func (o Op) entryString() string {
	switch {
	case o.Verb == PutFDB && o.VTEP.IsValid() && o.MAC.IsZero():
		return fmt.Sprintf("bridge fdb append %s dev %s dst %s self permanent", o.MAC, o.Device, o.VTEP)
	case o.Verb == PutFDB && o.VTEP.IsValid():
		return fmt.Sprintf("bridge fdb replace %s dev %s dst %s self permanent", o.MAC, o.Device, o.VTEP)
	case o.Verb == PutFDB:
		return fmt.Sprintf("bridge fdb replace %s dev %s master static", o.MAC, o.Device)
	case o.Verb == DelFDB && o.VTEP.IsValid():
		return fmt.Sprintf("bridge fdb del %s dev %s dst %s self", o.MAC, o.Device, o.VTEP)
	case o.Verb == DelFDB:
		return fmt.Sprintf("bridge fdb del %s dev %s master", o.MAC, o.Device)
	case o.Verb == PutNeighbour:
		return fmt.Sprintf("ip neigh replace %s lladdr %s dev %s nud permanent", o.Address, o.MAC, o.Device)
	case o.Verb == Announce:
		return fmt.Sprintf("announce %s lladdr %s dev %s", o.Address, o.MAC, o.Device)
	case o.Verb == DelNeighbour:
		return fmt.Sprintf("ip neigh del %s dev %s", o.Address, o.Device)
	}
	return o.balanceString()
}

// balanceString is no command that exists: nothing else writes to the maps.
func (o Op) balanceString() string {
	switch o.Verb {
	case PutBackend:
		draining := ""
		if o.Draining {
			draining = " draining"
		}
		return fmt.Sprintf("balance put backend %s lladdr %s service %s%s", o.Address, o.MAC, o.Service, draining)
	case PutVIP:
		return fmt.Sprintf("balance put vip %s service %s over [%s]", o.Address, o.Service, o.Backends)
	case Attach:
		return fmt.Sprintf("balance attach dev %s", o.Device)
	case DelVIP:
		return fmt.Sprintf("balance del vip %s service %s", o.Address, o.Service)
	case DelBackend:
		return fmt.Sprintf("balance del backend %s lladdr %s service %s", o.Address, o.MAC, o.Service)
	case Detach:
		return fmt.Sprintf("balance detach dev %s", o.Device)
	}
	return fmt.Sprintf("unknown operation %d on %s", o.Verb, o.Device)
}
