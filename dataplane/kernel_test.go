//go:build linux

package dataplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/dataplane/balance"
	"github.com/netdriver/netdriver/dataplane/rate"
	"github.com/netdriver/netdriver/internal/netlink"
	"github.com/netdriver/netdriver/vxlan"
)

// host is a network namespace that plays a host, made by the test and gone with it.
type host struct {
	path   string // of its namespace
	runDir string
	kernel *Linux
}

// newHost makes a host with an underlay device eth0 that leads nowhere.
func newHost(t testing.TB) *host {
	t.Helper()
	h := &host{path: newNamespace(t), runDir: t.TempDir()}
	h.sh(t, "ip link add eth0 mtu 1500 type veth peer name far0 && ip addr add 192.0.2.1/24 dev eth0 && "+
		"ip addr add 192.0.2.8/24 dev eth0 && ip link set lo up && ip link set eth0 up && ip link set far0 up")
	h.open(t)
	return h
}

// newNamespace makes a network namespace and returns the file it is bound on.
func newNamespace(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ns")
	fd, err := openNamespace(path, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(fd)
	t.Cleanup(func() { unbind(t, path) })
	return path
}

func unbind(t testing.TB, path string) {
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
		t.Errorf("unmount %s: %v", path, err)
	}
}

// open opens the data plane of the host, as a daemon that starts does.
func (h *host) open(t testing.TB) {
	t.Helper()
	first := h.kernel == nil
	k, err := OpenLinux(LinuxConfig{RunDir: h.runDir, HostNetNS: h.path, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	h.kernel = k
	t.Cleanup(func() { k.Close() })
	if first {
		t.Cleanup(func() { unbind(t, h.ours()) })
	}
}

func (h *host) ours() string { return filepath.Join(h.runDir, "netns") }

// sh runs a command in the host's namespace, in in netdriver's; both end the test if it fails.
func (h *host) sh(t testing.TB, command string) string { t.Helper(); return shell(t, h.path, command) }
func (h *host) in(t testing.TB, command string) string {
	t.Helper()
	return shell(t, h.ours(), command)
}

func shell(t testing.TB, ns, command string) string {
	t.Helper()
	out, err := try(ns, command)
	if err != nil {
		t.Fatalf("%s: %v\n%s", command, err, out)
	}
	return out
}

func try(ns, command string) (string, error) {
	out, err := exec.Command("nsenter", "--net="+ns, "sh", "-c", command).CombinedOutput()
	return string(out), err
}

// kernels are what every promise of a Kernel is tested against.
func kernels(t *testing.T, test func(t *testing.T, k Kernel)) {
	t.Run("fake", func(t *testing.T) { test(t, NewFake()) })
	t.Run("linux", func(t *testing.T) { test(t, newHost(t).kernel) })
}

func expect(t *testing.T, k Kernel, want Network) {
	t.Helper()
	got, err := k.ReadNetwork(t.Context(), testVNI)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want.asRead(), got, equal()); diff != "" {
		t.Fatalf("kernel differs from what is wanted (-want +got):\n%s", diff)
	}
}

func TestKernelHasWhatThePlanMade(t *testing.T) {
	v6 := with(newTestNet("192.0.2.1").local(1).peer("192.0.2.2", 3).network(), func(n *Network) {
		n.Neighbours = append(n.Neighbours, Neighbour{netip.MustParseAddr("fd00::3"), endpointMAC(3)})
	})
	small := with(newTestNet("192.0.2.1").local(1, 6).network(), func(n *Network) {
		n.Bridge.MTU, n.VXLAN.MTU, n.Ports[0].MTU, n.Ports[1].MTU = 1300, 1300, 1300, 1300
	})
	steps := []Network{
		newTestNet("192.0.2.1").local(1, 2).peer("192.0.2.2", 3, 4).peer("192.0.2.3", 5).network(),
		newTestNet("192.0.2.1").local(1, 2, 3).peer("192.0.2.9", 4, 6).peer("192.0.2.3", 5).network(),
		newTestNet("192.0.2.8").local(1, 3).peer("192.0.2.2", 2).network(),
		v6, small,
		balanced(small, draining(web(10, 1, 3), 3)),
		balanced(small, db(10, 3), web(11)),
		balanced(small, db(12, 3, 4)),
		newTestNet("192.0.2.1").local(1, 2).guarded().network(),
		newTestNet("192.0.2.1").local(2, 3).guarded().classes(map[int]uint32{2: 1, 3: 2, 4: 2}).network(),
		with(newTestNet("192.0.2.1").local(2, 3).guarded().classes(map[int]uint32{2: 2, 3: 0, 5: 2}).network(),
			func(n *Network) { n.Guard.Policy.Classes[1].Admits[0].Last = 6000 }),
		with(newTestNet("192.0.2.1").local(2, 3).guarded().network(), func(n *Network) { n.Ports[0].Limit = rate.Limit{Rate: 8e6, Burst: 200000} }),
		with(balanced(newTestNet("192.0.2.1").local(2, 3).guarded().network(), web(10, 2)), func(n *Network) {
			n.Ports[0].Limit, n.Ports[1].Limit = rate.Limit{Rate: 16e6, Burst: 200000}, rate.Limit{Rate: 8e6, Burst: 200000}
		}),
		newTestNet("192.0.2.1").local(2, 3).guarded().network(),
		with(small, func(n *Network) { n.Guard.Table = true }),
	}
	kernels(t, func(t *testing.T, k Kernel) {
		for _, want := range steps {
			have, err := k.ReadNetwork(t.Context(), testVNI)
			if err != nil {
				t.Fatal(err)
			}
			if err := k.Run(t.Context(), plan(have, want)); err != nil {
				t.Fatal(err)
			}
			expect(t, k, want)
		}
		all, err := k.Read(t.Context())
		if diff := cmp.Diff([]Network{steps[len(steps)-1].asRead()}, all, equal()); diff != "" || err != nil {
			t.Fatalf("%v, reading everything differs (-want +got):\n%s", err, diff)
		}
		if err := k.Run(t.Context(), plan(small.asRead(), Network{})); err != nil {
			t.Fatal(err)
		}
		if all, err = k.Read(t.Context()); len(all) != 0 || err != nil {
			t.Fatalf("left after removal: %+v, %v", all, err)
		}
	})
}

func TestKernelRefuses(t *testing.T) {
	n := newTestNet("192.0.2.1").local(1).peer("192.0.2.2", 3).network()
	make := plan(Network{}, n)
	at := func(v Verb) Op { return make[slices.IndexFunc(make, func(o Op) bool { return o.Verb == v })] }
	off := func(op Op, f func(*Op)) Op { f(&op); return op }
	tests := []struct {
		name string
		op   Op
		is   error
	}{
		{"a second bridge of that name", at(AddBridge), ErrNameTaken},
		{"a second VXLAN device of that name", at(AddVXLAN), ErrNameTaken},
		{"a second port of that name", at(AddPort), ErrNameTaken},
		{"an endpoint whose id begins like another's",
			off(at(AddPort), func(o *Op) { o.Endpoint = o.Endpoint[:63] + "f" }), ErrNameTaken},
		{"an MTU out of range", off(at(SetUp), func(o *Op) { o.Verb, o.MTU = SetMTU, 20 }), unix.EINVAL},
		{"a long name", off(at(AddBridge), func(o *Op) { o.Device = "ndb4567890123456" }), unix.ERANGE},
		{"bringing up what is not there", Op{Verb: SetUp, VNI: 5, Device: "ndb5"}, unix.ENODEV},
		{"programs on what is not there", off(at(SetUp), func(o *Op) {
			o.Verb, o.Endpoint, o.Device = Attach, endpointID(9), PortName(endpointID(9))
		}), unix.ENODEV},
		{"a VIP over a backend that is not there",
			Op{Verb: PutVIP, VNI: testVNI, Service: "web", Address: endpointIP(10),
				Backends: endpointIP(3).String() + "=" + endpointMAC(3).String()}, os.ErrNotExist},
		{"an entry on what is not there",
			Op{Verb: PutNeighbour, VNI: 5, Device: "ndb5", Address: endpointIP(1)}, unix.ENODEV},
	}
	kernels(t, func(t *testing.T, k Kernel) {
		if err := k.Run(t.Context(), make); err != nil {
			t.Fatal(err)
		}
		for _, tt := range tests {
			err := k.Run(t.Context(), []Op{tt.op})
			var oe *OpError
			if !errors.Is(err, tt.is) || !errors.As(err, &oe) || oe.Op != tt.op {
				t.Errorf("%s: got %v, want %v for that operation", tt.name, err, tt.is)
			}
		}
		expect(t, k, n)
	})
}

func TestOneFailureStopsOnlyWhatDependsOnIt(t *testing.T) {
	n := newTestNet("192.0.2.1").local(1).peer("192.0.2.2", 3).network()
	ops := plan(Network{}, n)
	for i := range ops {
		if ops[i].Verb == AddVXLAN {
			ops[i].MTU = 20 // impossible
		}
	}
	want := newTestNet("192.0.2.1").local(1).network()
	want.VXLAN = VXLAN{}
	want.Neighbours = n.Neighbours
	kernels(t, func(t *testing.T, k Kernel) {
		err := k.Run(t.Context(), ops)
		if joined, ok := err.(interface{ Unwrap() []error }); !ok || len(joined.Unwrap()) != 1 {
			t.Errorf("want the one error of the VXLAN device, got: %v", err)
		}
		expect(t, k, want)
	})
}

func TestPuttingWhatIsThereAndRemovingWhatIsGoneAreNoErrors(t *testing.T) {
	n := newTestNet("192.0.2.1").local(1).peer("192.0.2.2", 3).network()
	kernels(t, func(t *testing.T, k Kernel) {
		ops := plan(Network{}, n)
		if err := k.Run(t.Context(), ops); err != nil {
			t.Fatal(err)
		}
		puts := slices.DeleteFunc(slices.Clone(ops), func(o Op) bool { return o.Verb <= AddPort })
		if err := k.Run(t.Context(), puts); err != nil {
			t.Errorf("again: %v", err)
		}
		expect(t, k, n)
		dels := slices.Clone(puts)
		for i := range dels {
			switch dels[i].Verb {
			case PutFDB:
				dels[i].Verb = DelFDB
			case PutNeighbour:
				dels[i].Verb = DelNeighbour
			}
		}
		dels = append(dels, plan(n.asRead(), Network{})...)
		for range 2 {
			if err := k.Run(t.Context(), slices.DeleteFunc(dels, func(o Op) bool { return o.Verb < DelFDB })); err != nil {
				t.Errorf("removal: %v", err)
			}
		}
	})
}

func TestVNIOfAnotherProgramIsNamed(t *testing.T) {
	n := newTestNet("192.0.2.1").network()
	check := func(t *testing.T, k Kernel) {
		err := k.Run(t.Context(), plan(Network{}, n))
		if !errors.Is(err, ErrVNITaken) || !strings.Contains(fmt.Sprint(err), "1048577") {
			t.Errorf("got %v, want ErrVNITaken with the VNI", err)
		}
	}
	t.Run("fake", func(t *testing.T) {
		f := NewFake()
		f.Take(testVNI, vxlan.DefaultPort)
		check(t, f)
	})
	t.Run("linux", func(t *testing.T) {
		h := newHost(t)
		h.sh(t, "ip link add vx-other type vxlan id 1048577 dstport 4789 local 192.0.2.1 dev eth0 nolearning")
		check(t, h.kernel)
	})
}

func TestUnderlayThatIsTooSmallIsRefused(t *testing.T) {
	h := newHost(t)
	n := newTestNet("192.0.2.1").network()
	n.Bridge.MTU, n.VXLAN.MTU = 1451, 1451
	if err := h.kernel.Run(t.Context(), plan(Network{}, n)); !errors.Is(err, vxlan.ErrMTU) {
		t.Errorf("MTU 1451 on 1500: %v, want ErrMTU", err)
	}
}

func TestFreshDaemonReadsWhatADeadOneMade(t *testing.T) {
	h := newHost(t)
	n := newTestNet("192.0.2.1").local(1, 2).peer("192.0.2.2", 3).network()
	if err := h.kernel.Run(t.Context(), plan(Network{}, n)); err != nil {
		t.Fatal(err)
	}
	h.kernel.Close() // all that a killed process leaves is the kernel's
	h.open(t)
	expect(t, h.kernel, n)
}

func TestOurNamespaceForwardsNothingAndHasNoAddress(t *testing.T) {
	h := newHost(t)
	n := newTestNet("192.0.2.1").local(1).network()
	if err := h.kernel.Run(t.Context(), plan(Network{}, n)); err != nil {
		t.Fatal(err)
	}
	h.in(t, "echo 1 > /proc/sys/net/ipv4/ip_forward")
	h.open(t) // checks the settings again
	got := h.in(t, "cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding; "+
		"ip -o addr | grep -v ' lo '; cat /proc/sys/net/bridge/bridge-nf-call-* 2>/dev/null | grep 1; true")
	if got != "0\n0\n" {
		t.Errorf("forwarding, addresses or bridge netfilter in our namespace:\n%s", got)
	}
}

func TestLostEventsAreReported(t *testing.T) {
	h := newHost(t)
	h.kernel.eventBuffer = 4096
	events, err := h.kernel.Events(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := h.kernel.Run(t.Context(), plan(Network{}, manyRemote())); err != nil { // and nobody reads the events
		t.Fatal(err)
	}
	for n := 0; ; n++ {
		select {
		case e := <-events:
			if e.Lost {
				return
			}
		case <-time.After(time.Second):
			t.Fatalf("%d events and no word of those that were lost", n)
		}
	}
}

func TestForeignDevicesAreLeftAlone(t *testing.T) {
	h := newHost(t)
	h.in(t, "ip link add ndb5 type bridge && ip link add mine type bridge && ip link set mine alias 'netdriver network x'")
	if all, err := h.kernel.Read(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("read %+v, %v: want nothing of ours", all, err)
	}
	p := NewPlane(h.kernel, slog.New(slog.DiscardHandler))
	if _, err := p.Apply(t.Context(), newTestNet("192.0.2.1").local(1).network()); err != nil {
		t.Fatal(err)
	}
	if err := p.Remove(t.Context(), testVNI); err != nil {
		t.Fatal(err)
	}
	h.in(t, "ip link show ndb5 && ip link show mine")
	five := newTestNet("192.0.2.1")
	five.VNI = 5
	before := h.in(t, "ip link show ndb5")
	if _, err := p.Apply(t.Context(), five.local(1).network()); !errors.Is(err, ErrNameTaken) {
		t.Errorf("a network whose bridge's name is taken: %v, want ErrNameTaken", err)
	}
	if err := h.kernel.Run(t.Context(), []Op{{Verb: DelLink, VNI: 5, Device: "ndb5"}}); !errors.Is(err, ErrNameTaken) {
		t.Errorf("removal of a foreign device: %v, want ErrNameTaken", err)
	}
	if after := h.in(t, "ip link show ndb5"); after != before {
		t.Errorf("the foreign device was\n%sand is\n%s", before, after)
	}
}

// TestUnderlaySocketStaysWithTheHost: a kernel socket is in no list, but it keeps the port from others.
func TestUnderlaySocketStaysWithTheHost(t *testing.T) {
	h := newHost(t)
	if err := h.kernel.Run(t.Context(), plan(Network{}, newTestNet("192.0.2.1").network())); err != nil {
		t.Fatal(err)
	}
	listen := func() error {
		c, err := net.ListenUDP("udp4", &net.UDPAddr{Port: int(vxlan.DefaultPort)})
		if err == nil {
			c.Close()
		}
		return err
	}
	if err := netlink.In(h.kernel.host, listen); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("the VXLAN port in the host's namespace: %v, want it to be in use", err)
	}
	if err := netlink.In(h.kernel.ours, listen); err != nil {
		t.Errorf("the VXLAN port in our namespace: %v, want it to be free", err)
	}
}

func TestUDPPortOfAnotherProgramIsNamed(t *testing.T) {
	h := newHost(t)
	var c *net.UDPConn
	err := netlink.In(h.kernel.host, func() (err error) {
		c, err = net.ListenUDP("udp4", &net.UDPAddr{Port: int(vxlan.DefaultPort)})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	err = h.kernel.Run(t.Context(), plan(Network{}, newTestNet("192.0.2.1").network()))
	if !errors.Is(err, unix.EADDRINUSE) || !strings.Contains(err.Error(), "create the network with another port") {
		t.Errorf("got %v, want EADDRINUSE and a remedy", err)
	}
}

// TestContainersComeAndGoWithoutHarmToNeighbours: a bridge whose own MAC follows its ports loses them all.
func TestContainersComeAndGoWithoutHarmToNeighbours(t *testing.T) {
	h := newHost(t)
	p := NewPlane(h.kernel, slog.New(slog.DiscardHandler))
	for i := range 20 {
		n := newTestNet("192.0.2.1").local(i+1, i+2).peer("192.0.2.2", 100).network()
		if _, err := p.Apply(t.Context(), n); err != nil {
			t.Fatal(err)
		}
		expect(t, h.kernel, n)
	}
}

func background(t *testing.T, f func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("ended with %v", err)
			}
		case <-time.After(5 * time.Second):
			t.Error("does not end")
		}
	})
}

func TestPuttingAServiceAgainAndRemovingWhatIsGoneAreNoErrors(t *testing.T) {
	n := balanced(newTestNet("192.0.2.1").local(1).network(), web(10, 1, 3))
	kernels(t, func(t *testing.T, k Kernel) {
		ops := plan(Network{}, n)
		if err := k.Run(t.Context(), ops); err != nil {
			t.Fatal(err)
		}
		puts := slices.DeleteFunc(slices.Clone(ops), func(o Op) bool { return o.Verb < PutBackend })
		if err := k.Run(t.Context(), puts); err != nil || len(puts) != 4 {
			t.Errorf("%d operations again: %v", len(puts), err)
		}
		expect(t, k, n)
		without := balanced(n)
		dels := plan(n.asRead(), without)
		for range 2 {
			if err := k.Run(t.Context(), dels); err != nil {
				t.Errorf("%v: %v", dels, err)
			}
			expect(t, k, without)
		}
	})
}

func TestServicesGoWithTheLastPort(t *testing.T) {
	n := balanced(newTestNet("192.0.2.1").local(1).network(), web(10, 1))
	without := newTestNet("192.0.2.1").network()
	without.Services = n.Services
	kernels(t, func(t *testing.T, k Kernel) {
		p := NewPlane(k, quiet())
		for _, want := range []Network{n, without, n} {
			if _, err := p.Apply(t.Context(), want); err != nil {
				t.Fatal(err)
			}
			expect(t, k, want)
		}
		counts, err := p.Counts(t.Context(), testVNI)
		if err != nil || len(counts) != 1 || counts[0].Service != "web" || counts[0].Address != endpointIP(1) {
			t.Errorf("counters %+v, %v", counts, err)
		}
	})
}

// TestAKernelThatCannotBalanceHasEverythingElse, and what is missing is said once.
func TestAKernelThatCannotBalanceHasEverythingElse(t *testing.T) {
	f := NewFake()
	f.Unsupported()
	var log strings.Builder
	p := NewPlane(f, slog.New(slog.NewTextHandler(&log, nil)))
	n := balanced(newTestNet("192.0.2.1").local(1).peer("192.0.2.2", 3).network(), web(10, 1))
	for range 2 {
		if _, err := p.Apply(t.Context(), n); err != nil {
			t.Fatal(err)
		}
	}
	expect(t, f, balanced(n))
	if n := strings.Count(log.String(), "virtual addresses do not work"); n != 1 {
		t.Errorf("said %d times:\n%s", n, log.String())
	}
	if err := p.Balances(); !errors.Is(err, balance.ErrUnsupported) {
		t.Errorf("got %v, want ErrUnsupported", err)
	}
}
