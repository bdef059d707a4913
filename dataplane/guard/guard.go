// Package guard is the packet filter between a node's containers: one nftables table of the bridge family in netdriver's
// namespace. Each container's frames must have its own MAC and addresses. What a frame costs does not depend on how many
// endpoints there are: everything that belongs to one is an element of a set or map, and no rule is.
//
// State, Plan and Change are pure; Table is the kernel's. A frame is judged where it enters the bridge, after the programs
// of dataplane/balance have given one for a virtual address its real destination.
package guard

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/netdriver/netdriver/vxlan"
)

// Network is what the table holds of one network. Its slices are sorted and have no duplicates.
type Network struct {
	// Table: the table is there, with the sets, chains and rules that all networks share, as this version makes them.
	Table bool
	// Ports are the local endpoints' ports, sorted by Name.
	Ports []Port
	// Sources are what their frames may come from, sorted by Port, MAC, Address.
	Sources []Source
	// Policy judges what goes to the ports that have a Class.
	Policy Policy
}

// Port is one local endpoint's port of the bridge: what is dropped at it is counted.
type Port struct {
	Name string
	// Class is the class by which frames to the port are judged; all pass if it is empty.
	Class string
}

// Source is a MAC with one address that frames from a port may have as their own.
type Source struct {
	Port    string
	MAC     vxlan.MAC
	Address netip.Addr
}

func comparePorts(a, b Port) int { return cmp.Compare(a.Name, b.Name) }

func compareSources(a, b Source) int {
	return cmp.Or(cmp.Compare(a.Port, b.Port), bytes.Compare(a.MAC[:], b.MAC[:]), a.Address.Compare(b.Address))
}

// Sort puts the slices into the order that Network promises and removes duplicates, in place.
func (n *Network) Sort() {
	slices.SortFunc(n.Ports, comparePorts)
	slices.SortFunc(n.Sources, compareSources)
	n.Sources = slices.Compact(n.Sources)
	n.Policy.sort()
}

// Clone returns a copy that shares nothing with n.
func (n Network) Clone() Network {
	n.Ports, n.Sources, n.Policy = slices.Clone(n.Ports), slices.Clone(n.Sources), n.Policy.clone()
	return n
}

// Empty says whether nothing in the table is the network's.
func (n Network) Empty() bool {
	return len(n.Ports)+len(n.Sources)+len(n.Policy.Classes)+len(n.Policy.Members) == 0
}

// Without returns n without what belongs to ports of which gone is true.
func (n Network) Without(gone func(port string) bool) Network {
	n = n.Clone()
	n.Ports = slices.DeleteFunc(n.Ports, func(p Port) bool { return gone(p.Name) })
	n.Sources = slices.DeleteFunc(n.Sources, func(s Source) bool { return gone(s.Port) })
	return n
}

// AddEndpoint adds a port and its sources: the addresses and, if one is IPv6, the link-local address that is made from the
// MAC (RFC 4291 appendix A; the kernel's addr_gen_mode 0) and the unspecified one, from which an address is probed (RFC
// 4862 §5.4.2) and multicast groups are joined before there is one (RFC 3810 §5.2.13).
func (n *Network) AddEndpoint(p Port, mac vxlan.MAC, addresses ...netip.Addr) {
	n.Ports = append(n.Ports, p)
	six := false
	for _, a := range addresses {
		six = six || a.Is6()
		n.Sources = append(n.Sources, Source{p.Name, mac, a})
	}
	if six {
		n.Sources = append(n.Sources, Source{p.Name, mac, LinkLocal(mac)}, Source{p.Name, mac, netip.IPv6Unspecified()})
	}
}

// LinkLocal returns the IPv6 link-local address that is made from a MAC.
func LinkLocal(m vxlan.MAC) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 8: m[0] ^ 2, 9: m[1], 10: m[2], 11: 0xff, 12: 0xfe, 13: m[3], 14: m[4], 15: m[5]})
}

// Check says whether n can be wanted.
func (n Network) Check() error {
	if !n.Table && !n.Empty() {
		return errors.New("ports are guarded without the table")
	}
	for i, p := range n.Ports {
		if i > 0 && comparePorts(n.Ports[i-1], p) >= 0 {
			return errors.New("guarded ports are not sorted, or one is there twice")
		}
		if p.Name == "" || len(p.Name) >= ifNameSize {
			return fmt.Errorf("guarded port %q: 1 to %d bytes are allowed", p.Name, ifNameSize-1)
		}
	}
	for i, s := range n.Sources {
		if i > 0 && compareSources(n.Sources[i-1], s) >= 0 {
			return errors.New("sources are not sorted, or one is there twice")
		}
		if _, found := slices.BinarySearchFunc(n.Ports, Port{Name: s.Port}, comparePorts); !found {
			return fmt.Errorf("source %s of port %q, which is not guarded", s.Address, s.Port)
		}
		if !s.Address.IsValid() || s.MAC.IsZero() {
			return fmt.Errorf("source of port %s without address or MAC", s.Port)
		}
	}
	return n.Policy.check(n.Ports)
}

// ifNameSize is IFNAMSIZ of linux/if.h.
const ifNameSize = 16

// Drops is how many frames were dropped at a port: Spoofed of those that came from it, Denied of those that were to go to
// it.
type Drops struct {
	Port            string
	Spoofed, Denied uint64
	// TooFast is how many packets its rate has cost, in both directions. The packet filter does not count these.
	TooFast uint64
}

func (d *Drops) count(set string, packets uint64) {
	switch set {
	case setSpoofed:
		d.Spoofed = packets
	case setDenied:
		d.Denied = packets
	}
}

// Refusal is one frame that was dropped.
type Refusal struct {
	// Kind is "spoofed" or "denied".
	Kind string
	// Port is the index of the device in netdriver's namespace: of the container that sent a spoofed frame, or that a denied
	// one was for.
	Port uint32
	MAC  vxlan.MAC
	// From and To are IP addresses, also in ARP. Invalid if the frame has none.
	From, To netip.Addr
	ARP      bool
	Proto    uint8
	ToPort   uint16

	ethertype uint16
}

// String says what was tried.
func (r Refusal) String() string {
	if !r.From.IsValid() {
		return fmt.Sprintf("from MAC %s, protocol 0x%04x", r.MAC, r.ethertype)
	}
	what := map[uint8]string{1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6"}[r.Proto]
	switch {
	case r.ARP:
		what = "arp"
	case what == "":
		what = fmt.Sprintf("protocol %d", r.Proto)
	}
	to := r.To.String()
	if r.ToPort != 0 {
		to = netip.AddrPortFrom(r.To, r.ToPort).String()
	}
	return fmt.Sprintf("%s from %s (MAC %s) to %s", what, r.From, r.MAC, to)
}
