package driver

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netdriver/netdriver/dataplane/guard"
	"github.com/netdriver/netdriver/store"
)

// table writes what each class may reach, one line each.
func table(classes []guard.Class) []string {
	var out []string
	for _, c := range classes {
		for _, s := range c.Reaches {
			out = append(out, fmt.Sprintf("%s reaches %d by %d-%d at %d-%d", c.Name, s.Peer, s.FirstProto, s.LastProto, s.First, s.Last))
		}
	}
	slices.Sort(out)
	return out
}

func TestRulesBecomeWhatEachClassMayReach(t *testing.T) {
	tests := []struct {
		name    string
		isolate bool
		allow   []string
		want    []string
	}{
		// Groups are numbered in the order of their names: db 2, web 4; none is 0. Odd numbers are services' backends.
		{"one rule", false, []string{"web>db:5432/tcp"}, []string{"web reaches 2 by 6-6 at 5432-5432"}},
		{"ranges that meet are joined, what is contained goes", false,
			[]string{"web>db:10-20/tcp", "web>db:15/tcp", "web>db:21-30/tcp", "web>db:40/udp"},
			[]string{"web reaches 2 by 17-17 at 40-40", "web reaches 2 by 6-6 at 10-30"}},
		{"everything contains all else", false, []string{"web>db", "web>db:5432/tcp"}, []string{"web reaches 2 by 0-255 at 0-65535"}},
		{"anybody", false, []string{"*>db:53/udp"}, []string{"0 reaches 2 by 17-17 at 53-53", "db reaches 2 by 17-17 at 53-53"}},
		{"ICMP of both kinds", false, []string{"web>db/icmp"},
			[]string{"web reaches 2 by 1-1 at 0-65535", "web reaches 2 by 58-58 at 0-65535"}},
		{"isolated", true, nil, []string{"0 reaches 1 by 0-255 at 0-65535", "0.open reaches 1 by 0-255 at 0-65535"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			j := newJudge(store.Network{Isolation: store.Isolation{Isolate: tt.isolate, Allow: tt.allow}}, nil)
			classes := j.classes()
			if diff := cmp.Diff(tt.want, table(classes)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			admits, reaches := 0, 0
			for _, c := range classes {
				admits, reaches = admits+len(c.Admits), reaches+len(c.Reaches)
			}
			if admits != reaches {
				t.Errorf("%d spans are admitted and %d reach", admits, reaches)
			}
		})
	}
}

func TestANetworkWithoutRulesIsNotJudged(t *testing.T) {
	me, nw, nodes, endpoints := three()
	got := desired(me, nw, nodes, endpoints, nil).Guard
	if len(got.Policy.Classes) != 0 || got.Ports[0].Class != "" {
		t.Errorf("judged: %+v", got)
	}
}

func TestEndpointsAreInTheClassOfTheirGroupOnAllNodes(t *testing.T) {
	me, nw, nodes, endpoints := three()
	nw.Allow = []string{"web>db:5432/tcp"}
	for id, group := range map[string]string{"en1": "web", "en2": "db"} {
		e := endpoints[id]
		e.Group = group
		endpoints[id] = e
	}
	got := desired(me, nw, nodes, endpoints, nil)
	if err := got.Check(); err != nil {
		t.Fatal(err)
	}
	if got.Guard.Ports[0].Class != "web" {
		t.Errorf("the local endpoint's class is %q", got.Guard.Ports[0].Class)
	}
	want := []guard.Member{{Address: addr("10.10.0.2"), Class: 4}, {Address: addr("10.10.0.3"), Class: 2}}
	if diff := cmp.Diff(want, got.Guard.Policy.Members, equal()); diff != "" {
		t.Errorf("members (-want +got):\n%s", diff)
	}
}

func TestAnIsolatedNetworksServicesAreOpen(t *testing.T) {
	me, nw, nodes, endpoints := three()
	nw.Isolate = true
	services := map[string]store.Service{"s": {ID: "s", VIPs: []netip.Addr{addr("10.10.0.100")},
		Backends: []store.Backend{{Task: "t", Addresses: []netip.Addr{addr("10.10.0.2")}}}}}
	got := desired(me, nw, nodes, endpoints, services).Guard
	want := []guard.Member{{Address: addr("10.10.0.2"), Class: 1}}
	if diff := cmp.Diff(want, got.Policy.Members, equal()); diff != "" || got.Ports[0].Class != "0.open" {
		t.Errorf("class %q, members (-want +got):\n%s", got.Ports[0].Class, diff)
	}
}

func TestIsolationOptionsAreTakenOrRefusedWithARemedy(t *testing.T) {
	for _, c := range []struct{ key, value, want string }{
		{"isolate", "true", ""}, {"isolate", "maybe", "true or false"},
		{"allow", "web>db:5432/tcp", ""}, {"allow", "web", "FROM>TO"},
		{"rate", "100mbit", ""}, {"rate", "100", "bit, kbit, mbit or gbit"}, {"rate", "1kbit", "100kbit..100gbit"},
		{"rate", "-1mbit", "bit, kbit"}, {"burst", "256k", "burst without rate"}, {"burst", "1", "131072..67108864"},
	} {
		_, err := parseNetwork(request("d1", "10.10.0.0/24", c.key, c.value))
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s=%s: %v, want %q", c.key, c.value, err, c.want)
		}
	}
	s, err := parseNetwork(request("d1", "10.10.0.0/24", "isolate", "1", "allow", "b>c,a>b", "rate", "5mbit", "burst", "128k"))
	want := store.Isolation{Isolate: true, Allow: []string{"a>b", "b>c"}, Limit: store.Limit{Rate: 5e6, Burst: 131072}}
	if diff := cmp.Diff(want, s.isolation.record()); diff != "" || err != nil {
		t.Errorf("%v, record (-want +got):\n%s", err, diff)
	}
}

func TestEndpointOptionsAreTakenOrRefusedWithARemedy(t *testing.T) {
	nw := store.Network{Name: "web", Isolation: store.Isolation{Allow: []string{"web>db:5432/tcp"}}}
	var e store.Endpoint
	err := parseEndpointOptions(nw, map[string]any{"group": "db", "rate": "1mbit", "com.docker.network.portmap": []any{}}, &e)
	if err != nil || e.Group != "db" || e.Rate != 1e6 {
		t.Errorf("%v: %+v", err, e)
	}
	for _, c := range []struct {
		nw         store.Network
		key, value string
		want       string
	}{
		{nw, "group", "cache", "its groups are db, web"},
		{nw, "group", "a b", "1 to 32 letters"},
		{store.Network{Name: "plain"}, "group", "db", "network plain has no rules: create it with --opt allow"},
		{nw, "groop", "db", "the options are burst, group, rate"},
		{nw, "burst", "128k", "burst without rate"},
	} {
		err := parseEndpointOptions(c.nw, map[string]any{c.key: c.value}, &store.Endpoint{})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s=%s: %v, want %q", c.key, c.value, err, c.want)
		}
	}
}

func TestAnotherHostMustAgreeOnIsolation(t *testing.T) {
	nw := store.Network{Name: "web", Creator: "n1", Isolation: store.Isolation{Allow: []string{"a>b"}}}
	for _, c := range []struct {
		pairs []string
		want  string
	}{
		{nil, ""}, {[]string{"allow", "a>b"}, ""}, {[]string{"allow", "a>c"}, "allow is a>b"}, {[]string{"isolate", "true"}, "isolate is false"},
		{[]string{"rate", "1mbit"}, "rate is 0bit"},
	} {
		s, err := parseNetwork(request("d1", "10.10.0.0/24", c.pairs...))
		if err != nil {
			t.Fatal(err)
		}
		s.internal, s.subnets = nw.Internal, nw.Subnets
		err = s.contradictions(nw)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%v: %v, want %q", c.pairs, err, c.want)
		}
	}
}
