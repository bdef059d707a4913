package dataplane

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/netdriver/netdriver/vxlan"
)

// The devices' name prefixes. With a VNI in hexadecimal (6 digits at most) or the first ten characters of an endpoint
// id every name stays within the kernel's 15 bytes (IFNAMSIZ in linux/if.h is 16 with the terminating zero).
const (
	bridgePrefix = "ndb"
	vxlanPrefix  = "ndx"
	portPrefix   = "ndp"
	endPrefix    = "ndc"

	idInName = 10
)

// The aliases by which a fresh daemon knows a device as ours: see networkAlias and portAlias.
const (
	networkWord  = "netdriver network "
	endpointWord = "netdriver endpoint "
)

// BridgeName and VXLANName name the two devices of a network, for example ndb100001 and ndx100001.
func BridgeName(v vxlan.VNI) string { return bridgePrefix + strconv.FormatUint(uint64(v), 16) }
func VXLANName(v vxlan.VNI) string  { return vxlanPrefix + strconv.FormatUint(uint64(v), 16) }

// PortName names the host's side of an endpoint's veth pair, which is a port of the bridge in our namespace.
func PortName(endpoint string) string { return portPrefix + endpoint[:min(len(endpoint), idInName)] }

// ContainerEnd names the container's side of an endpoint's veth pair. It lies in the host's namespace until libnetwork
// moves it into the container and renames it: this is the SrcName of the answer to Join.
func ContainerEnd(endpoint string) string {
	return endPrefix + endpoint[:min(len(endpoint), idInName)]
}

// bridgeMAC is a network's bridge's own address: locally administered, "ND" and the VNI. It appears in no frame, since
// the bridge has no IP address, but it must be chosen: else the bridge takes its lowest port's address, and each
// change, with any container that comes or goes, makes the kernel flush all its neighbours, permanent ones included
// (net/bridge/br_stp_if.c br_stp_recalculate_bridge_id; net/ipv4/arp.c NETDEV_CHANGEADDR).
func bridgeMAC(v vxlan.VNI) vxlan.MAC {
	return vxlan.MAC{0x02, 'N', 'D', byte(v >> 16), byte(v >> 8), byte(v)}
}

func networkAlias(network string) string { return networkWord + network }

// portAlias holds all that a fresh daemon cannot see on the device itself: a port that was torn off its bridge, or
// whose bridge is gone, still says which network it belongs to.
func portAlias(endpoint, network string, v vxlan.VNI) string {
	return fmt.Sprintf("%s%s network %s vni %d", endpointWord, endpoint, network, v)
}

// owner is what a device's name and alias say of it.
type owner struct {
	name     string
	vni      vxlan.VNI
	network  string
	endpoint string // empty for a bridge or VXLAN device
}

// ownerOf says whose device this is; ok is false for one that is not ours, which is never touched.
func ownerOf(name, alias string) (o owner, ok bool) {
	if network, found := strings.CutPrefix(alias, networkWord); found {
		hex, isBridge := strings.CutPrefix(name, bridgePrefix)
		if !isBridge {
			hex, found = strings.CutPrefix(name, vxlanPrefix)
		}
		n, err := strconv.ParseUint(hex, 16, 24)
		return owner{name: name, vni: vxlan.VNI(n), network: network}, found && err == nil && n != 0
	}
	rest, found := strings.CutPrefix(alias, endpointWord)
	if f := strings.Fields(rest); found && len(f) == 5 && f[1] == "network" && f[3] == "vni" && name == PortName(f[0]) {
		n, err := strconv.ParseUint(f[4], 10, 24)
		return owner{name: name, vni: vxlan.VNI(n), network: f[2], endpoint: f[0]}, err == nil && n != 0
	}
	return owner{}, false
}

// EndpointOf returns the endpoint and network of a port, from its name and alias; false for a device that is none of ours.
func EndpointOf(name, alias string) (endpoint, network string, ok bool) {
	o, ok := ownerOf(name, alias)
	return o.endpoint, o.network, ok && o.endpoint != ""
}
