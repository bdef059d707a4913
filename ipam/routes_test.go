package ipam

import (
	"net/netip"
	"os/exec"
	"runtime"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netns"
)

// TestHostRoutesAreThoseOfTheMainTable runs in a network namespace of its own.
func TestHostRoutesAreThoseOfTheMainTable(t *testing.T) {
	runtime.LockOSThread() // never unlocked: the thread ends with the test, and its namespace with it
	ns, err := netns.New()
	if err != nil {
		t.Fatalf("make a network namespace (needs root): %v", err)
	}
	defer ns.Close()
	for _, args := range [][]string{
		{"link", "set", "lo", "up"},
		{"link", "add", "eth0", "type", "veth", "peer", "name", "eth1"},
		{"link", "set", "eth0", "up"},
		{"link", "set", "eth1", "up"},
		{"addr", "add", "192.0.2.1/24", "dev", "eth0"},
		{"addr", "add", "fd99::1/64", "dev", "eth0", "nodad"},
		{"route", "add", "default", "via", "192.0.2.254"},
		{"route", "add", "10.8.0.0/16", "via", "192.0.2.254"},
		{"route", "add", "0.0.0.0/1", "via", "192.0.2.254"},
		{"route", "add", "128.0.0.0/1", "via", "192.0.2.254"},
		{"route", "add", "blackhole", "10.9.0.0/16"},
		{"route", "add", "10.10.0.0/16", "via", "192.0.2.254", "table", "99"},
		{"-6", "route", "add", "default", "via", "fd99::2"},
	} {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %v: %v: %s", args, err, out)
		}
	}
	got, err := HostRoutes()
	if err != nil {
		t.Fatal(err)
	}
	got = slices.DeleteFunc(got, func(p netip.Prefix) bool { return p.Addr().IsLinkLocalUnicast() || p.Addr().IsLoopback() })
	slices.SortFunc(got, netip.Prefix.Compare)
	want := []netip.Prefix{prefix("10.8.0.0/16"), prefix("10.9.0.0/16"), prefix("192.0.2.0/24"), prefix("fd99::/64")}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Errorf("routes (-want +got):\n%s", diff)
	}
}
