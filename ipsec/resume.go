package ipsec

import "net/netip"

// Past is what a daemon finds when it starts on a node that has sent before: in the store its own offer and links and
// what others say, in the kernel its SAs and policies.
type Past struct {
	Offer Offer
	Links []Link
	View  View
	Have  State
}

// Resume takes over what the node's former daemon left, before the first Step. The private keys are gone with it: its
// epochs are kept as long as their SAs are in use, and a new one begins. SAs in the kernel that no record explains are
// not taken over, so the first plan removes them. A node whose identity has changed has no past.
func (m *Machine) Resume(past Past) {
	if past.Offer.Node != m.self {
		return
	}
	for _, e := range past.Offer.Epochs {
		e.Kept = true
		m.epochs = append(m.epochs, &epoch{Epoch: e, published: true})
	}
	m.meet(past.View)
	have := map[SAID]SA{}
	for _, s := range past.Have.SAs {
		have[s.ID()] = s
	}
	adopt := func(p *peer, to netip.Addr, ref SARef, inbound bool) {
		s, there := have[SAID{to.Unmap(), ref.SPI}]
		a := &association{SA: s, ref: ref, peer: p.offer.Node.Name, inbound: inbound, installed: true}
		if there && m.epoch(a.own()) != nil {
			m.sas[s.ID()] = a
			m.used[a.use()] = true
		}
	}
	for _, l := range past.Links {
		p := m.peers[l.To]
		if p == nil || l.FromID != m.self.ID || l.ToID != p.offer.Node.ID {
			continue
		}
		for _, ref := range l.Receives {
			adopt(p, m.self.VTEP, ref, true)
		}
		adopt(p, p.addr(), l.Sends, false)
	}
	for _, p := range m.peers {
		for _, ref := range p.link.Receives {
			adopt(p, p.addr(), ref, false)
		}
	}
	for _, pol := range past.Have.Policies {
		if pol.Dir == Out && !pol.Block {
			m.setSending(pol.Dst.Addr(), pol.SPI, false)
		}
	}
}
