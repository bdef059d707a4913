package store

import (
	"net/netip"
	"testing"
)

func TestUsableAddressesOfASubnet(t *testing.T) {
	for s, want := range map[string]uint64{
		"10.0.0.0/24": 254, "10.0.0.0/30": 2, "10.0.0.0/31": 2, "10.0.0.0/32": 1, "10.0.0.0/8": 1<<24 - 2,
		"2001:db8::/64": 1<<64 - 1, "2001:db8::/112": 65535, "2001:db8::/128": 1, "2001:db8::/32": 1<<64 - 1,
	} {
		if got := Usable(netip.MustParsePrefix(s)); got != want {
			t.Errorf("%s: %d, want %d", s, got, want)
		}
	}
}
