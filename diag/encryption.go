package diag

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/netdriver/netdriver/store"
	"github.com/netdriver/netdriver/vxlan"
)

// Protector is what diag asks of encryption; *keying.Keying is the real one.
type Protector interface {
	// Protection is how this node's encryption stands, with what its kernel has counted.
	Protection(ctx context.Context) (store.Protection, error)
}

// Encryption is how an encrypted network's packets are protected, seen from the node that made the report. There is no key in
// it. SAs belong to pairs of nodes and are shared by all encrypted networks, and so are all counters.
type Encryption struct {
	// Cipher is the only one allowed; empty: each pair takes what suits both.
	Cipher string `json:"cipher,omitempty"`
	// Rekey is how long a key is used, in seconds.
	Rekey float64 `json:"rekey"`
	// Problem says why this node cannot encrypt; empty if it can.
	Problem string `json:"problem,omitempty"`
	// Epoch numbers this node's keys, Begun is when the newest was made.
	Epoch uint64    `json:"epoch,omitempty"`
	Begun time.Time `json:"begun,omitzero"`
	// Encap are the UDP ports of ESP-in-UDP among the nodes.
	Encap []uint16 `json:"encap,omitempty"`
	// Drops are this node's, Pairs what it shares with each other member.
	Drops store.ProtectionDrops `json:"drops"`
	Pairs []store.Pair          `json:"pairs,omitempty"`
	// Others are what the other members say of pairs of theirs that are blocked, as of Updated.
	Others []Blocked `json:"others,omitempty"`
}

// Blocked is a pair of nodes between which one sends nothing.
type Blocked struct {
	From    string    `json:"from"`
	To      string    `json:"to"`
	Reason  string    `json:"reason"`
	Updated time.Time `json:"updated"`
}

// brief is what the summary of all networks has.
func (e *Encryption) brief() *Encryption {
	if e == nil {
		return nil
	}
	return &Encryption{Cipher: e.Cipher, Rekey: e.Rekey, Problem: e.Problem, Epoch: e.Epoch, Begun: e.Begun, Drops: e.Drops}
}

// overhead is what a network's encapsulation takes of a node's underlay, in bytes.
func overhead(nw store.Network, n store.Node) int {
	if !nw.Encrypted {
		return vxlan.Overhead(n.VTEP)
	}
	if most, err := vxlan.EncryptedMTU(n.UnderlayMTU, n.VTEP, n.Encap != 0); err == nil {
		return n.UnderlayMTU - most
	}
	const typical = 1500 // of an underlay that is too small nothing is left
	most, _ := vxlan.EncryptedMTU(typical, n.VTEP, n.Encap != 0)
	return typical - most
}

// protection reads what is known of an encrypted network's protection.
func (d *Diagnosis) protection(ctx context.Context, f *facts) {
	f.protected = map[string]store.Protection{}
	ask, cancel := context.WithTimeout(ctx, askStore)
	defer cancel()
	if f.err == nil {
		said, err := list(ask, d.src.Store, store.EncryptionStatusPrefix, f.bad, func(_ store.KV, p store.Protection) (string, store.Protection) {
			return p.Node, p
		})
		if err == nil {
			f.protected = said
		}
	}
	switch {
	case !slices.Contains(members(f.network.Network), f.me.Name):
	case d.src.Encryption == nil:
		f.protectErr = errors.New("this daemon does not encrypt")
	default:
		var own store.Protection
		own, f.protectErr = d.src.Encryption.Protection(ask)
		f.protected[f.me.Name] = own
	}
}

// encryption is this network's part of what is known.
func (f facts) encryption() *Encryption {
	nw := f.network.Network
	if !nw.Encrypted {
		return nil
	}
	own := f.protected[f.me.Name]
	e := &Encryption{
		Cipher: nw.Cipher, Rekey: nw.Rekey.Seconds(), Problem: own.Problem, Epoch: own.Epoch, Begun: own.Begun, Drops: own.Drops,
	}
	in := members(nw)
	for _, p := range own.Pairs {
		if slices.Contains(in, p.Peer) {
			e.Pairs = append(e.Pairs, p)
		}
	}
	for _, name := range in {
		if port := f.nodes[name].Encap; port != 0 && !slices.Contains(e.Encap, port) {
			e.Encap = append(e.Encap, port)
		}
		if name == f.me.Name {
			continue
		}
		for _, p := range f.protected[name].Pairs {
			if p.Blocked != "" && slices.Contains(in, p.Peer) {
				e.Others = append(e.Others, Blocked{name, p.Peer, p.Blocked, f.protected[name].Updated})
			}
		}
	}
	return e
}

// aboutEncryption tells what of it is wrong: a node that cannot, pairs that are blocked, packets that got past the policies.
func (f facts) aboutEncryption(r NetworkReport) []Reason {
	if r.Encryption == nil {
		return nil
	}
	out := f.aboutOwnEncryption(r)
	for _, p := range r.Encryption.Pairs {
		if p.Blocked != "" && f.liveness(f.me.Name, p.Peer) != StateDown {
			out = append(out, blockedReason(f.me.Name, p.Peer, p.Blocked))
		}
	}
	for _, b := range r.Encryption.Others {
		if b.To != f.me.Name && f.liveness(f.me.Name, b.To) != StateDown && f.liveness(f.me.Name, b.From) != StateDown {
			out = append(out, blockedReason(b.From, b.To, b.Reason))
		}
	}
	for _, name := range members(f.network.Network) {
		if p := f.protected[name]; name != f.me.Name && p.Problem != "" {
			out = append(out, reason(Degraded, name, "see `netdriver inspect` and the daemon's log there",
				"%s is cut off from this network's other nodes: %s", name, p.Problem))
		}
	}
	return out
}

func (f facts) aboutOwnEncryption(r NetworkReport) []Reason {
	switch {
	case r.Encryption.Problem != "":
		return []Reason{reason(Failed, f.me.Name, "remove the cause named here; it is tried again at once",
			"this node's encryption is not as wanted, and nothing leaves in clear: %s", r.Encryption.Problem)}
	case f.protectErr != nil:
		return []Reason{reason(Unknown, f.me.Name, "try again; see the daemon's log",
			"it cannot be said how this node's packets are protected: %v", f.protectErr)}
	}
	return nil
}

func blockedReason(from, to, why string) Reason {
	return reason(Degraded, cmp.Or(to, from), "see the daemon's log on both nodes; if the peer is lost for good: netdriver cluster remove "+to,
		"nothing is sent from %s to %s, since it must not leave in clear: %s", from, to, fmt.Sprint(why))
}
