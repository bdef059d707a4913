package ipsec

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
)

const (
	// ReqID marks the SAs and templates that are netdriver's ("nv1"): nothing else in the kernel is touched.
	ReqID = 0x6e7631
	// ReplayWindow is the number of packets by which one may be late (RFC 4303 §3.4.3 wants at least 32; the queues of a
	// fast card reorder more). It is set on SAs of both directions, since Linux wants a window with ESN.
	ReplayWindow = 1024

	// PairPriority and BlockPriority are those of the policies: in Linux the lower number wins.
	PairPriority  = 0x6e7600
	BlockPriority = PairPriority + 1
)

// SA is one security association as the kernel has it: ESP in transport mode with extended sequence numbers (ESN,
// RFC 4303 §2.2.1) and a selector of the two addresses, so that a node cannot send with its own key in another's name.
type SA struct {
	Src, Dst netip.Addr
	SPI      uint32
	Cipher   Cipher
	// Key is zero in what was read from the kernel.
	Key   Key
	Encap Encap
	// Window is the replay window in packets.
	Window int
	ESN    bool
}

// Encap is ESP-in-UDP (RFC 3948) with these ports; zero is plain ESP.
type Encap struct{ Src, Dst uint16 }

// SAID is what the kernel finds an SA by.
type SAID struct {
	Dst netip.Addr
	SPI uint32
}

// ID returns what the kernel finds the SA by.
func (s SA) ID() SAID { return SAID{s.Dst, s.SPI} }

// same says whether two SAs differ at most in the key, which is not read back from the kernel.
func (s SA) same(o SA) bool {
	s.Key, o.Key = Key{}, Key{}
	return s == o
}

// CompareSAs is the order of State.SAs.
func CompareSAs(a, b SA) int {
	return cmp.Or(a.Dst.Compare(b.Dst), a.Src.Compare(b.Src), cmp.Compare(a.SPI, b.SPI))
}

// Direction is that of a policy.
type Direction string

// The directions.
const (
	In  Direction = "in"
	Out Direction = "out"
)

// Policy says what happens to UDP packets to Port between two prefixes.
type Policy struct {
	Dir      Direction
	Src, Dst netip.Prefix
	Port     uint16
	Priority uint32
	// Block drops them. Otherwise they must go through, or have come from, an SA of netdriver's between the addresses.
	Block bool
	// SPI is the SA that an outgoing packet takes; 0 for incoming ones, which may use any.
	SPI uint32
}

// PolicyID is what the kernel finds a policy by: one more with the same replaces it at once, without a gap.
type PolicyID struct {
	Dir      Direction
	Src, Dst netip.Prefix
	Port     uint16
}

// ID returns what the kernel finds the policy by.
func (p Policy) ID() PolicyID { return PolicyID{p.Dir, p.Src, p.Dst, p.Port} }

func comparePolicies(a, b Policy) int {
	return cmp.Or(cmp.Compare(b.Priority, a.Priority), cmp.Compare(a.Dir, b.Dir),
		a.Src.Compare(b.Src), a.Dst.Compare(b.Dst), cmp.Compare(a.Port, b.Port))
}

// State is what a node's kernel has, or should have, for its encrypted networks. Both lists are sorted: SAs by
// destination, source and SPI; policies with the blocking ones first.
type State struct {
	SAs      []SA
	Policies []Policy
}

// Sorted returns the state with its lists in order.
func (s State) Sorted() State {
	slices.SortFunc(s.SAs, CompareSAs)
	slices.SortFunc(s.Policies, comparePolicies)
	return s
}

// Check says whether two SAs or policies are one to the kernel: that must never be planned.
func (s State) Check() error {
	sas, policies := map[SAID]bool{}, map[PolicyID]bool{}
	for _, a := range s.SAs {
		if sas[a.ID()] {
			return fmt.Errorf("two SAs to %s with SPI %#x", a.Dst, a.SPI)
		}
		sas[a.ID()] = true
	}
	for _, p := range s.Policies {
		if policies[p.ID()] {
			return fmt.Errorf("two policies %s %s to %s port %d", p.Dir, p.Src, p.Dst, p.Port)
		}
		policies[p.ID()] = true
	}
	return nil
}

// Blocked returns the policies that stand below those of the pairs, in both directions and both families: what no
// pair's policy lets through to the port is dropped, whoever it comes from or goes to.
func Blocked(port uint16) State {
	var s State
	for _, any := range []netip.Prefix{
		netip.PrefixFrom(netip.IPv4Unspecified(), 0), netip.PrefixFrom(netip.IPv6Unspecified(), 0),
	} {
		for _, dir := range []Direction{In, Out} {
			s.Policies = append(s.Policies,
				Policy{Dir: dir, Src: any, Dst: any, Port: port, Priority: BlockPriority, Block: true})
		}
	}
	return s.Sorted()
}

// newSA returns the SA of a pair; its key is derived with own, either end's.
func newSA(p Pair, spi uint32, own *PrivateKey) (SA, error) {
	c, err := p.Cipher()
	if err != nil {
		return SA{}, err
	}
	key, err := p.Derive(own)
	if err != nil {
		return SA{}, err
	}
	return SA{
		Src: p.Sender.VTEP.Unmap(), Dst: p.Receiver.VTEP.Unmap(), SPI: spi, Cipher: c, Key: key, Encap: p.encap(),
		Window: ReplayWindow, ESN: true,
	}, nil
}

// encap returns the ports of the pair's ESP-in-UDP: if one end wants it both do it, and an end without a port of its
// own uses the other's.
func (p Pair) encap() Encap {
	s, r := p.SenderEpoch.Encap, p.ReceiverEpoch.Encap
	return Encap{Src: cmp.Or(s, r), Dst: cmp.Or(r, s)}
}

// pairPolicy returns the policy for packets from src to dst.
func pairPolicy(dir Direction, src, dst netip.Addr, port uint16, spi uint32) Policy {
	src, dst = src.Unmap(), dst.Unmap()
	return Policy{
		Dir: dir, Src: netip.PrefixFrom(src, src.BitLen()), Dst: netip.PrefixFrom(dst, dst.BitLen()), Port: port,
		Priority: PairPriority, SPI: spi,
	}
}
