package lan

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/netdriver/netdriver/vxlan"
)

const (
	// lookEvery is how often containers are looked into: the kernel tells nobody outside of what happens there.
	lookEvery = 300 * time.Millisecond
	// settleTime is how long changes are collected before they are judged: one `ip link del` causes many.
	settleTime = 10 * time.Millisecond
	// movingTime is how long libnetwork may take to move an interface; meanwhile it may be missed where it was and where it
	// comes to.
	movingTime = 50 * time.Millisecond
	// announceFor is how long an interface may take to appear in its container after Join: Docker starts it first.
	announceFor = 20 * time.Second
	// maxReceipts are kept per network.
	maxReceipts = 32
)

// Plane makes the kernel match wanted networks and keeps it so. All methods may be called at any time from any goroutine.
type Plane struct {
	kernel   Kernel
	log      *slog.Logger
	drifted  chan string
	counts   counts
	repaired func(network string, did []string, failed error)

	mu   sync.Mutex // held while the kernel is read or changed: VLAN interfaces are several networks'
	nets map[string]*network

	// state guards what is read without waiting for the kernel.
	state sync.Mutex
}

// counts are the totals behind Counters.
type counts struct{ reads, ops, failures, drift atomic.Uint64 }

// Counters are totals since the Plane was made.
type Counters struct {
	Reads    uint64 // networks read from the kernel, the looks into containers included
	Ops      uint64 // operations run, failed ones included
	Failures uint64 // calls to Apply, Remove or Sweep in which an operation failed
	Drift    uint64 // operations that repaired what others had changed
}

// network is what a Plane knows of one network.
type network struct {
	want Network
	// failed: the last Apply did; whatever changes on the host may be the cure.
	failed bool
	// settled: the last Apply succeeded.
	settled bool
	// parent is the state of the parent when the network was last applied.
	parent   parentState
	receipts []Receipt
}

// parentState is what decides whether containers on an interface work.
type parentState struct {
	there, up, running bool
	mtu                int
}

// stateOf returns the state of the host's interface of that name.
func stateOf(name string, host []Interface) (s parentState) {
	if i, ok := find(host, name); ok {
		s = parentState{true, i.Up, i.Running, i.MTU}
	}
	return s
}

// Receipt tells of one repair: an operation that undid what something else had done.
type Receipt struct {
	Time  time.Time
	Op    string
	Took  time.Duration
	Error string
}

// NewPlane returns a Plane that knows nothing yet.
func NewPlane(k Kernel, log *slog.Logger) *Plane {
	return &Plane{kernel: k, log: log, drifted: make(chan string), nets: map[string]*network{},
		repaired: func(string, []string, error) {}}
}

// OnRepair has f told of each repair: what was done, as commands, and why it failed if it did. It is called before anything
// else, and f returns soon.
func (p *Plane) OnRepair(f func(network string, did []string, failed error)) { p.repaired = f }

// Counters returns the totals over all networks.
func (p *Plane) Counters() Counters {
	c := &p.counts
	return Counters{Reads: c.reads.Load(), Ops: c.ops.Load(), Failures: c.failures.Load(), Drift: c.drift.Load()}
}

// look reads one network from the kernel.
func (p *Plane) look(ctx context.Context, want Network) (Network, error) {
	p.counts.reads.Add(1)
	return p.kernel.Read(ctx, want)
}

// run changes the kernel.
func (p *Plane) run(ctx context.Context, ops []Op) error {
	p.counts.ops.Add(uint64(len(ops)))
	err := p.kernel.Run(ctx, ops)
	if err != nil {
		p.counts.failures.Add(1)
	}
	return err
}

// Interfaces lists the host's.
func (p *Plane) Interfaces(ctx context.Context) ([]Interface, error) { return p.kernel.Interfaces(ctx) }

// Supports says whether the kernel can make such a device.
func (p *Plane) Supports(ctx context.Context, kind Kind) error { return p.kernel.Supports(ctx, kind) }

// Probe asks on an interface who has an address; found is false if nobody answers.
func (p *Plane) Probe(ctx context.Context, device string, a netip.Addr) (vxlan.MAC, bool, error) {
	return p.kernel.Probe(ctx, device, a)
}

// Apply makes the kernel match want and returns the operations that it took. After an error the part that does not depend
// on what failed is done.
func (p *Plane) Apply(ctx context.Context, want Network) ([]Op, error) {
	if err := want.Check(); err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	start := time.Now()
	var host []Interface
	have, err := p.read(ctx, want)
	if err == nil && want.Parent != "" {
		host, err = p.kernel.Interfaces(ctx)
	}
	if err != nil {
		p.note(want, parentState{}, nil, start, err)
		return nil, err
	}
	ops := plan(have, want)
	var repairs []string
	if before, reached := p.before(want.Name); reached {
		repairs = common(plan(have, before), ops)
	}
	if err = p.run(ctx, ops); len(ops) > 0 {
		p.announceAgain(ctx, want, ops)
	}
	p.note(want, stateOf(want.Parent, host), repairs, start, err)
	return ops, err
}

// read reads the kernel. What is missed in a container is looked for once more.
func (p *Plane) read(ctx context.Context, want Network) (Network, error) {
	have, err := p.look(ctx, want)
	places := func(op Op) bool { return op.Verb == PlacePort }
	if err == nil && slices.ContainsFunc(plan(have, want), places) {
		select {
		case <-ctx.Done():
			return have, context.Cause(ctx)
		case <-time.After(movingTime):
		}
		have, err = p.look(ctx, want)
	}
	if err != nil {
		return have, fmt.Errorf("read network %s from the kernel: %w", want.Name, err)
	}
	return have, nil
}

// before returns what was wanted last, if it was reached: a difference from it is somebody else's doing.
func (p *Plane) before(name string) (want Network, reached bool) {
	p.state.Lock()
	defer p.state.Unlock()
	if n := p.nets[name]; n != nil {
		return n.want, n.settled
	}
	return Network{}, false
}

// common returns those of b that are in a too.
func common(a, b []Op) (out []string) {
	for _, op := range b {
		if slices.Contains(a, op) {
			out = append(out, op.String())
		}
	}
	return out
}

// announceAgain announces the addresses of interfaces that were made in containers: the LAN's switches forget their MACs.
func (p *Plane) announceAgain(ctx context.Context, want Network, ops []Op) {
	for _, op := range ops {
		i := slices.IndexFunc(want.Ports, func(port Port) bool { return port.Endpoint == op.Endpoint })
		if op.Verb != PlacePort || i < 0 {
			continue
		}
		if err := p.kernel.Announce(ctx, want.Ports[i]); err != nil && !errors.Is(err, ErrNotThere) {
			p.log.Warn("cannot announce an address", "network", want.Name, "endpoint", op.Endpoint, "error", err)
		}
	}
}

// note remembers what was wanted and how it went.
func (p *Plane) note(want Network, parent parentState, repairs []string, start time.Time, failed error) {
	p.state.Lock()
	defer p.state.Unlock()
	n := p.nets[want.Name]
	if n == nil {
		n = &network{}
		p.nets[want.Name] = n
	}
	n.want, n.parent, n.failed, n.settled = want.clone(), parent, failed != nil, failed == nil
	if len(repairs) == 0 {
		return
	}
	r := Receipt{Time: start, Took: time.Since(start)}
	if failed != nil {
		r.Error = failed.Error()
	}
	p.counts.drift.Add(uint64(len(repairs)))
	for _, r.Op = range repairs {
		n.receipts = append(n.receipts, r)
	}
	n.receipts = n.receipts[max(0, len(n.receipts)-maxReceipts):]
	p.repaired(want.Name, repairs, failed)
	p.log.Warn("repaired what something else had changed", "network", want.Name, "did", repairs, "took", r.Took, "error", r.Error)
}

// Diff returns what Apply would have to do; nothing is changed.
func (p *Plane) Diff(ctx context.Context, want Network) ([]Op, error) {
	if err := want.Check(); err != nil {
		return nil, err
	}
	have, err := p.look(ctx, want)
	if err != nil {
		return nil, fmt.Errorf("read network %s from the kernel: %w", want.Name, err)
	}
	return plan(have, want), nil
}

// Remove takes all of a network from the host, and its receipts with it. A VLAN interface that another of the networks
// here needs stays: keep has their names.
func (p *Plane) Remove(ctx context.Context, name string, keep []string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var known Network
	p.state.Lock()
	if n := p.nets[name]; n != nil {
		known = n.want
	}
	delete(p.nets, name) // from here on our own removals are no drift
	p.state.Unlock()
	have, err := p.look(ctx, Network{Name: name, VLAN: known.VLAN})
	if err != nil {
		return fmt.Errorf("read network %s from the kernel: %w", name, err)
	}
	if slices.Contains(keep, have.VLAN.Device) {
		have.VLAN = VLAN{}
	}
	return p.run(ctx, plan(have, Network{Name: name}))
}

// Sweep removes what a daemon left behind that was killed: networks that wanted denies, unless they still have containers,
// and VLAN interfaces that are not among keep. Every record has to have been read before.
func (p *Plane) Sweep(ctx context.Context, wanted func(network string) bool, keep []string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	present, err := p.kernel.Present(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, n := range present {
		if n.Name != "" && wanted(n.Name) || slices.Contains(keep, n.VLAN.Device) {
			continue
		}
		p.log.Info("removing what no record wants", "network", n.Name, "vlan", n.VLAN.Device)
		if err := p.run(ctx, plan(n, Network{Name: n.Name})); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Drifted delivers networks whose state on this host others have changed, or that may work now, while Run runs. The
// receiver calls Apply again.
func (p *Plane) Drifted() <-chan string { return p.drifted }

// Run follows what changes on the host and in its containers until ctx ends.
func (p *Plane) Run(ctx context.Context) error {
	changes, err := p.kernel.Changes(ctx)
	if err != nil {
		return err
	}
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		changed := false
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-changes:
			changed = true
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(settleTime):
			}
		}
		for _, name := range p.suspects(ctx, changed) {
			select {
			case p.drifted <- name:
			case <-ctx.Done():
				return nil
			}
		}
	}
}

// suspects returns the networks that are not as they were wanted last; those, too, that failed, if something has changed.
func (p *Plane) suspects(ctx context.Context, changed bool) (out []string) {
	p.mu.Lock() // an Apply that is under way is no drift
	defer p.mu.Unlock()
	p.state.Lock()
	all := map[string]network{}
	for name, n := range p.nets {
		all[name] = *n
	}
	p.state.Unlock()
	if len(all) == 0 { // a host's containers change its interfaces often
		return nil
	}
	var host []Interface
	if changed {
		var err error
		if host, err = p.kernel.Interfaces(ctx); err != nil {
			p.log.Warn("cannot list the host's interfaces", "error", err)
			changed = false
		}
	}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		n := all[name]
		if changed && (n.failed || n.want.Parent != "" && stateOf(n.want.Parent, host) != n.parent) || p.differs(ctx, n, changed) {
			out = append(out, name)
		}
	}
	return out
}

// differs says whether a network is not as it was wanted last. What may have changed is read only.
func (p *Plane) differs(ctx context.Context, n network, changed bool) bool {
	inContainer := func(port Port) bool { return port.Sandbox != "" }
	if n.failed || !changed && !slices.ContainsFunc(n.want.Ports, inContainer) {
		return false
	}
	have, err := p.look(ctx, n.want)
	return err == nil && len(plan(have, n.want)) > 0
}

// Fail notes that a network could not even be planned, so that a change on the host makes it be tried again.
func (p *Plane) Fail(name string) {
	p.state.Lock()
	defer p.state.Unlock()
	if p.nets[name] == nil {
		p.nets[name] = &network{want: Network{Name: name}}
	}
	p.nets[name].failed = true
}

// Announce tells the LAN of an endpoint's addresses as soon as its interface is in its container, until ctx ends or it
// has taken too long.
func (p *Plane) Announce(ctx context.Context, port Port) error {
	ctx, cancel := context.WithTimeout(ctx, announceFor)
	defer cancel()
	for {
		err := p.kernel.Announce(ctx, port)
		if !errors.Is(err, ErrNotThere) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(settleTime):
		}
	}
}

// Receipts returns the last repairs of a network, 32 at most, oldest first.
func (p *Plane) Receipts(name string) []Receipt {
	p.state.Lock()
	defer p.state.Unlock()
	if n := p.nets[name]; n != nil {
		return slices.Clone(n.receipts)
	}
	return nil
}
