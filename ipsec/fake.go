package ipsec

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/internal/broadcast"
)

// fakeBacklog is the number of events that a Fake keeps for a reader that does not read; then it reports them as lost.
const fakeBacklog = 256

// Fake is a Kernel in memory. It refuses what Linux would refuse, so that a plan that works on it works there.
type Fake struct {
	// FailOn, if set, is asked before every operation; the error it returns is that operation's. Ciphers, if set, are
	// those that the kernel has; empty, not nil: it has no ESP. Set them before use.
	FailOn  func(Op) error
	Ciphers []Cipher
	// Now is the clock, time.Now if nil.
	Now func() time.Time

	mu     sync.Mutex
	state  State
	counts map[SAID]*SACount
	drops  Drops
	events *broadcast.Source[Event]
	runs   []Op
}

var _ Kernel = (*Fake)(nil)

// NewFake returns a kernel without SAs and policies.
func NewFake() *Fake {
	return &Fake{counts: map[SAID]*SACount{}, events: broadcast.New(fakeBacklog, Event{Kind: Lost})}
}

// Ran returns all operations that succeeded so far.
func (f *Fake) Ran() []Op {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.runs)
}

// Supports implements Kernel.
func (f *Fake) Supports(context.Context) ([]Cipher, error) {
	if f.Ciphers == nil {
		return Ciphers(), nil
	}
	if len(f.Ciphers) == 0 {
		return nil, fmt.Errorf("%w: ESP is missing (modprobe esp4 esp6)", ErrUnsupported)
	}
	return slices.Clone(f.Ciphers), nil
}

// Read implements Kernel.
func (f *Fake) Read(context.Context) (State, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := State{SAs: slices.Clone(f.state.SAs), Policies: slices.Clone(f.state.Policies)}
	for i := range s.SAs {
		s.SAs[i].Key = Key{}
	}
	return s, nil
}

// Run implements Kernel.
func (f *Fake) Run(_ context.Context, ops []Op, done func(Op)) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var errs []error
	var failed FailedSAs
	for _, op := range ops {
		err := failed.before(op)
		if err == nil {
			err = f.do(op)
		}
		if err != nil {
			failed.Note(op)
			errs = append(errs, &OpError{op, err})
			continue
		}
		f.runs = append(f.runs, op)
		if done != nil {
			done(op)
		}
	}
	return errors.Join(errs...)
}

func (f *Fake) do(op Op) error {
	if f.FailOn != nil {
		if err := f.FailOn(op); err != nil {
			return err
		}
	}
	if err := op.Check(); err != nil {
		return err
	}
	_, there := f.find(op.SA.ID())
	switch op.Verb {
	case AddSA:
		if there {
			return unix.EEXIST
		}
		if f.Ciphers != nil && !slices.Contains(f.Ciphers, op.SA.Cipher) {
			return unix.ENOSYS
		}
		f.counts[op.SA.ID()] = &SACount{Added: f.now()}
		f.events.Send(Event{Kind: SAChanged, SA: op.SA.ID()})
	case DelSA:
		if there {
			f.events.Send(Event{Kind: SAChanged, SA: op.SA.ID(), Gone: true})
		}
	case SetBlock, SetPolicy:
		f.events.Send(Event{Kind: PolicyChanged, Policy: op.Policy.ID()})
	case DelPolicy, DelBlock:
		if slices.ContainsFunc(f.state.Policies, func(p Policy) bool { return p.ID() == op.Policy.ID() }) {
			f.events.Send(Event{Kind: PolicyChanged, Policy: op.Policy.ID(), Gone: true})
		}
	}
	f.state = f.state.Apply(op)
	return nil
}

func (f *Fake) find(id SAID) (SA, bool) {
	i := slices.IndexFunc(f.state.SAs, func(s SA) bool { return s.ID() == id })
	if i < 0 {
		return SA{}, false
	}
	return f.state.SAs[i], true
}

func (f *Fake) now() time.Time {
	if f.Now == nil {
		return time.Now()
	}
	return f.Now()
}

// FlushSAs is somebody else's `ip xfrm state flush`, FlushPolicies their `ip xfrm policy flush`.
func (f *Fake) FlushSAs() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.state.SAs = nil
	f.events.Send(Event{Kind: SAsFlushed})
}

// FlushPolicies see FlushSAs.
func (f *Fake) FlushPolicies() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.state.Policies = nil
	f.events.Send(Event{Kind: PoliciesFlushed})
}

// Count changes the counters of an SA that is there, as its traffic would.
func (f *Fake) Count(id SAID, change func(*SACount)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if c := f.counts[id]; c != nil {
		change(c)
	}
}

// Drop changes the counters of dropped packets.
func (f *Fake) Drop(change func(*Drops)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(&f.drops)
}

// Counters implements Kernel.
func (f *Fake) Counters(context.Context) (Counters, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := Counters{Drops: f.drops}
	for _, s := range f.state.SAs {
		n := *f.counts[s.ID()]
		n.SA, n.SA.Key = s, Key{}
		c.SAs = append(c.SAs, n)
	}
	return c, nil
}

// LoseEvents tells every reader that events were lost.
func (f *Fake) LoseEvents() { f.events.Send(Event{Kind: Lost}) }

// Events implements Kernel.
func (f *Fake) Events(ctx context.Context) (<-chan Event, error) { return f.events.Listen(ctx), nil }

// Close implements Kernel.
func (f *Fake) Close() error { return nil }
