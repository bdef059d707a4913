package ipsec

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func calmCluster(t *testing.T, n int) *cluster {
	t.Helper()
	c := newCluster(t, seeded{rand.New(rand.NewPCG(3, 4))}, n)
	c.calm()
	return c
}

// pass lets time go by on some nodes while news travel among them.
func (c *cluster) pass(d time.Duration, nodes ...*node) {
	const steps = 20
	for range steps {
		for _, n := range nodes {
			for len(n.pending) > 0 && !n.away {
				c.deliver(n)
			}
			n.now += d / steps
			c.round(n, never, never)
		}
	}
}

func peerOf(t *testing.T, n *node, name string) Peer {
	t.Helper()
	ps := n.m.Peers()
	i := slices.IndexFunc(ps, func(p Peer) bool { return p.Name == name })
	if i < 0 {
		t.Fatalf("%s does not know %s", n.self.Name, name)
	}
	return ps[i]
}

func TestEpochEndsByTimeByPacketsAndOnDemand(t *testing.T) {
	for name, cause := range map[string]func(*node){
		"time":    func(n *node) { n.now += time.Hour },
		"packets": func(n *node) { n.m.Count(n.m.Peers()[0].Sends, DefaultMaxPackets) },
		"demand":  func(n *node) { n.m.Rekey() },
		"ciphers": func(n *node) { n.m.cfg.Ciphers = []Cipher{AES128GCM} },
		"nothing": func(n *node) {
			n.now += 30 * time.Minute
			n.m.Count(n.m.Peers()[0].Sends, DefaultMaxPackets-1)
		},
	} {
		c := calmCluster(t, 2)
		n := c.nodes[0]
		before := n.m.newest().Number
		cause(n)
		c.calm()
		if changed := n.m.newest().Number > before; changed != (name != "nothing") {
			t.Errorf("%s: epoch %d after %d", name, n.m.newest().Number, before)
		}
	}
}

func TestPairTakesUpAChangedCipher(t *testing.T) {
	c := calmCluster(t, 2)
	if p := peerOf(t, c.nodes[0], "n1"); p.Cipher != AES256GCM {
		t.Fatalf("%s to begin with", p.Cipher)
	}
	cfg := testConfig()
	cfg.Ciphers = []Cipher{ChaCha20Poly1305}
	if err := c.nodes[1].m.Configure(cfg); err != nil {
		t.Fatal(err)
	}
	c.calm()
	a, b := peerOf(t, c.nodes[0], "n1"), peerOf(t, c.nodes[1], "n0")
	if a.Cipher != ChaCha20Poly1305 || b.Cipher != a.Cipher {
		t.Errorf("%s and %s", a.Cipher, b.Cipher)
	}
}

func TestAbsentPeerKeepsItsKeyUntilTheBoundAndIsBlockedThen(t *testing.T) {
	c := calmCluster(t, 3)
	c.cut = true
	for _, n := range c.nodes {
		n.m.cfg.Keep = 30 * time.Minute
	}
	here, absent := c.nodes[:2], c.nodes[2]
	absent.away = true
	here[0].m.Rekey()
	c.pass(20*time.Minute, here...)
	if p := peerOf(t, here[0], "n2"); p.Blocked != "" || !p.Behind {
		t.Fatalf("before the bound: %+v", p)
	}
	id := SAID{here[0].self.VTEP, absent.kernel.SAs[slices.IndexFunc(absent.kernel.SAs, func(s SA) bool {
		return s.Dst == here[0].self.VTEP
	})].SPI}
	if _, ok := find(here[0].kernel, id); !ok {
		t.Fatal("what the absent peer sends with is not there any more before the bound")
	}
	c.pass(20*time.Minute, here...)
	if p := peerOf(t, here[0], "n2"); p.Blocked == "" || p.Sends != (SAID{}) {
		t.Errorf("after the bound: %+v", p)
	}
	if _, ok := find(here[0].kernel, id); ok {
		t.Error("the old key is still there after the bound")
	}
	if p := peerOf(t, here[0], "n1"); p.Blocked != "" || p.Behind {
		t.Errorf("the peer that is there suffers: %+v", p)
	}
	for range 80 { // days later
		c.pass(time.Hour, here...)
	}
	absent.now += 80 * time.Hour
	c.calm()
}

func TestALostStoreNeverRunsAPeersTimeOut(t *testing.T) {
	c := calmCluster(t, 2)
	for _, n := range c.nodes {
		n.m.cfg.Keep = 30 * time.Minute
	}
	c.nodes[1].away = true
	c.nodes[0].m.Rekey()
	c.pass(10*time.Minute, c.nodes[0])
	c.nodes[0].away = true
	c.pass(1000*time.Hour, c.nodes...) // the model watches that both still understand each other
	for i, n := range c.nodes {
		if p := peerOf(t, n, c.nodes[1-i].self.Name); p.Blocked != "" {
			t.Errorf("%s is blocked: %s", p.Name, p.Blocked)
		}
	}
	c.calm()
}

func TestASilentPeerIsReportedAndGetsNothing(t *testing.T) {
	m, err := NewMachine(testNode(0), testConfig())
	if err != nil {
		t.Fatal(err)
	}
	other := Offer{Node: testNode(1), Epochs: []Epoch{
		{Number: 1, ID: "X", Public: fixedKey(t, 1).Public(), Ciphers: Ciphers()}}}
	have := State{}
	for i := range 10 {
		want, err := m.Step(time.Duration(i)*time.Minute, View{Offers: []Offer{other}, Fresh: true})
		if err != nil {
			t.Fatal(err)
		}
		for _, op := range Plan(have, want) {
			have = have.Apply(op)
			m.Done(op)
		}
		m.Published(m.Offer())
	}
	for _, p := range have.Policies {
		if p.Dir == Out && !p.Block {
			t.Errorf("%s", p)
		}
	}
	want := Peer{
		Name: "n1", Receives: []SAID{have.SAs[0].ID()}, Behind: true,
		Blocked: "it has not acknowledged a key that is in use here",
	}
	if diff := cmp.Diff([]Peer{want}, m.Peers(), cmp.Comparer(func(a, b SAID) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
}

func TestPeersThatCannotBeTrustedOrUsedAreBlockedAndOthersAreNot(t *testing.T) {
	good := func(i int) Offer {
		return Offer{Node: testNode(i), Epochs: []Epoch{
			{Number: 1, ID: fmt.Sprint("E", i), Public: fixedKey(t, byte(i)).Public(), Ciphers: Ciphers()}}}
	}
	ciphers, weak, twin, same := good(2), good(3), good(4), good(5)
	ciphers.Epochs[0].Ciphers = nil
	weak.Epochs[0].Public = make([]byte, 32)
	twin.Node.VTEP = testNode(5).VTEP
	m, err := NewMachine(testNode(0), testConfig())
	if err != nil {
		t.Fatal(err)
	}
	state, err := m.Step(0, View{Offers: []Offer{good(1), ciphers, weak, twin, same}})
	if !errors.Is(err, ErrCipher) || !errors.Is(err, ErrKey) {
		t.Errorf("the errors are %v", err)
	}
	if len(state.SAs) != 1 || state.SAs[0].Src != testNode(1).VTEP {
		t.Errorf("SAs %v", state.SAs)
	}
	twice := "claims its address"
	for i, says := range []string{"not acknowledged", "nothing in common", "agree on a key", twice, twice} {
		if p := peerOf(t, &node{m: m}, fmt.Sprintf("n%d", i+1)); !strings.Contains(p.Blocked, says) {
			t.Errorf("%s is blocked: %q, want %q", p.Name, p.Blocked, says)
		}
	}
}

func TestWhereverADaemonDiesAtFirstItsPeerIsBackAtOnce(t *testing.T) {
	for life := range 20 {
		c := newCluster(t, seeded{rand.New(rand.NewPCG(3, 4))}, 2)
		a, b := c.nodes[0], c.nodes[1]
		c.round(a, never, never)
		c.pass(time.Millisecond, b)
		for len(a.pending) > 0 { // b's keys, and what b has acknowledged
			c.deliver(a)
		}
		c.round(a, life, never)
		c.pass(testConfig().Grace/4, b, a)
		for _, n := range []*node{a, b} {
			for _, p := range n.m.Peers() {
				if p.Blocked != "" {
					t.Errorf("a dies after %d steps: %s to %s: %s", life, n.self.Name, p.Name, p.Blocked)
				}
			}
		}
	}
}

func TestSenderNeverGoesBackToAnOlderEpochOfTheReceivers(t *testing.T) {
	c := calmCluster(t, 2)
	a, b := c.nodes[0], c.nodes[1]
	b.m.cfg.Grace = time.Hour / 2 // so that the old one stays
	old := peerOf(t, a, "n1")
	b.m.Rekey()
	c.pass(time.Minute, a, b)
	now := peerOf(t, a, "n1")
	if now.PeerEpoch != old.PeerEpoch+1 {
		t.Fatalf("from %d to %d", old.PeerEpoch, now.PeerEpoch)
	}
	v := a.view()
	l := v.Links["n1"]
	l.Receives = slices.DeleteFunc(slices.Clone(l.Receives), func(r SARef) bool { return r.SPI == now.Sends.SPI })
	if len(l.Receives) == 0 {
		t.Fatal("the older SA is not offered, so this proves nothing")
	}
	v.Links["n1"] = l
	want, err := a.m.Step(a.now, v)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range want.Policies {
		if p.Dir == Out && !p.Block {
			t.Errorf("%s", p)
		}
	}
}

func TestOneStepAgainstThreeHundredPeersIsQuick(t *testing.T) {
	m, err := NewMachine(testNode(0), testConfig())
	if err != nil {
		t.Fatal(err)
	}
	v := View{Links: map[string]Link{}, Fresh: true}
	for i := range 300 {
		o := Offer{Node: testNode(i + 1), Epochs: []Epoch{
			{Number: 1, ID: fmt.Sprint("E", i), Public: fixedKey(t, byte(i)).Public(), Ciphers: Ciphers()}}}
		o.Node.VTEP = netip.AddrFrom4([4]byte{192, 0, 3 + byte(i>>8), byte(i)})
		v.Offers = append(v.Offers, o)
	}
	have, start := State{}, time.Now()
	for round := range 3 {
		want, err := m.Step(time.Duration(round)*time.Second, v)
		if err != nil {
			t.Fatal(err)
		}
		for _, op := range Plan(have, want) {
			m.Done(op)
		}
		have = want
		m.Published(m.Offer())
		for _, l := range m.Links() { // each peer answers in kind
			if len(l.Receives) == 1 {
				r := l.Receives[0]
				v.Links[l.To] = Link{From: l.To, FromID: l.ToID, To: "n0", ToID: "id0",
					Receives: []SARef{{r.Receiver, r.Sender, r.SPI ^ 1<<31}}}
			}
		}
	}
	if len(have.SAs) != 600 || len(have.Policies) != 604 {
		t.Fatalf("%d SAs, %d policies", len(have.SAs), len(have.Policies))
	}
	if took := time.Since(start); took > 5*time.Second { // about 0.2 s on an idle machine
		t.Errorf("three rounds took %s", took)
	} else {
		t.Logf("three rounds took %s", took)
	}
}

func TestConfigSaysWhatIsWrong(t *testing.T) {
	for says, change := range map[string]func(*Config){
		"port":    func(c *Config) { c.Port = 0 },
		"cipher":  func(c *Config) { c.Ciphers = nil },
		"null":    func(c *Config) { c.Ciphers = []Cipher{"null"} },
		"grace":   func(c *Config) { c.Grace = c.Rekey },
		"keep":    func(c *Config) { c.Keep = time.Second },
		"packets": func(c *Config) { c.MaxPackets = 0 },
	} {
		cfg := testConfig()
		change(&cfg)
		if _, err := NewMachine(testNode(0), cfg); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", says, err)
		}
	}
}
