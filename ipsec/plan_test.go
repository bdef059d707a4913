package ipsec

import (
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/netdriver/netdriver/internal/golden"
)

func testSA(src, dst string, spi uint32) SA {
	return SA{
		Src: netip.MustParseAddr(src), Dst: netip.MustParseAddr(dst), SPI: spi, Cipher: AES256GCM,
		Window: ReplayWindow, ESN: true,
	}
}

// testState is that of a node at 192.0.2.1 that receives from 192.0.2.2 and sends there with the two SPIs; 0 is none.
func testState(in, out uint32) State {
	s := Blocked(4790)
	self, peer := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	if in != 0 {
		s.SAs = append(s.SAs, testSA("192.0.2.2", "192.0.2.1", in))
		s.Policies = append(s.Policies, pairPolicy(In, peer, self, 4790, 0))
	}
	if out != 0 {
		s.SAs = append(s.SAs, testSA("192.0.2.1", "192.0.2.2", out))
		s.Policies = append(s.Policies, pairPolicy(Out, self, peer, 4790, out))
	}
	return s.Sorted()
}

func TestPlansAreTheCommandsOfAnEngineer(t *testing.T) {
	udp := testState(0x1000, 0)
	udp.SAs[0].Encap, udp.SAs[0].Cipher = Encap{4500, 4501}, ChaCha20Poly1305
	six := Blocked(4790)
	six.SAs = []SA{testSA("2001:db8::1", "2001:db8::2", 0x3000)}
	six.Policies = append(six.Policies,
		pairPolicy(Out, netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2"), 4790, 0x3000))
	both := testState(0x1000, 0x2000)
	both.SAs = append(both.SAs, testSA("192.0.2.2", "192.0.2.1", 0x1001))
	changed := testState(0x1000, 0x2000)
	changed.SAs[0].Window = 32
	for name, tt := range map[string]struct{ have, want State }{
		"first":        {State{}, testState(0x1000, 0x2000)},
		"receive-only": {Blocked(4790), testState(0x1000, 0)},
		"switch":       {both.Sorted(), testState(0x1001, 0x2001)},
		"block":        {testState(0x1000, 0x2000), testState(0x1000, 0)},
		"all-gone":     {testState(0x1000, 0x2000), State{}},
		"policy-flush": {State{SAs: testState(0x1000, 0x2000).SAs}, testState(0x1000, 0x2000)},
		"tampered":     {changed, testState(0x1000, 0x2000)},
		"udp":          {Blocked(4790), udp},
		"ipv6":         {Blocked(4790), six.Sorted()},
	} {
		t.Run(name, func(t *testing.T) {
			var b strings.Builder
			for _, op := range Plan(tt.have, tt.want) {
				b.WriteString(op.String() + "\n")
			}
			golden.Compare(t, "plan-"+name+".golden", b.String())
		})
	}
}

func states() *rapid.Generator[State] {
	return rapid.Custom(func(t *rapid.T) State {
		s := State{}
		if rapid.Bool().Draw(t, "blocked") {
			s = testState(uint32(rapid.IntRange(0, 3).Draw(t, "in"))*256, uint32(rapid.IntRange(0, 3).Draw(t, "out"))*256)
		}
		return s
	})
}

func TestPlanLeadsToWhatIsWantedWithoutAGap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		have, want := states().Draw(t, "have"), states().Draw(t, "want")
		s := have
		for _, op := range Plan(have, want) {
			s = s.Apply(op)
			covered(t, s)
		}
		if rest := Plan(s, want); len(rest) > 0 {
			t.Fatalf("after the plan there is still %v", rest)
		}
		if again := Plan(want, want); len(again) > 0 {
			t.Fatalf("from a state to itself: %v", again)
		}
	})
}

// covered says that whoever has a policy for a pair also has the SA and the blocking policies under it.
func covered(t *rapid.T, s State) {
	blocks, pairs := 0, 0
	for _, p := range s.Policies {
		if p.Block {
			blocks++
			continue
		}
		pairs++
		if _, ok := find(s, SAID{p.Dst.Addr(), p.SPI}); p.Dir == Out && !ok {
			t.Fatalf("%s has no SA", p)
		}
	}
	if pairs > 0 && blocks != 4 {
		t.Fatalf("only %d blocking policies", blocks)
	}
	if err := s.Check(); err != nil {
		t.Fatal(err)
	}
}

func TestOneObjectIsNotPlannedTwice(t *testing.T) {
	s := testState(0x1000, 0x2000)
	if err := s.Check(); err != nil {
		t.Error(err)
	}
	twice := s
	twice.SAs = append(twice.SAs, testSA("192.0.2.3", "192.0.2.1", 0x1000))
	if err := twice.Check(); err == nil || !strings.Contains(err.Error(), "0x1000") {
		t.Errorf("two SAs with one SPI: %v", err)
	}
	twice = s
	twice.Policies = append(twice.Policies, twice.Policies[0])
	if twice.Check() == nil {
		t.Error("one policy twice passes")
	}
}
