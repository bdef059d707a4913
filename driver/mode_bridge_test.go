package driver

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netdriver/netdriver/dataplane/firewall"
	"github.com/netdriver/netdriver/store"
)

func TestABridgesRulesKeepOthersOutAndLetItsContainersGo(t *testing.T) {
	open := store.Network{Name: "apps", Mode: store.ModeBridge, Subnets: []netip.Prefix{prefix("10.1.0.0/24")}}
	closed := store.Network{Name: "db", Mode: store.ModeBridge, Subnets: []netip.Prefix{prefix("10.2.0.0/24")}, Internal: true}
	rules, allowed := bridgeRules([]store.Network{open, closed})
	for _, s := range []firewall.Ruleset{rules, allowed} {
		if err := s.Check(); err != nil {
			t.Error(err)
		}
	}
	kernel := firewall.NewFake()
	var text strings.Builder
	for _, s := range []firewall.Ruleset{rules, allowed} {
		ops := firewall.Plan(firewall.Compiled{}, kernel.Compile(s))
		if err := kernel.Run(t.Context(), ops); err != nil {
			t.Fatal(err)
		}
		for _, op := range ops {
			fmt.Fprintln(&text, op)
		}
	}
	want, err := os.ReadFile("testdata/bridge-rules.golden")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), text.String()); diff != "" {
		t.Errorf("testdata/bridge-rules.golden (-want +got):\n%s", diff)
	}
	rules, _ = bridgeRules([]store.Network{open}, "mybridge")
	named := slices.ContainsFunc(rules.Chains[0].Rules, func(r firewall.Rule) bool { return r.Out == "mybridge" && r.Verdict == firewall.Drop })
	if !named {
		t.Errorf("a bridge of Docker's with a name of the user's choice is open: %+v", rules)
	}
	none, nothing := bridgeRules(nil)
	if len(none.Chains)+len(nothing.Chains) > 0 {
		t.Errorf("rules without a network: %+v %+v", none, nothing)
	}
}
