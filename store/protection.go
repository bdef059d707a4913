package store

import "time"

// Protection is what a node says of its encryption, for others to show; nothing is done because of it. It has no key.
type Protection struct {
	Node string `json:"node"`
	// Problem says why the node cannot do as its encrypted networks need; empty if it can.
	Problem string `json:"problem,omitempty"`
	// Port is the UDP port that is guarded, 0 if none is.
	Port uint16 `json:"port,omitempty"`
	// Epoch is the number of the node's newest key, Begun when it was made by the node's clock.
	Epoch uint64          `json:"epoch,omitempty"`
	Begun time.Time       `json:"begun,omitzero"`
	Drops ProtectionDrops `json:"drops"`
	// Pairs are sorted by Peer.
	Pairs   []Pair    `json:"pairs,omitempty"`
	Updated time.Time `json:"updated"`
}

// ProtectionDrops are packets that a node's kernel has dropped since it booted.
type ProtectionDrops struct {
	// PlainIn came in clear to the guarded port, PlainOut would have left in clear. Those of the packet filter are those that
	// got past the policies.
	PlainIn   uint64 `json:"plainIn"`
	PlainOut  uint64 `json:"plainOut"`
	FilterIn  uint64 `json:"filterIn"`
	FilterOut uint64 `json:"filterOut"`
	// Replayed came again, or too late; Forged failed the integrity check; Unknown had an SPI that nobody has.
	Replayed uint64 `json:"replayed"`
	Forged   uint64 `json:"forged"`
	Unknown  uint64 `json:"unknown"`
}

// Pair is a node's side of what it shares with another.
type Pair struct {
	Peer string `json:"peer"`
	// Blocked says why nothing is sent to the peer; empty if something is. It never gets anything in clear.
	Blocked string `json:"blocked,omitempty"`
	Cipher  string `json:"cipher,omitempty"`
	// Epoch and PeerEpoch are the numbers of the two keys behind the one that is sent with; Since is when that came into the
	// kernel, by its node's clock.
	Epoch     uint64    `json:"epoch,omitempty"`
	PeerEpoch uint64    `json:"peerEpoch,omitempty"`
	Since     time.Time `json:"since,omitzero"`
	// Behind: the peer does not send with this node's newest key yet.
	Behind bool `json:"behind,omitempty"`
	// SAs are those of the pair in the kernel, the one that is sent with first.
	SAs []SA `json:"sas,omitempty"`
}

// SA is one security association of a pair with what the kernel has counted.
type SA struct {
	SPI uint32 `json:"spi"`
	// In: packets of the peer use it; otherwise those to the peer.
	In      bool   `json:"in,omitempty"`
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
	// Replayed came again, Late before the window of sequence numbers, Forged failed the integrity check.
	Replayed uint64    `json:"replayed,omitempty"`
	Late     uint64    `json:"late,omitempty"`
	Forged   uint64    `json:"forged,omitempty"`
	Added    time.Time `json:"added,omitzero"`
}
