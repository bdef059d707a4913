//go:build linux

package firewall

import (
	stdcmp "cmp"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/internal/nettest"
	"github.com/netdriver/netdriver/vxlan"
)

// host is a packet filter under test. show is what the kernel's own tool prints of everything; tamper runs such a tool.
type host struct {
	Kernel
	ns   string
	show func(t *testing.T) string
}

// kernels are what every promise of a Kernel is tested against. Those that need a tool to play the user are not tested with
// the fake.
func kernels(t *testing.T, real bool, test func(t *testing.T, h host)) {
	if !real {
		t.Run("fake", func(t *testing.T) { test(t, host{Kernel: NewFake()}) })
	}
	t.Run("nftables", func(t *testing.T) {
		ns := nettest.Namespace(t)
		k, err := OpenNFTables(ns)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { k.Close() })
		test(t, host{k, ns, func(t *testing.T) string { return nettest.Sh(t, ns, "nft list ruleset") }})
	})
	t.Run("iptables", func(t *testing.T) {
		ns := nettest.Namespace(t)
		k, err := OpenIPTables(ns, true)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { k.Close() })
		test(t, host{k, ns, func(t *testing.T) string {
			out := nettest.Sh(t, ns, "iptables-legacy-save; ip6tables-legacy-save")
			var lines []string
			for line := range strings.Lines(out) {
				if !strings.HasPrefix(line, "#") { // the time
					lines = append(lines, line)
				}
			}
			return strings.Join(lines, "")
		}})
	})
}

func addrs(s ...string) []netip.Addr {
	var out []netip.Addr
	for _, a := range s {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func vnis(from, n int) []vxlan.VNI {
	var out []vxlan.VNI
	for i := range n {
		out = append(out, vxlan.VNI(from+i))
	}
	return out
}

func testUnderlay() Underlay {
	return Underlay{
		Device: "eth0", Nodes: addrs("192.0.2.1", "192.0.2.2", "2001:db8::1"),
		VNIs: map[uint16][]vxlan.VNI{4789: vnis(1<<20, 1), 4791: vnis(5000, 25)},
	}
}

// everything has each field of a rule.
func everything() Ruleset {
	prefix, target := netip.MustParsePrefix, netip.MustParseAddrPort
	return Ruleset{
		Owner: "test",
		Sets:  []Set{{Name: "some", Addrs: addrs("192.0.2.7", "2001:db8::7")}, {Name: "vnis", VNIs: vnis(77, 3)}, {Name: "none"}},
		Chains: []Chain{
			{Hook: Input, Rules: []Rule{
				{Name: "plain", In: "eth0", Protocol: UDP, Port: 4790, IPsec: Plain, Verdict: Drop},
				{Name: "esp", In: "ve*", NotIn: true, Protocol: UDP, IPsec: Encrypted, Verdict: Pass},
				{Name: "vni", Protocol: UDP, Port: 4789, VNIs: "vnis", FromSet: "some", Verdict: Drop},
				{Name: "none", FromSet: "none", NotFromSet: true, Mark: 4, Mask: 12, Verdict: Pass},
				{Protocol: UDP, Extended: true, Mark: 1, Mask: 1<<32 - 1, Verdict: Drop},
			}},
			{Hook: Forward, Rules: []Rule{
				{Name: "new", In: "a", Out: "b", State: StateNew | StateInvalid, Verdict: Drop},
				{Name: "old", In: "a", NotIn: true, Out: "b*", NotOut: true, State: StateEstablished | StateRelated, Verdict: Pass},
				{From: prefix("198.51.100.0/25"), To: prefix("192.0.2.9/32"), NotTo: true, Verdict: Drop},
				{From: prefix("2001:db8:1::/48"), NotFrom: true, To: prefix("2001:db8::9/128"), Verdict: Drop},
				{In: "a", Out: "c", Translated: true, Verdict: Pass},
			}},
			{Hook: Output, Rules: []Rule{
				{Name: "plain", Protocol: UDP, Port: 4790, IPsec: Plain, Verdict: Drop},
				{Out: "eth0", Protocol: TCP, Port: 1, IPsec: Encrypted, Verdict: Drop},
			}},
			{Hook: DNAT, Rules: []Rule{
				{ToLocal: true, Protocol: TCP, Port: 8080, Verdict: Redirect, Target: target("198.51.100.2:80")},
				{ToLocal: true, Protocol: UDP, Port: 53, Verdict: Redirect, Target: target("[2001:db8:1::2]:53")},
			}},
			{Hook: LocalDNAT, Rules: []Rule{
				{ToLocal: true, Protocol: TCP, Port: 8080, Verdict: Redirect, Target: target("198.51.100.2:80")},
			}},
			{Hook: SNAT, Rules: []Rule{
				{From: prefix("198.51.100.0/24"), Out: "br0", NotOut: true, Verdict: Masquerade},
				{From: prefix("2001:db8:1::/64"), To: prefix("2001:db8:1::/64"), Verdict: Pass},
			}},
			{Hook: Allow, Rules: []Rule{{In: "br0", Verdict: Accept}, {Out: "br0", State: StateEstablished, Verdict: Accept}}},
		},
	}
}

// hold makes the kernel hold a ruleset and checks that it does.
func hold(t *testing.T, k Kernel, s Ruleset) []Op {
	t.Helper()
	if err := s.Check(); err != nil {
		t.Fatal(err)
	}
	want := k.Compile(s)
	have, err := k.Read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ops := Plan(have.of(s.Owner), want)
	if err := k.Run(t.Context(), ops); err != nil {
		t.Fatal(err)
	}
	if have, err = k.Read(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left := Plan(have.of(s.Owner), want); len(left) > 0 {
		t.Fatalf("not as wanted, still to do:\n%s\nhave:\n%v", lines(left), cmp.Diff(want, have.of(s.Owner)))
	}
	return ops
}

func lines(ops []Op) string {
	var b strings.Builder
	for _, o := range ops {
		b.WriteString(o.String() + "\n")
	}
	return b.String()
}

func TestWhatIsWantedIsReadBackEqual(t *testing.T) {
	for name, s := range map[string]Ruleset{
		"everything": everything(), "underlay": testUnderlay().Ruleset(), "lock": Lock(4790),
	} {
		t.Run(name, func(t *testing.T) {
			kernels(t, false, func(t *testing.T, h host) { hold(t, h, s) })
		})
	}
}

func TestASetChangesWithoutTouchingRules(t *testing.T) {
	kernels(t, false, func(t *testing.T, h host) {
		u := testUnderlay()
		hold(t, h, u.Ruleset())
		u.Nodes = addrs("192.0.2.1", "192.0.2.3", "2001:db8::1", "2001:db8::3")
		u.VNIs[4789] = vnis(1<<20, 3)
		for _, op := range hold(t, h, u.Ruleset()) {
			if h.Name() != "iptables" && op.Verb != AddElement && op.Verb != DelElement {
				t.Errorf("changing sets needs %s", op)
			}
		}
	})
}

func TestNothingIsLeftOfAnEmptyRuleset(t *testing.T) {
	kernels(t, false, func(t *testing.T, h host) {
		hold(t, h, Lock(4790))
		hold(t, h, everything())
		hold(t, h, Ruleset{Owner: "test"})
		have, err := h.Read(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if ops := Plan(have, h.Compile(Lock(4790))); len(ops) > 0 {
			t.Errorf("another owner's rules are not all that is left:\n%s", lines(ops))
		}
	})
}

func TestATransactionIsDoneWholeOrNotAtAll(t *testing.T) {
	kernels(t, false, func(t *testing.T, h host) {
		hold(t, h, Lock(4790))
		before, _ := h.Read(t.Context())
		ops := Plan(before.of("underlay"), h.Compile(testUnderlay().Ruleset()))
		bad := ops[len(ops)-1]
		bad.Verb, bad.Text, bad.Key, bad.Name = AddRule, "-A NETDRIVER-none -j DROP", "", "none"
		err := h.Run(t.Context(), append(ops, bad))
		var which *OpError
		if !errors.As(err, &which) {
			t.Fatalf("an impossible operation: %v", err)
		}
		after, _ := h.Read(t.Context())
		if h.Name() == "iptables" { // whose families and tables are apart
			keep := bad.Family + " " + bad.Table
			in := func(c Compiled) (out []CompiledChain) {
				for _, x := range c.Chains {
					if x.Family+" "+x.Table == keep {
						out = append(out, x)
					}
				}
				return out
			}
			before, after = Compiled{Chains: in(before)}, Compiled{Chains: in(after)}
		}
		if d := cmp.Diff(before, after); d != "" {
			t.Errorf("a failed transaction changed something:\n%s", d)
		}
	})
}

func TestRemovingWhatIsGoneIsNoError(t *testing.T) {
	kernels(t, false, func(t *testing.T, h host) {
		want := h.Compile(everything())
		if err := h.Run(t.Context(), Plan(want, Compiled{})); err != nil {
			t.Error(err)
		}
		hold(t, h, everything())
	})
}

// foreign are rules of somebody else's, in the same places as ours.
func foreign(t *testing.T, h host) {
	t.Helper()
	if h.Name() == "nftables" {
		nettest.Sh(t, h.ns, `nft 'add table inet mine; add set inet mine s { type ipv4_addr; }; add table ip nat;
			add chain inet mine in { type filter hook input priority -500; policy accept; };
			add rule inet mine in udp dport 4790 ip saddr @s accept;
			add chain ip nat x { type nat hook postrouting priority 100; }; add rule ip nat x masquerade'`)
		return
	}
	for _, family := range []string{"iptables-legacy", "ip6tables-legacy"} {
		nettest.Sh(t, h.ns, family+` -t mangle -A INPUT -p udp --dport 4790 -j ACCEPT; `+family+` -t mangle -N MINE; `+
			family+` -t nat -A POSTROUTING -o x -j MASQUERADE; `+family+` -P FORWARD DROP`)
	}
}

func TestOthersRulesStayByteIdentical(t *testing.T) {
	kernels(t, true, func(t *testing.T, h host) {
		foreign(t, h)
		before := h.show(t)
		hold(t, h, everything())
		u := testUnderlay()
		hold(t, h, u.Ruleset())
		u.Nodes = addrs("192.0.2.3")
		hold(t, h, u.Ruleset())
		if h.show(t) == before {
			t.Fatal("nothing of ours is to be seen") // positive control
		}
		hold(t, h, Ruleset{Owner: OwnerUnderlay})
		hold(t, h, Ruleset{Owner: "test"})
		after := strings.ReplaceAll(h.show(t), "table inet netdriver {\n}\n", "")
		if d := cmp.Diff(before, after); d != "" {
			t.Errorf("others' rules changed:\n%s", d)
		}
	})
}

// tampers are what others may do to our rules, by the kernel's name.
func tampers() map[string][]string {
	const legacy, six = "iptables-legacy -t mangle ", "ip6tables-legacy -t mangle "
	return map[string][]string{
		"nftables": {
			"nft flush ruleset", "nft delete table inet netdriver", "nft flush chain inet netdriver lock-in",
			"nft delete element inet netdriver underlay-nodes4 { 192.0.2.2 }",
			"nft add element inet netdriver underlay-nodes6 { 2001:db8::bad }",
			"nft insert rule inet netdriver lock-out accept", "nft add chain inet netdriver lock-in '{ policy drop; }'",
			"nft flush set inet netdriver underlay-vnis-4791",
			"nft delete rule inet netdriver lock-in handle $(nft -a list chain inet netdriver lock-in | sed -n 's/.*drop # handle //p')",
			"nft replace rule inet netdriver lock-in handle $(nft -a list chain inet netdriver lock-in | sed -n 's/.*drop # handle //p') udp dport 4790 meta ipsec exists drop",
		},
		"iptables": {
			legacy + "-F && " + legacy + "-X", six + "-F && " + six + "-X", legacy + "-F INPUT", six + "-F POSTROUTING",
			legacy + "-I INPUT -j ACCEPT", legacy + "-F NETDRIVER-lock-in", legacy + "-I NETDRIVER-lock-in -j RETURN",
			legacy + "-D NETDRIVER-lock-out 1", legacy + "-R NETDRIVER-lock-in 1 -j ACCEPT",
			legacy + "-A INPUT -j NETDRIVER-lock-in",
		},
	}
}

func TestWhatOthersChangeIsBackWithinASecond(t *testing.T) {
	kernels(t, true, func(t *testing.T, h host) {
		f := New(h, slog.New(slog.DiscardHandler))
		for _, s := range []Ruleset{Lock(4790), testUnderlay().Ruleset()} {
			if _, err := f.Apply(t.Context(), s); err != nil {
				t.Fatal(err)
			}
		}
		go f.Run(t.Context())
		time.Sleep(pollEvery) // it has looked once
		for _, how := range tampers()[h.Name()] {
			before := len(f.Receipts())
			nettest.Sh(t, h.ns, how)
			start := time.Now()
			for {
				if ops, err := f.Diff(t.Context()); err != nil || len(ops) == 0 && len(f.Receipts()) > 0 {
					break
				}
				if time.Since(start) > time.Second {
					ops, err := f.Diff(t.Context())
					t.Errorf("%s: not repaired after %v: %v\n%s", how, time.Since(start), err, lines(ops))
					break
				}
				time.Sleep(20 * time.Millisecond)
			}
			if now := len(f.Receipts()); now == before && now < maxReceipts {
				t.Errorf("%s: repaired without a receipt", how)
			}
			if err := f.Problem(); err != nil {
				t.Errorf("%s: %v", how, err)
			}
		}
	})
}

func TestAnotherOwnersRulesOutliveARestart(t *testing.T) {
	kernels(t, false, func(t *testing.T, h host) {
		hold(t, h, everything())
		f := New(h, slog.New(slog.DiscardHandler)) // a daemon that starts, whose parts speak one after the other
		if _, err := f.Apply(t.Context(), Lock(4790)); err != nil {
			t.Fatal(err)
		}
		have, err := h.Read(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if ops := Plan(have.of("test"), h.Compile(everything())); len(ops) > 0 {
			t.Errorf("rules of an owner that has not spoken yet were changed:\n%s", lines(ops))
		}
		ops, err := f.Apply(t.Context(), everything())
		if err != nil || len(ops) > 0 {
			t.Errorf("what is there was made again: %v\n%s", err, lines(ops))
		}
	})
}

func TestAFailureIsToldAndTriedAgain(t *testing.T) {
	k := NewFake()
	fails := true
	k.FailOn = func(Op) error {
		if fails {
			return unix.ENOMEM
		}
		return nil
	}
	f := New(k, slog.New(slog.DiscardHandler))
	if _, err := f.Apply(t.Context(), Lock(4790)); !errors.Is(err, unix.ENOMEM) || f.Problem() == nil {
		t.Fatalf("error %v, problem %v", err, f.Problem())
	}
	k.mu.Lock()
	fails = false
	k.mu.Unlock()
	if ops, err := f.Apply(t.Context(), Lock(4790)); err != nil || len(ops) == 0 || f.Problem() != nil {
		t.Errorf("the same again: %v, %d operations, problem %v", err, len(ops), f.Problem())
	}
}

func TestOpenFindsAPacketFilterAndLeavesNothingInIt(t *testing.T) {
	k, err := Open(t.Context(), nettest.Namespace(t))
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	if have, err := k.Read(t.Context()); err != nil || len(have.Chains)+len(have.Sets)+len(have.Counters) > 0 {
		t.Errorf("%v, left: %v", err, have)
	}
	// In a virtual node whose kernel has no nf_tables, test/e2e sets the variable.
	if want := stdcmp.Or(os.Getenv("NETDRIVER_TEST_FILTER"), "nftables"); k.Name() != want {
		t.Errorf("%s is used, not %s", k.Name(), want)
	}
}

func TestPurgeRemovesAllOfOursAndNothingElse(t *testing.T) {
	kernels(t, true, func(t *testing.T, h host) {
		foreign(t, h)
		before := h.show(t)
		hold(t, h, everything())
		if left, err := Left(t.Context(), h.ns); err != nil || len(left) != 1 {
			t.Errorf("left: %v, %v", left, err)
		}
		for range 2 { // the second time there is nothing
			if err := Purge(t.Context(), h.ns); err != nil {
				t.Fatal(err)
			}
		}
		if d := cmp.Diff(before, h.show(t)); d != "" {
			t.Errorf("others' rules changed, or some of ours are left:\n%s", d)
		}
	})
}

// Bridge networks' packets are let pass in the tables that Docker uses, whichever iptables writes them.
func TestPurgeFindsWhatTheHostsIptablesHas(t *testing.T) {
	ns := nettest.Namespace(t)
	k, err := OpenIPTables(ns, false)
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	hold(t, k, Ruleset{Owner: "test", Chains: []Chain{{Hook: Allow, Rules: []Rule{{In: "br0", Verdict: Accept}}}}})
	if err := Purge(t.Context(), ns); err != nil {
		t.Fatal(err)
	}
	if have, err := k.Read(t.Context()); err != nil || len(have.Chains) > 0 {
		t.Errorf("left: %v, %v", have, err)
	}
}
