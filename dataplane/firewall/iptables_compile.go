package firewall

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

const (
	familyIP, familyIP6 = "ip", "ip6"
	// chainPrefix begins the names of our chains in iptables' tables.
	chainPrefix = "NETDRIVER-"
	// vnisPerRule is XT_U32_MAXSIZE of linux/netfilter/xt_u32.h.
	vnisPerRule = 10
)

// iptablesBase returns the table and chain of a hook. Of the tables without NAT only mangle has them all; a packet that is
// dropped there meets no other table, and one that is accepted there meets the next all the same.
func iptablesBase(h Hook) (table, chain string) {
	switch h {
	case Input:
		return "mangle", "INPUT"
	case Forward:
		return "mangle", "FORWARD"
	case Output:
		return "mangle", "POSTROUTING"
	case DNAT:
		return "nat", "PREROUTING"
	case LocalDNAT:
		return "nat", "OUTPUT"
	case SNAT:
		return "nat", "POSTROUTING"
	default: // Allow
		return "filter", "FORWARD"
	}
}

// compileIPTables writes a ruleset for iptables, as iptables-save would print it.
func compileIPTables(s Ruleset) Compiled {
	var out Compiled
	for _, c := range s.Chains {
		table, base := iptablesBase(c.Hook)
		for _, f := range []int{4, 6} {
			w := iptables{Ruleset: s, family: f}
			w.chain = CompiledChain{Base: base, Object: Object{
				map[int]string{4: familyIP, 6: familyIP6}[f], table, chainPrefix + s.Owner + "-" + c.Hook.String(),
			}}
			for i, r := range c.Rules {
				r.outgoing = c.Hook == Output
				if only := r.family(); only == 0 || only == f {
					w.write(r, fmt.Sprintf("%s-%d", w.chain.Name, i+1))
				}
			}
			out.Chains = append(append(out.Chains, w.chain), w.more...)
		}
	}
	return out.sorted()
}

// iptables is one chain of one family under construction.
type iptables struct {
	Ruleset
	family int
	chain  CompiledChain
	// more are chains with sets of addresses: one for each rule that looks at one.
	more []CompiledChain
}

func (c *CompiledChain) add(counter string, words ...string) {
	line := "-A " + c.Name + " " + strings.Join(slices.DeleteFunc(words, func(w string) bool { return w == "" }), " ")
	c.Rules = append(c.Rules, CompiledRule{line, line, counter})
}

// write writes a rule; part is the name of the chain that it may need besides.
func (w *iptables) write(r Rule, part string) {
	counter, comment := "", ""
	if r.Name != "" {
		counter = w.Owner + "-" + r.Name
		comment = "-m comment --comment " + counter
	}
	verdict := join(comment, w.verdict(r))
	if r.FromSet != "" {
		verdict = "-j " + part
		w.more = append(w.more, w.members(r, part, counter, comment))
	}
	for _, vnis := range w.vnis(r) {
		at := counter
		if r.FromSet != "" {
			at = "" // counted there
		}
		w.chain.add(at, w.matches(r), vnis, verdict)
	}
}

// members is the chain of a rule that looks at a set of addresses. What is to be counted is counted here.
func (w *iptables) members(r Rule, name, counter, comment string) CompiledChain {
	c := CompiledChain{Object: Object{w.chain.Family, w.chain.Table, name}}
	for _, a := range w.set(r.FromSet).of(w.family) {
		from := "-s " + netip.PrefixFrom(a, a.BitLen()).String()
		if r.NotFromSet {
			c.add("", from, "-j RETURN")
		} else {
			c.add(counter, from, comment, w.verdict(r))
		}
	}
	if r.NotFromSet {
		c.add(counter, comment, w.verdict(r))
	}
	return c
}

func join(words ...string) string {
	return strings.Join(slices.DeleteFunc(words, func(w string) bool { return w == "" }), " ")
}

func (w *iptables) matches(r Rule) string {
	no := func(n bool, s string) string {
		if n {
			return "! " + s
		}
		return s
	}
	var m []string
	if r.From.IsValid() {
		m = append(m, no(r.NotFrom, "-s "+r.From.String()))
	}
	if r.To.IsValid() {
		m = append(m, no(r.NotTo, "-d "+r.To.String()))
	}
	if r.In != "" {
		m = append(m, no(r.NotIn, "-i "+strings.ReplaceAll(r.In, "*", "+")))
	}
	if r.Out != "" {
		m = append(m, no(r.NotOut, "-o "+strings.ReplaceAll(r.Out, "*", "+")))
	}
	if r.Protocol != 0 {
		p := map[Protocol]string{UDP: "udp", TCP: "tcp"}[r.Protocol]
		m = append(m, "-p "+p)
		if r.Port != 0 {
			m = append(m, fmt.Sprintf("-m %s --dport %d", p, r.Port))
		}
	}
	return strings.Join(append(m, w.extensions(r)...), " ")
}

func (w *iptables) extensions(r Rule) (m []string) {
	if r.Extended { // the next header's number is at byte 6, the last of the four from byte 3
		m = append(m, `-m u32 --u32 "0x3&0xff=0x0:0x10,0x12:0xff"`)
	}
	if r.ToLocal {
		m = append(m, "-m addrtype --dst-type LOCAL")
	}
	if r.Mask != 0 {
		mark := fmt.Sprintf("-m mark --mark %#x/%#x", r.Mark, r.Mask)
		m = append(m, strings.TrimSuffix(mark, "/0xffffffff"))
	}
	if r.State != 0 {
		m = append(m, "-m conntrack --ctstate "+r.State.iptables())
	}
	if r.Translated {
		m = append(m, "-m conntrack --ctstate DNAT")
	}
	if r.IPsec != 0 {
		dir, pol := "in", "none"
		if r.outgoing {
			dir = "out"
		}
		if r.IPsec == Encrypted {
			pol = "ipsec"
		}
		m = append(m, "-m policy --dir "+dir+" --pol "+pol)
	}
	return m
}

// iptables has the states in the order of iptables-save.
func (s State) iptables() string {
	var names []string
	for _, x := range []State{StateInvalid, StateNew, StateRelated, StateEstablished} {
		if s&x != 0 {
			names = append(names, x.String())
		}
	}
	return strings.Join(names, ",")
}

// vnis returns the matches of the rules into which a rule with VNIs falls; one that has none of them is one empty match. In
// IPv4 the UDP header follows a header whose length is in its first byte; in IPv6 it is at byte 40 in all packets that are
// not Extended. The VNI comes 12 bytes after its beginning.
func (w *iptables) vnis(r Rule) []string {
	if r.VNIs == "" {
		return []string{""}
	}
	at := "0x0>>0x16&0x3c@0xc>>0x8="
	if w.family == 6 {
		at = "0x34>>0x8="
	}
	all := slices.Clone(w.set(r.VNIs).VNIs)
	slices.Sort(all)
	var out []string
	for some := range slices.Chunk(slices.Compact(all), vnisPerRule) {
		numbers := make([]string, len(some))
		for i, v := range some {
			numbers[i] = "0x" + strconv.FormatUint(uint64(v), 16)
		}
		out = append(out, `-m u32 --u32 "`+at+strings.Join(numbers, ",")+`"`)
	}
	return out
}

func (w *iptables) verdict(r Rule) string {
	switch r.Verdict {
	case Drop:
		return "-j DROP"
	case Accept:
		return "-j ACCEPT"
	case Pass:
		return "-j RETURN"
	case Masquerade:
		return "-j MASQUERADE"
	default: // Redirect
		return "-j DNAT --to-destination " + r.Target.String()
	}
}

// hung reads where a chain hangs: its base, and how many jumps lead there. More than one, or one that is behind somebody
// else's rules, is written with its number.
func hung(base string) (chain string, jumps int) {
	chain, n, wrong := strings.Cut(base, " ")
	if !wrong {
		return chain, 1
	}
	jumps, _ = strconv.Atoi(n) // written below
	return chain, jumps
}
