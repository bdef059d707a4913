package ipsec

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// chooser is where the model's chances come from: rapid, or a seeded generator for long runs.
type chooser interface{ below(n int) int }

type drawn struct{ t *rapid.T }

func (d drawn) below(n int) int { return rapid.IntRange(0, n-1).Draw(d.t, "choice") }

type seeded struct{ *rand.Rand }

func (s seeded) below(n int) int { return s.IntN(n) }

type failer interface {
	Helper()
	Fatalf(format string, args ...any)
}

// cluster is a model of nodes with their kernels and of a store whose news reach each node late and out of order.
type cluster struct {
	t     failer
	pick  chooser
	store map[string]any // Offer or Link by key
	nodes []*node
	// keys has what every SA that ever was is encrypted with; added are those that a node's kernel ever got.
	keys  map[SAID][]byte
	added map[string]bool
	lost  map[SAID]bool // taken out of a kernel by somebody else: nobody can know at once
	// cut: a peer's time may run out, so senders may be without a receiver.
	cut bool
	// changes counts operations and writes.
	changes int
}

type node struct {
	self    Identity
	cfg     Config
	m       *Machine // nil after a crash until the store answers
	kernel  State
	now     time.Duration
	away    bool
	seen    map[string]any
	pending map[string][]any
}

func testConfig() Config {
	return Config{
		Port: 4790, Ciphers: preferred(true), Rekey: time.Hour, Grace: 10 * time.Second, Keep: 1e6 * time.Hour,
		MaxPackets: DefaultMaxPackets,
	}
}

func testNode(i int) Identity {
	vtep := netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)})
	return Identity{Name: fmt.Sprintf("n%d", i), ID: fmt.Sprintf("id%d", i), VTEP: vtep}
}

func newCluster(t failer, pick chooser, n int) *cluster {
	c := &cluster{
		t: t, pick: pick, store: map[string]any{},
		keys: map[SAID][]byte{}, added: map[string]bool{}, lost: map[SAID]bool{},
	}
	for i := range n {
		// The clocks have nothing to do with each other.
		nd := &node{self: testNode(i), cfg: testConfig(), now: time.Duration(i) * 1000 * time.Hour}
		c.nodes = append(c.nodes, nd)
		c.start(nd)
	}
	return c
}

// start is a daemon's start: it reads the whole store and the kernel.
func (c *cluster) start(n *node) {
	m, err := NewMachine(n.self, n.cfg)
	if err != nil {
		c.t.Fatalf("%v", err)
	}
	n.m, n.seen, n.pending = m, maps.Clone(c.store), map[string][]any{}
	past := Past{View: n.view()}
	if o, ok := c.store[OfferKey(n.self.Name)].(Offer); ok {
		past.Offer = o
	}
	for _, k := range slices.Sorted(maps.Keys(c.store)) {
		if l, ok := c.store[k].(Link); ok && l.From == n.self.Name {
			past.Links = append(past.Links, l)
		}
	}
	past.Have.Policies = n.kernel.Policies
	for _, s := range n.kernel.SAs {
		s.Key = Key{} // the kernel does not tell
		past.Have.SAs = append(past.Have.SAs, s)
	}
	m.Resume(past)
}

func (n *node) view() View {
	v := View{Links: map[string]Link{}, Fresh: !n.away}
	for _, k := range slices.Sorted(maps.Keys(n.seen)) {
		switch r := n.seen[k].(type) {
		case Offer:
			v.Offers = append(v.Offers, r)
		case Link:
			if r.To == n.self.Name {
				v.Links[r.From] = r
			}
		}
	}
	return v
}

func (c *cluster) put(key string, value any) {
	c.changes++
	c.store[key] = value
	for _, n := range c.nodes {
		if n.pending != nil {
			n.pending[key] = append(n.pending[key], value)
		}
	}
}

// deliver brings one piece of news to a node: the oldest of a random key.
func (c *cluster) deliver(n *node) {
	if n.away || len(n.pending) == 0 {
		return
	}
	keys := slices.Sorted(maps.Keys(n.pending))
	k := keys[c.pick.below(len(keys))]
	n.seen[k] = n.pending[k][0]
	if n.pending[k] = n.pending[k][1:]; len(n.pending[k]) == 0 {
		delete(n.pending, k)
	}
}

// never is for round.
const never = -1

// round is one round of a node's daemon, which dies after that many kernel operations and writes. After fails
// operations the kernel refuses the rest.
func (c *cluster) round(n *node, life, fails int) {
	if n.m == nil {
		if n.away {
			return
		}
		c.start(n)
	}
	dies := func() bool {
		if life == 0 {
			n.m = nil
		}
		life--
		return n.m == nil
	}
	want, err := n.m.Step(n.now, n.view())
	if err != nil {
		c.t.Fatalf("%v", err)
	}
	if err := want.Check(); err != nil {
		c.t.Fatalf("%s: %v", n.self.Name, err)
	}
	for i, op := range Plan(n.kernel, want) {
		if i == fails {
			break
		}
		if dies() {
			return
		}
		c.run(n, op)
		n.m.Done(op)
	}
	if n.away {
		return
	}
	if o := n.m.Offer(); !reflect.DeepEqual(c.store[OfferKey(n.self.Name)], o) {
		if dies() {
			return
		}
		c.put(OfferKey(n.self.Name), o)
		n.m.Published(o)
	}
	for _, l := range n.m.Links() {
		if k := LinkKey(l.To, l.From); !reflect.DeepEqual(c.store[k], any(l)) {
			if dies() {
				return
			}
			c.put(k, l)
		}
	}
}

func (c *cluster) run(n *node, op Op) {
	c.t.Helper()
	if op.Verb == DelPolicy && op.Policy.Dir == Out && len(c.lost) == 0 && !c.cut {
		c.t.Fatalf("%s stops sending: %s", n.self.Name, op)
	}
	if op.Verb == AddSA {
		id, key := op.SA.ID(), op.SA.Key.Bytes()
		once := fmt.Sprintf("%s %v", n.self.Name, id)
		if c.added[once] {
			c.t.Fatalf("%s adds %v for the second time: its counter would begin anew", n.self.Name, id)
		}
		c.added[once] = true
		if old, there := c.keys[id]; there && !bytes.Equal(old, key) {
			c.t.Fatalf("two keys for %v", id)
		}
		c.keys[id] = key
	}
	c.changes++
	n.kernel = n.kernel.Apply(op)
	c.invariant(op)
}

// invariant holds after every single operation anywhere: who sends is understood.
func (c *cluster) invariant(after Op) {
	c.t.Helper()
	for _, n := range c.nodes {
		blocks := 0
		for _, p := range n.kernel.Policies {
			if p.Block {
				blocks++
			}
			if p.Dir != Out || p.Block {
				continue
			}
			id := SAID{p.Dst.Addr(), p.SPI}
			if _, there := find(n.kernel, id); !there && !c.lost[id] {
				c.t.Fatalf("after %s: %s sends to %v without an SA", after, n.self.Name, id)
			}
			if _, there := find(c.at(id.Dst).kernel, id); !there && !c.lost[id] && !c.cut {
				c.t.Fatalf("after %s: %s sends with %v, which the receiver does not have", after, n.self.Name, id)
			}
		}
		if blocks < 4 && len(n.kernel.SAs) > 0 {
			c.t.Fatalf("after %s: %s has SAs and only %d blocking policies", after, n.self.Name, blocks)
		}
	}
}

func find(s State, id SAID) (SA, bool) {
	i := slices.IndexFunc(s.SAs, func(a SA) bool { return a.ID() == id })
	if i < 0 {
		return SA{}, false
	}
	return s.SAs[i], true
}

func (c *cluster) at(a netip.Addr) *node {
	return c.nodes[slices.IndexFunc(c.nodes, func(n *node) bool { return n.self.VTEP == a })]
}

// flush is somebody else's ip xfrm state flush, and what the node's watcher makes of it.
func (c *cluster) flush(n *node) {
	for _, s := range n.kernel.SAs {
		c.lost[s.ID()] = true
	}
	n.kernel.SAs = nil
	if n.m != nil {
		n.m.Found(n.kernel)
	}
}

// mayDie is false for a daemon that has died so often, without others hearing of it, that its offer is full: the
// promise ends there.
func (c *cluster) mayDie(n *node) bool {
	o, _ := c.store[OfferKey(n.self.Name)].(Offer)
	return len(o.Epochs) < mostEpochs-2
}

// act does one thing that may happen at any time.
func (c *cluster) act() {
	n := c.nodes[c.pick.below(len(c.nodes))]
	switch c.pick.below(16) {
	case 0:
		n.away = !n.away
	case 1:
		if c.mayDie(n) {
			c.round(n, c.pick.below(12), never)
		}
	case 2:
		if c.mayDie(n) {
			n.m = nil
		}
	case 3:
		if n.m != nil {
			n.m.Rekey()
		}
	case 4, 5:
		n.now += time.Duration(c.pick.below(30)) * time.Second
	case 6:
		n.now += time.Duration(c.pick.below(90)) * time.Minute
	case 7:
		c.round(n, never, c.pick.below(8))
	case 8, 9, 10:
		c.round(n, never, never)
	default:
		c.deliver(n)
	}
}

// calm lets all news arrive and all daemons run, until nothing changes any more.
func (c *cluster) calm() {
	c.t.Helper()
	start := c.changes
	for quiet := 0; quiet < 6; quiet++ { // longer than any timer but the rekey's
		before := c.changes
		for _, n := range c.nodes {
			n.away = false
			for len(n.pending) > 0 {
				c.deliver(n)
			}
			n.now += 4 * time.Second
			c.round(n, never, never)
		}
		if c.changes != before {
			quiet = 0
		}
		if c.changes-start > 5000 {
			c.t.Fatalf("the nodes never calm down")
		}
	}
	c.converged()
}

// converged says that each pair uses its newest epochs in both directions, and nothing older is left.
func (c *cluster) converged() {
	c.t.Helper()
	for _, n := range c.nodes {
		epochs, sas := len(n.m.Offer().Epochs), len(n.kernel.SAs)
		if epochs != 1 || sas != 2*(len(c.nodes)-1) {
			c.t.Fatalf("%s did not calm down: %d epochs, %d SAs", n.self.Name, epochs, sas)
		}
		for _, p := range n.m.Peers() {
			there := c.nodes[slices.IndexFunc(c.nodes, func(o *node) bool { return o.self.Name == p.Name })]
			if p.Blocked != "" || p.Behind || p.Epoch != n.m.newest().Number || p.PeerEpoch != there.m.newest().Number {
				c.t.Fatalf("%s to %s is not up to date: %+v", n.self.Name, p.Name, p)
			}
			if _, ok := find(there.kernel, p.Sends); !ok {
				c.t.Fatalf("%s sends to %s with an SA that is not there", n.self.Name, p.Name)
			}
		}
		want, err := n.m.Step(n.now, n.view())
		if ops := Plan(n.kernel, want); err != nil || len(ops) > 0 {
			c.t.Fatalf("%s: calm, and yet %v, %v", n.self.Name, ops, err)
		}
	}
}

func TestNobodySendsWithAKeyThatTheReceiverLacks(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := newCluster(t, drawn{t}, rapid.IntRange(2, 4).Draw(t, "nodes"))
		for range rapid.IntRange(1, 120).Draw(t, "events") {
			c.act()
		}
		c.calm()
	})
}

func TestTwoHundredRekeysUnderFaultsLoseNothing(t *testing.T) {
	c := newCluster(t, seeded{rand.New(rand.NewPCG(1, 2))}, 3)
	c.calm()
	for i := range 200 {
		n := c.nodes[i%3]
		n.away = false
		c.round(n, never, never)
		before := n.m.newest().Number
		n.m.Rekey()
		for n.m == nil || n.m.newest().Number == before || !n.m.newest().published {
			for range 10 {
				c.act()
			}
		}
	}
	c.calm()
	total := uint64(0)
	for _, n := range c.nodes {
		total += n.m.newest().Number
	}
	if total < 203 {
		t.Errorf("%d epochs instead of 203 or more", total)
	}
}

func TestFlushedSAsComeBackWithNewKeys(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := newCluster(t, drawn{t}, 3)
		c.calm()
		for range rapid.IntRange(1, 60).Draw(t, "events") {
			if c.act(); c.pick.below(10) == 0 {
				c.flush(c.nodes[c.pick.below(3)])
			}
		}
		c.calm()
	})
}
