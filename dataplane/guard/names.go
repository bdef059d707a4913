package guard

import (
	"net/netip"
	"strconv"
	"strings"

	"github.com/netdriver/netdriver/vxlan"
)

// The table and what is in it by name. Nothing else in netdriver's namespace is ours.
const (
	tableName = "netdriver"

	setOwn4    = "own4"    // what IPv4 and ARP may come from: port . MAC . address
	setOwn6    = "own6"    // the same for IPv6
	setSpoofed = "spoofed" // ports, each with a counter of what was dropped there as not its own
	setDenied  = "denied"  // ports, each with a counter of what did not get through to it

	// portPrefix begins the names of all ports that have containers behind them.
	portPrefix = "ndp"

	prefixSpoofed = "spoofed"
)

// LogGroup is the group of nfnetlink_log to which some dropped frames are copied, in netdriver's namespace.
const LogGroup = 0x4e44

// What judges frames to ports.
const (
	mapTo     = "to"     // ports → the chain of their class
	setLearns = "learns" // ports that have a class: what they send by UDP is remembered, so that answers pass
	setFlows4 = "flows4" // port . its address . its port . the other's address . its port, while there is traffic
	setFlows6 = "flows6"

	prefixDenied = "denied"
)

// Of each network with a policy there are two maps of addresses to classes, and of each class a chain and five sets: single
// ports are in sets of their own, since the kernel looks into a set of ranges for longer than into all others together (measured:
// 0.3 µs).
func ofNetwork(what string, v vxlan.VNI) string {
	return what + "-" + strconv.FormatUint(uint64(v), 16)
}

func mapClasses4(v vxlan.VNI) string { return ofNetwork("class4", v) }
func mapClasses6(v vxlan.VNI) string { return ofNetwork("class6", v) }

func mapClasses(v vxlan.VNI, a netip.Addr) string {
	if a.Is6() {
		return mapClasses6(v)
	}
	return mapClasses4(v)
}

func chainTo(v vxlan.VNI, class string) string    { return ofNetwork("to", v) + "-" + class }
func setAdmits(v vxlan.VNI, class string) string  { return ofNetwork("admit", v) + "-" + class }
func setReaches(v vxlan.VNI, class string) string { return ofNetwork("reach", v) + "-" + class }
func setAdmitsPorts(v vxlan.VNI, class string) string {
	return ofNetwork("admitport", v) + "-" + class
}
func setReachesPorts(v vxlan.VNI, class string) string {
	return ofNetwork("reachport", v) + "-" + class
}
func setKin(v vxlan.VNI, class string) string { return ofNetwork("kin", v) + "-" + class }

// parseName takes a name apart that ofNetwork made.
func parseName(name string) (what string, v vxlan.VNI, class string, ok bool) {
	what, rest, _ := strings.Cut(name, "-")
	number, class, _ := strings.Cut(rest, "-")
	n, err := strconv.ParseUint(number, 16, 24)
	return what, vxlan.VNI(n), class, err == nil && n != 0
}
