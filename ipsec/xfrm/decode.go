//go:build linux

package xfrm

import (
	"encoding/binary"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/internal/netlink"
	"github.com/netdriver/netdriver/ipsec"
)

func addrOf(a nl.XfrmAddress, family uint16) netip.Addr {
	if family == unix.AF_INET {
		return netip.AddrFrom4([4]byte(a[:4]))
	}
	return netip.AddrFrom16(a)
}

// parseSA reads a struct xfrm_usersa_info with its attributes. What is not as we make SAs becomes an SA without cipher, which
// equals nothing that is wanted. An SA without any algorithm is none: the kernel keeps one for a while when a packet wants an
// SA and an IKE daemon listens (XFRM_STATE_ACQ).
func parseSA(body []byte) (c ipsec.SACount, ours bool) {
	if len(body) < nl.SizeofXfrmUsersaInfo {
		return c, false
	}
	info := nl.DeserializeXfrmUsersaInfo(body)
	if info.Reqid != ipsec.ReqID || info.Id.Proto != unix.IPPROTO_ESP {
		return c, false
	}
	s := ipsec.SA{
		Src: addrOf(info.Saddr, info.Family), Dst: addrOf(info.Id.Daddr, info.Family), SPI: be32(info.Id.Spi),
		ESN: info.Flags&flagESN != 0, Window: int(info.ReplayWindow),
	}
	some, odd := false, info.Mode != modeTransport || info.Flags&^flagESN != 0 || !selects(info.Sel, s)
	netlink.Attrs(body[nl.SizeofXfrmUsersaInfo:], func(kind uint16, v []byte) {
		switch kind {
		case nl.XFRMA_ALG_AEAD:
			some = true
			s.Cipher = cipher(v)
		case nl.XFRMA_ALG_AUTH, nl.XFRMA_ALG_AUTH_TRUNC, nl.XFRMA_ALG_CRYPT, nl.XFRMA_ALG_COMP:
			some, odd = true, true
		case nl.XFRMA_REPLAY_ESN_VAL:
			if len(v) >= 24 {
				s.Window = int(binary.NativeEndian.Uint32(v[20:]))
			}
		case nl.XFRMA_ENCAP:
			if len(v) >= nl.SizeofXfrmEncapTmpl {
				e := nl.DeserializeXfrmEncapTmpl(v)
				s.Encap = ipsec.Encap{Src: be16(e.EncapSport), Dst: be16(e.EncapDport)}
				odd = odd || e.EncapType != encapESPInUDP
			}
		case nl.XFRMA_MARK, nl.XFRMA_IF_ID, nl.XFRMA_SET_MARK, nl.XFRMA_TFCPAD, nl.XFRMA_COADDR:
			odd = true
		}
	})
	if odd {
		s.Cipher = ""
	}
	c = ipsec.SACount{
		SA: s, Packets: info.Curlft.Packets, Bytes: info.Curlft.Bytes,
		Replayed: uint64(info.Stats.Replay), Late: uint64(info.Stats.ReplayWindow), Forged: uint64(info.Stats.IntegrityFailed),
		Added: at(info.Curlft.AddTime), Used: at(info.Curlft.UseTime),
	}
	return c, some
}

func at(seconds uint64) time.Time {
	if seconds == 0 {
		return time.Time{}
	}
	return time.Unix(int64(seconds), 0)
}

// selects says whether a selector is that of an SA as we make them.
func selects(sel nl.XfrmSelector, s ipsec.SA) bool {
	want := nl.XfrmSelector{
		Daddr: address(s.Dst), Saddr: address(s.Src), Family: family(s.Dst),
		PrefixlenD: uint8(s.Dst.BitLen()), PrefixlenS: uint8(s.Src.BitLen()),
	}
	sel.User = want.User // the id of whoever added it
	return sel == want
}

// cipher reads a struct xfrm_algo_aead: empty, if it is none of ours.
func cipher(v []byte) ipsec.Cipher {
	if len(v) < nl.SizeofXfrmAlgoAEAD || binary.NativeEndian.Uint32(v[68:]) != ipsec.ICVBits {
		return ""
	}
	c, err := ipsec.CipherOf(unix.ByteSliceToString(v[:64]), int(binary.NativeEndian.Uint32(v[64:])/8))
	if err != nil {
		return ""
	}
	return c
}

// parsePolicy reads a struct xfrm_userpolicy_info with its attributes. One of ours that is not as we make them gets
// another action than it is wanted to have.
func parsePolicy(body []byte) (p ipsec.Policy, ours bool) {
	if len(body) < nl.SizeofXfrmUserpolicyInfo {
		return p, false
	}
	info := nl.DeserializeXfrmUserpolicyInfo(body)
	sel := info.Sel
	if info.Priority != ipsec.PairPriority && info.Priority != ipsec.BlockPriority || info.Dir != dirIn && info.Dir != dirOut ||
		sel.Proto != unix.IPPROTO_UDP || sel.DportMask != 0xffff {
		return p, false
	}
	p = ipsec.Policy{
		Dir: ipsec.In, Src: netip.PrefixFrom(addrOf(sel.Saddr, sel.Family), int(sel.PrefixlenS)),
		Dst: netip.PrefixFrom(addrOf(sel.Daddr, sel.Family), int(sel.PrefixlenD)), Port: be16(sel.Dport),
		Priority: info.Priority, Block: info.Action == actionBlock,
	}
	if info.Dir == dirOut {
		p.Dir = ipsec.Out
	}
	good := false
	netlink.Attrs(body[nl.SizeofXfrmUserpolicyInfo:], func(kind uint16, v []byte) {
		if kind == nl.XFRMA_TMPL && len(v) == nl.SizeofXfrmUserTmpl {
			t := nl.DeserializeXfrmUserTmpl(v)
			p.SPI = be32(t.XfrmId.Spi)
			good = t.Reqid == ipsec.ReqID && t.Mode == modeTransport && t.Optional == 0 &&
				t.XfrmId.Proto == unix.IPPROTO_ESP && addrOf(t.XfrmId.Daddr, t.Family) == p.Dst.Addr()
		}
	})
	if !p.Block && !good || sel.Sport != 0 || sel.SportMask != 0 || sel.Ifindex != 0 {
		p.Block = p.Priority == ipsec.PairPriority
	}
	return p, true
}
