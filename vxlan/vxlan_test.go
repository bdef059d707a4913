package vxlan

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

var (
	vtep4 = netip.MustParseAddr("192.0.2.1")
	vtep6 = netip.MustParseAddr("2001:db8::1")
	// mapped is an IPv4 address in IPv6's clothes: packets to it are IPv4.
	mapped = netip.MustParseAddr("::ffff:192.0.2.1")
)

func TestMTUIsTheUnderlaysLessTheEncapsulation(t *testing.T) {
	tests := []struct {
		underlay int
		vtep     netip.Addr
		want     int // 0: refused
	}{
		{1500, vtep4, 1450},
		{1500, vtep6, 1430},
		{1500, mapped, 1450},
		{9000, vtep4, 8950},
		{9000, vtep6, 8930},
		{65535, vtep4, 65485},
		{118, vtep4, 68},
		{117, vtep4, 0},
		{138, vtep6, 68},
		{137, vtep6, 0},
		{0, vtep4, 0},
		{-1, vtep4, 0},
	}
	for _, tt := range tests {
		got, err := MTU(tt.underlay, tt.vtep)
		if got != tt.want || (tt.want == 0) != errors.Is(err, ErrMTU) {
			t.Errorf("MTU(%d, %s) = %d, %v; want %d", tt.underlay, tt.vtep, got, err, tt.want)
		}
	}
}

func TestChosenMTUMustFit(t *testing.T) {
	tests := []struct {
		mtu, underlay int
		vtep          netip.Addr
		v6, ok        bool
	}{
		{1450, 1500, vtep4, false, true},
		{1451, 1500, vtep4, false, false},
		{1430, 1500, vtep6, false, true},
		{1431, 1500, vtep6, false, false},
		{68, 1500, vtep4, false, true},
		{67, 1500, vtep4, false, false},
		{1280, 1500, vtep4, true, true},
		{1279, 1500, vtep4, true, false},
		{1279, 1500, vtep4, false, true},
		{68, 100, vtep4, false, false}, // the underlay itself is too small
		{0, 1500, vtep4, false, false},
	}
	for _, tt := range tests {
		err := CheckMTU(tt.mtu, tt.underlay, tt.vtep, tt.v6)
		if (err == nil) != tt.ok || err != nil && !errors.Is(err, ErrMTU) {
			t.Errorf("CheckMTU(%d, %d, %s, v6 %t) = %v, want ok %t", tt.mtu, tt.underlay, tt.vtep, tt.v6, err, tt.ok)
		}
	}
	err := CheckMTU(1451, 1500, vtep4, true)
	for _, part := range []string{"1451", "1280..1450", "omit it to use 1450"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q does not say %q", err, part)
		}
	}
}

func TestEveryDerivedMTUPassesItsCheck(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		underlay := rapid.IntRange(138, 65535).Draw(t, "underlay")
		vtep := rapid.SampledFrom([]netip.Addr{vtep4, vtep6, mapped}).Draw(t, "vtep")
		mtu, err := MTU(underlay, vtep)
		if err != nil || CheckMTU(mtu, underlay, vtep, false) != nil || CheckMTU(mtu+1, underlay, vtep, false) == nil {
			t.Fatalf("MTU(%d, %s) = %d, %v is not the largest that passes", underlay, vtep, mtu, err)
		}
	})
}

func TestEncryptedMTUIsThatOfTheFormula(t *testing.T) {
	tests := []struct {
		underlay int
		vtep     netip.Addr
		encap    bool
		want     int // 0: refused
	}{
		{1500, vtep4, false, 1416},
		{1500, mapped, false, 1416},
		{1500, vtep6, false, 1396},
		{1500, vtep4, true, 1408},
		{1500, vtep6, true, 1388},
		{1501, vtep4, false, 1416}, // not a whole word more
		{1503, vtep4, false, 1416},
		{1504, vtep4, false, 1420},
		{9000, vtep4, false, 8916},
		{9001, vtep6, false, 8896},
		{152, vtep4, false, 68},
		{151, vtep4, false, 0},
		{0, vtep4, false, 0},
		{-1, vtep6, true, 0},
	}
	for _, tt := range tests {
		got, err := EncryptedMTU(tt.underlay, tt.vtep, tt.encap)
		if got != tt.want || (tt.want == 0) != errors.Is(err, ErrMTU) {
			t.Errorf("EncryptedMTU(%d, %s, %t) = %d, %v; want %d", tt.underlay, tt.vtep, tt.encap, got, err, tt.want)
		}
	}
}

func TestEncryptedMTUIsTheLargestThatFits(t *testing.T) {
	// onWire builds the packet from the inside out, as the kernel does.
	onWire := func(inner int, vtep netip.Addr, encap bool) int {
		plain := inner + 14 + 8 + 8 // Ethernet, VXLAN, UDP
		padded := (plain + 2 + 3) / 4 * 4
		size := 8 + 8 + padded + 16
		if encap {
			size += 8
		}
		if vtep.Unmap().Is4() {
			return size + 20
		}
		return size + 40
	}
	rapid.Check(t, func(t *rapid.T) {
		underlay := rapid.IntRange(200, 65535).Draw(t, "underlay")
		vtep := rapid.SampledFrom([]netip.Addr{vtep4, vtep6, mapped}).Draw(t, "vtep")
		encap := rapid.Bool().Draw(t, "encap")
		mtu, err := EncryptedMTU(underlay, vtep, encap)
		if err != nil || onWire(mtu, vtep, encap) > underlay || onWire(mtu+1, vtep, encap) <= underlay {
			t.Fatalf("EncryptedMTU(%d, %s, %t) = %d, %v: not the largest that fits", underlay, vtep, encap, mtu, err)
		}
		check := func(mtu int) error { return CheckEncryptedMTU(mtu, underlay, vtep, encap, false) }
		if err := check(mtu + 1); check(mtu) != nil || !errors.Is(err, ErrMTU) || !strings.Contains(err.Error(), "ESP") {
			t.Fatalf("the largest is %d; one more: %v", mtu, err)
		}
	})
}

func TestVNIHas24BitsAndIsNotZero(t *testing.T) {
	for v, ok := range map[VNI]bool{0: false, 1: true, 4096: true, MaxVNI: true, MaxVNI + 1: false, 1<<32 - 1: false} {
		if err := CheckVNI(v); (err == nil) != ok {
			t.Errorf("CheckVNI(%d) = %v, want ok %t", v, err, ok)
		}
	}
}

func TestAutomaticVNIsStayAwayFromDockersAndDoNotRepeat(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.String().Draw(t, "name")
		seen := map[VNI]bool{}
		for n := range 100 {
			v := AutoVNI(name, n)
			if CheckVNI(v) != nil || v < FirstAutoVNI || seen[v] {
				t.Fatalf("AutoVNI(%q, %d) = %d: out of range or a repetition", name, n, v)
			}
			seen[v] = true
		}
	})
	if first, again := AutoVNI("web", 0), AutoVNI("web", 0); first != again || first == AutoVNI("db", 0) {
		t.Error("the first VNI does not follow from the name")
	}
	if v := AutoVNI("web", int(MaxVNI)); v < FirstAutoVNI || v > MaxVNI {
		t.Errorf("a late try leaves the range: %d", v)
	}
}

func TestMACMustBeUnicastAndSixBytes(t *testing.T) {
	for s, ok := range map[string]bool{
		"02:42:0a:0a:00:05": true, "02-42-0A-0A-00-05": true, "0242.0a0a.0005": true,
		"": false, "x": false, "00:00:00:00:00:00": false, "ff:ff:ff:ff:ff:ff": false, "01:00:5e:00:00:01": false,
		"02:42:0a:0a:00": false, "02:42:0a:0a:00:05:06:07": false,
	} {
		m, err := ParseMAC(s)
		if (err == nil) != ok || err != nil && !errors.Is(err, ErrMAC) {
			t.Errorf("ParseMAC(%q) = %v, %v; want ok %t", s, m, err, ok)
		}
	}
}

func TestMACFollowsFromTheAddressAsWithDocker(t *testing.T) {
	for a, want := range map[string]string{
		"10.10.0.5": "02:42:0a:0a:00:05", "192.168.255.1": "02:42:c0:a8:ff:01", "fd00::1:2": "02:42:00:01:00:02",
	} {
		if got := MACFor(netip.MustParseAddr(a)).String(); got != want {
			t.Errorf("MACFor(%s) = %s, want %s", a, got, want)
		}
	}
}

func TestMACSurvivesItsText(t *testing.T) {
	want := MACFor(netip.MustParseAddr("10.10.0.5"))
	b, err := want.MarshalText()
	if err != nil {
		t.Fatal(err)
	}
	var got MAC
	if err := got.UnmarshalText(b); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if err := got.UnmarshalText([]byte("bad")); !errors.Is(err, ErrMAC) || got != want {
		t.Errorf("a bad text gave %v and %s", err, got)
	}
}
