package firewall

import (
	"fmt"
	"slices"
	"strings"
)

// Compiled is what a kernel has, or should have, in the words of that kernel. Lists are sorted by name.
type Compiled struct {
	Sets     []CompiledSet
	Counters []Object
	Chains   []CompiledChain
}

// Object is something in a table of the kernel's. Family and Table are "inet netdriver" for nftables, such as "ip mangle" for
// iptables.
type Object struct{ Family, Table, Name string }

func (o Object) String() string { return o.Family + " " + o.Table + " " + o.Name }

// CompiledSet is a set with its elements as text, sorted. Type is ipv4_addr, ipv6_addr or vni.
type CompiledSet struct {
	Object
	Type     string
	Elements []string
}

// CompiledChain is a chain. Base says where packets come to it from: empty if only other chains send them.
type CompiledChain struct {
	Object
	Base  string
	Rules []CompiledRule
}

// CompiledRule is a rule as the kernel's tool writes it. Key is what it is compared by: the kernel's own form of it.
type CompiledRule struct{ Text, Key, Counter string }

// of returns what is an owner's.
func (c Compiled) of(owner string) Compiled {
	is := func(o Object) bool { return strings.HasPrefix(strings.TrimPrefix(o.Name, chainPrefix), owner+"-") }
	return Compiled{
		Sets:     slices.DeleteFunc(slices.Clone(c.Sets), func(s CompiledSet) bool { return !is(s.Object) }),
		Counters: slices.DeleteFunc(slices.Clone(c.Counters), func(o Object) bool { return !is(o) }),
		Chains:   slices.DeleteFunc(slices.Clone(c.Chains), func(c CompiledChain) bool { return !is(c.Object) }),
	}
}

// sorted puts the lists in order.
func (c Compiled) sorted() Compiled {
	slices.SortFunc(c.Sets, func(a, b CompiledSet) int { return strings.Compare(a.String(), b.String()) })
	slices.SortFunc(c.Counters, func(a, b Object) int { return strings.Compare(a.String(), b.String()) })
	slices.SortFunc(c.Chains, func(a, b CompiledChain) int { return strings.Compare(a.String(), b.String()) })
	for _, s := range c.Sets {
		slices.Sort(s.Elements)
	}
	return c
}

// Verb is what an Op does.
type Verb uint8

// The verbs, in the order in which a plan has them.
const (
	AddSet Verb = iota + 1
	AddElement
	AddCounter
	AddChain   // without a place where it hangs
	FlushChain // remove its rules
	AddRule    // at the chain's end
	Hang       // let packets come to a chain, before anybody else's rules
	Unhang
	DelChain // that is empty
	DelElement
	DelCounter
	DelSet
)

// Op is one change of one object in the kernel. Text is a rule, an element, a set's type or where a chain hangs.
type Op struct {
	Verb Verb
	Object
	Text, Key, Counter string
}

// Plan returns the operations that lead from have to want. A kernel makes all those of one table at once, so no packet meets
// half of it. A chain with one wrong rule is filled anew: the order of rules matters, and counters are not in them.
func Plan(have, want Compiled) []Op {
	var ops []Op
	for _, s := range want.Sets {
		old := find(have.Sets, s.Object, func(s CompiledSet) Object { return s.Object })
		if old == nil || old.Type != s.Type {
			if old != nil {
				ops = append(ops, Op{Verb: DelSet, Object: s.Object, Text: old.Type})
			}
			old = &CompiledSet{}
			ops = append(ops, Op{Verb: AddSet, Object: s.Object, Text: s.Type})
		}
		for _, e := range missing(s.Elements, old.Elements) {
			ops = append(ops, Op{Verb: AddElement, Object: s.Object, Text: e, Key: s.Type})
		}
	}
	for _, c := range missing(want.Counters, have.Counters) {
		ops = append(ops, Op{Verb: AddCounter, Object: c})
	}
	ops = append(ops, planChains(have, want)...)
	for _, s := range have.Sets {
		w := find(want.Sets, s.Object, func(s CompiledSet) Object { return s.Object })
		if w == nil {
			continue // goes as a whole
		}
		for _, e := range missing(s.Elements, w.Elements) {
			ops = append(ops, Op{Verb: DelElement, Object: s.Object, Text: e, Key: s.Type})
		}
	}
	for _, c := range missing(have.Counters, want.Counters) {
		ops = append(ops, Op{Verb: DelCounter, Object: c})
	}
	for _, s := range have.Sets {
		if find(want.Sets, s.Object, func(s CompiledSet) Object { return s.Object }) == nil {
			ops = append(ops, Op{Verb: DelSet, Object: s.Object, Text: s.Type})
		}
	}
	return ops
}

// planChains: all chains are there and empty before the first rule, since rules may name any of them.
func planChains(have, want Compiled) []Op {
	var adds, fills, hangs, unhangs, dels []Op
	object := func(c CompiledChain) Object { return c.Object }
	for _, c := range want.Chains {
		old := find(have.Chains, c.Object, object)
		same := old != nil && slices.EqualFunc(old.Rules, c.Rules, func(a, b CompiledRule) bool { return a.Key == b.Key })
		if old != nil && old.Base != c.Base && c.Family == familyInet { // there it is part of the chain
			adds = append(adds, Op{Verb: FlushChain, Object: c.Object}, Op{Verb: DelChain, Object: c.Object})
			old, same = nil, false
		}
		switch {
		case old == nil:
			adds, old = append(adds, Op{Verb: AddChain, Object: c.Object, Text: c.Base}), &CompiledChain{}
		case !same:
			adds = append(adds, Op{Verb: FlushChain, Object: c.Object})
		}
		if !same {
			for _, r := range c.Rules {
				fills = append(fills, Op{Verb: AddRule, Object: c.Object, Text: r.Text, Key: r.Key, Counter: r.Counter})
			}
		}
		if old.Base != c.Base && c.Family != familyInet {
			hangs = append(hangs, Op{Verb: Hang, Object: c.Object, Text: c.Base, Key: old.Base})
		}
	}
	for _, c := range have.Chains {
		if find(want.Chains, c.Object, object) != nil {
			continue
		}
		adds = append(adds, Op{Verb: FlushChain, Object: c.Object})
		if c.Base != "" && c.Family != familyInet {
			unhangs = append(unhangs, Op{Verb: Unhang, Object: c.Object, Text: c.Base})
		}
		dels = append(dels, Op{Verb: DelChain, Object: c.Object})
	}
	return slices.Concat(adds, fills, hangs, unhangs, dels)
}

func find[T any](in []T, o Object, of func(T) Object) *T {
	i := slices.IndexFunc(in, func(x T) bool { return of(x) == o })
	if i < 0 {
		return nil
	}
	return &in[i]
}

// missing returns what of a is not in b.
func missing[T comparable](a, b []T) []T {
	there := make(map[T]bool, len(b))
	for _, x := range b {
		there[x] = true
	}
	return slices.DeleteFunc(slices.Clone(a), func(x T) bool { return there[x] })
}

// String returns what the kernel's own tool would be told: nft(8), or iptables(8) and ip6tables(8).
func (o Op) String() string {
	if o.Family == familyInet {
		return o.nftString()
	}
	command := map[string]string{familyIP: "iptables", familyIP6: "ip6tables"}[o.Family] + " -t " + o.Table
	switch o.Verb {
	case AddChain:
		return command + " -N " + o.Name
	case FlushChain:
		return command + " -F " + o.Name
	case AddRule:
		return command + " " + o.Text
	case Hang:
		base, _ := hung(o.Text)
		return fmt.Sprintf("%s -I %s 1 -j %s", command, base, o.Name)
	case Unhang:
		base, _ := hung(o.Text)
		return fmt.Sprintf("%s -D %s -j %s", command, base, o.Name)
	case DelChain:
		return command + " -X " + o.Name
	}
	return fmt.Sprintf("unknown operation %d on %s", o.Verb, o.Object)
}

func (o Op) nftString() string {
	switch o.Verb {
	case AddSet:
		if o.Text == typeVNI {
			return fmt.Sprintf("nft add set %s { typeof @th,96,24; }", o.Object)
		}
		return fmt.Sprintf("nft add set %s { type %s; }", o.Object, o.Text)
	case AddElement:
		return fmt.Sprintf("nft add element %s { %s }", o.Object, o.Text)
	case AddCounter:
		return "nft add counter " + o.Object.String()
	case AddChain:
		return fmt.Sprintf("nft add chain %s { type %s; }", o.Object, o.Text)
	case FlushChain:
		return "nft flush chain " + o.Object.String()
	case AddRule:
		return fmt.Sprintf("nft add rule %s %s", o.Object, o.Text)
	case DelChain:
		return "nft delete chain " + o.Object.String()
	case DelElement:
		return fmt.Sprintf("nft delete element %s { %s }", o.Object, o.Text)
	case DelCounter:
		return "nft delete counter " + o.Object.String()
	case DelSet:
		return "nft delete set " + o.Object.String()
	}
	return fmt.Sprintf("unknown operation %d on %s", o.Verb, o.Object)
}
