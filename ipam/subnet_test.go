package ipam

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestAPoolIDSaysEverythingAboutThePool(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		subnet := netip.PrefixFrom(addr("10.77.0.0"), rapid.IntRange(16, 28).Draw(t, "bits"))
		id := PoolID{Space: rapid.SampledFrom([]string{LocalSpace, GlobalSpace}).Draw(t, "space"), Subnet: subnet}
		if rapid.Bool().Draw(t, "range") {
			id.Range = netip.PrefixFrom(subnet.Addr(), rapid.IntRange(subnet.Bits(), 30).Draw(t, "range bits"))
		}
		if got, err := ParsePoolID(id.String()); err != nil || got != id {
			t.Errorf("%s: %v, %v", id, got, err)
		}
	})
	if got, err := ParsePoolID("netdriver-local/fd10::/64/fd10::8000/113"); err != nil || got.Range != prefix("fd10::8000/113") {
		t.Errorf("IPv6: %v, %v", got, err)
	}
}

func TestAMalformedPoolIDIsRefused(t *testing.T) {
	for id, want := range map[string]string{
		"":                                              "want SPACE/SUBNET",
		"10.0.0.0/24":                                   "want SPACE/SUBNET",
		LocalSpace + "/10.0.0.0":                        "want SPACE/SUBNET",
		LocalSpace + "/10.0.0.0/24/1":                   "want SPACE/SUBNET",
		LocalSpace + "/10.0.0.1/24":                     "use 10.0.0.0/24",
		LocalSpace + "/10.0.0.0/x":                      "want a network address",
		LocalSpace + "/10.0.0.0/24/10.0.1.0/25":         "not inside",
		LocalSpace + "/10.0.0.0/24/10.0.0.0/25/1":       "want SPACE/SUBNET",
		"else/10.0.0.0/24":                              "unknown address space",
		LocalSpace + "/fd10:0::/64":                     "as RequestPool answered it",
		LocalSpace + "/10.0.0.0/24/../../etc/passwd/24": "want SPACE/SUBNET",
	} {
		if _, err := ParsePoolID(id); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", id, err, want)
		}
	}
}

func TestNetworksWithoutSubnetGetOneThatKeepsClearOfOthers(t *testing.T) {
	s := New(Config{Predefined: []Predefined{{prefix("10.128.0.0/22"), 24}}})
	tests := []struct {
		name  string
		w     wish
		taken []string
		want  string // of an error, what it must contain
	}{
		{"first", wish{}, nil, "10.128.0.0/24"},
		{"same taken", wish{}, []string{"10.128.0.0/24"}, "10.128.1.0/24"},
		{"part taken", wish{}, []string{"10.128.0.64/26", "10.128.1.7/32"}, "10.128.2.0/24"},
		{"larger taken", wish{}, []string{"10.128.0.0/23"}, "10.128.2.0/24"},
		{"other family taken", wish{}, []string{"fd00::/8"}, "10.128.0.0/24"},
		{"all taken", wish{}, []string{"10.0.0.0/8"}, "all 4 predefined subnets"},
		{"IPv6 all taken", wish{v6: true}, []string{"fd00::/8"}, "no free IPv6"},
	}
	for _, test := range tests {
		var taken []netip.Prefix
		for _, p := range test.taken {
			taken = append(taken, prefix(p))
		}
		got, err := s.choose(test.w, taken)
		if err != nil && !strings.Contains(err.Error(), test.want) || err == nil && got.String() != test.want {
			t.Errorf("%s: %s, %v, want %s", test.name, got, err, test.want)
		}
	}
}

func TestChosenIPv6SubnetsAreUniqueLocal(t *testing.T) {
	s := New(Config{})
	choose := func(network string, taken ...netip.Prefix) netip.Prefix {
		p, err := s.choose(wish{v6: true, network: network}, taken)
		if err != nil {
			t.Fatal(err)
		}
		if p.Bits() != 64 || !prefix("fd00::/8").Contains(p.Addr()) || p != p.Masked() {
			t.Errorf("%s is no /64 of fd00::/8", p)
		}
		return p
	}
	web := choose("web")
	if again := choose("web"); again != web {
		t.Errorf("web: %s, then %s", web, again)
	}
	if other := choose("db"); other == web {
		t.Errorf("db has web's %s", web)
	}
	if next := choose("web", web); next == web {
		t.Errorf("a taken one is chosen: %s", web)
	}
	if a, b := choose(""), choose(""); a == b {
		t.Errorf("two networks without name get %s", a)
	}
}

func TestDefaultSubnetsKeepClearOfDockersOwn(t *testing.T) {
	docker := []netip.Prefix{prefix("192.168.0.0/16")}
	for n := 17; n <= 31; n++ {
		docker = append(docker, netip.PrefixFrom(netip.AddrFrom4([4]byte{172, byte(n)}), 16))
	}
	var count []int
	for _, d := range DefaultPredefined() {
		n := 0
		for p := range cut(d) {
			if o, ok := overlap(p, docker); ok {
				t.Errorf("%s overlaps Docker's %s", p, o)
			}
			n++
		}
		count = append(count, n)
	}
	if diff := cmp.Diff([]int{2048, 16}, count); diff != "" {
		t.Errorf("pools (-want +got):\n%s", diff)
	}
}
