//go:build linux

package xfrm

import (
	"encoding/binary"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/internal/netlink"
	"github.com/netdriver/netdriver/ipsec"
)

// Of linux/xfrm.h and linux/udp.h.
const (
	modeTransport  = 0   // XFRM_MODE_TRANSPORT
	flagESN        = 128 // XFRM_STATE_ESN
	dirIn, dirOut  = 0, 1
	actionAllow    = 0
	actionBlock    = 1
	encapESPInUDP  = 2 // UDP_ENCAP_ESPINUDP
	everyAlgorithm = ^uint32(0)
)

// be swaps a number into network order, as a field of a struct that is sent as it is.
func be16(v uint16) uint16 { return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v)) }
func be32(v uint32) uint32 { return binary.NativeEndian.Uint32(binary.BigEndian.AppendUint32(nil, v)) }

func family(a netip.Addr) uint16 {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func address(a netip.Addr) (out nl.XfrmAddress) {
	copy(out[:], a.AsSlice())
	return out
}

func unlimited() nl.XfrmLifetimeCfg {
	return nl.XfrmLifetimeCfg{
		SoftByteLimit: nl.XFRM_INF, HardByteLimit: nl.XFRM_INF, SoftPacketLimit: nl.XFRM_INF, HardPacketLimit: nl.XFRM_INF,
	}
}

// putSA writes the message that adds an SA. Its selector is the two addresses, so that the SA serves nobody in another's name.
func putSA(m *netlink.Message, s ipsec.SA) {
	info := nl.XfrmUsersaInfo{
		Sel: nl.XfrmSelector{
			Daddr: address(s.Dst), Saddr: address(s.Src), Family: family(s.Dst),
			PrefixlenD: uint8(s.Dst.BitLen()), PrefixlenS: uint8(s.Src.BitLen()),
		},
		Id:    nl.XfrmId{Daddr: address(s.Dst), Spi: be32(s.SPI), Proto: unix.IPPROTO_ESP},
		Saddr: address(s.Src), Lft: unlimited(), Reqid: ipsec.ReqID, Family: family(s.Dst), Mode: modeTransport,
	}
	if s.ESN {
		info.Flags = flagESN
	}
	m.Bytes(info.Serialize()...)

	key := s.Key.Bytes()
	algorithm := make([]byte, 64, nl.SizeofXfrmAlgoAEAD+len(key))
	copy(algorithm, s.Cipher.KernelName())
	algorithm = binary.NativeEndian.AppendUint32(algorithm, uint32(8*len(key)))
	algorithm = binary.NativeEndian.AppendUint32(algorithm, ipsec.ICVBits)
	algorithm = append(algorithm, key...)
	m.Attr(nl.XFRMA_ALG_AEAD, algorithm...)
	clear(algorithm) // key is the caller's

	// struct xfrm_replay_state_esn, with a bitmap of the window's size in words of 32.
	words := (s.Window + 31) / 32
	replay := binary.NativeEndian.AppendUint32(nil, uint32(words))
	replay = append(replay, make([]byte, 4*4)...) // the counters
	replay = binary.NativeEndian.AppendUint32(replay, uint32(s.Window))
	m.Attr(nl.XFRMA_REPLAY_ESN_VAL, append(replay, make([]byte, 4*words)...)...)

	if s.Encap != (ipsec.Encap{}) {
		e := nl.XfrmEncapTmpl{EncapType: encapESPInUDP, EncapSport: be16(s.Encap.Src), EncapDport: be16(s.Encap.Dst)}
		m.Attr(nl.XFRMA_ENCAP, e.Serialize()...)
	}
}

func putSAID(m *netlink.Message, id ipsec.SAID) {
	m.Bytes((&nl.XfrmUsersaId{
		Daddr: address(id.Dst), Spi: be32(id.SPI), Family: family(id.Dst), Proto: unix.IPPROTO_ESP,
	}).Serialize()...)
}

func selector(p ipsec.Policy) nl.XfrmSelector {
	return nl.XfrmSelector{
		Daddr: address(p.Dst.Addr()), Saddr: address(p.Src.Addr()), Family: family(p.Dst.Addr()),
		PrefixlenD: uint8(p.Dst.Bits()), PrefixlenS: uint8(p.Src.Bits()),
		Dport: be16(p.Port), DportMask: 0xffff, Proto: unix.IPPROTO_UDP,
	}
}

func direction(d ipsec.Direction) uint8 {
	if d == ipsec.In {
		return dirIn
	}
	return dirOut
}

// putPolicy writes the message that adds a policy, or replaces what its selector has.
func putPolicy(m *netlink.Message, p ipsec.Policy) {
	info := nl.XfrmUserpolicyInfo{
		Sel: selector(p), Lft: unlimited(), Priority: p.Priority, Dir: direction(p.Dir), Action: actionAllow,
	}
	if p.Block {
		info.Action = actionBlock
		m.Bytes(info.Serialize()...)
		return
	}
	m.Bytes(info.Serialize()...)
	m.Attr(nl.XFRMA_TMPL, (&nl.XfrmUserTmpl{
		XfrmId: nl.XfrmId{Daddr: address(p.Dst.Addr()), Spi: be32(p.SPI), Proto: unix.IPPROTO_ESP},
		Family: family(p.Dst.Addr()), Saddr: address(p.Src.Addr()), Reqid: ipsec.ReqID, Mode: modeTransport,
		Aalgos: everyAlgorithm, Ealgos: everyAlgorithm, Calgos: everyAlgorithm,
	}).Serialize()...)
}

func putPolicyID(m *netlink.Message, p ipsec.Policy) {
	m.Bytes((&nl.XfrmUserpolicyId{Sel: selector(p), Dir: direction(p.Dir)}).Serialize()...)
}
