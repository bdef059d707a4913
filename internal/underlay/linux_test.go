package underlay

import (
	"net"
	"net/netip"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// inNamespace runs the test in a network namespace of its own with the loopback up.
func inNamespace(t *testing.T) {
	t.Helper()
	runtime.LockOSThread() // never unlocked: the thread ends with the test's goroutine
	old, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netns.Set(old); err != nil {
			t.Error(err)
		}
		ns.Close()
		old.Close()
	})
	raise(t, "lo")
}

func raise(t *testing.T, name string) netlink.Link {
	t.Helper()
	l, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(l); err != nil {
		t.Fatal(err)
	}
	return l
}

func TestTheDefaultRoutesInterfaceIsReadFromTheKernel(t *testing.T) {
	inNamespace(t)
	for name, cidr := range map[string]string{"ul0": "192.0.2.1/24", "ul1": "198.51.100.1/24"} {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = name, 1400
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
			t.Fatal(err)
		}
		a, err := netlink.ParseAddr(cidr)
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.AddrAdd(raise(t, name), a); err != nil {
			t.Fatal(err)
		}
	}
	for gw, metric := range map[string]int{"192.0.2.254": 200, "198.51.100.254": 100} {
		if err := netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP(gw), Priority: metric}); err != nil {
			t.Fatal(err)
		}
	}
	h, err := Read()
	if err != nil {
		t.Fatal(err)
	}
	got, err := h.Choose("")
	want := Underlay{VTEP: netip.MustParseAddr("198.51.100.1"), Device: "ul1", MTU: 1400}
	if err != nil || got != want {
		t.Errorf("underlay %+v, error %v; want %+v, the one with the lower metric", got, err, want)
	}
}

func TestAHostWithNothingButALoopbackStillWorksAlone(t *testing.T) {
	inNamespace(t)
	h, err := Read()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := h.Choose(""); err != nil || got.Device != "lo" || got.Warning == "" {
		t.Errorf("underlay %+v, error %v; want lo with a warning", got, err)
	}
}
