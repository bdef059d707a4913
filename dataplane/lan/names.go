package lan

import (
	"fmt"
	"hash/fnv"
	"strings"
)

// The devices' name prefixes, other than those of the overlay's. With the first ten characters of an endpoint id, or eight
// of a hash, every name stays within the kernel's 15 bytes (IFNAMSIZ in linux/if.h).
const (
	portPrefix   = "ndm" // a container's interface, until Docker renames it
	pairPrefix   = "ndq" // the bridge's end of a pair
	bridgePrefix = "ndl"
	vlanPrefix   = "ndv" // a VLAN interface whose usual name would be too long, or that is not finished

	idInName  = 10
	mostBytes = 15
)

// The aliases by which a fresh daemon knows a device as ours.
const (
	vlanAlias    = "netdriver vlan"
	bridgeWord   = "netdriver bridge network "
	endpointWord = "netdriver lan endpoint "
)

// PortName names an endpoint's interface in the host's namespace: this is the SrcName of the answer to Join.
func PortName(endpoint string) string { return portPrefix + endpoint[:min(len(endpoint), idInName)] }

// pairName names the bridge's end of an endpoint's pair.
func pairName(endpoint string) string { return pairPrefix + endpoint[:min(len(endpoint), idInName)] }

// BridgeName names the bridge of a network.
func BridgeName(network string) string { return fmt.Sprintf("%s%08x", bridgePrefix, hash(network)) }

// vlanName names the VLAN of an interface as users do, eth1.10, if the kernel takes that name.
func vlanName(parent string, id int) string {
	if name := fmt.Sprintf("%s.%d", parent, id); len(name) <= mostBytes {
		return name
	}
	return fmt.Sprintf("%s%04x.%d", vlanPrefix, hash(parent)&0xffff, id)
}

func hash(s string) uint32 {
	h := fnv.New32a()
	h.Write([]byte(s)) // never fails
	return h.Sum32()
}

func bridgeAlias(network string) string { return bridgeWord + network }

// portAlias holds all that a fresh daemon cannot see on the device itself.
func portAlias(endpoint, network string) string {
	return fmt.Sprintf("%s%s network %s", endpointWord, endpoint, network)
}

// Owner returns the endpoint whose interface has an alias; false if it is none of ours.
func Owner(alias string) (endpoint string, ok bool) {
	endpoint, _, ok = endpointOf(alias)
	return endpoint, ok
}

// endpointOf undoes portAlias.
func endpointOf(alias string) (endpoint, network string, ok bool) {
	rest, found := strings.CutPrefix(alias, endpointWord)
	f := strings.Fields(rest)
	if !found || len(f) != 3 || f[1] != "network" {
		return "", "", false
	}
	return f[0], f[2], true
}
