package driver

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/docker/go-plugins-helpers/network"
	"github.com/google/go-cmp/cmp"

	"github.com/netdriver/netdriver/ipam"
	"github.com/netdriver/netdriver/store"
)

// request is a CreateNetwork request as moby sends it, with --opt options given as pairs.
func request(id, subnet string, pairs ...string) *network.CreateNetworkRequest {
	generic := map[string]any{}
	for i := 0; i < len(pairs); i += 2 {
		generic[pairs[i]] = pairs[i+1]
	}
	return &network.CreateNetworkRequest{
		NetworkID: id,
		Options:   map[string]any{labelGeneric: generic, "com.docker.network.enable_ipv6": false},
		IPv4Data:  []*network.IPAMData{{AddressSpace: ipam.LocalSpace, Pool: subnet}},
	}
}

func TestOptionsAreTakenAsGiven(t *testing.T) {
	got, err := parseNetwork(request("d1", "10.10.0.0/24", "network", "web", "mode", "overlay", "vni", "7", "port", "4790", "mtu", "1400"))
	want := spec{name: "web", medium: medium{mode: "overlay"}, vni: 7, port: 4790, mtu: 1400, subnets: []netip.Prefix{prefix("10.10.0.0/24")}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(spec{}, encryption{}, medium{}, isolation{}), equal()); diff != "" || err != nil {
		t.Errorf("error %v, spec (-want +got):\n%s", err, diff)
	}
}

func TestDockersOwnSpellingOfTheMTUIsUnderstood(t *testing.T) {
	got, err := parseNetwork(request("d1", "10.10.0.0/24", labelMTU, "1300"))
	if err != nil || got.mtu != 1300 {
		t.Errorf("mtu %d, error %v; want 1300", got.mtu, err)
	}
}

func TestAWrongOptionIsNamedWithItsValueAndWhatIsAllowed(t *testing.T) {
	for _, c := range []struct {
		key, value string
		want       []string
	}{
		{"netwrok", "web", []string{"netwrok", "network, parent, port, rate, rekey, vni"}},
		{"network", "", []string{"network", `""`, "letters"}},
		{"network", "a/b", []string{`"a/b"`, "letters"}},
		{"mode", "magic", []string{"mode=magic", "overlay, macvlan, ipvlan, bridge"}},
		{"vni", "0", []string{"vni=0", "1..16777215"}},
		{"vni", "16777216", []string{"vni=16777216", "1..16777215"}},
		{"vni", "seven", []string{"vni=seven", "1..16777215"}},
		{"port", "0", []string{"port=0", "1..65535"}},
		{"port", "65536", []string{"port=65536", "1..65535"}},
		{"mtu", "12", []string{"mtu=12", "68"}},
		{"mtu", "1k", []string{"mtu=1k", "bytes"}},
		{labelMTU, "x", []string{labelMTU + "=x", "bytes"}},
	} {
		_, err := parseNetwork(request("d1", "10.10.0.0/24", c.key, c.value))
		if err == nil {
			t.Errorf("%s=%s is accepted", c.key, c.value)
			continue
		}
		for _, w := range c.want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s=%s: error %q does not say %q", c.key, c.value, err, w)
			}
		}
	}
}

func TestTwoMTUsThatContradictEachOtherAreRefused(t *testing.T) {
	if _, err := parseNetwork(request("d1", "10.10.0.0/24", "mtu", "1400", labelMTU, "1300")); err == nil {
		t.Error("accepted")
	}
	if _, err := parseNetwork(request("d1", "10.10.0.0/24", "mtu", "1400", labelMTU, "1400")); err != nil {
		t.Errorf("two equal ones are refused: %v", err)
	}
}

func TestOptionsOfAWrongTypeAreRefused(t *testing.T) {
	for what, options := range map[string]map[string]any{
		"generic":  {labelGeneric: "x"},
		"value":    {labelGeneric: map[string]any{"vni": 7}},
		"internal": {labelInternal: "yes"},
	} {
		req := request("d1", "10.10.0.0/24")
		req.Options = options
		if _, err := parseNetwork(req); err == nil {
			t.Errorf("%s: accepted", what)
		}
	}
}

func TestContradictionsShowBothValues(t *testing.T) {
	nw := store.Network{
		Name: "web", Mode: store.ModeOverlay, VNI: 9, Port: 4789, MTU: 1450, Creator: "n1", Subnets: []netip.Prefix{prefix("10.10.0.0/24")},
	}
	for _, c := range []struct{ key, value, both string }{
		{"vni", "8", "vni is 9 in the cluster (made by node n1), asked for 8"},
		{"mtu", "1400", "mtu is 1450 in the cluster (made by node n1), asked for 1400"},
		{"port", "4790", "port is 4789 in the cluster (made by node n1), asked for 4790"},
	} {
		s, err := parseNetwork(request("d1", "10.10.0.0/24", c.key, c.value))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.contradictions(nw); err == nil || !strings.Contains(err.Error(), c.both) {
			t.Errorf("%s=%s: error %v, want %q", c.key, c.value, err, c.both)
		}
	}
	s, _ := parseNetwork(request("d1", "10.10.0.0/24", "vni", "9", "mtu", "1450"))
	if err := s.contradictions(nw); err != nil {
		t.Errorf("equal values contradict: %v", err)
	}
	s, _ = parseNetwork(request("d1", "10.11.0.0/24"))
	if err := s.contradictions(nw); err == nil || !strings.Contains(err.Error(), "10.11.0.0/24") {
		t.Errorf("another subnet: error %v", err)
	}
}
