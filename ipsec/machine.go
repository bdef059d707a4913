package ipsec

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"
)

// View is what the store says, as far as this node has heard: the offers of the nodes that it shares encrypted networks
// with (its own does not matter), and by the name of the writer their links to it. A node that is missing is gone, and
// its SAs with it, so there is no view before the whole store has been read once.
type View struct {
	Offers []Offer
	Links  map[string]Link
	// Fresh: the store can be reached, so that a peer's silence is the peer's.
	Fresh bool
	// Taken, if not nil, says which SPIs other programs use at this node's address.
	Taken func(spi uint32) bool
}

// peer is another node.
type peer struct {
	offer Offer
	link  Link // zero if there is none for us
	// blocked says why nothing can be sent; empty if something can.
	blocked string
}

func (p *peer) addr() netip.Addr { return p.offer.Node.VTEP.Unmap() }

// epoch returns the peer's epoch with an id.
func (p *peer) epoch(id string) (Epoch, bool) {
	i := slices.IndexFunc(p.offer.Epochs, func(e Epoch) bool { return e.ID == id })
	if i < 0 {
		return Epoch{}, false
	}
	return p.offer.Epochs[i], true
}

// association is an SA with what it is for.
type association struct {
	SA
	ref               SARef
	peer              string
	inbound           bool
	installed, wanted bool
}

// own returns the id of our epoch in it, other that of the peer's.
func (a *association) own() string {
	if a.inbound {
		return a.ref.Receiver
	}
	return a.ref.Sender
}

func (a *association) use() use {
	if a.inbound {
		return use{a.peer, a.ref.Receiver, a.ref.Sender, true}
	}
	return use{a.peer, a.ref.Sender, a.ref.Receiver, false}
}

// use names a key once for all.
type use struct {
	peer, own, other string
	inbound          bool
}

// sending is the SA in use towards a peer, zero if its packets are blocked; receiver and number are the peer's newest
// epoch that was in use.
type sending struct {
	ref      SARef
	receiver string
	number   uint64
}

// Step takes a reading of the node's clock (the time since any fixed moment, such as the process's start) and what the
// store says, and returns what the kernel should have now. An error is about some peers only: the state is good for the
// others.
func (m *Machine) Step(now time.Duration, v View) (State, error) {
	m.advance(now, v.Fresh)
	m.meet(v)
	m.byUse = make(map[use]*association, len(m.sas))
	for _, a := range m.sas {
		m.byUse[a.use()] = a
	}
	var errs []error
	if err := m.turn(); err != nil {
		errs = append(errs, err)
	}
	for id, a := range m.sas {
		if a.wanted = false; !a.installed {
			delete(m.sas, id)
			delete(m.byUse, a.use())
		}
	}
	state := Blocked(m.cfg.Port)
	for _, name := range m.names() {
		p := m.peers[name]
		if err := m.receive(p, v.Taken); err != nil {
			errs = append(errs, err)
		}
		policies, err := m.policies(p)
		if err != nil {
			errs = append(errs, err)
		}
		state.Policies = append(state.Policies, policies...)
	}
	for _, a := range m.sas {
		if a.wanted {
			state.SAs = append(state.SAs, a.SA)
		}
	}
	return state.Sorted(), errors.Join(errs...)
}

// meet takes over the records. A node that claims an address of another's is as unwelcome as the other: nobody can
// tell here whose packets they are.
func (m *Machine) meet(v View) {
	claims := map[netip.Addr]int{m.self.VTEP.Unmap(): 1}
	for _, o := range v.Offers {
		if o.Node.Name != m.self.Name {
			claims[o.Node.VTEP.Unmap()]++
		}
	}
	m.peers = map[string]*peer{}
	maps.DeleteFunc(m.sends, func(to netip.Addr, s sending) bool { return s.ref == (SARef{}) && claims[to] == 0 })
	for _, o := range v.Offers {
		if o.Node.Name == m.self.Name {
			continue
		}
		p := &peer{offer: o}
		if claims[p.addr()] > 1 {
			p.offer.Epochs = nil
			p.blocked = fmt.Sprintf("another node claims its address %s", p.addr())
		}
		if l := v.Links[o.Node.Name]; l.FromID == o.Node.ID && l.ToID == m.self.ID && l.To == m.self.Name {
			p.link = l
		}
		m.peers[o.Node.Name] = p
	}
}

// receive wants the SAs for packets from a peer: one for each pair of epochs.
func (m *Machine) receive(p *peer, taken func(uint32) bool) error {
	var errs []error
	for _, mine := range m.live() {
		for _, theirs := range p.offer.Epochs {
			if a := m.find(use{p.offer.Node.Name, mine.ID, theirs.ID, true}); a != nil {
				a.wanted = true
				continue
			}
			if mine.private == nil || theirs.Kept || m.used[use{p.offer.Node.Name, mine.ID, theirs.ID, true}] {
				continue
			}
			pair := Pair{Sender: p.offer.Node, Receiver: m.self, SenderEpoch: theirs, ReceiverEpoch: mine.Epoch}
			spi := pair.SPI(func(n uint32) bool {
				return m.sas[SAID{m.self.VTEP.Unmap(), n}] != nil || taken != nil && taken(n)
			})
			if err := m.add(p, pair, spi, mine.private, true); err != nil {
				p.blocked = err.Error()
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

// add wants a new SA.
func (m *Machine) add(p *peer, pair Pair, spi uint32, key *PrivateKey, inbound bool) error {
	sa, err := newSA(pair, spi, key)
	if err != nil {
		return fmt.Errorf("encrypt between %s and %s: %w", pair.Sender.Name, pair.Receiver.Name, err)
	}
	a := &association{
		SA: sa, ref: SARef{pair.SenderEpoch.ID, pair.ReceiverEpoch.ID, spi}, peer: p.offer.Node.Name, inbound: inbound,
		wanted: true,
	}
	m.sas[sa.ID()], m.byUse[a.use()] = a, a
	return nil
}

// find returns the SA of a pair, nil if there is none.
func (m *Machine) find(u use) *association { return m.byUse[u] }

// ofPeers returns the SAs by the names of their peers.
func (m *Machine) ofPeers() map[string][]*association {
	out := map[string][]*association{}
	for _, a := range m.sas {
		out[a.peer] = append(out[a.peer], a)
	}
	return out
}

// policies returns a peer's policies and wants the SA that they send with. Incoming packets may use any SA that the
// peer has; outgoing ones find only the blocking policy if the peer has acknowledged none.
func (m *Machine) policies(p *peer) ([]Policy, error) {
	if len(p.offer.Epochs) == 0 {
		return nil, nil
	}
	in := pairPolicy(In, p.addr(), m.self.VTEP, m.cfg.Port, 0)
	ref, ok := m.choose(p)
	if !ok {
		p.blocked = cmp.Or(p.blocked, "it has not acknowledged a key that is in use here")
		return []Policy{in}, nil
	}
	if a := m.sas[SAID{p.addr(), ref.SPI}]; a != nil {
		a.wanted = true
	} else {
		mine := m.epoch(ref.Sender)
		theirs, _ := p.epoch(ref.Receiver) // choose has seen both
		pair := Pair{Sender: m.self, Receiver: p.offer.Node, SenderEpoch: mine.Epoch, ReceiverEpoch: theirs}
		if err := m.add(p, pair, ref.SPI, mine.private, false); err != nil {
			p.blocked = err.Error()
			return []Policy{in}, err
		}
	}
	p.blocked = ""
	return []Policy{in, pairPolicy(Out, m.self.VTEP, p.addr(), m.cfg.Port, ref.SPI)}, nil
}

// choose returns the SA to send to a peer with: of those that the peer has acknowledged the one of its newest epoch,
// then of our newest. It never goes back to an older epoch of the peer's than it has used, since the peer may have
// counted on that and removed its SA; only if the peer has started over is there nothing to go back from.
func (m *Machine) choose(p *peer) (SARef, bool) {
	last := m.sends[p.addr()]
	least := uint64(0)
	if _, offered := p.epoch(last.receiver); offered {
		least = last.number
	}
	var best SARef
	var rank [2]uint64
	for _, ref := range p.link.Receives {
		mine := m.epoch(ref.Sender)
		theirs, offered := p.epoch(ref.Receiver)
		if mine == nil || mine.retired || !offered || theirs.Number < least || !m.canSend(p, mine, ref) {
			continue
		}
		if r := [2]uint64{theirs.Number, mine.Number}; best.SPI == 0 || slices.Compare(r[:], rank[:]) > 0 {
			best, rank = ref, r
		}
	}
	return best, best.SPI != 0
}

// canSend says whether the SA is in the kernel or can be made: never for a second time.
func (m *Machine) canSend(p *peer, mine *epoch, ref SARef) bool {
	u := use{p.offer.Node.Name, mine.ID, ref.Receiver, false}
	if a := m.sas[SAID{p.addr(), ref.SPI}]; a != nil {
		return a.use() == u // otherwise an old one is on its way out
	}
	return mine.private != nil && !m.used[u]
}

// hasLost says whether an SA of our newest epoch e was in the kernel, is not any more and is needed: to receive, or to
// send as the peer has acknowledged. The pair can only go on with a new epoch then.
func (m *Machine) hasLost(e *epoch) bool {
	for name, p := range m.peers {
		for _, theirs := range p.offer.Epochs {
			if u := (use{name, e.ID, theirs.ID, true}); m.used[u] && m.find(u) == nil {
				return true
			}
		}
		ref := m.sends[p.addr()].ref
		if ref.Sender == e.ID && m.sas[SAID{p.addr(), ref.SPI}] == nil {
			return true
		}
		if _, ok := m.choose(p); !ok && slices.ContainsFunc(p.link.Receives, func(r SARef) bool {
			return r.Sender == e.ID && m.used[use{name, e.ID, r.Receiver, false}] && m.sas[SAID{p.addr(), r.SPI}] == nil
		}) {
			return true
		}
	}
	return false
}

// Done tells that an operation of the plan succeeded.
func (m *Machine) Done(o Op) {
	switch o.Verb {
	case AddSA:
		if a := m.sas[o.SA.ID()]; a != nil {
			a.installed = true
			m.used[a.use()] = true
		}
	case DelSA:
		delete(m.sas, o.SA.ID())
	case SetPolicy, DelPolicy:
		if o.Policy.Dir == Out {
			m.setSending(o.Policy.Dst.Addr(), o.Policy.SPI, o.Verb == DelPolicy)
		}
	}
}

// setSending notes what the kernel sends with to an address.
func (m *Machine) setSending(to netip.Addr, spi uint32, blocked bool) {
	s := m.sends[to]
	s.ref = SARef{}
	if a := m.sas[SAID{to, spi}]; a != nil && !blocked {
		s.ref, s.receiver = a.ref, a.ref.Receiver
		if p := m.peers[a.peer]; p != nil {
			e, _ := p.epoch(a.ref.Receiver)
			s.number = e.Number
		}
	}
	m.sends[to] = s
}

// Found tells what was read from the kernel, after all operations that were Done. SAs that are not there any more were
// lost without an operation of ours. They are not made again: see Plan. If they are needed a new epoch begins with the
// next Step.
func (m *Machine) Found(have State) {
	there := map[SAID]bool{}
	for _, s := range have.SAs {
		there[s.ID()] = true
	}
	maps.DeleteFunc(m.sas, func(id SAID, a *association) bool { return a.installed && !there[id] })
}

// Links returns what the store should have from this node to each peer, sorted by their names. A link of this node's
// to anybody else should go.
func (m *Machine) Links() []Link {
	var out []Link
	sas := m.ofPeers()
	for _, name := range m.names() {
		p := m.peers[name]
		l := Link{From: m.self.Name, FromID: m.self.ID, To: name, ToID: p.offer.Node.ID, Sends: m.sends[p.addr()].ref}
		for _, a := range sas[name] {
			if e := m.epoch(a.ref.Receiver); a.inbound && a.installed && e != nil && !e.retired {
				l.Receives = append(l.Receives, a.ref)
			}
		}
		slices.SortFunc(l.Receives, func(a, b SARef) int {
			return cmp.Or(cmp.Compare(a.Receiver, b.Receiver), cmp.Compare(a.Sender, b.Sender))
		})
		out = append(out, l)
	}
	return out
}

func (m *Machine) names() []string { return slices.Sorted(maps.Keys(m.peers)) }
