// Package firewall keeps netdriver's own rules in the host's packet filter: who may send to the overlay's UDP ports, that
// nothing leaves in clear which must be encrypted, and the NAT of bridge networks.
//
// A Ruleset says what is wanted, without a word of how. One of two kernels makes it so: NFTables in a table of its own, or
// IPTables, where that is all there is, in chains of its own with one jump to each. Nothing of anybody else's is read into
// a plan or changed, and no rule of anybody else's can let a packet pass that a rule here drops.
package firewall

import (
	"net/netip"

	"github.com/netdriver/netdriver/vxlan"
)

// Ruleset is all that one part of netdriver wants of the packet filter. Parts do not know of each other: each one's names
// begin with its Owner.
type Ruleset struct {
	// Owner is the part's name, such as "underlay": up to 9 lower-case letters.
	Owner  string
	Sets   []Set
	Chains []Chain
}

// Set is a list that rules refer to by its name, so that it can change without touching them: addresses of both families,
// or VNIs.
type Set struct {
	Name  string
	Addrs []netip.Addr
	VNIs  []vxlan.VNI
}

// Chain holds the rules for one place. An owner has at most one for each. A packet that no rule decides upon goes on.
type Chain struct {
	Hook  Hook
	Rules []Rule
}

// Hook is a place on a packet's way.
type Hook uint8

// The hooks. Drops belong into the first three: they come before what the user and Docker have there, or, if not, what
// those accept still gets here.
const (
	Input   Hook = iota + 1 // for this host; whole IPv4 packets, not fragments
	Forward                 // through this host, from one interface to another
	Output                  // leaves this host, its own or forwarded, after all NAT
	DNAT                    // destination NAT of what comes in
	LocalDNAT
	SNAT  // source NAT
	Allow // what Docker's or the user's filter of forwarded packets would drop; only iptables can have it, see IPTables
)

// Verdict is what happens to a packet that a rule matches.
type Verdict uint8

// The verdicts.
const (
	Drop       Verdict = iota + 1
	Pass               // the other rules of this chain do not see it
	Accept             // only at Allow
	Masquerade         // only at SNAT
	Redirect           // to Rule.Target, only at DNAT and LocalDNAT
)

// Protocol is UDP or TCP.
type Protocol uint8

// The protocols, by their numbers.
const (
	TCP Protocol = 6
	UDP Protocol = 17
)

// Transform is what IPsec did to an incoming packet, or will do to an outgoing one.
type Transform uint8

// What a rule can ask for.
const (
	Plain     Transform = iota + 1 // nothing
	Encrypted                      // it came from an SA, or goes to one
)

// State is a set of connection states.
type State uint8

// The states, to be or-ed.
const (
	StateInvalid State = 1 << iota
	StateEstablished
	StateRelated
	StateNew
)

// Rule matches a packet if all of its fields do that are not zero.
type Rule struct {
	// Name is that of its counter, up to 15 lower-case letters, digits and hyphens. Rules of one owner with the same name
	// share a counter. Only rules with a name count.
	Name string
	// In and Out are interfaces' names; a * at the end stands for any rest.
	In, Out       string
	NotIn, NotOut bool
	Protocol      Protocol
	// Port is the destination's.
	Port           uint16
	From, To       netip.Prefix
	NotFrom, NotTo bool
	// FromSet names a Set of addresses that the source is in, or is not in.
	FromSet    string
	NotFromSet bool
	// ToLocal: the destination is an address of this host.
	ToLocal bool
	// VNIs names a Set of VNIs that has the one in the packet's VXLAN header. That is looked for only where UDP follows
	// the IP header at once; Extended matches IPv6 packets in which it does not.
	VNIs     string
	Extended bool
	// IPsec at Input and Output.
	IPsec Transform
	// Mark is compared under Mask, if that is not zero.
	Mark, Mask uint32
	State      State
	// Translated: the connection's destination is another than its client asked for, as with a published port.
	Translated bool

	Verdict Verdict
	Target  netip.AddrPort

	outgoing bool // of a chain at Output
}

// family is the address family that a rule is bound to: 4, 6, or 0 for both.
func (r Rule) family() int {
	for _, p := range []netip.Prefix{r.From, r.To} {
		switch {
		case !p.IsValid():
		case p.Addr().Is4():
			return 4
		default:
			return 6
		}
	}
	switch {
	case r.Target.IsValid() && r.Target.Addr().Is4():
		return 4
	case r.Target.IsValid() || r.Extended:
		return 6
	}
	return 0
}

// set returns a set by its name; Check has seen that it is there.
func (s Ruleset) set(name string) Set {
	for _, x := range s.Sets {
		if x.Name == name {
			return x
		}
	}
	return Set{}
}

// of returns the set's addresses of a family.
func (s Set) of(family int) []netip.Addr {
	var out []netip.Addr
	for _, a := range s.Addrs {
		if a.Unmap().Is4() == (family == 4) {
			out = append(out, a.Unmap())
		}
	}
	return out
}

func (h Hook) String() string {
	return [...]string{"", "in", "fwd", "out", "dnat", "ldnat", "snat", "allow"}[h]
}
