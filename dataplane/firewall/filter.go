package firewall

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// settleTime is how long changes are collected before the kernel is looked at: a flush is many.
	settleTime = 20 * time.Millisecond
	// checkEvery is how often it is looked at whatever was heard.
	checkEvery = 30 * time.Second
	// retryEvery is the pause after a repair that failed.
	retryEvery = 500 * time.Millisecond
	// maxReceipts are kept; one repair makes at most repairReceipts of them.
	maxReceipts    = 32
	repairReceipts = 8
)

// Filter keeps a kernel's packet filter as its owners want it, whoever changes it. What an owner had in the kernel before
// this process began is left alone until that owner says what it wants.
type Filter struct {
	kernel Kernel
	log    *slog.Logger

	repaired func(did []string, failed error)
	drift    atomic.Uint64

	failing  chan struct{} // has something in it after a failed Apply
	applying sync.Mutex    // held while the kernel is read and changed

	mu       sync.Mutex
	want     map[string]Compiled
	receipts []Receipt
	problem  error
}

// Receipt tells of one repair: an operation that undid what something else had done to our rules.
type Receipt struct {
	Time time.Time
	// Op is the repairing operation as a command.
	Op string
	// Took is how long the whole repair took, from reading to done.
	Took time.Duration
	// Error says why the repair failed; empty if it did not.
	Error string
}

// New returns the filter of a kernel.
func New(kernel Kernel, log *slog.Logger) *Filter {
	return &Filter{kernel: kernel, log: log, want: map[string]Compiled{}, failing: make(chan struct{}, 1),
		repaired: func([]string, error) {}}
}

// OnRepair has f told of each repair: what was done, as commands, and why it failed if it did. It is called before anything
// else, and f returns soon.
func (f *Filter) OnRepair(told func(did []string, failed error)) { f.repaired = told }

// Drift is how many operations it took so far to repair what others changed.
func (f *Filter) Drift() uint64 { return f.drift.Load() }

// Kind is the name of the kernel in use.
func (f *Filter) Kind() string { return f.kernel.Name() }

// Apply makes the kernel hold what an owner wants, and nothing more of that owner's. It returns what it did: nothing, if
// nothing else was wanted before. An empty ruleset removes everything of the owner's. The error wraps ErrRuleset if the
// ruleset makes no sense; if the kernel failed it is tried again, see Run.
func (f *Filter) Apply(ctx context.Context, s Ruleset) ([]Op, error) {
	if err := s.Check(); err != nil {
		return nil, err
	}
	want := f.kernel.Compile(s)
	f.applying.Lock()
	defer f.applying.Unlock()
	f.mu.Lock()
	old, known := f.want[s.Owner]
	sound := f.problem == nil
	f.want[s.Owner] = want
	f.mu.Unlock()
	if known && sound && old.equal(want) {
		return nil, nil
	}
	ops, err := f.sync(ctx, s.Owner)
	if f.failed(err); err != nil {
		tell(f.failing)
	}
	return ops, err
}

func (c Compiled) equal(o Compiled) bool {
	return len(Plan(c, o)) == 0 && len(Plan(o, c)) == 0
}

// failed notes why the kernel is not as wanted, or that it is.
func (f *Filter) failed(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.problem = err
}

// sync reads the kernel and makes it as the named owners want it.
func (f *Filter) sync(ctx context.Context, owners ...string) ([]Op, error) {
	have, err := f.kernel.Read(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the packet filter: %w", err)
	}
	ops := f.plan(have, owners)
	if err := f.kernel.Run(ctx, ops); err != nil {
		return ops, fmt.Errorf("change the packet filter: %w", err)
	}
	return ops, nil
}

func (f *Filter) plan(have Compiled, owners []string) []Op {
	f.mu.Lock()
	defer f.mu.Unlock()
	var ops []Op
	for _, o := range owners {
		ops = append(ops, Plan(have.of(o), f.want[o])...)
	}
	return ops
}

func (f *Filter) owners() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Sorted(maps.Keys(f.want))
}

// Run repairs what others change until ctx ends. It returns nil then, and an error if the kernel's news end before.
func (f *Filter) Run(ctx context.Context) error {
	changes, err := f.kernel.Changes(ctx)
	if err != nil {
		return fmt.Errorf("follow the packet filter: %w", err)
	}
	next := time.NewTimer(0) // what was missed before
	defer next.Stop()
	for {
		select {
		case _, ok := <-changes:
			if !ok {
				if ctx.Err() == nil {
					return errors.New("the packet filter's news ended")
				}
				return nil
			}
			next.Reset(settleTime)
		case <-f.failing:
			next.Reset(retryEvery)
		case <-next.C:
			if err := f.repair(ctx); err != nil {
				next.Reset(retryEvery)
			} else {
				next.Reset(checkEvery)
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// repair makes the kernel as wanted and remembers what that took.
func (f *Filter) repair(ctx context.Context) error {
	f.applying.Lock()
	defer f.applying.Unlock()
	start := time.Now()
	ops, err := f.sync(ctx, f.owners()...)
	if ctx.Err() != nil {
		return nil
	}
	f.failed(err)
	if len(ops) == 0 {
		return err
	}
	r := Receipt{Time: start, Took: time.Since(start)}
	if err != nil {
		r.Error = err.Error()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var shown []string
	for _, op := range ops[:min(len(ops), repairReceipts)] {
		shown = append(shown, op.String())
	}
	if more := len(ops) - repairReceipts + 1; more > 1 {
		shown[repairReceipts-1] = fmt.Sprintf("and %d operations more", more)
	}
	for _, r.Op = range shown {
		f.receipts = append(f.receipts, r)
	}
	f.receipts = f.receipts[max(0, len(f.receipts)-maxReceipts):]
	f.drift.Add(uint64(len(ops)))
	f.repaired(shown, err)
	f.log.Warn("repaired the packet filter, which something else had changed", "operations", len(ops), "did", shown,
		"took", r.Took, "error", r.Error)
	return err
}

// Receipts returns the last repairs, 32 at most, oldest first.
func (f *Filter) Receipts() []Receipt {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.receipts)
}

// Problem says why the kernel is not as wanted; nil if it is.
func (f *Filter) Problem() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.problem
}

// Diff returns what would have to be done to the kernel, freshly read, for it to be as wanted; empty is in sync.
func (f *Filter) Diff(ctx context.Context) ([]Op, error) {
	f.applying.Lock()
	defer f.applying.Unlock()
	have, err := f.kernel.Read(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the packet filter: %w", err)
	}
	return f.plan(have, f.owners()), nil
}

// Totals returns what the rules of all owners have matched, by their whole names. Rules that are there anew begin at zero.
func (f *Filter) Totals(ctx context.Context) (map[string]Count, error) { return f.kernel.Counts(ctx) }

// Counts returns what an owner's rules have matched, by their names. Rules that are there anew begin at zero.
func (f *Filter) Counts(ctx context.Context, owner string) (map[string]Count, error) {
	all, err := f.kernel.Counts(ctx)
	if err != nil {
		return nil, err
	}
	out := map[string]Count{}
	for name, c := range all {
		if short, mine := strings.CutPrefix(name, owner+"-"); mine {
			out[short] = c
		}
	}
	return out, nil
}
