package policy

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestRulesReadAsWritten(t *testing.T) {
	got, err := Parse("web>db:5432/tcp, web>cache,*>dns:53/udp,web>db:5432,mon>*:9100-9110,web>db/icmp")
	if err != nil {
		t.Fatal(err)
	}
	want := []Rule{
		{Any, "dns", UDP, 53, 53}, {"mon", Any, TCP, 9100, 9110}, {"web", "cache", "", 0, 0},
		{"web", "db", ICMP, 0, 0}, {"web", "db", TCP, 5432, 5432},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	again, err := FromStrings(Strings(got))
	if diff := cmp.Diff(got, again); diff != "" || err != nil {
		t.Errorf("written and read again: %v\n%s", err, diff)
	}
	if diff := cmp.Diff([]string{"cache", "db", "dns", "mon", "web"}, Groups(got)); diff != "" {
		t.Errorf("groups (-want +got):\n%s", diff)
	}
}

func TestBadRulesAreRefusedWithWhatIsAllowed(t *testing.T) {
	for list, want := range map[string]string{
		"":                             "want FROM>TO",
		"web":                          "want FROM>TO",
		"web>":                         "1 to 32 letters",
		">db":                          "1 to 32 letters",
		"web>9db":                      "beginning with a letter",
		"web>db:0":                     "1..65535",
		"web>db:70000/tcp":             "1..65535",
		"web>db:20-10":                 "a range such as",
		"web>db:80/http":               "tcp, udp or icmp",
		"web>db/":                      "tcp, udp or icmp",
		"web>db:8/icmp":                "icmp has no ports",
		"web>db,x":                     `rule "x"`,
		"web>db:1,w b>d:2/q":           `rule "w b>d:2/q"`,
		strings.Repeat("a", 33) + ">b": "1 to 32 letters",
	} {
		if _, err := Parse(list); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want an error with %q", list, err, want)
		}
	}
	var many []string
	for i := range MaxGroups + 1 {
		many = append(many, "*>g"+strings.Repeat("x", i%30)+string(rune('a'+i/30)))
	}
	if _, err := Parse(strings.Join(many, ",")); err == nil || !strings.Contains(err.Error(), "at most 64") {
		t.Errorf("%d groups: %v", len(many), err)
	}
}
