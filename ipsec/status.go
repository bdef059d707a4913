package ipsec

import "slices"

// Peer is how things stand with another node, for inspect. It has no key.
type Peer struct {
	Name string
	// Cipher is that of the SA in use for sending, empty if there is none.
	Cipher Cipher
	// Epoch and PeerEpoch are the numbers of the epochs in use for sending, 0 if there is none.
	Epoch, PeerEpoch uint64
	// Sends is the SA in use for sending, zero if there is none; Receives are those for receiving, sorted by SPI.
	Sends    SAID
	Receives []SAID
	// Blocked says why nothing is sent to the peer, empty if something is. It never gets plaintext.
	Blocked string
	// Behind: the peer does not send with our newest epoch yet.
	Behind bool
}

// Peers returns how things stand with each peer since the last Step, sorted by their names.
func (m *Machine) Peers() []Peer {
	var out []Peer
	sas := m.ofPeers()
	for _, name := range m.names() {
		p := m.peers[name]
		newest := m.newest()
		s := Peer{Name: name, Blocked: p.blocked, Behind: newest == nil || p.link.Sends.Receiver != newest.ID}
		for _, a := range sas[name] {
			id := a.ID()
			switch {
			case !a.installed:
			case a.inbound:
				s.Receives = append(s.Receives, id)
			case a.ref == m.sends[p.addr()].ref:
				s.Sends, s.Cipher = id, a.Cipher
				if e := m.epoch(a.ref.Sender); e != nil {
					s.Epoch = e.Number
				}
				s.PeerEpoch = m.sends[p.addr()].number
			}
		}
		slices.SortFunc(s.Receives, func(a, b SAID) int { return int(int64(a.SPI) - int64(b.SPI)) })
		out = append(out, s)
	}
	return out
}
