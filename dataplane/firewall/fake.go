package firewall

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/internal/broadcast"
)

// Fake is a Kernel in memory that takes nftables' words. It refuses what Linux would refuse.
type Fake struct {
	// FailOn, if set, is asked before every operation; the error it returns is that operation's, and ends the transaction.
	FailOn func(Op) error

	changes *broadcast.Source[struct{}]

	mu     sync.Mutex
	have   Compiled
	counts map[string]Count
	runs   []Op
}

var _ Kernel = (*Fake)(nil)

// NewFake returns a packet filter without rules.
func NewFake() *Fake {
	return &Fake{counts: map[string]Count{}, changes: broadcast.New(1, struct{}{})}
}

// Name implements Kernel.
func (f *Fake) Name() string { return "fake" }

// Compile implements Kernel.
func (f *Fake) Compile(s Ruleset) Compiled { return compileNFT(s) }

// Read implements Kernel.
func (f *Fake) Read(context.Context) (Compiled, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.have.clone(), nil
}

func (c Compiled) clone() Compiled {
	out := Compiled{slices.Clone(c.Sets), slices.Clone(c.Counters), slices.Clone(c.Chains)}
	for i := range out.Sets {
		out.Sets[i].Elements = slices.Clone(out.Sets[i].Elements)
	}
	for i := range out.Chains {
		out.Chains[i].Rules = slices.Clone(out.Chains[i].Rules)
	}
	return out
}

// Ran returns all operations that succeeded so far.
func (f *Fake) Ran() []Op {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.runs)
}

// Run implements Kernel.
func (f *Fake) Run(_ context.Context, ops []Op) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	next := f.have.clone()
	for _, o := range ops {
		err := next.change(o)
		if f.FailOn != nil && err == nil {
			err = f.FailOn(o)
		}
		if err != nil {
			return &OpError{o, err}
		}
	}
	f.have = next.sorted()
	f.runs = append(f.runs, ops...)
	f.changes.Send(struct{}{})
	return nil
}

// Change lets another program change our table behind our back.
func (f *Fake) Change(change func(*Compiled)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(&f.have)
	f.have = f.have.sorted()
	f.changes.Send(struct{}{})
}

// Hit lets packets be counted.
func (f *Fake) Hit(counter string, c Count) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.counts[counter] = c
}

// Counts implements Kernel.
func (f *Fake) Counts(context.Context) (map[string]Count, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := map[string]Count{}
	for _, o := range f.have.Counters {
		out[o.Name] = f.counts[o.Name]
	}
	return out, nil
}

// Changes implements Kernel.
func (f *Fake) Changes(ctx context.Context) (<-chan struct{}, error) {
	return f.changes.Listen(ctx), nil
}

// Close implements Kernel.
func (f *Fake) Close() error { return nil }

// change performs one operation.
func (c *Compiled) change(o Op) error {
	set := find(c.Sets, o.Object, func(s CompiledSet) Object { return s.Object })
	chain := find(c.Chains, o.Object, func(c CompiledChain) Object { return c.Object })
	switch o.Verb {
	case AddSet:
		if set != nil && set.Type != o.Text {
			return unix.EEXIST
		}
		if set == nil {
			c.Sets = append(c.Sets, CompiledSet{Object: o.Object, Type: o.Text})
		}
	case AddElement, DelElement:
		return changeElement(set, o)
	case AddCounter:
		if !slices.Contains(c.Counters, o.Object) {
			c.Counters = append(c.Counters, o.Object)
		}
	case AddChain:
		if chain == nil {
			c.Chains = append(c.Chains, CompiledChain{Object: o.Object, Base: o.Text})
		} else if chain.Base != o.Text {
			return unix.EEXIST
		}
	case AddRule, FlushChain:
		return c.changeRules(chain, o)
	case DelChain, DelCounter, DelSet:
		return c.remove(o, chain)
	default:
		return fmt.Errorf("operation %d: %w", o.Verb, unix.EOPNOTSUPP)
	}
	return nil
}

func changeElement(set *CompiledSet, o Op) error {
	if set == nil {
		return unix.ENOENT
	}
	set.Elements = slices.DeleteFunc(set.Elements, func(e string) bool { return e == o.Text })
	if o.Verb == AddElement {
		set.Elements = append(set.Elements, o.Text)
	}
	return nil
}

func (c *Compiled) changeRules(chain *CompiledChain, o Op) error {
	switch {
	case chain == nil && o.Verb == FlushChain:
		return nil // gone is empty
	case chain == nil:
		return unix.ENOENT
	case o.Verb == FlushChain:
		chain.Rules = nil
		return nil
	}
	for _, name := range references(o.Text) {
		there := slices.ContainsFunc(c.Sets, func(s CompiledSet) bool { return s.Name == name }) ||
			slices.ContainsFunc(c.Counters, func(o Object) bool { return o.Name == name })
		if !there {
			return fmt.Errorf("%s: %w", name, unix.ENOENT)
		}
	}
	chain.Rules = append(chain.Rules, CompiledRule{o.Text, o.Key, o.Counter})
	return nil
}

func (c *Compiled) remove(o Op, chain *CompiledChain) error {
	switch {
	case o.Verb == DelChain && chain != nil && len(chain.Rules) > 0:
		return unix.EBUSY
	case o.Verb == DelChain:
		c.Chains = slices.DeleteFunc(c.Chains, func(x CompiledChain) bool { return x.Object == o.Object })
		return nil
	}
	for _, x := range c.Chains {
		for _, r := range x.Rules {
			if slices.Contains(references(r.Text), o.Name) {
				return unix.EBUSY
			}
		}
	}
	if o.Verb == DelSet {
		c.Sets = slices.DeleteFunc(c.Sets, func(s CompiledSet) bool { return s.Object == o.Object })
	} else {
		c.Counters = slices.DeleteFunc(c.Counters, func(x Object) bool { return x == o.Object })
	}
	return nil
}

// references are the sets and counters that a rule's text names.
func references(text string) []string {
	var out []string
	words := strings.Fields(text)
	for i, w := range words {
		switch {
		case strings.HasPrefix(w, "@") && !strings.HasPrefix(w, "@th,"):
			out = append(out, w[1:])
		case w == "name" && i+1 < len(words) && words[i-1] == "counter":
			out = append(out, strings.Trim(words[i+1], `"`))
		}
	}
	return out
}
