package ipsec

import (
	"fmt"
	"strings"
)

// Verb is what an Op does.
type Verb uint8

// The verbs, in the order in which a plan has them.
const (
	SetBlock  Verb = iota + 1 // a policy that drops
	AddSA                     // never replaces one: see Plan
	SetPolicy                 // add it, or replace what its selector has
	DelPolicy
	DelSA
	DelBlock
)

// Op is one change of one object in the kernel; SA or Policy is set as the verb says. It prints as the command that
// does the same, without the key.
type Op struct {
	Verb   Verb
	SA     SA
	Policy Policy
}

// Plan returns the operations that lead from have to want. Blocking policies come first and go last, so that there is
// no moment at which a packet finds no policy. SAs come before the policies that use them and go after them, so a packet
// that is allowed finds its key. have must hold only what is ours: SAs with ReqID, policies with our two priorities.
//
// An SA is never added while one with its address and SPI is there: one that is not as wanted is only removed. Adding
// it again with the same key would count its packets from 1 again, and a counter that repeats breaks GCM and
// ChaCha20-Poly1305 (RFC 4106 §2). The Machine makes a new key instead: see Machine.Done and Found.
func Plan(have, want State) []Op {
	var ops []Op
	sas, policies := map[SAID]SA{}, map[PolicyID]Policy{}
	for _, s := range have.SAs {
		sas[s.ID()] = s
	}
	for _, p := range have.Policies {
		policies[p.ID()] = p
	}
	put := func(block bool, verb Verb) {
		for _, p := range want.Policies {
			if old, there := policies[p.ID()]; p.Block == block && (!there || old != p) {
				ops = append(ops, Op{Verb: verb, Policy: p})
			}
		}
	}
	put(true, SetBlock)
	for _, s := range want.SAs {
		if _, there := sas[s.ID()]; !there {
			ops = append(ops, Op{Verb: AddSA, SA: s})
		}
	}
	put(false, SetPolicy)
	return append(ops, removals(have, want)...)
}

// removals returns the second half of a plan.
func removals(have, want State) []Op {
	sas, policies := map[SAID]SA{}, map[PolicyID]bool{}
	for _, s := range want.SAs {
		sas[s.ID()] = s
	}
	for _, p := range want.Policies {
		policies[p.ID()] = true
	}
	var pairs, blocks, old []Op
	for _, p := range have.Policies {
		switch {
		case policies[p.ID()]:
		case p.Block:
			blocks = append(blocks, Op{Verb: DelBlock, Policy: p})
		default:
			pairs = append(pairs, Op{Verb: DelPolicy, Policy: p})
		}
	}
	for _, s := range have.SAs {
		if w, wanted := sas[s.ID()]; !wanted || !w.same(s) {
			old = append(old, Op{Verb: DelSA, SA: s})
		}
	}
	return append(append(pairs, old...), blocks...)
}

// Apply returns the state after an operation that succeeded.
func (s State) Apply(o Op) State {
	out := State{}
	for _, a := range s.SAs {
		if o.Verb != DelSA || a.ID() != o.SA.ID() {
			out.SAs = append(out.SAs, a)
		}
	}
	isPolicy := o.Verb != AddSA && o.Verb != DelSA
	for _, p := range s.Policies {
		if !isPolicy || p.ID() != o.Policy.ID() {
			out.Policies = append(out.Policies, p)
		}
	}
	switch o.Verb {
	case AddSA:
		out.SAs = append(out.SAs, o.SA)
	case SetBlock, SetPolicy:
		out.Policies = append(out.Policies, o.Policy)
	}
	return out.Sorted()
}

// String returns the ip command that does the same. The key stands as KEY.
func (o Op) String() string {
	switch o.Verb {
	case AddSA:
		return "ip xfrm state add " + o.SA.String()
	case DelSA:
		return fmt.Sprintf("ip xfrm state delete src %s dst %s proto esp spi %#x", o.SA.Src, o.SA.Dst, o.SA.SPI)
	case DelPolicy, DelBlock:
		return "ip xfrm policy delete " + o.Policy.selector()
	default:
		return "ip xfrm policy update " + o.Policy.String()
	}
}

// String returns the SA as the ip command writes it, without the key.
func (s SA) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "src %s dst %s proto esp spi %#x reqid %#x mode transport replay-window %d", s.Src, s.Dst, s.SPI,
		ReqID, s.Window)
	if s.ESN {
		b.WriteString(" flag esn")
	}
	fmt.Fprintf(&b, " aead %s KEY %d", s.Cipher.KernelName(), ICVBits)
	if s.Encap != (Encap{}) {
		fmt.Fprintf(&b, " encap espinudp %d %d 0.0.0.0", s.Encap.Src, s.Encap.Dst)
	}
	fmt.Fprintf(&b, " sel src %s dst %s", s.Src, s.Dst)
	return b.String()
}

// String returns the policy as the ip command writes it.
func (p Policy) String() string {
	s := fmt.Sprintf("%s priority %d", p.selector(), p.Priority)
	if p.Block {
		return s + " action block"
	}
	s += fmt.Sprintf(" tmpl src %s dst %s proto esp", p.Src.Addr(), p.Dst.Addr())
	if p.SPI != 0 {
		s += fmt.Sprintf(" spi %#x", p.SPI)
	}
	return s + fmt.Sprintf(" reqid %#x mode transport level required", ReqID)
}

func (p Policy) selector() string {
	return fmt.Sprintf("src %s dst %s proto udp dport %d dir %s", p.Src, p.Dst, p.Port, p.Dir)
}
