package dataplane

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/netdriver/netdriver/vxlan"
)

// Plane makes the kernel match wanted networks and keeps it so. It remembers what the kernel has, so that one change
// among 10,000 endpoints costs no reading; it reads again what an event, an error or Refresh made doubtful. Different
// networks are applied in parallel. All methods may be called at any time from any goroutine.
type Plane struct {
	kernel      Kernel
	log         *slog.Logger
	warned      sync.Once // that services cannot be balanced
	warnedGuard sync.Once // that ports cannot be guarded
	drifted     chan vxlan.VNI
	counts      counts
	repaired    func(network string, did []string, failed error)

	mu   sync.Mutex
	nets map[vxlan.VNI]*network
}

// network is what a Plane knows of one network.
type network struct {
	// applying is held while the kernel is read or changed; it guards what follows.
	applying sync.Mutex
	have     Network
	fresh    bool      // have is what the kernel has
	achieved bool      // the last Apply succeeded: a difference from what it wanted is somebody else's doing
	ran      time.Time // when operations were run last
	gone     bool      // removed: whoever waited for applying looks the network up again

	// mu is held for moments only, never during a call to the kernel; it guards the rest.
	mu       sync.Mutex
	want     Network // zero until the first Apply
	marked   bool    // read the kernel at the next Apply
	suspects map[subject]Event
	receipts []Receipt
	drift    uint64
}

// counts are the totals behind Counters.
type counts struct{ reads, ops, failures, drift atomic.Uint64 }

// Counters are totals since the Plane was made.
type Counters struct {
	Reads    uint64 // networks read from the kernel
	Ops      uint64 // operations run, failed ones included
	Failures uint64 // calls to Apply or Remove in which an operation failed
	Drift    uint64 // operations that repaired what others had changed
}

// NewPlane returns a Plane that knows nothing yet.
func NewPlane(k Kernel, log *slog.Logger) *Plane {
	return &Plane{kernel: k, log: log, drifted: make(chan vxlan.VNI), nets: map[vxlan.VNI]*network{},
		repaired: func(string, []string, error) {}}
}

// OnRepair has f told of each repair: what was done, as commands, and why it failed if it did. It is called before anything
// else, and f returns soon.
func (p *Plane) OnRepair(f func(network string, did []string, failed error)) { p.repaired = f }

// Apply makes the kernel match want and returns the operations that it took, in order; an empty want is impossible, use
// Remove. After an error the part that does not depend on what failed is done, and the next Apply reads the kernel.
// want must not be changed afterwards.
func (p *Plane) Apply(ctx context.Context, want Network) ([]Op, error) {
	if err := want.Check(); err != nil {
		return nil, err
	}
	want = p.possible(want)
	n := p.lock(want.VNI)
	defer n.applying.Unlock()
	before, marked := n.intend(want)
	read := marked || !n.fresh
	if read {
		if err := p.read(ctx, n, want); err != nil {
			return nil, err
		}
	}
	ops := plan(n.have, want)
	if len(ops) == 0 {
		n.achieved = true
		return nil, nil
	}
	var repairs []Op
	if read && n.achieved {
		repairs = common(plan(n.have, before), ops)
	}
	start := time.Now()
	err := p.run(ctx, n, ops)
	if err == nil {
		n.have = settled(n.have, want).asRead()
	}
	n.fresh, n.achieved = err == nil, err == nil
	p.receipt(n, want.Name, repairs, start, err)
	return ops, err
}

// asRead returns n as the kernel would report it.
func (n Network) asRead() Network {
	n = n.balanced()
	n.Ports = slices.Clone(n.Ports)
	n.Services = slices.Clone(n.Services)
	for i := range n.Services {
		n.Services[i].Backends = slices.Clone(n.Services[i].Backends)
		for k := range n.Services[i].Backends {
			n.Services[i].Backends[k].Port = ""
		}
	}
	for i := range n.Ports {
		n.Ports[i].MAC, n.Ports[i].Adopt = vxlan.MAC{}, false
	}
	return n
}

// common returns those of b that are in a too. Announcements are no repairs by themselves.
func common(a, b []Op) []Op {
	in := make(map[Op]bool, len(a))
	for _, op := range a {
		in[op] = op.Verb != Announce
	}
	return slices.DeleteFunc(slices.Clone(b), func(op Op) bool { return !in[op] })
}

func (p *Plane) run(ctx context.Context, n *network, ops []Op) error {
	p.counts.ops.Add(uint64(len(ops)))
	err := p.kernel.Run(ctx, ops)
	n.ran = time.Now()
	if err != nil {
		p.counts.failures.Add(1)
		n.fresh = false
	}
	return err
}

func (p *Plane) read(ctx context.Context, n *network, want Network) error {
	n.fresh = false
	p.counts.reads.Add(1)
	have, err := p.kernel.ReadNetwork(ctx, want.VNI)
	if err != nil {
		return fmt.Errorf("read network %s from the kernel: %w", want.Name, err)
	}
	n.have, n.fresh = have, true
	return nil
}

// intend notes what is wanted from now on and returns what was wanted before, and whether the kernel must be read.
func (n *network) intend(want Network) (before Network, marked bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	before, marked = n.want, n.marked
	n.want, n.marked = want, false
	return before, marked
}

// lock returns the network, which is the caller's until it unlocks applying.
func (p *Plane) lock(v vxlan.VNI) *network {
	for {
		p.mu.Lock()
		n := p.nets[v]
		if n == nil {
			n = &network{suspects: map[subject]Event{}}
			p.nets[v] = n
		}
		p.mu.Unlock()
		n.applying.Lock()
		if !n.gone {
			return n
		}
		n.applying.Unlock()
	}
}

func (p *Plane) find(v vxlan.VNI) *network {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.nets[v]
}

// Remove takes all of a network out of the kernel, and its receipts and counters with it.
func (p *Plane) Remove(ctx context.Context, v vxlan.VNI) error {
	n := p.lock(v)
	defer n.applying.Unlock()
	n.intend(Network{}) // from here on our own removals are not drift
	if err := p.read(ctx, n, Network{VNI: v}); err != nil {
		return err
	}
	if err := p.run(ctx, n, plan(n.have, Network{})); err != nil {
		return err
	}
	n.gone = true
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.nets, v)
	return nil
}

// Present reads everything of ours from the kernel, for finding what nobody wants any more.
func (p *Plane) Present(ctx context.Context) ([]Network, error) { return p.kernel.Read(ctx) }

// Read reads one network from the kernel; it is the zero Network if nothing of it is there.
func (p *Plane) Read(ctx context.Context, v vxlan.VNI) (Network, error) {
	return p.kernel.ReadNetwork(ctx, v)
}

// Refresh makes the next Apply of the network read the kernel.
func (p *Plane) Refresh(v vxlan.VNI) {
	if n := p.find(v); n != nil {
		n.mark()
	}
}

func (n *network) mark() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.marked = true
}

// Drift returns how many operations it took so far to repair what others changed in the network.
func (p *Plane) Drift(v vxlan.VNI) uint64 {
	n := p.find(v)
	if n == nil {
		return 0
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.drift
}

// Counters returns the totals over all networks.
func (p *Plane) Counters() Counters {
	c := &p.counts
	return Counters{Reads: c.reads.Load(), Ops: c.ops.Load(), Failures: c.failures.Load(), Drift: c.drift.Load()}
}
