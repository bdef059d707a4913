// Package keying keeps the keys between this node and the others in its encrypted networks: it feeds the machine of package
// ipsec with the store's records, the clock and what the kernel says, makes the kernel as the machine wants it, and
// publishes what others must know.
//
// Two locks keep packets from leaving or entering in clear: XFRM policies that block, and a packet filter of its own. Both are
// set before a network's device exists and stay when the daemon ends; what somebody else removes is put back at once.
package keying

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/netdriver/netdriver/ipsec"
	"github.com/netdriver/netdriver/store"
)

const (
	// rereadEvery is how often the kernel is read whatever its events say, countEvery how often its counters are.
	rereadEvery = 30 * time.Second
	countEvery  = 5 * time.Second
	// slowest and fastest bound how often the machine is asked when nothing happens: its times run out by themselves.
	slowest = time.Second
	fastest = 50 * time.Millisecond
	// settleFor is how long after a network was guarded the locks stay in any case: its device may be about to be made.
	settleFor = time.Minute
	// kernelTimeout bounds one visit to the kernel.
	kernelTimeout = 10 * time.Second
)

// Identity signs as this node and tells who has signed.
type Identity interface {
	ipsec.Signer
	// Prefixes are those of the records that Verifier needs, besides the nodes'.
	Prefixes() []string
	// Verifier believes what the records and the nodes' own ones vouch for.
	Verifier(record func(key string) (store.KV, bool), nodes map[string]store.Node) ipsec.Verifier
	// Safe says why records that it verifies can be trusted here, nil if they can.
	Safe() error
}

// Filter is the second lock: it drops what goes to a port unless it comes out of, or goes into, ESP of ours. It repairs itself.
type Filter interface {
	// Apply makes the filter, if it is not there as it should be; port 0 removes it.
	Apply(ctx context.Context, port uint16) error
	// Problem says why it is not as Apply wanted it; nil if it is.
	Problem() error
	// Drops returns how many packets it has dropped.
	Drops(ctx context.Context) (in, out uint64, err error)
}

// Config is what a Keying is made of.
type Config struct {
	Store    store.Store
	Kernel   ipsec.Kernel
	Filter   Filter
	Identity Identity
	// Node is this node's record.
	Node store.Node
	// InUse says whether a network's device of ours uses a UDP port.
	InUse func(ctx context.Context, port uint16) (bool, error)
	// Encap opens a UDP port for ESP; OpenEncap is the real one.
	Encap func(port uint16) (io.Closer, error)
	// Preferred are the ciphers in the order in which this CPU prefers them; ipsec.Preferred() if nil.
	Preferred []ipsec.Cipher
	Log       *slog.Logger
}

// Keying keeps this node's keys.
type Keying struct {
	cfg     Config
	log     *slog.Logger
	began   time.Time
	wake    chan struct{}
	book    *book
	pub     *publisher
	ability *ability

	// The loop's own.
	decoder decoder
	edition uint64
	last    outlook
	machine *ipsec.Machine
	taken   map[uint32]bool
	encaps  encaps

	// kernel is held while the kernel is looked at or changed; it guards what follows.
	kernel sync.Mutex
	have   ipsec.State
	// doubt: have may not be what the kernel has. locked is the port whose locks are known to be there, guardedAt when it
	// was last asked for.
	doubt     bool
	locked    uint16
	guardedAt time.Time
	// unseen: the machine has not been told what was read last. cleanAt is when all was last found to be removed.
	unseen    bool
	cleanAt   time.Time
	countedAt time.Time
	// counted, filterIn and filterOut are what the kernel had counted then.
	counted             *ipsec.Counters
	filterIn, filterOut uint64
	readAt              time.Time

	mu sync.Mutex
	// said are the problems that were logged last; peers and problem are as of the last round.
	said    map[string]string
	peers   []ipsec.Peer
	problem string
	epoch   uint64
	begun   time.Time
}

// New makes a Keying. It does nothing until Run or Guard.
func New(cfg Config) *Keying {
	if cfg.Preferred == nil {
		cfg.Preferred = ipsec.Preferred()
	}
	k := &Keying{
		cfg: cfg, log: cfg.Log, began: time.Now(), wake: make(chan struct{}, 1), doubt: true,
		taken: map[uint32]bool{}, encaps: encaps{cfg.Encap, map[uint16]io.Closer{}}, said: map[string]string{},
		decoder: decoder{node: cfg.Node, identity: cfg.Identity},
	}
	prefixes := []string{
		store.NodePrefix, store.NetworkPrefix, store.EncryptionPrefix + ipsec.OfferKey(""),
		store.EncryptionPrefix + ipsec.LinksPrefix(cfg.Node.Name),
	}
	k.book = newBook(k.stir, append(prefixes, cfg.Identity.Prefixes()...)...)
	k.pub = newPublisher(cfg, k.stir)
	k.ability = newAbility(cfg)
	return k
}

// stir makes the loop go round.
func (k *Keying) stir() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// Run keeps the keys until ctx ends. What is in the kernel stays.
func (k *Keying) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { k.book.run(ctx, k.cfg.Store); return nil })
	g.Go(func() error { k.pub.run(ctx); return nil })
	g.Go(func() error { k.listen(ctx); return nil })
	g.Go(func() error { k.ability.run(ctx, k.stir); return nil })
	g.Go(func() error { k.loop(ctx); return nil })
	return g.Wait()
}

func (k *Keying) loop(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	defer func() { k.tell("encap", "cannot close", k.encaps.want(nil)) }()
	for {
		select {
		case <-ctx.Done():
			return
		case <-k.wake:
		case <-timer.C:
		}
		k.round(ctx)
		timer.Reset(k.pace())
	}
}

// pace is how long nothing may happen before the machine is asked again.
func (k *Keying) pace() time.Duration {
	if k.machine == nil {
		return slowest
	}
	return min(max(k.last.rekey.grace()/4, fastest), slowest)
}

// listen notes what others do to the kernel's SAs and policies.
func (k *Keying) listen(ctx context.Context) {
	for ctx.Err() == nil {
		events, err := k.cfg.Kernel.Events(ctx)
		if err != nil {
			k.tell("events", "cannot hear the kernel's events, so it is only read every now and then", err)
			select {
			case <-ctx.Done():
			case <-time.After(rereadEvery):
			}
			continue
		}
		for e := range events {
			if !k.expected(e) {
				k.suspect()
			}
		}
	}
}

// expected says whether an event may be about what this daemon itself has just done.
func (k *Keying) expected(e ipsec.Event) bool {
	if e.Kind != ipsec.SAChanged {
		return false
	}
	k.kernel.Lock()
	defer k.kernel.Unlock()
	for _, s := range k.have.SAs {
		if s.ID() == e.SA {
			return !e.Gone
		}
	}
	return e.Gone
}

// suspect makes the loop read the kernel.
func (k *Keying) suspect() {
	k.kernel.Lock()
	k.doubt, k.locked = true, 0
	k.kernel.Unlock()
	k.stir()
}

// Supports says why this node cannot be in an encrypted network, with that cipher if one is named; nil if it can.
func (k *Keying) Supports(ctx context.Context, c ipsec.Cipher) error {
	if err := k.cfg.Identity.Safe(); err != nil {
		return err
	}
	have, err := k.ability.get(ctx)
	if err != nil {
		return err
	}
	if allowed := (ipsec.Option{Encrypted: true, Cipher: c}).Allowed(have); len(allowed) == 0 {
		return fmt.Errorf("this kernel has no %s, only %v: choose one of them, or load its modules", c, have)
	}
	return nil
}

// Guard returns once the kernel drops whatever goes to a port in clear, in both directions: by policies, and by a filter.
func (k *Keying) Guard(ctx context.Context, port uint16) error {
	k.kernel.Lock()
	defer k.kernel.Unlock()
	k.guardedAt = time.Now()
	if k.locked != port {
		return k.lock(ctx, port)
	}
	if err := k.cfg.Filter.Problem(); err != nil {
		return fmt.Errorf("packet filter for port %d: %w", port, err)
	}
	return nil
}

// lock sets both locks. The caller holds the kernel's lock.
func (k *Keying) lock(ctx context.Context, port uint16) error {
	if err := k.look(ctx); err != nil {
		return err
	}
	if err := k.apply(ctx, blocked(k.have, port), nil); err != nil {
		return err
	}
	if err := k.cfg.Filter.Apply(ctx, port); err != nil {
		return fmt.Errorf("packet filter for port %d: %w", port, err)
	}
	k.locked, k.cleanAt = port, time.Time{}
	return nil
}

// blocked is a state with the policies that block a port.
func blocked(s ipsec.State, port uint16) ipsec.State {
	for _, p := range ipsec.Blocked(port).Policies {
		s = s.Apply(ipsec.Op{Verb: ipsec.SetBlock, Policy: p})
	}
	return s
}

// look reads the kernel if it is in doubt. The caller holds the kernel's lock.
func (k *Keying) look(ctx context.Context) error {
	if !k.doubt {
		return nil
	}
	have, err := k.cfg.Kernel.Read(ctx)
	if err != nil {
		return fmt.Errorf("read the kernel's SAs and policies: %w", err)
	}
	k.have, k.doubt, k.unseen, k.readAt = have, false, true, time.Now()
	return nil
}

// apply makes the kernel as wanted. The caller holds the kernel's lock.
func (k *Keying) apply(ctx context.Context, want ipsec.State, done func(ipsec.Op)) error {
	ops := ipsec.Plan(k.have, want)
	if len(ops) == 0 {
		return nil
	}
	err := k.cfg.Kernel.Run(ctx, ops, func(o ipsec.Op) {
		k.have = k.have.Apply(o)
		k.log.Debug("changed the kernel", "op", o.String())
		if done != nil {
			done(o)
		}
	})
	if err != nil {
		k.doubt, k.locked = true, 0
		k.avoid(err)
	}
	return err
}

// tell logs a problem once, until it changes.
func (k *Keying) tell(about, what string, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	text := ""
	if err != nil {
		text = err.Error()
	}
	if k.said[about] == text {
		return
	}
	k.said[about] = text
	if err != nil && !errors.Is(err, context.Canceled) {
		k.log.Warn(what, "error", err)
	}
}
