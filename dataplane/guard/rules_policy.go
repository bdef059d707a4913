//go:build linux

package guard

import (
	"encoding/binary"
	"time"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/vxlan"
)

const (
	// flowIdle is how long an answer by UDP may take, as the kernel's connection tracking has it for a stream
	// (net.netfilter.nf_conntrack_udp_timeout_stream).
	flowIdle = 120 * time.Second
	maxFlows = 1 << 17
)

// forward judges what goes to a container whose network has a policy. The bridges of other networks pay for a look into two
// maps. There is no connection tracking: not every kernel has it for bridges, and it would cost more.
func forward() []rule {
	return []rule{
		learn(unix.ETH_P_IP, setFlows4, 12, 16, 4),
		learn(unix.ETH_P_IPV6, setFlows6, 8, 24, 16),
		join(oifname(reg0), vmap(mapTo, reg0)),
	}
}

// learn remembers what a container sends by UDP, whose addresses of that size are at source and destination in the network
// header. TCP needs no memory: who may not begin a connection gets nothing but a reset for segments that belong to none (RFC
// 9293 §3.10.7.4). What comes from elsewhere is told by its device's name before a set is looked into.
func learn(ethertype uint16, flows string, source, destination, size uint32) rule {
	name := join(iifname(reg0), equals(reg0, []byte(portPrefix)), lookup(setLearns, reg0)) // which stays in its register
	return join(l4proto(unix.IPPROTO_UDP), protocol(ethertype), flow(name, source, destination, size, 0, 2), update(flows))
}

// flow loads port, address, its port, the other address, its port: the key of a flow. near and far are where the addresses
// of that size are in the network header, nearPort and farPort where the ports are in the transport header.
func flow(name any, near, far, size, nearPort, farPort uint32) []expr.Any {
	after := reg1 + size/4
	return join(name, network(near, size, reg1), transport(nearPort, 2, after), network(far, size, after+1),
		transport(farPort, 2, after+1+size/4))
}

func update(set string) expr.Any {
	return &expr.Dynset{SrcRegKey: reg0, SetName: set, Operation: uint32(unix.NFT_DYNSET_OP_UPDATE), Timeout: flowIdle}
}

// denied counts, tells and drops.
func denied() []rule {
	return []rule{
		join(oifname(reg0), lookup(setDenied, reg0)),
		tell(prefixDenied),
		join(verdict(expr.VerdictDrop, "")),
	}
}

// toClass judges what goes to an endpoint of a class. Replies are known by where they come from: a place that the class
// may reach, by TCP with a segment that begins no connection, by UDP as the answer to something that was sent.
func toClass(v vxlan.VNI, class string) chain {
	accept := verdict(expr.VerdictAccept, "")
	kind := func(proto byte, first, last byte) []expr.Any {
		return join(l4proto(proto), transport(0, 1, reg0), &expr.Range{Op: expr.CmpOpEq, Register: reg0, FromData: []byte{first}, ToData: []byte{last}})
	}
	// Most frames end here: the sender's class is noted, for the rules further down, and looked for at once.
	admitted := func(ethertype uint16, source expr.Any, classes string) rule {
		return join(protocol(ethertype), source, mark(classes), between(2, setAdmitsPorts(v, class)), accept)
	}
	// A segment of TCP that begins no connection, from a place that the class may reach.
	answers := func(set string) rule {
		return join(l4proto(unix.IPPROTO_TCP), transport(13, 1, reg0), masked(reg0, []byte{0x12}), differs(reg0, []byte{0x02}), between(0, set), accept)
	}
	replies := between(0, setReaches(v, class))
	kin := join(meta(expr.MetaKeyMARK, reg0), lookup(setKin(v, class), reg0))
	return chain{name: chainTo(v, class), rules: []rule{
		admitted(unix.ETH_P_IP, network(12, 4, reg0), mapClasses4(v)),
		admitted(unix.ETH_P_IPV6, network(8, 16, reg0), mapClasses6(v)),
		join(meta(expr.MetaKeyMARK, reg0), equals(reg0, make([]byte, 4)), between(2, setAdmitsPorts(v, class)), accept), // it has none
		answers(setReachesPorts(v, class)),
		join(between(2, setAdmits(v, class)), accept),
		answers(setReaches(v, class)),
		join(l4proto(unix.IPPROTO_UDP), protocol(unix.ETH_P_IP), flow(oifname(reg0), 16, 12, 4, 2, 0), lookup(setFlows4, reg0), accept),
		join(l4proto(unix.IPPROTO_UDP), protocol(unix.ETH_P_IPV6), flow(oifname(reg0), 24, 8, 16, 2, 0), lookup(setFlows6, reg0), accept),
		// Echo replies, and errors (RFC 792, RFC 4443 §2.1).
		join(kind(unix.IPPROTO_ICMP, 0, 0), replies, accept),
		join(kind(unix.IPPROTO_ICMPV6, 129, 129), replies, accept),
		join(kind(unix.IPPROTO_ICMP, 3, 3), kin, accept),
		join(kind(unix.IPPROTO_ICMP, 11, 12), kin, accept),
		join(kind(unix.IPPROTO_ICMPV6, 1, 4), kin, accept),
		// A later fragment has no ports; without the first it is of no use to anybody.
		join(protocol(unix.ETH_P_IP), network(6, 2, reg0), masked(reg0, []byte{0x1f, 0xff}), differs(reg0, []byte{0, 0}), kin, accept),
		join(protocol(unix.ETH_P_IPV6), &expr.Exthdr{DestRegister: reg0, Type: unix.IPPROTO_FRAGMENT, Offset: 2, Len: 2, Op: expr.ExthdrOpIpv6},
			masked(reg0, []byte{0xff, 0xf8}), differs(reg0, []byte{0, 0}), kin, accept),
		// What links need: address resolution, multicast listeners (RFC 4861, RFC 3810, RFC 3376).
		join(protocol(unix.ETH_P_ARP), accept),
		join(kind(unix.IPPROTO_ICMPV6, 130, 136), accept),
		join(kind(unix.IPPROTO_ICMPV6, 143, 143), accept),
		join(l4proto(unix.IPPROTO_IGMP), accept),
		join(verdict(expr.VerdictGoto, "denied")),
	}}
}

// between matches if the sender's class, the protocol and the port at offset in the transport header are in a set.
func between(offset uint32, set string) []expr.Any {
	return join(meta(expr.MetaKeyMARK, reg0), meta(expr.MetaKeyL4PROTO, reg0+1), transport(offset, 2, reg0+2), lookup(set, reg0))
}

// mark notes the class of the address in reg0, if it has one. A frame arrives without mark: the kernel takes it off when
// one passes from a network namespace to another (net/core/skbuff.c skb_scrub_packet).
func mark(classes string) []expr.Any {
	return join(&expr.Lookup{SourceRegister: reg0, SetName: classes, DestRegister: reg0, IsDestRegSet: true},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: reg0})
}

func masked(reg uint32, mask []byte) expr.Any {
	return &expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: uint32(len(mask)), Mask: mask, Xor: make([]byte, len(mask))}
}

func oifname(reg uint32) expr.Any { return meta(expr.MetaKeyOIFNAME, reg) }

func vmap(name string, reg uint32) expr.Any {
	return &expr.Lookup{SourceRegister: reg, SetName: name, DestRegister: unix.NFT_REG_VERDICT, IsDestRegSet: true}
}

// bounds are the first and the last key of a span: class . protocol . port, each in four bytes.
func (s Span) bounds() (first, last []byte) {
	key := func(proto uint8, port uint16) []byte {
		b := binary.NativeEndian.AppendUint32(nil, s.Peer)
		b = append(b, proto, 0, 0, 0)
		return append(binary.BigEndian.AppendUint16(b, port), 0, 0)
	}
	return key(s.FirstProto, s.First), key(s.LastProto, s.Last)
}

func spanOf(first, last []byte) (s Span, ok bool) {
	const size = 12
	if len(first) < size || len(last) < size {
		return s, false
	}
	return Span{
		Peer: binary.NativeEndian.Uint32(first), FirstProto: first[4], LastProto: last[4],
		First: binary.BigEndian.Uint16(first[8:]), Last: binary.BigEndian.Uint16(last[8:]),
	}, true
}
