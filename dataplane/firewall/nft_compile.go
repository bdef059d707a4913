package firewall

import (
	"encoding/binary"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/vxlan"
)

const (
	familyInet = "inet"
	// Table is the name of our table; the family is inet.
	Table = "netdriver"

	typeIPv4, typeIPv6, typeVNI = "ipv4_addr", "ipv6_addr", "vni"
)

// nftBase returns the type, hook and priority of a chain. Filters of incoming packets come before everything of anybody
// else's (raw is -300); the outgoing one after source NAT (100), when all is decided. NAT comes just before Docker's and the
// user's (-100 and 100): the first one to translate a connection wins.
func nftBase(h Hook) string {
	return map[Hook]string{
		Input:     "filter hook input priority -350",
		Forward:   "filter hook forward priority -350",
		Output:    "filter hook postrouting priority 200",
		DNAT:      "nat hook prerouting priority -101",
		LocalDNAT: "nat hook output priority -101",
		SNAT:      "nat hook postrouting priority 99",
		Allow:     "filter hook forward priority -1",
	}[h]
}

// compileNFT writes a ruleset for nftables.
func compileNFT(s Ruleset) Compiled {
	in := func(name string) Object { return Object{familyInet, Table, s.Owner + "-" + name} }
	var out Compiled
	for _, x := range s.Sets {
		if len(x.VNIs) > 0 || s.isVNIs(x.Name) {
			set := CompiledSet{Object: in(x.Name), Type: typeVNI}
			for _, v := range x.VNIs {
				set.Elements = append(set.Elements, fmt.Sprintf("%#x", uint32(v)))
			}
			out.Sets = append(out.Sets, set)
			continue
		}
		for family, kind := range map[int]string{4: typeIPv4, 6: typeIPv6} {
			set := CompiledSet{Object: in(x.Name + strconv.Itoa(family)), Type: kind}
			for _, a := range x.of(family) {
				set.Elements = append(set.Elements, a.String())
			}
			out.Sets = append(out.Sets, set)
		}
	}
	counters := map[string]bool{}
	for _, c := range s.Chains {
		chain := CompiledChain{Object: in(c.Hook.String()), Base: nftBase(c.Hook)}
		for _, r := range c.Rules {
			r.outgoing = c.Hook == Output
			for _, f := range r.families() {
				w := nftRule{owner: s.Owner}
				w.write(r, f)
				rule := CompiledRule{Text: strings.Join(w.text, " "), Key: w.key()}
				if r.Name != "" {
					rule.Counter = s.Owner + "-" + r.Name
					counters[r.Name] = true
				}
				chain.Rules = append(chain.Rules, rule)
			}
		}
		out.Chains = append(out.Chains, chain)
	}
	for name := range counters {
		out.Counters = append(out.Counters, in(name))
	}
	for i := range out.Sets {
		slices.Sort(out.Sets[i].Elements)
		out.Sets[i].Elements = slices.Compact(out.Sets[i].Elements)
	}
	return out.sorted()
}

// isVNIs says whether a set is one of VNIs by its use, since an empty one does not tell.
func (s Ruleset) isVNIs(name string) bool {
	for _, c := range s.Chains {
		if slices.ContainsFunc(c.Rules, func(r Rule) bool { return r.VNIs == name }) {
			return true
		}
	}
	return false
}

// families are those for which a rule is written: one for each, if it looks at addresses in a set.
func (r Rule) families() []int {
	if f := r.family(); f != 0 || r.FromSet == "" {
		return []int{f}
	}
	return []int{4, 6}
}

// nftRule is a rule under construction: the text of nft(8), and the kernel's expressions (linux/netfilter/nf_tables.h).
type nftRule struct {
	owner string
	text  []string
	exprs []expression
}

func (w *nftRule) say(format string, a ...any) { w.text = append(w.text, fmt.Sprintf(format, a...)) }

func (w *nftRule) add(name string, attrs ...attribute) {
	w.exprs = append(w.exprs, expression{name, attrs})
}

// meta and payload load something into register 1.
func (w *nftRule) meta(key uint32) {
	w.add("meta", number(unix.NFTA_META_KEY, key), number(unix.NFTA_META_DREG, unix.NFT_REG_1))
}

func (w *nftRule) payload(base, offset, size uint32) {
	w.add("payload", number(unix.NFTA_PAYLOAD_DREG, unix.NFT_REG_1), number(unix.NFTA_PAYLOAD_BASE, base),
		number(unix.NFTA_PAYLOAD_OFFSET, offset), number(unix.NFTA_PAYLOAD_LEN, size))
}

// compare compares register 1.
func (w *nftRule) compare(not bool, value ...byte) {
	op := uint32(unix.NFT_CMP_EQ)
	if not {
		op = unix.NFT_CMP_NEQ
	}
	w.add("cmp", number(unix.NFTA_CMP_SREG, unix.NFT_REG_1), number(unix.NFTA_CMP_OP, op),
		nested(unix.NFTA_CMP_DATA, attribute{unix.NFTA_DATA_VALUE, value}))
}

// mask keeps those bits of register 1.
func (w *nftRule) mask(mask ...byte) {
	w.add("bitwise", number(unix.NFTA_BITWISE_SREG, unix.NFT_REG_1), number(unix.NFTA_BITWISE_DREG, unix.NFT_REG_1),
		number(unix.NFTA_BITWISE_LEN, uint32(len(mask))),
		nested(unix.NFTA_BITWISE_MASK, attribute{unix.NFTA_DATA_VALUE, mask}),
		nested(unix.NFTA_BITWISE_XOR, attribute{unix.NFTA_DATA_VALUE, make([]byte, len(mask))}))
}

// lookup asks whether register 1 is in a set.
func (w *nftRule) lookup(set string, not bool) {
	flags := uint32(0)
	if not {
		flags = unix.NFT_LOOKUP_F_INV
	}
	w.add("lookup", text(unix.NFTA_LOOKUP_SET, set), number(unix.NFTA_LOOKUP_SREG, unix.NFT_REG_1),
		number(unix.NFTA_LOOKUP_FLAGS, flags))
}

// not is how nft writes it.
func not(n bool) string {
	if n {
		return "!= "
	}
	return ""
}

// write writes a rule for a family, 0 for both.
func (w *nftRule) write(r Rule, family int) {
	if family != 0 {
		w.meta(unix.NFT_META_NFPROTO)
		w.compare(false, map[int]byte{4: unix.NFPROTO_IPV4, 6: unix.NFPROTO_IPV6}[family])
		w.say("meta nfproto ipv%d", family)
	}
	w.name(unix.NFT_META_IIFNAME, "iifname", r.In, r.NotIn)
	w.name(unix.NFT_META_OIFNAME, "oifname", r.Out, r.NotOut)
	w.transport(r)
	w.prefix("saddr", r.From, r.NotFrom, map[bool]uint32{true: 12, false: 8})
	w.prefix("daddr", r.To, r.NotTo, map[bool]uint32{true: 16, false: 24})
	if r.FromSet != "" {
		w.address(family == 4, map[bool]uint32{true: 12, false: 8})
		set := w.owner + "-" + r.FromSet + strconv.Itoa(family)
		w.lookup(set, r.NotFromSet)
		w.say("%s saddr %s@%s", ipWord(family == 4), not(r.NotFromSet), set)
	}
	w.rest(r)
	w.verdict(r)
}

func ipWord(v4 bool) string {
	if v4 {
		return "ip"
	}
	return "ip6"
}

// name matches an interface's name, which the kernel keeps in 16 bytes; without the last of them it is a beginning.
func (w *nftRule) name(key uint32, word, name string, no bool) {
	if name == "" {
		return
	}
	value := make([]byte, unix.IFNAMSIZ)
	copy(value, name)
	if beginning, wild := strings.CutSuffix(name, "*"); wild {
		value = []byte(beginning)
	}
	w.meta(key)
	w.compare(no, value...)
	w.say("%s %s%q", word, not(no), name)
}

// transport matches the protocol, its port, and the VXLAN header behind it.
func (w *nftRule) transport(r Rule) {
	if r.Protocol == 0 {
		return
	}
	word := map[Protocol]string{UDP: "udp", TCP: "tcp"}[r.Protocol]
	w.meta(unix.NFT_META_L4PROTO)
	w.compare(false, byte(r.Protocol))
	if r.Port == 0 {
		w.say("meta l4proto %s", word)
	} else {
		w.payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2)
		w.compare(false, binary.BigEndian.AppendUint16(nil, r.Port)...)
		w.say("%s dport %d", word, r.Port)
	}
	if r.Extended {
		w.payload(unix.NFT_PAYLOAD_NETWORK_HEADER, 6, 1)
		w.compare(true, byte(UDP))
		w.say("ip6 nexthdr != udp")
	}
	if r.VNIs != "" { // 8 bytes of UDP, then flags, then 24 bits of VNI (RFC 7348 §5)
		set := w.owner + "-" + r.VNIs
		w.payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, 12, 3)
		w.lookup(set, false)
		w.say("@th,96,24 @%s", set)
	}
}

// address loads an address, whose place depends on the family.
func (w *nftRule) address(v4 bool, offset map[bool]uint32) {
	size := uint32(16)
	if v4 {
		size = 4
	}
	w.payload(unix.NFT_PAYLOAD_NETWORK_HEADER, offset[v4], size)
}

func (w *nftRule) prefix(word string, p netip.Prefix, no bool, offset map[bool]uint32) {
	if !p.IsValid() {
		return
	}
	w.address(p.Addr().Is4(), offset)
	if !p.IsSingleIP() {
		w.mask(maskOf(p)...)
	}
	w.compare(no, p.Addr().AsSlice()...)
	w.say("%s %s %s%s", ipWord(p.Addr().Is4()), word, not(no), p)
}

func maskOf(p netip.Prefix) []byte {
	mask := make([]byte, p.Addr().BitLen()/8)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return mask
}

// Constants that golang.org/x/sys/unix does not have (linux/netfilter.h, linux/netfilter/nf_tables.h).
const (
	nfDrop, nfAccept = 0, 1

	metaSecpath = 25 // NFT_META_SECPATH
	rtXFRM      = 4  // NFT_RT_XFRM
)

// rest matches what is not in the packet.
func (w *nftRule) rest(r Rule) {
	if r.ToLocal {
		w.add("fib", number(unix.NFTA_FIB_DREG, unix.NFT_REG_1), number(unix.NFTA_FIB_RESULT, unix.NFT_FIB_RESULT_ADDRTYPE),
			number(unix.NFTA_FIB_FLAGS, unix.NFTA_FIB_F_DADDR))
		w.compare(false, binary.NativeEndian.AppendUint32(nil, unix.RTN_LOCAL)...)
		w.say("fib daddr type local")
	}
	if r.Mask != 0 {
		w.meta(unix.NFT_META_MARK)
		w.mask(binary.NativeEndian.AppendUint32(nil, r.Mask)...)
		w.compare(false, binary.NativeEndian.AppendUint32(nil, r.Mark)...)
		w.say("meta mark & %#x == %#x", r.Mask, r.Mark)
	}
	if r.State != 0 {
		w.add("ct", number(unix.NFTA_CT_DREG, unix.NFT_REG_1), number(unix.NFTA_CT_KEY, unix.NFT_CT_STATE))
		w.mask(binary.NativeEndian.AppendUint32(nil, uint32(r.State))...) // State has the kernel's bits
		w.compare(true, 0, 0, 0, 0)
		w.say("ct state %s", strings.ToLower(r.State.String()))
	}
	if r.Translated {
		w.add("ct", number(unix.NFTA_CT_DREG, unix.NFT_REG_1), number(unix.NFTA_CT_KEY, unix.NFT_CT_STATUS))
		w.mask(binary.NativeEndian.AppendUint32(nil, statusDNAT)...)
		w.compare(true, 0, 0, 0, 0)
		w.say("ct status dnat")
	}
	w.transform(r)
}

// statusDNAT is IPS_DST_NAT of linux/netfilter/nf_conntrack_common.h.
const statusDNAT = 1 << 5

// transform asks the security path of a packet that came in, and the route of one that goes out.
func (w *nftRule) transform(r Rule) {
	if r.IPsec == 0 {
		return
	}
	there := byte(0)
	word := "missing"
	if r.IPsec == Encrypted {
		there, word = 1, "exists"
	}
	if r.outgoing {
		w.add("rt", number(unix.NFTA_RT_DREG, unix.NFT_REG_1), number(unix.NFTA_RT_KEY, rtXFRM))
		w.say("rt ipsec %s", word)
	} else {
		w.meta(metaSecpath)
		w.say("meta ipsec %s", word)
	}
	w.compare(false, there)
}

func (s State) String() string {
	var names []string
	for i, name := range []string{"INVALID", "ESTABLISHED", "RELATED", "NEW"} {
		if s&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return strings.Join(names, ",")
}

// verdict counts and decides.
func (w *nftRule) verdict(r Rule) {
	if r.Name != "" {
		counter := w.owner + "-" + r.Name
		w.add("objref", number(unix.NFTA_OBJREF_IMM_TYPE, unix.NFT_OBJECT_COUNTER),
			text(unix.NFTA_OBJREF_IMM_NAME, counter))
		w.say("counter name %q", counter)
	}
	switch r.Verdict {
	case Drop:
		w.decide(nfDrop, "drop")
	case Accept:
		w.decide(nfAccept, "accept")
	case Pass:
		w.decide(unix.NFT_RETURN, "return")
	case Masquerade:
		w.add("masq")
		w.say("masquerade")
	case Redirect:
		w.redirect(r.Target)
	}
}

func (w *nftRule) decide(code int, word string) {
	w.add("immediate", number(unix.NFTA_IMMEDIATE_DREG, unix.NFT_REG_VERDICT), nested(unix.NFTA_IMMEDIATE_DATA,
		nested(unix.NFTA_DATA_VERDICT, number(unix.NFTA_VERDICT_CODE, uint32(code)&math.MaxUint32))))
	w.say("%s", word)
}

// The kernel reports maxima and flags even if they are not given (net/netfilter/nft_nat.c).
const natMapBoth = 3 // NF_NAT_RANGE_MAP_IPS | NF_NAT_RANGE_PROTO_SPECIFIED

func (w *nftRule) redirect(to netip.AddrPort) {
	load := func(register uint32, value []byte) {
		w.add("immediate", number(unix.NFTA_IMMEDIATE_DREG, register),
			nested(unix.NFTA_IMMEDIATE_DATA, attribute{unix.NFTA_DATA_VALUE, value}))
	}
	family := uint32(unix.NFPROTO_IPV6)
	if to.Addr().Is4() {
		family = unix.NFPROTO_IPV4
	}
	load(unix.NFT_REG_1, to.Addr().AsSlice())
	load(unix.NFT_REG_2, binary.BigEndian.AppendUint16(nil, to.Port()))
	w.add("nat", number(unix.NFTA_NAT_TYPE, unix.NFT_NAT_DNAT), number(unix.NFTA_NAT_FAMILY, family),
		number(unix.NFTA_NAT_REG_ADDR_MIN, unix.NFT_REG_1), number(unix.NFTA_NAT_REG_ADDR_MAX, unix.NFT_REG_1),
		number(unix.NFTA_NAT_REG_PROTO_MIN, unix.NFT_REG_2), number(unix.NFTA_NAT_REG_PROTO_MAX, unix.NFT_REG_2),
		number(unix.NFTA_NAT_FLAGS, natMapBoth))
	w.say("dnat %s to %s", ipWord(to.Addr().Is4()), to)
}

// vniOf reads an element of a set of VNIs.
func vniOf(element string) (vxlan.VNI, error) {
	n, err := strconv.ParseUint(strings.TrimPrefix(element, "0x"), 16, 24)
	return vxlan.VNI(n), err
}
