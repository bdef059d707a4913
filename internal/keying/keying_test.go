package keying

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/netdriver/netdriver/ipsec"
	"github.com/netdriver/netdriver/store"
)

// epochs are the numbers of the newest epochs that the hosts offer.
func (l *lab) epochs() (out []uint64) {
	for _, h := range l.hosts {
		h.keying.mu.Lock()
		out = append(out, h.keying.epoch)
		h.keying.mu.Unlock()
	}
	return out
}

func TestKeysChangeAndNoPacketIsLost(t *testing.T) {
	for _, rekey := range []time.Duration{time.Second, time.Hour} {
		t.Run(rekey.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLab(t, 3, rekey)
				l.connected(time.Second)
				before := l.epochs()
				l.watch(20*min(rekey, 10*time.Second), nothing)
				if rekey > time.Minute {
					time.Sleep(3 * rekey)
					l.watch(rekey/100, nothing)
				}
				for i, now := range l.epochs() {
					if now < before[i]+3 {
						t.Errorf("%s had epoch %d and has %d", l.hosts[i].node.Name, before[i], now)
					}
				}
				for _, h := range l.hosts {
					if s := h.state(); len(s.SAs) > 2*9*2 {
						t.Errorf("%s: %d SAs pile up", h.node.Name, len(s.SAs))
					}
				}
			})
		})
	}
}

// The daemon is killed before each of its steps, in a rekey as well as at its first start; its kernel stays as it is.
func TestADaemonKilledAtAnyStepGoesOn(t *testing.T) {
	for at := 0; ; at++ {
		lived := false
		synctest.Test(t, func(t *testing.T) {
			l := newLab(t, 2, 20*time.Second)
			l.hosts[0].stop()
			l.hosts[0].start(at)
			h := l.hosts[0]
			l.watch(time.Minute, blocking)
			lived = !h.life.dead()
			h.stop()
			l.watch(5*time.Second, blocking)
			h.start(-1)
			l.connected(5 * time.Second)
			l.watch(time.Minute, nothing)
		})
		if lived || t.Failed() {
			if at < 20 {
				t.Errorf("a daemon has only %d steps in a minute", at)
			}
			return
		}
	}
}

func TestWithoutTheStoreTheKeysStayInUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, 3, 10*time.Second)
		l.connected(time.Second)
		for _, away := range []time.Duration{time.Second, time.Hour} {
			l.mem.SetAvailable(false)
			l.watch(min(away, time.Minute), nothing)
			time.Sleep(away)
			l.watch(time.Second, nothing)
			l.mem.SetAvailable(true)
			before := l.epochs()
			l.watch(time.Minute, nothing)
			if now := l.epochs(); now[0] == before[0] {
				t.Errorf("after %s without the store no new key is made: epoch %d", away, now[0])
			}
		}
	})
}

// The store goes away for one of two nodes before each of its steps in a rekey, which is half done then, and comes back long after.
func TestTheStoreMayGoAwayAtAnyStepOfARekey(t *testing.T) {
	for at := 0; ; at++ {
		lived := false
		synctest.Test(t, func(t *testing.T) {
			l := newLab(t, 2, 20*time.Second)
			l.connected(time.Second)
			h := l.hosts[0]
			h.life.mu.Lock()
			h.life.cutAt = h.life.n + at
			h.life.mu.Unlock()
			before := l.epochs()
			l.watch(30*time.Second, nothing)
			h.life.mu.Lock()
			lived = !h.life.cut
			h.life.cutAt = 0
			h.life.mu.Unlock()
			h.life.setCut(false)
			l.watch(time.Minute, nothing)
			if now := l.epochs(); now[0] < before[0]+2 || now[1] < before[1]+2 {
				t.Errorf("cut off before step %d: epochs %v before and %v afterwards", at, before, now)
			}
		})
		if lived || t.Failed() {
			if at < 8 {
				t.Errorf("a rekey has only %d steps", at)
			}
			return
		}
	}
}

func TestAPeerThatNeverAcknowledgesIsBlockedAndReportedAndComesBackLongAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, 3, 10*time.Second)
		l.connected(time.Second)
		away := l.hosts[2]
		away.stop() // its kernel goes on
		l.watch(30*time.Second, nothing)
		time.Sleep(20 * time.Minute) // all bounds are far behind
		if err := arrives(l.hosts[0], away); !blocking(err) {
			t.Errorf("after that time a packet to it: %v, want it blocked", err)
		}
		if err := arrives(l.hosts[0], l.hosts[1]); err != nil {
			t.Errorf("the others: %v", err)
		}
		p, err := l.hosts[0].keying.Protection(t.Context())
		if err != nil || len(p.Pairs) != 2 || p.Pairs[1].Peer != "n02" || p.Pairs[1].Blocked == "" || p.Pairs[0].Blocked != "" {
			t.Errorf("reported: %+v, error %v", p, err)
		}
		away.start(-1)
		l.connected(5 * time.Second)
		l.watch(time.Minute, nothing)
	})
}

func TestWhatOthersFlushIsBackWithinASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, 3, time.Hour)
		l.connected(time.Second)
		time.Sleep(10 * time.Second)
		for what, flush := range map[string]func(*host){
			"SAs": func(h *host) { h.kernel.FlushSAs() }, "policies": func(h *host) { h.kernel.FlushPolicies() },
			"both": func(h *host) { h.kernel.FlushPolicies(); h.kernel.FlushSAs() },
		} {
			h := l.hosts[1]
			flush(h)
			l.connected(time.Second)
			if s := h.state(); len(s.Policies) != 4+2*2 {
				t.Errorf("%s flushed: %d policies", what, len(s.Policies))
			}
			// Nothing waits for the repair to be sent in clear: the filter drops it, or the policies do.
			l.watch(30*time.Second, nothing)
		}
	})
}

// One node behind a firewall that lets only UDP pass: its peers use its port, and it theirs, while others speak plain ESP.
func TestESPInUDPIsReceivedByBothOfAPair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, 2, time.Hour)
		behind := l.add(2)
		behind.node.Encap = 4500
		l.put(store.Put(store.NodeKey(behind.node.Name), store.Encode(behind.node)))
		l.network("web", time.Hour, l.hosts...)
		behind.start(-1)
		l.connected(5 * time.Second)
		for _, h := range l.hosts {
			if ports := h.open(); !slices.Equal(ports, []uint16{4500}) {
				t.Errorf("%s: open ports %v", h.node.Name, ports)
			}
			for _, s := range h.state().SAs {
				udp := s.Src == behind.node.VTEP || s.Dst == behind.node.VTEP
				if want := (ipsec.Encap{Src: 4500, Dst: 4500}); udp != (s.Encap == want) {
					t.Errorf("%s: %s", h.node.Name, s)
				}
			}
		}
		l.network("web", time.Hour, l.hosts[:2]...)
		time.Sleep(time.Minute)
		for _, h := range l.hosts {
			if ports := h.open(); len(ports) != 0 {
				t.Errorf("%s: ports %v stay open", h.node.Name, ports)
			}
		}
	})
}

func TestARemovedNodesKeysGoAtOnceAndItsDaemonBringsNothingBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, 3, time.Hour)
		l.connected(time.Second)
		gone := l.hosts[2]
		l.put(store.Delete(store.NodeKey(gone.node.Name)), store.Delete(store.EncryptionPrefix+ipsec.OfferKey(gone.node.Name)))
		time.Sleep(100 * time.Millisecond)
		for _, h := range l.hosts[:2] {
			for _, s := range h.state().SAs {
				if s.Src == gone.node.VTEP || s.Dst == gone.node.VTEP {
					t.Errorf("%s still has %s", h.node.Name, s)
				}
			}
			if err := arrives(h, gone); !blocking(err) {
				t.Errorf("%s to it: %v", h.node.Name, err)
			}
		}
		time.Sleep(2 * time.Hour)
		if err := errors.Join(arrives(l.hosts[0], l.hosts[1]), arrives(l.hosts[1], l.hosts[0])); err != nil {
			t.Errorf("the others: %v", err)
		}
		kvs, _, err := l.mem.List(t.Context(), store.EncryptionPrefix)
		if err != nil {
			t.Fatal(err)
		}
		for _, kv := range kvs {
			if strings.Contains(kv.Key, gone.node.Name) {
				t.Errorf("%s is left of the removed node", kv.Key)
			}
		}
	})
}

func TestTheLastNetworkTakesAllAlongOnceItsDeviceIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, 2, time.Hour)
		l.connected(time.Second)
		l.put(store.Delete(store.NetworkKey("web")))
		time.Sleep(2 * time.Minute)
		for _, h := range l.hosts {
			if s := h.state(); len(s.SAs) != 0 || len(s.Policies) == 0 || h.filter.has() != testPort {
				t.Errorf("%s with a device: %d SAs, %d policies, filter for port %d; want the locks alone", h.node.Name, len(s.SAs), len(s.Policies), h.filter.has())
			}
			h.inUse.Store(false)
		}
		time.Sleep(time.Minute)
		for _, h := range l.hosts {
			if s := h.state(); len(s.Policies) != 0 || h.filter.has() != 0 {
				t.Errorf("%s: %d policies, filter for port %d are left", h.node.Name, len(s.Policies), h.filter.has())
			}
		}
		if kvs, _, _ := l.mem.List(t.Context(), store.EncryptionPrefix); len(kvs) != 0 {
			t.Errorf("the store still has %v", kvs)
		}
		// A daemon that starts later finds what a killed one has left.
		l.network("web", time.Hour, l.hosts...)
		l.connected(5 * time.Second)
		l.hosts[0].stop()
		l.put(store.Delete(store.NetworkKey("web")))
		l.hosts[0].inUse.Store(false)
		l.hosts[0].start(-1)
		time.Sleep(5 * time.Second)
		if s := l.hosts[0].state(); len(s.Policies) != 0 || len(s.SAs) != 0 || l.hosts[0].filter.has() != 0 {
			t.Errorf("a fresh daemon leaves %d policies, %d SAs", len(s.Policies), len(s.SAs))
		}
		if kvs, _, _ := l.mem.List(t.Context(), store.EncryptionPrefix+ipsec.OfferKey("n00")); len(kvs) != 0 {
			t.Errorf("a fresh daemon leaves %v", kvs)
		}
	})
}

func TestAnEmptiedStoreTearsNothingDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, 3, time.Hour)
		l.connected(time.Second)
		for _, prefix := range []string{store.NodePrefix, store.NetworkPrefix, store.EncryptionPrefix} {
			l.put(store.DeletePrefix(prefix))
			l.watch(time.Minute, nothing)
		}
	})
}

func TestANodeThatCannotEncryptSaysSoAndStaysLocked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, 2, time.Hour)
		h := l.add(2)
		h.kernel.Ciphers = []ipsec.Cipher{ipsec.AES128GCM}
		h.lacking.Store(true)
		l.network("web", time.Hour, l.hosts...)
		h.start(-1)
		time.Sleep(time.Second)
		if err := h.keying.Supports(t.Context(), ""); !errors.Is(err, ipsec.ErrUnsupported) {
			t.Errorf("error %v, want ErrUnsupported", err)
		}
		for _, other := range l.hosts[:2] {
			if err := other.keying.Supports(t.Context(), ipsec.AES128GCM); err != nil {
				t.Error(err)
			}
			if err := arrives(h, other); !blocking(err) {
				t.Errorf("to %s: %v, want it blocked", other.node.Name, err)
			}
		}
		if p, _ := h.keying.Protection(t.Context()); p.Problem == "" {
			t.Error("it does not say that it has a problem")
		}
		h.lacking.Store(false) // the module was loaded
		l.connected(5 * time.Second)
		if err := h.keying.Supports(t.Context(), ipsec.ChaCha20Poly1305); err == nil || !strings.Contains(err.Error(), "aes-128-gcm") {
			t.Errorf("a cipher that it has not: error %v, want what it has", err)
		}
	})
}

func TestWithoutItsFilterAPortIsNotGuarded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, 1, time.Hour)
		h := l.hosts[0]
		h.filter.mu.Lock()
		h.filter.broken = errors.New("no nftables, no iptables")
		h.filter.mu.Unlock()
		if err := h.keying.Guard(t.Context(), testPort); err == nil || !strings.Contains(err.Error(), "no nftables") {
			t.Errorf("error %v, want the filter's", err)
		}
	})
}

func TestRecordsThatTheirNodeHasNotSignedAreAsIfTheyWereAbsent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, 2, time.Hour)
		l.connected(time.Second)
		liar, err := OpenPinned(t.TempDir(), nil)
		if err != nil {
			t.Fatal(err)
		}
		h := l.hosts[1]
		h.stop()
		key, _ := ipsec.GenerateKey()
		forged := ipsec.Offer{Node: h.keying.self(), Epochs: []ipsec.Epoch{{
			Number: 99, ID: "forged", Public: key.Public(), Ciphers: ipsec.Ciphers(),
		}}}
		text, err := ipsec.Encode(forged, liar)
		if err != nil {
			t.Fatal(err)
		}
		l.put(store.Put(store.EncryptionPrefix+ipsec.OfferKey("n01"), text))
		time.Sleep(time.Second)
		if err := arrives(l.hosts[0], h); !blocking(err) {
			t.Errorf("with a forged offer: %v, want it blocked", err)
		}
		if !strings.Contains(l.logs.String(), "not signed by node n01") {
			t.Error("the log does not say why")
		}
		// The control: signed by the node itself it is taken.
		text, err = ipsec.Encode(forged, h.id)
		if err != nil {
			t.Fatal(err)
		}
		l.put(store.Put(store.EncryptionPrefix+ipsec.OfferKey("n01"), text))
		time.Sleep(time.Second)
		if s := l.hosts[0].state(); len(s.SAs) == 0 {
			t.Error("with a signed one there is no SA for it")
		}
		h.start(-1)
		l.connected(5 * time.Second)
	})
}

// What a pair shares is in the kernel and nowhere else.
func TestNoKeyIsLoggedStoredOrReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, 3, 5*time.Second)
		l.connected(time.Second)
		l.hosts[0].kernel.FlushSAs()
		time.Sleep(time.Minute)
		var told bytes.Buffer
		told.WriteString(l.logs.String())
		kvs, _, err := l.mem.List(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		for _, kv := range kvs {
			fmt.Fprintf(&told, "%s %s\n", kv.Key, kv.Value)
		}
		for _, h := range l.hosts {
			p, err := h.keying.Protection(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			h.stop()
			text, _ := json.Marshal(p)
			fmt.Fprintf(&told, "%s\n%+v\n%#v\n", text, p, h.keying.machine)
		}
		keys := 0
		for _, h := range l.hosts {
			for _, op := range h.kernel.Ran() {
				secret := op.SA.Key.Bytes()
				if op.SA.Key.IsZero() {
					continue
				}
				keys++
				for _, form := range []string{
					string(secret[:16]), hex.EncodeToString(secret[:8]), strings.ToUpper(hex.EncodeToString(secret[:8])),
					base64.StdEncoding.EncodeToString(secret[:9]), fmt.Sprint(secret[:8]), strings.Trim(fmt.Sprintf("%#v", secret[:6]), "[]byte{}"),
				} {
					if strings.Contains(told.String(), form) {
						t.Fatalf("key of %s is told", op)
					}
				}
			}
		}
		if keys < 20 || !strings.Contains(told.String(), "KEY") {
			t.Errorf("only %d keys were looked for, or nothing was logged", keys)
		}
	})
}

// 25 nodes, some of whose daemons are killed, cut off, or whose kernels are flushed at any moment.
func TestManyNodesUnderFaultsNeverSendWithoutAKey(t *testing.T) {
	nodes, rounds := 25, 15
	if testing.Short() {
		nodes, rounds = 8, 10
	}
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, nodes, 30*time.Second)
		l.connected(10 * time.Second)
		r := rand.New(rand.NewPCG(1, 2))
		for range rounds {
			h := l.hosts[r.IntN(nodes)]
			switch r.IntN(4) {
			case 0:
				h.stop()
				h.start(r.IntN(40))
			case 1:
				h.life.setCut(!h.life.cut)
			case 2:
				h.stop()
				h.start(-1)
			case 3:
				h.kernel.FlushSAs()
			}
			time.Sleep(time.Duration(r.IntN(2000)) * time.Millisecond)
			l.pairs(func(from, to *host, err error) {
				if errors.Is(err, errClear) {
					t.Fatalf("%s to %s: %v", from.node.Name, to.node.Name, err)
				}
			})
		}
		for _, h := range l.hosts {
			h.life.setCut(false)
			if h.life.dead() || h.life.at >= 0 {
				h.stop()
				h.start(-1)
			}
		}
		l.connected(2 * time.Minute)
		for range 10 {
			time.Sleep(3 * time.Second)
			l.pairs(func(from, to *host, err error) {
				if err != nil {
					t.Fatalf("%s to %s: %v", from.node.Name, to.node.Name, err)
				}
			})
		}
	})
}
