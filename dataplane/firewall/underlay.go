package firewall

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/netdriver/netdriver/vxlan"
)

// The owners of the rules in this file, and their counters.
const (
	OwnerUnderlay = "underlay"
	// CountStranger counts VXLAN packets for one of our networks that came from no node of the cluster; CountContainer those
	// that came from a container on this host.
	CountStranger, CountContainer = "stranger", "container"

	OwnerLock = "lock"
	// CountPlainIn and CountPlainOut count what came, or would have left, in clear at the port of encrypted networks.
	CountPlainIn, CountPlainOut = "plain-in", "plain-out"
)

// Underlay says who may send VXLAN packets to this node.
type Underlay struct {
	// Device has this node's VTEP address.
	Device string
	// Nodes are the VTEP addresses of all nodes of the cluster.
	Nodes []netip.Addr
	// VNIs of this node's networks, by their UDP port. Packets with others are not judged: they are of other overlays, such
	// as Docker's own, which may use the same port.
	VNIs map[uint16][]vxlan.VNI
	// Bridges are those of Docker's that have names of the user's choice; the others are known by their names.
	Bridges []string
}

// Ruleset returns the rules. A packet with one of our VNIs is dropped if a container of this host has sent it, whatever
// source it claims, to this host or through it to another node; or if its source is no node's.
func (u Underlay) Ruleset() Ruleset {
	s := Ruleset{Owner: OwnerUnderlay}
	if len(u.VNIs) == 0 {
		return s
	}
	in, through := Chain{Hook: Input}, Chain{Hook: Forward}
	s.Sets = []Set{{Name: "nodes", Addrs: u.Nodes}}
	for _, port := range slices.Sorted(maps.Keys(u.VNIs)) {
		vnis := Set{Name: fmt.Sprintf("vnis-%d", port), VNIs: u.VNIs[port]}
		s.Sets = append(s.Sets, vnis)
		ours := Rule{Protocol: UDP, Port: port, VNIs: vnis.Name, Verdict: Drop}
		// The VNI may be out of sight behind extension headers or in another fragment: nobody who means well does that.
		hidden := Rule{Protocol: UDP, Port: port, Extended: true, Verdict: Drop}
		for _, r := range []Rule{ours, hidden} {
			for _, bridge := range slices.Concat(containerBridges(), u.Bridges) {
				if !isLike(u.Device, bridge) {
					r.In, r.Name = bridge, CountContainer
					in.Rules, through.Rules = append(in.Rules, r), append(through.Rules, r)
				}
			}
			r.In, r.Name, r.FromSet, r.NotFromSet = "", CountStranger, "nodes", true
			in.Rules = append(in.Rules, r)
		}
	}
	s.Chains = []Chain{in, through}
	return s
}

// containerBridges are the names of bridges to which Docker and netdriver connect containers. Those can send with any source address
// (Docker leaves them CAP_NET_RAW), and most hosts do not check it.
func containerBridges() []string { return []string{"docker*", "br-*", "nd*"} }

// isLike says whether a device's name is like a pattern, which may end with *.
func isLike(device, pattern string) bool {
	begin, open := strings.CutSuffix(pattern, "*")
	return device == pattern || open && strings.HasPrefix(device, begin)
}

// Lock returns the rules that keep clear text away from the UDP port of encrypted networks, whatever happens to the policies
// of IPsec: nothing comes in there that did not come out of an SA, and nothing leaves for there that does not go into one.
func Lock(port uint16) Ruleset {
	rule := Rule{Protocol: UDP, Port: port, IPsec: Plain, Verdict: Drop}
	in, out := rule, rule
	in.Name, out.Name = CountPlainIn, CountPlainOut
	return Ruleset{Owner: OwnerLock, Chains: []Chain{{Hook: Input, Rules: []Rule{in}}, {Hook: Output, Rules: []Rule{out}}}}
}
