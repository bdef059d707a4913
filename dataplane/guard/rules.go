//go:build linux

package guard

import (
	"encoding/binary"
	"encoding/hex"
	"hash/fnv"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// chain is one chain with its rules; hook is nil for one that is jumped to.
type chain struct {
	name     string
	hook     *nftables.ChainHook
	priority nftables.ChainPriority
	rules    []rule
}

type rule []expr.Any

// fingerprint tells a rule from every other. It is kept as the rule's comment, since the kernel prints expressions in its
// own way.
func (r rule) fingerprint() string {
	h := fnv.New32a()
	for _, e := range r {
		b, err := expr.Marshal(unix.NFPROTO_BRIDGE, e)
		if err != nil {
			panic(err) // only plain fields: cannot happen
		}
		h.Write(b)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// The IP protocols and ICMPv6 types that are judged (RFC 4861 §4).
const (
	neighbourSolicit   = 135
	neighbourAdvertise = 136
	routerAdvertise    = 134
	redirect           = 137
)

// chains returns the chains that all networks share.
func chains() []chain {
	return []chain{
		{"spoofed", nil, 0, spoofed()},
		{"denied", nil, 0, denied()},
		{"admitted", nil, 0, []rule{{verdict(expr.VerdictAccept, "")}}},
		{"arp", nil, 0, arp()},
		{"ip6", nil, 0, ip6()},
		// Before any other filter that somebody may add to this namespace.
		{"prerouting", nftables.ChainHookPrerouting, *nftables.ChainPriorityFirst, prerouting()},
		{"forward", nftables.ChainHookForward, *nftables.ChainPriorityFirst, forward()},
	}
}

// prerouting judges what comes out of a container.
func prerouting() []rule {
	return []rule{
		join(iifname(reg0), differs(reg0, []byte(portPrefix)), verdict(expr.VerdictAccept, "")),
		join(protocol(unix.ETH_P_IP), own4(linkSource(), network(12, 4, reg2)), verdict(expr.VerdictGoto, "admitted")),
		join(protocol(unix.ETH_P_IPV6), own6(linkSource(), network(8, 16, reg2)), verdict(expr.VerdictGoto, "ip6")),
		join(protocol(unix.ETH_P_ARP), verdict(expr.VerdictGoto, "arp")),
		join(verdict(expr.VerdictGoto, "spoofed")),
	}
}

// arp lets a container speak of its own addresses only (RFC 826; RFC 5227 §1.1: a probe has no sender address).
func arp() []rule {
	const hardware, protocolAddress, target = 8, 14, 24
	ethernetAndIPv4 := []byte{0, 1, 8, 0, 6, 4}
	both := func(address uint32) rule {
		return join(own4(linkSource(), network(address, 4, reg2)), own4(network(hardware, 6, reg1), network(address, 4, reg2)),
			verdict(expr.VerdictGoto, "admitted"))
	}
	return []rule{
		join(network(0, 6, reg0), differs(reg0, ethernetAndIPv4), verdict(expr.VerdictGoto, "spoofed")),
		both(protocolAddress),
		append(join(network(protocolAddress, 4, reg0), equals(reg0, make([]byte, 4))), both(target)...),
		join(verdict(expr.VerdictGoto, "spoofed")),
	}
}

// ip6 has frames whose source is the container's own. Of neighbour discovery it lets pass what speaks of its own addresses:
// options may follow the target, and the first of one kind counts.
func ip6() []rule {
	const target, option, optionMAC = 8, 24, 26
	unspecified := func() []expr.Any { return join(network(8, 16, reg0), equals(reg0, make([]byte, 16))) }
	kind := func(t byte) []expr.Any {
		return join(l4proto(unix.IPPROTO_ICMPV6), transport(0, 1, reg0), equals(reg0, []byte{t}))
	}
	has := func(kind byte) []expr.Any {
		return join(transport(option, 2, reg0), equals(reg0, []byte{kind, 1}))
	}
	noOptions := join(network(4, 2, reg0), equals(reg0, []byte{0, option}))
	ownTarget := own6(linkSource(), transport(target, 16, reg2))
	spoofed, admitted := verdict(expr.VerdictGoto, "spoofed"), verdict(expr.VerdictGoto, "admitted")
	return []rule{
		join(meta(expr.MetaKeyL4PROTO, reg0), differs(reg0, []byte{unix.IPPROTO_ICMPV6}), unspecified(), spoofed),
		join(meta(expr.MetaKeyL4PROTO, reg0), differs(reg0, []byte{unix.IPPROTO_ICMPV6}), admitted),
		join(kind(routerAdvertise), spoofed),
		join(kind(redirect), spoofed),
		join(kind(neighbourAdvertise), has(2), own6(transport(optionMAC, 6, reg1), transport(target, 16, reg2)), admitted),
		join(kind(neighbourAdvertise), noOptions, ownTarget, admitted),
		join(kind(neighbourAdvertise), spoofed),
		// A probe for an address that it may have, and for no other.
		join(kind(neighbourSolicit), unspecified(), ownTarget, admitted),
		join(kind(neighbourSolicit), unspecified(), spoofed),
		join(kind(neighbourSolicit), has(1), own6(transport(optionMAC, 6, reg1), network(8, 16, reg2)), admitted),
		join(kind(neighbourSolicit), has(1), spoofed),
		join(admitted),
	}
}

// spoofed counts, tells and drops.
func spoofed() []rule {
	return []rule{
		join(iifname(reg0), lookup(setSpoofed, reg0)),
		tell(prefixSpoofed),
		join(verdict(expr.VerdictDrop, "")),
	}
}

// tell copies the beginning of a few frames per second to the daemon.
func tell(prefix string) rule {
	const snap = 160 // bytes: enough for Ethernet, IPv6 and transport headers
	return join(
		&expr.Limit{Type: expr.LimitTypePkts, Rate: 10, Unit: expr.LimitTimeSecond, Burst: 40},
		&expr.Log{Group: LogGroup, Snaplen: snap, Data: []byte(prefix),
			Key: 1<<unix.NFTA_LOG_GROUP | 1<<unix.NFTA_LOG_SNAPLEN | 1<<unix.NFTA_LOG_PREFIX})
}

// The registers that a concatenation of a name, a MAC and an address is put into: 16, 8 and 16 bytes one after the other.
const (
	reg0 = unix.NFT_REG32_00
	reg1 = unix.NFT_REG32_04
	reg2 = unix.NFT_REG32_06
)

// join makes a list of expressions of expressions and lists of them.
func join(parts ...any) rule {
	var r rule
	for _, p := range parts {
		switch p := p.(type) {
		case []expr.Any:
			r = append(r, p...)
		case rule:
			r = append(r, p...)
		case expr.Any:
			r = append(r, p)
		}
	}
	return r
}

func meta(key expr.MetaKey, reg uint32) expr.Any { return &expr.Meta{Key: key, Register: reg} }

func iifname(reg uint32) expr.Any { return meta(expr.MetaKeyIIFNAME, reg) }

func equals(reg uint32, data []byte) expr.Any {
	return &expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: data}
}

func differs(reg uint32, data []byte) expr.Any {
	return &expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: data}
}

func protocol(ethertype uint16) []expr.Any {
	return join(meta(expr.MetaKeyPROTOCOL, reg0), equals(reg0, binary.BigEndian.AppendUint16(nil, ethertype)))
}

func l4proto(p byte) []expr.Any {
	return join(meta(expr.MetaKeyL4PROTO, reg0), equals(reg0, []byte{p}))
}

func payload(base expr.PayloadBase, offset, size, reg uint32) expr.Any {
	return &expr.Payload{OperationType: expr.PayloadLoad, Base: base, Offset: offset, Len: size, DestRegister: reg}
}

// network and transport load bytes of those headers, linkSource the frame's source.
func network(offset, size, reg uint32) expr.Any {
	return payload(expr.PayloadBaseNetworkHeader, offset, size, reg)
}

func transport(offset, size, reg uint32) expr.Any {
	return payload(expr.PayloadBaseTransportHeader, offset, size, reg)
}

func linkSource() expr.Any { return payload(expr.PayloadBaseLLHeader, 6, 6, reg1) }

// own4 and own6 match if the port may use the MAC in reg1 with the address in reg2.
func own4(mac, address expr.Any) []expr.Any {
	return join(iifname(reg0), mac, address, lookup(setOwn4, reg0))
}

func own6(mac, address expr.Any) []expr.Any {
	return join(iifname(reg0), mac, address, lookup(setOwn6, reg0))
}

func lookup(set string, reg uint32) expr.Any { return &expr.Lookup{SourceRegister: reg, SetName: set} }

func verdict(kind expr.VerdictKind, chain string) expr.Any {
	return &expr.Verdict{Kind: kind, Chain: chain}
}
