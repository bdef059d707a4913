//go:build linux

package xfrm

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/dataplane/firewall"
	"github.com/netdriver/netdriver/internal/keying"
	"github.com/netdriver/netdriver/internal/nettest"
	"github.com/netdriver/netdriver/ipsec"
)

// withESP runs a test if this kernel has ESP. Where it has not, test/e2e runs the test in a virtual node.
func withESP(t *testing.T, test func(t *testing.T)) {
	if hasESP(t) {
		t.Run("linux", test)
	}
}

func TestOnlyESPIsOnTheWire(t *testing.T) {
	withESP(t, func(t *testing.T) {
		for _, c := range []struct {
			v6     bool
			cipher ipsec.Cipher
		}{{false, ipsec.AES256GCM}, {true, ipsec.AES128GCM}, {false, ipsec.ChaCha20Poly1305}} {
			t.Run(fmt.Sprintf("%s IPv6 %t", c.cipher, c.v6), func(t *testing.T) {
				p := newPair(t, c.v6, c.cipher)
				p.echo()
				asks := p.dial()
				if !ask(asks, 2*time.Second) || p.wire.plain.Load() == 0 {
					t.Fatal("without keys and policies nothing passes in clear: this test would see nothing")
				}
				p.rounds()
				before := p.wire.plain.Load()
				for range 10 {
					if !ask(asks, 2*time.Second) {
						t.Fatal("no answer through ESP")
					}
				}
				eventually(t, "20 ESP packets", func() bool { return p.wire.esp.Load() >= 20 })
				if n := p.wire.plain.Load() - before; n > 0 {
					t.Errorf("%d packets in clear", n)
				}
				if got := p.ends[0].machine.Peers()[0].Cipher; got != c.cipher {
					t.Errorf("cipher %s", got)
				}
				counts, err := p.ends[1].kernel.Counters(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				for _, s := range counts.SAs {
					if s.Packets < 10 || s.Bytes == 0 || time.Since(s.Added) > time.Minute || s.Used.IsZero() {
						t.Errorf("counters %+v", s)
					}
				}
			})
		}
	})
}

// plain is a VXLAN packet in clear to the second host; its frame is a broadcast.
func (p *pair) plain() []byte {
	frame := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 9, 0x88, 0xb5}, make([]byte, 46)...)
	u := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, 50000), port)
	u = binary.BigEndian.AppendUint16(u, uint16(16+len(frame)))
	u = append(append(u, 0, 0, 8, 0, 0, 0, 0x10, 0, 0, 0), frame...)
	h := make([]byte, 20)
	h[0], h[8], h[9] = 0x45, 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(h[2:], uint16(20+len(u)))
	copy(h[12:], p.ends[0].self.VTEP.AsSlice())
	copy(h[16:], p.ends[1].self.VTEP.AsSlice())
	sum := uint32(0)
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(h[i:]))
	}
	binary.BigEndian.PutUint16(h[10:], ^uint16(sum>>16+sum&0xffff))
	return append(h, u...)
}

// delivered is how many frames the second host's VXLAN device has received.
func (p *pair) delivered() (n int) {
	p.t.Helper()
	out := nettest.Sh(p.t, p.ends[1].ns, "sed -n 's/^ *vx: *[0-9]* *\\([0-9]*\\).*/\\1/p' /proc/net/dev")
	if _, err := fmt.Sscan(out, &n); err != nil {
		p.t.Fatalf("%v in %q", err, out)
	}
	return n
}

func (p *pair) drops() ipsec.Drops {
	p.t.Helper()
	c, err := p.ends[1].kernel.Counters(p.t.Context())
	if err != nil {
		p.t.Fatal(err)
	}
	return c.Drops
}

func (p *pair) locked(e *end, counter string) uint64 {
	p.t.Helper()
	counts, err := e.filter.Counts(p.t.Context())
	if err != nil {
		p.t.Fatal(err)
	}
	return counts[firewall.OwnerLock+"-"+counter].Packets
}

func TestForgedPlaintextIsDroppedByEitherLockAlone(t *testing.T) {
	withESP(t, func(t *testing.T) {
		filters(t, func(t *testing.T, filter, _ string) {
			p := newPairWith(t, filter, false, 0)
			before := p.delivered()
			p.inject(p.plain())
			eventually(t, "delivered without any lock", func() bool { return p.delivered() == before+1 })

			p.rounds() // the policies alone
			before, drops := p.delivered(), p.drops()
			p.inject(p.plain(), p.plain())
			eventually(t, "dropped by policy", func() bool { return p.drops().PlainIn == drops.PlainIn+2 })

			p.lock(p.ends[1], true) // the filter alone
			nettest.Sh(t, p.ends[1].ns, "ip xfrm policy flush")
			p.inject(p.plain(), p.plain(), p.plain())
			eventually(t, "dropped by the filter", func() bool { return p.locked(p.ends[1], firewall.CountPlainIn) == 3 })
			if n := p.delivered() - before; n > 0 {
				t.Errorf("%d delivered", n)
			}
		})
	})
}

func TestReplayedModifiedAndOutdatedESPIsDroppedAndCounted(t *testing.T) {
	withESP(t, func(t *testing.T) {
		p := newPair(t, false)
		p.rounds()
		p.echo()
		asks := p.dial()
		if !ask(asks, 2*time.Second) {
			t.Fatal("no answer")
		}
		to := p.ends[0].machine.Peers()[0].Sends
		eventually(t, "an ESP packet to the second host", func() bool { return p.wire.last.Load() != nil })
		genuine := slices.Clone(*p.wire.last.Load())
		count := func() (c ipsec.SACount) {
			counts, err := p.ends[1].kernel.Counters(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range counts.SAs {
				if s.SA.ID() == to {
					c = s
				}
			}
			return c
		}
		was, before, drops := count(), p.delivered(), p.drops()
		p.inject(genuine, genuine, genuine)
		eventually(t, "three replays counted", func() bool {
			return count().Replayed == was.Replayed+3 && p.drops().Replay == drops.Replay+3
		})
		modified := slices.Clone(genuine)
		binary.BigEndian.PutUint32(modified[24:], binary.BigEndian.Uint32(modified[24:])+500) // a sequence number to come
		modified[40] ^= 1
		p.inject(modified, modified)
		eventually(t, "two forgeries counted", func() bool {
			return count().Forged == was.Forged+2 && p.drops().Integrity == drops.Integrity+2
		})
		unknown := slices.Clone(genuine)
		binary.BigEndian.PutUint32(unknown[20:], 0x7777)
		p.inject(unknown)
		eventually(t, "an unknown SPI counted", func() bool { return p.drops().NoSA == drops.NoSA+1 })
		// A packet of an epoch that is over, and one that says it is of the present one.
		for range 2 {
			p.ends[0].machine.Rekey()
			p.ends[1].machine.Rekey()
			p.rounds()
		}
		drops = p.drops()
		p.inject(genuine, genuine)
		eventually(t, "two packets of an old epoch counted", func() bool { return p.drops().NoSA == drops.NoSA+2 })
		disguised := slices.Clone(genuine)
		binary.BigEndian.PutUint32(disguised[20:], p.ends[0].machine.Peers()[0].Sends.SPI)
		binary.BigEndian.PutUint32(disguised[24:], binary.BigEndian.Uint32(disguised[24:])+500)
		p.inject(disguised)
		eventually(t, "an old epoch's packet with the new SPI counted", func() bool { return p.drops().Integrity == drops.Integrity+1 })
		if n := p.delivered() - before; n > 0 {
			t.Errorf("%d delivered", n)
		}
		if !ask(asks, 2*time.Second) {
			t.Error("afterwards there is no answer")
		}
	})
}

// Whoever takes away one of the three, under traffic: nothing leaves in clear, and what a repair makes is enough.
func TestNoFlushLetsAnythingOutInClear(t *testing.T) {
	withESP(t, func(t *testing.T) {
		filters(t, func(t *testing.T, filter, flushFilter string) {
			p := newPairWith(t, filter, false, 0)
			for _, e := range p.ends {
				p.lock(e, true)
			}
			p.rounds()
			p.echo()
			const states, policies = "ip xfrm state flush", "ip xfrm policy flush"
			noSA := func() uint64 { c, _ := p.ends[0].kernel.Counters(t.Context()); return c.OutNoSA }
			locked := func() uint64 { return p.locked(p.ends[0], firewall.CountPlainOut) }
			p.flushed("states", states, noSA)
			p.flushed("policies", policies, locked)
			p.flushed("filter", flushFilter, nil)
			p.flushed("all but the filter", policies+"; "+states, locked)
			p.flushed("all but the policies", flushFilter+"; "+states, noSA)
			// The control: with both locks gone, they do leave, and the sniffer sees them.
			before := p.wire.plain.Load()
			nettest.Sh(t, p.ends[0].ns, flushFilter+"; "+policies)
			ask(p.dial(), time.Second)
			eventually(t, "packets in clear with no lock left", func() bool { return p.wire.plain.Load() > before })
		})
	})
}

// flushed lets somebody flush something at the first host while it sends. counts grows while nothing passes; without, the
// traffic goes on.
func (p *pair) flushed(what, command string, counts func() uint64) {
	p.t.Helper()
	stop, done := make(chan struct{}), make(chan int)
	go func() { n, _ := flood(p.dial(), stop); done <- n }()
	time.Sleep(200 * time.Millisecond)
	before, counted := p.wire.plain.Load(), uint64(0)
	if counts != nil {
		counted = counts()
	}
	nettest.Sh(p.t, p.ends[0].ns, command)
	if counts != nil {
		eventually(p.t, what+": packets that are dropped and counted", func() bool { return counts() > counted })
	} else {
		time.Sleep(300 * time.Millisecond)
	}
	p.lock(p.ends[0], true)
	p.rounds()
	close(stop)
	if n := <-done; n < 10 {
		p.t.Errorf("%s: only %d packets were sent meanwhile", what, n)
	}
	if n := p.wire.plain.Load() - before; n > 0 {
		p.t.Errorf("%s: %d packets left in clear", what, n)
	}
	if !ask(p.dial(), 5*time.Second) {
		p.t.Errorf("%s: no answer after the repair", what)
	}
}

func TestALargeTransferFitsTheDerivedMTU(t *testing.T) {
	withESP(t, func(t *testing.T) {
		for _, v6 := range []bool{false, true} {
			t.Run(fmt.Sprintf("IPv6 %t", v6), func(t *testing.T) {
				p := newPair(t, v6)
				p.rounds()
				clear := p.wire.plain.Load() // of before: what IPv6 says of itself on a new device
				const size = 2 << 20
				data := make([]byte, size)
				_, _ = rand.Read(data) // never fails
				for from := range p.ends {
					start := time.Now()
					if got := p.transfer(p.ends[from], p.ends[1-from], data); got != sha256.Sum256(data) {
						t.Error("other bytes arrived than were sent")
					}
					t.Logf("%d bytes in %s", size, time.Since(start))
				}
				if n := p.wire.plain.Load() - clear; n > 0 || p.wire.fragments.Load() > 0 {
					t.Errorf("%d packets in clear, %d fragments", n, p.wire.fragments.Load())
				}
				if n := p.wire.largest.Load(); n > 1500 || n < 1490 {
					t.Errorf("the largest packet has %d bytes: the MTU is not what fits into 1500", n)
				}
			})
		}
	})
}

func TestESPInUDPPassesWhereESPDoesNot(t *testing.T) {
	withESP(t, func(t *testing.T) {
		p := newPairWith(t, "nftables", false, encapPort)
		nettest.Sh(t, p.ends[1].ns, `nft 'add table ip wall; add chain ip wall in { type filter hook prerouting priority -400; }; `+
			`add rule ip wall in ip protocol esp drop'`) // a firewall in between
		var sockets [2]io.Closer
		for i, e := range p.ends {
			p.lock(e, true)
			nettest.In(t, e.ns, func() (err error) { sockets[i], err = keying.OpenEncap(encapPort); return err })
		}
		defer sockets[0].Close()
		p.rounds()
		data := make([]byte, 1<<20)
		_, _ = rand.Read(data) // never fails
		if got := p.transfer(p.ends[0], p.ends[1], data); got != sha256.Sum256(data) {
			t.Error("other bytes arrived than were sent")
		}
		w := p.wire
		if w.inUDP.Load() < 100 || w.esp.Load()+w.fragments.Load() > 0 || w.largest.Load() > 1500 {
			t.Errorf("%d packets of ESP-in-UDP, %d of ESP, %d fragments, the largest has %d bytes", w.inUDP.Load(), w.esp.Load(),
				w.fragments.Load(), w.largest.Load())
		}
		// The control: the kernel needs the socket.
		if err := sockets[1].Close(); err != nil {
			t.Fatal(err)
		}
		p.echo()
		if ask(p.dial(), 500*time.Millisecond) {
			t.Error("there is an answer though nobody has the socket")
		}
	})
}

// transfer sends data over TCP and returns the sum of what arrived.
func (p *pair) transfer(from, to *end, data []byte) (sum [32]byte) {
	p.t.Helper()
	var l *net.TCPListener
	nettest.In(p.t, to.ns, func() (err error) {
		l, err = net.ListenTCP("tcp4", &net.TCPAddr{IP: to.overlay.AsSlice(), Port: 9})
		return err
	})
	defer l.Close()
	result := make(chan [32]byte, 1)
	go func() {
		h := sha256.New()
		if c, err := l.Accept(); err == nil {
			_, _ = io.Copy(h, c) // a short one has another sum
			c.Close()
		}
		result <- [32]byte(h.Sum(nil))
	}()
	nettest.In(p.t, from.ns, func() error {
		c, err := net.DialTimeout("tcp4", net.JoinHostPort(to.overlay.String(), "9"), 10*time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write(data)
		return err
	})
	return <-result
}

func TestTwoHundredRekeysUnderAFloodLoseNothing(t *testing.T) {
	withESP(t, func(t *testing.T) {
		p := newPair(t, false)
		for _, e := range p.ends {
			p.lock(e, true)
		}
		p.rounds()
		p.echo()
		clear := p.wire.plain.Load()
		stop := make(chan struct{})
		type result struct{ sent, lost int }
		done := make(chan result)
		go func() { s, l := flood(p.dial(), stop); done <- result{s, l} }()
		first := p.ends[0].machine.Peers()[0].Epoch + p.ends[1].machine.Peers()[0].Epoch
		for i := range 200 {
			e := p.ends[i%2]
			e.machine.Rekey()
			was := e.machine.Offer().Epochs
			for start := time.Now(); ; { // until the peer sends with the new key
				p.round(p.ends[0])
				p.round(p.ends[1])
				now := e.machine.Offer().Epochs
				if now[len(now)-1].Number > was[len(was)-1].Number && !e.machine.Peers()[0].Behind {
					break
				}
				if time.Since(start) > 10*time.Second {
					t.Fatalf("rekey %d does not end: %+v", i, e.machine.Peers())
				}
			}
		}
		p.rounds()
		close(stop)
		r := <-done
		last := p.ends[0].machine.Peers()[0].Epoch + p.ends[1].machine.Peers()[0].Epoch
		t.Logf("%d datagrams there and back during %d rekeys", r.sent, last-first)
		if r.lost > 0 || last-first < 200 {
			t.Errorf("%d of %d datagrams lost during %d rekeys", r.lost, r.sent, last-first)
		}
		if n := p.wire.plain.Load() - clear; n > 0 {
			t.Errorf("%d packets in clear", n)
		}
		for _, e := range p.ends {
			c, err := e.kernel.Counters(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if d := c.Drops; d.NoSA+d.Integrity+d.Replay+d.OutNoSA+d.Mismatch > 0 || len(c.SAs) != 2 {
				t.Errorf("%s: drops %+v, %d SAs", e.self.Name, d, len(c.SAs))
			}
		}
	})
}
