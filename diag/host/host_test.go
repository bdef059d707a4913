package host

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	nl "github.com/netdriver/netdriver/internal/netlink"
)

// space makes a network namespace with a veth pair, both ends up.
func space(t *testing.T) *Space {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ns")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	err := nl.OnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
			return err
		}
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		if err := h.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "a", MTU: 1450}, PeerName: "b"}); err != nil {
			return err
		}
		for _, name := range []string{"a", "b"} {
			l, err := h.LinkByName(name)
			if err != nil {
				return err
			}
			if err := h.LinkSetUp(l); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestMarkedFramesAreSeenOnBothDevicesAndOthersAreNot(t *testing.T) {
	s := space(t)
	a, _ := s.Link("a")
	b, _ := s.Link("b")
	token, other := NewToken(), NewToken()
	w, err := Watching(token, []Point{{"a", s, a}, {"b", s, b}})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	from := Point{Space: s, Link: a}
	for i, pair := range [][2]string{{"10.0.0.1", "10.0.0.2"}, {"fd00::1", "fd00::2"}} {
		p := Probe{
			Sequence: uint16(i + 1), Source: netip.MustParseAddr(pair[0]), Destination: netip.MustParseAddr(pair[1]), From: a.MAC, To: b.MAC, Size: 1400,
		}
		if err := Send(from, p.Frame(token), p.Frame(other)); err != nil {
			t.Fatal(err)
		}
	}
	type seen struct {
		Place string
		Out   bool
		N     uint16
		Size  int
	}
	want := map[seen]int{{"a", true, 1, 1400}: 1, {"b", false, 1, 1400}: 1, {"a", true, 2, 1400}: 1, {"b", false, 2, 1400}: 1}
	var got map[seen]int
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		got = map[seen]int{}
		for _, x := range w.Seen() {
			got[seen{x.Place, x.Out, x.Sequence, x.Size}]++
		}
		if cmp.Equal(want, got) {
			break
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("sightings (-want +got):\n%s", diff)
	}
}

func TestAProbeHasTheChecksumsThatItsReceiverWants(t *testing.T) {
	for _, pair := range [][2]string{{"10.0.0.1", "10.0.0.2"}, {"fd00::1", "fd00::2"}} {
		p := Probe{Sequence: 7, Source: netip.MustParseAddr(pair[0]), Destination: netip.MustParseAddr(pair[1]), Size: 101}
		f := p.Frame(NewToken())[etherSize:]
		start := uint32(0)
		if p.Source.Is6() {
			start = sum(uint32(len(f)-ip6Size)+unix.IPPROTO_ICMPV6, f[8:ip6Size])
		} else if checksum(0, f[:ip4Size]) != 0 {
			t.Errorf("%s: the header's checksum is wrong", pair[0])
		}
		if checksum(start, f[headers(p.Source):]) != 0 {
			t.Errorf("%s: the checksum of ICMP is wrong", pair[0])
		}
	}
}

func TestThisMachineCanDoWhatIsTried(t *testing.T) {
	all, err := Abilities()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range all {
		if a.Err != nil {
			t.Errorf("%s: %v", a.Name, a.Err)
		}
	}
	if len(all) < 5 {
		t.Errorf("only %d abilities were tried", len(all))
	}
}

func TestRulesThatDropAreReadFromIptablesSave(t *testing.T) {
	got := parseSave("*filter\n:INPUT ACCEPT [0:0]\n[7:420] -A INPUT -p udp -m udp --dport 4789 -j DROP\n[1:2] -A INPUT -j ACCEPT\nCOMMIT\n")
	want := []Rule{{
		Family: "iptables", Table: "filter", Chain: "INPUT", Handle: 2, Counted: true, Packets: 7,
		Text: "-A INPUT -p udp -m udp --dport 4789 -j DROP",
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("rules (-want +got):\n%s", diff)
	}
	after := []Rule{want[0]}
	after[0].Packets = 9
	if d := Dropped(want, after); len(d) != 1 || d[0].Packets != 2 {
		t.Errorf("dropped %+v, want 2 packets", d)
	}
	if d := Dropped(want, want); d != nil {
		t.Errorf("dropped %+v where nothing moved", d)
	}
}
