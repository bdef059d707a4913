package discovery

import (
	"net/netip"
	"testing"

	"github.com/netdriver/netdriver/vxlan"
)

func TestAnAnnouncementShowsTheHolderAndAProbeShowsNobody(t *testing.T) {
	mac := vxlan.MAC{2, 1, 2, 3, 4, 5}
	for _, s := range []string{"192.0.2.7", "2001:db8::7"} {
		a := netip.MustParseAddr(s)
		if got, found := Holder(Announcement(a, mac), a); !found || got != mac {
			t.Errorf("announcement of %s: held by %s, found %t", a, got, found)
		}
		if got, found := Holder(Announcement(a.Next(), mac), a); found {
			t.Errorf("announcement of %s: %s is held by %s", a.Next(), a, got)
		}
		if got, found := Holder(Probe(a, mac), a); found {
			t.Errorf("a question about %s shows %s as its holder", a, got)
		}
	}
}

func FuzzHolder(f *testing.F) {
	a4, a6 := netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("2001:db8::7")
	for _, a := range []netip.Addr{a4, a6} {
		f.Add(Announcement(a, vxlan.MAC{2}))
		f.Add(Probe(a, vxlan.MAC{2}))
	}
	f.Fuzz(func(_ *testing.T, b []byte) {
		Holder(b, a4)
		Holder(b, a6)
	})
}
