package ipsec

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

const (
	// DefaultRekey is how long an epoch lasts.
	DefaultRekey = time.Hour
	// DefaultGrace is how long an inbound SA stays after its last sender has said that it uses a newer one: packets may
	// still be on their way.
	DefaultGrace = 10 * time.Second
	// DefaultMaxPackets of one SA ask for a new epoch. With 2³² packets of 1500 bytes the advantage of somebody who
	// attacks AES-GCM is still below 2⁻⁵⁰ (σ²/2¹²⁹ for σ blocks, as in RFC 9001 appendix B.1); half of it leaves time
	// for the change.
	DefaultMaxPackets = 1 << 31

	// MaxEpochs are offered at once before a timer waits: the newest, the one before it, and one that an absent peer
	// holds.
	MaxEpochs = 3
	// mostEpochs holds even if SAs get lost or the daemon restarts again and again; the oldest goes then.
	mostEpochs = 8
)

// Config is what a Machine is to do. Times are durations on the node's own clock; no clock is compared with another's.
type Config struct {
	// Port is the UDP port of encrypted VXLAN packets.
	Port uint16
	// Ciphers of the node, the preferred one first; Encap its port for ESP-in-UDP or 0. A change makes a new epoch.
	Ciphers []Cipher
	Encap   uint16
	// Rekey is the length of an epoch, Grace see DefaultGrace. Keep is how long after a new epoch a peer that has not
	// acknowledged it may go on with the old one, while the store can be reached. Longer than Rekey delays epochs.
	Rekey, Grace, Keep time.Duration
	// MaxPackets see DefaultMaxPackets.
	MaxPackets uint64
}

// Check says what is wrong with the configuration.
func (c Config) Check() error {
	var errs []error
	if c.Port == 0 {
		errs = append(errs, errors.New("UDP port 0"))
	}
	if len(c.Ciphers) == 0 {
		errs = append(errs, fmt.Errorf("%w: none is left to choose from", ErrCipher))
	}
	for _, k := range c.Ciphers {
		errs = append(errs, CheckCipher(k))
	}
	if c.Rekey <= 0 || c.Grace < 0 || c.Grace >= c.Rekey || c.Keep < c.Grace {
		errs = append(errs, fmt.Errorf("rekey %s, grace %s, keep %s: want 0 ≤ grace < rekey and grace ≤ keep",
			c.Rekey, c.Grace, c.Keep))
	}
	if c.MaxPackets == 0 {
		errs = append(errs, errors.New("a limit of 0 packets"))
	}
	return errors.Join(errs...)
}

// Machine is the key exchange of one node: a pure state machine that is told what the store says (Step), what the
// kernel did (Done, Found, Count) and what was written (Published). It is not safe for concurrent use. A round of its
// owner:
//
//	m.Found(have)
//	want := m.Step(now, view)
//	for op in Plan(have, want): run op; m.Done(op)
//	write m.Offer() and m.Links() where the store differs; m.Published(offer)
//
// It may stop anywhere in between and go on later.
type Machine struct {
	self Identity
	cfg  Config
	// now is the last reading of the node's clock; clock advances with it only while the store can be reached, so that
	// a lost store never lets a peer's time run out.
	now, clock time.Duration
	// began is the first reading.
	began   time.Duration
	started bool
	epochs  []*epoch // the oldest first
	peers   map[string]*peer
	sas     map[SAID]*association
	// byUse finds them by what they are for, during a Step.
	byUse map[use]*association
	// sends is what the kernel's outgoing policy to an address uses.
	sends map[netip.Addr]sending
	// used are SAs that were in the kernel once. None of them is ever made again: see Plan.
	used   map[use]bool
	demand bool
}

// epoch is one of our own.
type epoch struct {
	Epoch
	private   *PrivateKey // nil: lost with a restart, or retired
	made      time.Duration
	published bool
	// old: a newer one has been published, at the clock's reading since.
	old   bool
	since time.Duration
	// quiet: everybody uses a newer one, since the clock's reading moved.
	quiet bool
	moved time.Duration
	// retired: not used any more, and offered only until the kernel has forgotten it.
	retired bool
}

// NewMachine returns the machine of a node without a past; Resume gives it one. The error is that of Config.Check.
func NewMachine(self Identity, cfg Config) (*Machine, error) {
	if err := cfg.Check(); err != nil {
		return nil, fmt.Errorf("configure encryption: %w", err)
	}
	return &Machine{
		self: self, cfg: cfg, peers: map[string]*peer{}, sas: map[SAID]*association{},
		sends: map[netip.Addr]sending{}, used: map[use]bool{},
	}, nil
}

// Configure changes what the machine is to do from the next Step on. The error is that of Config.Check.
func (m *Machine) Configure(cfg Config) error {
	if err := cfg.Check(); err != nil {
		return fmt.Errorf("configure encryption: %w", err)
	}
	m.cfg = cfg
	return nil
}

// Rekey asks for a new epoch as soon as possible.
func (m *Machine) Rekey() { m.demand = true }

// Count tells how many packets an SA has seen, by the kernel's counter.
func (m *Machine) Count(id SAID, packets uint64) {
	a := m.sas[id]
	if a == nil || packets < m.cfg.MaxPackets {
		return
	}
	if e := m.newest(); e != nil && e.ID == a.own() {
		m.demand = true
	}
}

// Published tells that the store has the offer.
func (m *Machine) Published(o Offer) {
	for _, p := range o.Epochs {
		for i, e := range m.epochs {
			if e.ID != p.ID {
				continue
			}
			e.published = true
			for _, before := range m.epochs[:i] {
				if !before.old {
					before.old, before.since = true, m.clock
				}
			}
		}
	}
}

// Offer returns what the store should have of this node; it has no epochs before the first Step.
func (m *Machine) Offer() Offer {
	o := Offer{Node: m.self}
	for _, e := range m.epochs {
		o.Epochs = append(o.Epochs, e.Epoch)
	}
	return o
}

// advance takes a reading of the clock.
func (m *Machine) advance(now time.Duration, fresh bool) {
	if !m.started {
		m.began, m.now, m.started = now, now, true
	}
	if fresh && now > m.now {
		m.clock += now - m.now
	}
	m.now = now
}

// turn retires epochs and makes a new one if it is time.
func (m *Machine) turn() error {
	for _, e := range m.epochs {
		if e.old && !e.retired && m.over(e) {
			m.retire(e)
		}
	}
	m.epochs = slices.DeleteFunc(m.epochs, func(e *epoch) bool { return e.retired && !m.inKernel(e) })
	for k := range m.used {
		if m.epoch(k.own) == nil { // its key is gone for good
			delete(m.used, k)
		}
	}
	if !m.due() {
		return nil
	}
	for live := m.live(); len(live) >= mostEpochs; live = m.live() {
		// The oldest that nobody is known to use. Somebody may just have begun to: his packets are dropped until he
		// reads the new offer.
		i := slices.IndexFunc(live, func(e *epoch) bool { return !m.inUse(e) })
		m.retire(live[max(i, 0)])
	}
	return m.begin()
}

// inUse says whether a peer says that it sends to the epoch, or we send with it.
func (m *Machine) inUse(e *epoch) bool {
	for _, p := range m.peers {
		if p.link.Sends.Receiver == e.ID || m.sends[p.addr()].ref.Sender == e.ID {
			return true
		}
	}
	return false
}

// hasBlocked says whether there is a peer that nothing can be sent to, or that nothing can be received from: a daemon
// that ended before it had told of its SAs left those of the other direction only.
func (m *Machine) hasBlocked() bool {
	heard := map[string]bool{}
	for _, a := range m.sas {
		heard[a.peer] = heard[a.peer] || a.inbound && a.installed
	}
	for name, p := range m.peers {
		if _, ok := m.choose(p); !ok || !heard[name] {
			return true
		}
	}
	return false
}

// due says whether a new epoch should begin. Only one at a time waits for its publication. After a restart the first
// has time while all peers can be talked with, so that a daemon which dies again and again does not fill up its offer.
func (m *Machine) due() bool {
	e := m.newest()
	switch {
	case e == nil || e.retired:
		return true
	case e.Kept:
		return m.now-m.began >= m.cfg.Grace || m.hasLost(e) || m.hasBlocked()
	case !e.published:
		return false
	case m.hasLost(e) || !slices.Equal(e.Ciphers, m.cfg.Ciphers) || e.Encap != m.cfg.Encap:
		return true
	}
	return len(m.live()) < MaxEpochs && (m.demand || m.now-e.made >= m.cfg.Rekey)
}

// begin makes a new epoch.
func (m *Machine) begin() error {
	key, err := GenerateKey()
	if err != nil {
		return err
	}
	number := uint64(1)
	if e := m.newest(); e != nil {
		number = e.Number + 1
	}
	m.epochs = append(m.epochs, &epoch{
		Epoch: Epoch{
			Number: number, ID: rand.Text(), Public: key.Public(),
			Ciphers: slices.Clone(m.cfg.Ciphers), Encap: m.cfg.Encap,
		},
		private: key, made: m.now,
	})
	m.demand = false
	return nil
}

// over says whether an old epoch has done its work: nothing in the kernel is of it, or everybody has used a newer one
// for the time of grace, or those who have not have had their time.
func (m *Machine) over(e *epoch) bool {
	if !m.inKernel(e) || m.clock-e.since >= m.cfg.Keep {
		return true
	}
	for _, p := range m.peers {
		if !m.hasMoved(p, e) {
			e.quiet = false
			return false
		}
	}
	if !e.quiet {
		e.quiet, e.moved = true, m.clock
	}
	return m.clock-e.moved >= m.cfg.Grace
}

// hasMoved says whether the peer sends to a newer epoch of ours than e, and we to it with one. A peer that says nothing
// may have begun to use e a moment ago. It never goes back to an older one: see choose.
func (m *Machine) hasMoved(p *peer, e *epoch) bool {
	theirs := m.epoch(p.link.Sends.Receiver)
	ours := m.epoch(m.sends[p.addr()].ref.Sender)
	return theirs != nil && theirs.Number > e.Number && ours != nil && ours.Number > e.Number
}

// retire forgets the private key: what was sent in this epoch can never be read again.
func (m *Machine) retire(e *epoch) { e.retired, e.private = true, nil }

// inKernel says whether an SA of the epoch is in the kernel.
func (m *Machine) inKernel(e *epoch) bool {
	for _, a := range m.sas {
		if a.installed && a.own() == e.ID {
			return true
		}
	}
	return false
}

// newest returns our newest epoch, nil before the first.
func (m *Machine) newest() *epoch {
	if len(m.epochs) == 0 {
		return nil
	}
	return m.epochs[len(m.epochs)-1]
}

// live returns our epochs that are not retired.
func (m *Machine) live() []*epoch {
	return slices.DeleteFunc(slices.Clone(m.epochs), func(e *epoch) bool { return e.retired })
}

// epoch returns our epoch with an id, nil if there is none.
func (m *Machine) epoch(id string) *epoch {
	for _, e := range m.epochs {
		if e.ID == id {
			return e
		}
	}
	return nil
}
