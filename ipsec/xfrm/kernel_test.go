//go:build linux

package xfrm

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/internal/nettest"
	"github.com/netdriver/netdriver/ipsec"
)

const port = 4790

// mustESP is set where the kernel has to have ESP: in the virtual node in which test/e2e runs these tests again.
const mustESP = "NETDRIVER_TEST_ESP"

// hasESP says whether this kernel can be tested with traffic. One that lacks ESP is tested in a virtual node.
func hasESP(t testing.TB) bool {
	t.Helper()
	l, err := Open("")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, err = l.Supports(t.Context())
	if err != nil && (os.Getenv(mustESP) != "" || !errors.Is(err, ipsec.ErrUnsupported)) {
		t.Fatal(err)
	}
	return err == nil
}

// open opens the kernel of a namespace.
func open(t testing.TB, ns string) *Linux {
	t.Helper()
	l, err := Open(ns)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// kernels are what every promise of an ipsec.Kernel is tested against.
func kernels(t *testing.T, test func(t *testing.T, k ipsec.Kernel)) {
	t.Run("fake", func(t *testing.T) { test(t, ipsec.NewFake()) })
	if hasESP(t) {
		t.Run("linux", func(t *testing.T) { test(t, open(t, nettest.Namespace(t))) })
	}
}

func randomKey(t testing.TB, c ipsec.Cipher) ipsec.Key {
	t.Helper()
	k, err := ipsec.RandomKey(c)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func sa(t testing.TB, src, dst string, spi uint32, c ipsec.Cipher) ipsec.SA {
	return ipsec.SA{
		Src: netip.MustParseAddr(src), Dst: netip.MustParseAddr(dst), SPI: spi, Cipher: c, Key: randomKey(t, c),
		Window: ipsec.ReplayWindow, ESN: true,
	}
}

func policy(dir ipsec.Direction, src, dst string, spi uint32) ipsec.Policy {
	s, d := netip.MustParseAddr(src), netip.MustParseAddr(dst)
	return ipsec.Policy{
		Dir: dir, Src: netip.PrefixFrom(s, s.BitLen()), Dst: netip.PrefixFrom(d, d.BitLen()), Port: port,
		Priority: ipsec.PairPriority, SPI: spi,
	}
}

// state has every kind of SA and policy.
func state(t testing.TB) ipsec.State {
	s := ipsec.Blocked(port)
	a, b, c, d := "192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2"
	s.SAs = []ipsec.SA{
		sa(t, a, b, 0x1001, ipsec.AES256GCM), sa(t, b, a, 0x1002, ipsec.AES128GCM),
		sa(t, c, d, 0x1001, ipsec.ChaCha20Poly1305), sa(t, d, c, 0x1002, ipsec.AES256GCM), sa(t, b, a, 0x1003, ipsec.AES256GCM),
	}
	s.SAs[1].Encap = ipsec.Encap{Src: 4500, Dst: 4501}
	s.Policies = append(s.Policies, policy(ipsec.Out, a, b, 0x1001), policy(ipsec.In, b, a, 0),
		policy(ipsec.Out, c, d, 0x1001), policy(ipsec.In, d, c, 0))
	return s.Sorted()
}

// hold makes a kernel as wanted and checks that it is.
func hold(t testing.TB, k ipsec.Kernel, want ipsec.State) {
	t.Helper()
	have, err := k.Read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Run(t.Context(), ipsec.Plan(have, want), nil); err != nil {
		t.Fatal(err)
	}
	if have, err = k.Read(t.Context()); err != nil {
		t.Fatal(err)
	}
	if ops := ipsec.Plan(have, want); len(ops) > 0 {
		t.Fatalf("not as wanted, still to do: %v\n%s", ops, cmp.Diff(want, have, compare()...))
	}
}

func compare() []cmp.Option {
	return []cmp.Option{
		cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}), cmpopts.IgnoreFields(ipsec.SA{}, "Key"),
	}
}

func TestWhatIsWantedIsReadBackEqual(t *testing.T) {
	kernels(t, func(t *testing.T, k ipsec.Kernel) {
		want := state(t)
		hold(t, k, want)
		if have, _ := k.Read(t.Context()); !have.SAs[0].Key.IsZero() {
			t.Error("a key was read back")
		}
		want.SAs, want.Policies = want.SAs[1:], want.Policies[:6]
		hold(t, k, want)
		hold(t, k, ipsec.State{})
	})
}

func TestPoliciesAreReadBackEqualWithoutESP(t *testing.T) {
	k := open(t, nettest.Namespace(t))
	want := state(t)
	want.SAs = nil
	hold(t, k, want)
	want.Policies[5].SPI++ // replaced in place
	hold(t, k, want)
	hold(t, k, ipsec.Blocked(port))
	hold(t, k, ipsec.State{})
}

func TestAnSAIsAddedOnce(t *testing.T) {
	kernels(t, func(t *testing.T, k ipsec.Kernel) {
		add := ipsec.Op{Verb: ipsec.AddSA, SA: sa(t, "192.0.2.1", "192.0.2.2", 0x1001, ipsec.AES256GCM)}
		if err := k.Run(t.Context(), []ipsec.Op{add}, nil); err != nil {
			t.Fatal(err)
		}
		var which *ipsec.OpError
		if err := k.Run(t.Context(), []ipsec.Op{add}, nil); !errors.Is(err, unix.EEXIST) || !errors.As(err, &which) {
			t.Errorf("the second time: %v", err)
		}
		del := ipsec.Op{Verb: ipsec.DelSA, SA: add.SA}
		if err := k.Run(t.Context(), []ipsec.Op{del, del}, nil); err != nil {
			t.Errorf("removing what is gone: %v", err)
		}
	})
}

func TestAFailureLeavesTheRestAndThePolicyThatNeedsIt(t *testing.T) {
	kernels(t, func(t *testing.T, k ipsec.Kernel) {
		first := state(t)
		hold(t, k, first)
		next := first
		next.Policies = slices.Clone(first.Policies)
		bad := sa(t, "192.0.2.1", "192.0.2.2", 0x1001, ipsec.AES256GCM) // its SPI is in use
		good := sa(t, "2001:db8::1", "2001:db8::2", 0x2002, ipsec.AES256GCM)
		ops := []ipsec.Op{
			{Verb: ipsec.AddSA, SA: bad}, {Verb: ipsec.AddSA, SA: good},
			{Verb: ipsec.SetPolicy, Policy: policy(ipsec.Out, "192.0.2.1", "192.0.2.2", 0x1001)},
			{Verb: ipsec.SetPolicy, Policy: policy(ipsec.Out, "2001:db8::1", "2001:db8::2", 0x2002)},
		}
		var did []ipsec.Op
		err := k.Run(t.Context(), ops, func(op ipsec.Op) { did = append(did, op) })
		if !errors.Is(err, unix.EEXIST) || len(did) != 2 || did[0] != ops[1] || did[1] != ops[3] {
			t.Errorf("error %v, done %v", err, did)
		}
	})
}

func TestFlushesAndChangesAreSeenAtOnce(t *testing.T) {
	kernels(t, func(t *testing.T, k ipsec.Kernel) {
		events, err := k.Events(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		next := func(what string, is func(ipsec.Event) bool) {
			t.Helper()
			deadline := time.After(5 * time.Second)
			for {
				select {
				case e := <-events:
					if is(e) {
						return
					}
				case <-deadline:
					t.Fatalf("no event: %s", what)
				}
			}
		}
		want := state(t)
		hold(t, k, want)
		next("an SA was added", func(e ipsec.Event) bool {
			return e.Kind == ipsec.SAChanged && !e.Gone && e.SA == want.SAs[0].ID()
		})
		next("a policy was set", func(e ipsec.Event) bool {
			return e.Kind == ipsec.PolicyChanged && !e.Gone && e.Policy == want.Policies[7].ID()
		})
		less := want
		less.SAs, less.Policies = want.SAs[1:], want.Policies[:7]
		hold(t, k, less)
		next("a policy is gone", func(e ipsec.Event) bool { return e.Kind == ipsec.PolicyChanged && e.Gone })
		next("an SA is gone", func(e ipsec.Event) bool {
			return e.Kind == ipsec.SAChanged && e.Gone && e.SA == want.SAs[0].ID()
		})
		flush(t, k)
		next("SAs flushed", func(e ipsec.Event) bool { return e.Kind == ipsec.SAsFlushed })
		next("policies flushed", func(e ipsec.Event) bool { return e.Kind == ipsec.PoliciesFlushed })
		if have, err := k.Read(t.Context()); err != nil || len(have.SAs)+len(have.Policies) > 0 {
			t.Errorf("after the flush: %v, %v", have, err)
		}
	})
}

// flush is somebody else's.
func flush(t *testing.T, k ipsec.Kernel) {
	t.Helper()
	if f, ok := k.(*ipsec.Fake); ok {
		f.FlushSAs()
		f.FlushPolicies()
		return
	}
	nettest.Sh(t, pathOf(k), "ip xfrm state flush; ip xfrm policy flush")
}

// pathOf is a namespace's file by the descriptor that the kernel has of it.
func pathOf(k ipsec.Kernel) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), k.(*Linux).ns) }

func TestOthersSAsAndPoliciesAreLeftAlone(t *testing.T) {
	ns := nettest.Namespace(t)
	k := open(t, ns)
	foreign := `ip xfrm policy add src 192.0.2.1/32 dst 192.0.2.2/32 proto udp dport 4790 dir out priority 5 \
		tmpl src 192.0.2.1 dst 192.0.2.2 proto esp reqid 77 mode transport
		ip xfrm policy add src 198.51.100.0/24 dst 203.0.113.0/24 dir fwd action block`
	want := ipsec.Blocked(port)
	if hasESP(t) {
		foreign += "\nip xfrm state add src 192.0.2.1 dst 192.0.2.2 proto esp spi 0x9999 reqid 77 mode transport aead " +
			"'rfc4106(gcm(aes))' 0x0102030405060708090a0b0c0d0e0f1011121314 128"
		want.SAs = state(t).SAs
	}
	nettest.Sh(t, ns, foreign)
	show := func() string { return nettest.Sh(t, ns, "ip xfrm state; ip xfrm policy") }
	before := show()
	hold(t, k, want)
	if show() == before {
		t.Fatal("nothing of ours is to be seen") // positive control
	}
	hold(t, k, ipsec.State{})
	if d := cmp.Diff(before, show()); d != "" {
		t.Errorf("others' state changed:\n%s", d)
	}
}

func TestWhatSomebodyChangesInOursIsFound(t *testing.T) {
	ns := nettest.Namespace(t)
	k := open(t, ns)
	want := state(t)
	want.SAs = nil
	for _, how := range []string{
		"ip xfrm policy update src 192.0.2.1/32 dst 192.0.2.2/32 proto udp dport 4790 dir out priority 7239168",
		"ip xfrm policy update src 192.0.2.2/32 dst 192.0.2.1/32 proto udp dport 4790 dir in priority 7239168 " +
			"tmpl src 192.0.2.2 dst 192.0.2.1 proto esp reqid 7239217 mode transport level use",
		"ip xfrm policy update src 192.0.2.1/32 dst 192.0.2.2/32 proto udp dport 4790 dir out priority 7239168 " +
			"tmpl src 192.0.2.1 dst 192.0.2.2 proto esp reqid 1 mode transport",
		"ip xfrm policy delete src 192.0.2.1/32 dst 192.0.2.2/32 proto udp dport 4790 dir out",
		"ip xfrm policy update src 0.0.0.0/0 dst 0.0.0.0/0 proto udp dport 4790 dir out priority 7239169",
	} {
		hold(t, k, want)
		nettest.Sh(t, ns, how)
		have, err := k.Read(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if ops := ipsec.Plan(have, want); len(ops) == 0 {
			t.Errorf("%s: not found", how)
		}
	}
	hold(t, k, want)
}

func TestAKernelSaysWhatItLacks(t *testing.T) {
	k := open(t, nettest.Namespace(t))
	have, err := k.Supports(t.Context())
	if hasESP(t) {
		if d := cmp.Diff(ipsec.Ciphers(), have); d != "" || err != nil {
			t.Errorf("ciphers: %v\n%s", err, d)
		}
		return
	}
	if !errors.Is(err, ipsec.ErrUnsupported) || !strings.Contains(err.Error(), "esp4") {
		t.Errorf("without ESP: %v", err)
	}
}

// BenchmarkProgram programs a node with 300 peers from nothing and takes all of it out again. Two SAs for receiving: each
// rekey doubles them for a while.
func BenchmarkProgram(b *testing.B) {
	const peers = 300
	if !hasESP(b) {
		b.Fatal("this kernel has no ESP: run it in a virtual node")
	}
	want := ipsec.Blocked(port)
	for i := range peers {
		peer := netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}).String()
		want.SAs = append(want.SAs, sa(b, "10.0.0.1", peer, 0x1000+uint32(i), ipsec.AES256GCM),
			sa(b, peer, "10.0.0.1", 0x10000+uint32(i), ipsec.AES256GCM), sa(b, peer, "10.0.0.1", 0x20000+uint32(i), ipsec.AES256GCM))
		want.Policies = append(want.Policies, policy(ipsec.Out, "10.0.0.1", peer, 0x1000+uint32(i)), policy(ipsec.In, peer, "10.0.0.1", 0))
	}
	want = want.Sorted()
	k := open(b, nettest.Namespace(b))
	var in, read time.Duration
	for b.Loop() {
		start := time.Now()
		if err := k.Run(b.Context(), ipsec.Plan(ipsec.State{}, want), nil); err != nil {
			b.Fatal(err)
		}
		in += time.Since(start)
		start = time.Now()
		have, err := k.Read(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		read += time.Since(start)
		if err := k.Run(b.Context(), ipsec.Plan(have, ipsec.State{}), nil); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(in.Seconds()*1000/float64(b.N), "ms/program")
	b.ReportMetric(read.Seconds()*1000/float64(b.N), "ms/read")
}
