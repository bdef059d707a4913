package keying

import (
	"context"
	"slices"
	"time"

	"github.com/netdriver/netdriver/ipsec"
	"github.com/netdriver/netdriver/store"
)

// What a node says of itself is written at most every statusEvery when something changes, and every countsEvery when only its
// counters have.
const (
	statusEvery = time.Second
	countsEvery = time.Minute
	// fewPairs are published with each of their SAs; of more, only their node itself shows them.
	fewPairs = 32
)

// note keeps what a round has come to.
func (k *Keying) note(now outlook, err error) {
	k.mu.Lock()
	k.problem = ""
	if err != nil {
		k.problem = err.Error()
	}
	k.peers = nil
	if k.machine != nil {
		k.peers = k.machine.Peers()
		if es := k.machine.Offer().Epochs; len(es) > 0 && es[len(es)-1].Number != k.epoch {
			k.epoch, k.begun = es[len(es)-1].Number, time.Now()
		}
	} else {
		k.epoch, k.begun = 0, time.Time{}
	}
	k.mu.Unlock()
	if len(now.networks) == 0 {
		k.pub.say(nil)
		return
	}
	k.kernel.Lock()
	p := k.summary(k.counted)
	p.Port, p.Drops.FilterIn, p.Drops.FilterOut = k.locked, k.filterIn, k.filterOut
	k.kernel.Unlock()
	if len(p.Pairs) > fewPairs {
		for i := range p.Pairs {
			p.Pairs[i].SAs = nil
		}
	}
	k.pub.say(&p)
}

// Protection is how this node's encryption stands, with what the kernel has counted.
func (k *Keying) Protection(ctx context.Context) (store.Protection, error) {
	k.kernel.Lock()
	defer k.kernel.Unlock()
	counters, err := k.cfg.Kernel.Counters(ctx)
	if err != nil {
		return k.summary(nil), err
	}
	p := k.summary(&counters)
	p.Port = k.locked
	p.Drops.FilterIn, p.Drops.FilterOut, err = k.cfg.Filter.Drops(ctx)
	return p, err
}

// summary is what is to be said, with counters if there are some.
func (k *Keying) summary(c *ipsec.Counters) store.Protection {
	k.mu.Lock()
	defer k.mu.Unlock()
	p := store.Protection{
		Node: k.cfg.Node.Name, Problem: k.problem, Epoch: k.epoch, Begun: k.begun, Updated: time.Now().UTC(),
	}
	counts := map[ipsec.SAID]ipsec.SACount{}
	if c != nil {
		p.Drops = store.ProtectionDrops{
			PlainIn: c.PlainIn, PlainOut: c.PlainOut + c.OutNoSA, Replayed: c.Replay, Forged: c.Integrity, Unknown: c.NoSA,
		}
		for _, s := range c.SAs {
			counts[s.SA.ID()] = s
		}
	}
	for _, peer := range k.peers {
		p.Pairs = append(p.Pairs, pair(peer, counts))
	}
	return p
}

// pair is what is to be said of one peer.
func pair(peer ipsec.Peer, counts map[ipsec.SAID]ipsec.SACount) store.Pair {
	out := store.Pair{
		Peer: peer.Name, Blocked: peer.Blocked, Cipher: string(peer.Cipher), Epoch: peer.Epoch, PeerEpoch: peer.PeerEpoch,
		Behind: peer.Behind, Since: counts[peer.Sends].Added,
	}
	add := func(id ipsec.SAID, in bool) {
		c := counts[id]
		out.SAs = append(out.SAs, store.SA{
			SPI: id.SPI, In: in, Packets: c.Packets, Bytes: c.Bytes, Replayed: c.Replayed, Late: c.Late, Forged: c.Forged,
			Added: c.Added,
		})
	}
	if peer.Sends != (ipsec.SAID{}) {
		add(peer.Sends, false)
	}
	for _, id := range peer.Receives {
		add(id, true)
	}
	return out
}

// say says what others may show of this node from now on.
func (p *publisher) say(status *store.Protection) {
	p.mu.Lock()
	p.status = status
	p.mu.Unlock()
}

// nextStatus adds the node's status to a transaction if it is time.
func (p *publisher) nextStatus(add func(store.Op, func())) {
	key := store.ProtectionKey(p.node.Name)
	now := time.Now()
	switch {
	case p.status == nil && p.wrote != nil:
		add(store.Delete(key), func() { p.wrote = nil })
	case p.status == nil || p.wrote != nil && now.Sub(p.wroteAt) < statusEvery:
	case p.wrote == nil || !sameStatus(*p.wrote, *p.status) || now.Sub(p.wroteAt) >= countsEvery:
		want := *p.status
		add(store.Put(key, store.Encode(want)), func() { p.wrote, p.wroteAt = &want, now })
	}
}

// sameStatus compares what matters at once: not the counters, not the times.
func sameStatus(a, b store.Protection) bool {
	return a.Problem == b.Problem && slices.EqualFunc(a.Pairs, b.Pairs, func(x, y store.Pair) bool {
		return x.Peer == y.Peer && x.Blocked == y.Blocked && x.Cipher == y.Cipher
	})
}
