package firewall

import (
	"log/slog"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/netdriver/netdriver/internal/golden"
)

func TestPlans(t *testing.T) {
	moved := testUnderlay()
	moved.Nodes = addrs("192.0.2.1", "192.0.2.3")
	for kernel, compile := range map[string]func(Ruleset) Compiled{"nftables": compileNFT, "iptables": compileIPTables} {
		for name, c := range map[string]struct{ have, want Ruleset }{
			"everything":     {Ruleset{}, everything()},
			"underlay":       {Ruleset{}, testUnderlay().Ruleset()},
			"lock":           {Ruleset{}, Lock(4790)},
			"a-node-changes": {testUnderlay().Ruleset(), moved.Ruleset()},
			"gone":           {testUnderlay().Ruleset(), Ruleset{Owner: OwnerUnderlay}},
		} {
			golden.Compare(t, kernel+"-"+name+".golden", lines(Plan(compile(c.have), compile(c.want))))
		}
	}
}

// drawn is some ruleset out of the rules of everything.
func drawn(t *rapid.T, label string) Ruleset {
	s := everything()
	all := s.Sets[0].Addrs
	for i := range s.Sets {
		s.Sets[i].Addrs = rapid.SliceOfN(rapid.SampledFrom(all), 0, 2).Draw(t, label+" set")
		if s.Sets[i].Name == "vnis" {
			s.Sets[i].Addrs, s.Sets[i].VNIs = nil, vnis(70, rapid.IntRange(0, 15).Draw(t, label+" VNIs"))
		}
	}
	var chains []Chain
	for _, c := range s.Chains {
		if rapid.Bool().Draw(t, label+" chain") {
			c.Rules = rapid.SliceOfN(rapid.SampledFrom(c.Rules), 0, 4).Draw(t, label+" rules")
			chains = append(chains, c)
		}
	}
	s.Chains = chains
	return s
}

func TestAPlanLeadsFromAnyStateToAnyOther(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k := NewFake()
		for _, label := range []string{"first", "second"} {
			s := drawn(t, label)
			if err := s.Check(); err != nil {
				t.Fatal(err)
			}
			have, _ := k.Read(t.Context())
			if err := k.Run(t.Context(), Plan(have, k.Compile(s))); err != nil {
				t.Fatal(err)
			}
			have, _ = k.Read(t.Context())
			if ops := Plan(have, k.Compile(s)); len(ops) > 0 {
				t.Fatalf("still to do:\n%s", lines(ops))
			}
		}
	})
}

func TestBadRulesetsAreRefused(t *testing.T) {
	rule := func(h Hook, r Rule) Ruleset {
		return Ruleset{Owner: "test", Sets: []Set{{Name: "some"}}, Chains: []Chain{{Hook: h, Rules: []Rule{r}}}}
	}
	f := New(NewFake(), slog.New(slog.DiscardHandler))
	for name, s := range map[string]Ruleset{
		"owner":                {Owner: "Test"},
		"two chains":           {Owner: "test", Chains: []Chain{{Hook: Input}, {Hook: Input}}},
		"set twice":            {Owner: "test", Sets: []Set{{Name: "a"}, {Name: "a"}}},
		"no verdict":           rule(Input, Rule{}),
		"unknown set":          rule(Input, Rule{FromSet: "other", Verdict: Drop}),
		"injected":             rule(Input, Rule{In: "a\n-A", Verdict: Drop}),
		"long interface":       rule(Input, Rule{In: strings.Repeat("x", 16), Verdict: Drop}),
		"port of nothing":      rule(Input, Rule{Port: 1, Verdict: Drop}),
		"out at input":         rule(Input, Rule{Out: "a", Verdict: Drop}),
		"ipsec of a forward":   rule(Forward, Rule{IPsec: Plain, Verdict: Drop}),
		"drop in NAT":          rule(SNAT, Rule{Verdict: Drop}),
		"accept in input":      rule(Input, Rule{Verdict: Accept}),
		"redirect to nowhere":  rule(DNAT, Rule{Protocol: TCP, Verdict: Redirect}),
		"families":             rule(Forward, Rule{From: everything().Chains[1].Rules[2].From, To: everything().Chains[1].Rules[3].To, Verdict: Drop}),
		"a mark out of a mask": rule(Input, Rule{Mark: 2, Mask: 1, Verdict: Drop}),
	} {
		if _, err := f.Apply(t.Context(), s); err == nil || !strings.Contains(err.Error(), ErrRuleset.Error()) {
			t.Errorf("%s: error %v", name, err)
		}
	}
}
