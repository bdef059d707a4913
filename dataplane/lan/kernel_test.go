//go:build linux

package lan

import (
	"context"
	"errors"
	"fmt"
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

	"github.com/netdriver/netdriver/internal/nettest"
	"github.com/netdriver/netdriver/vxlan"
)

// world is a host with an interface eth1, behind which somebody else's host is, as both kernels have it.
type world struct {
	kernel Kernel
	// move does what libnetwork does with an endpoint's interface; sandbox is made.
	move func(t *testing.T, i int, sandbox string)
	// lose removes what an endpoint has in a container, exit the container.
	lose func(t *testing.T, i int, sandbox string)
	exit func(t *testing.T, sandbox string)
	// parent switches eth1 off and on; hold gives the other host an address and returns its MAC.
	parent func(t *testing.T, up bool)
	hold   func(t *testing.T, a netip.Addr) vxlan.MAC
	// ns are the namespaces of this host and of the other one; only with the real kernel.
	ns [2]string
	// path is where sandboxes are.
	path func(i int) string
}

func worlds(t *testing.T) map[string]world {
	return map[string]world{"fake": fakeWorld(), "linux": linuxWorld(t)}
}

func fakeWorld() world {
	f := NewFake(Interface{Name: "eth1", MTU: 1500, Up: true, Running: true, Ethernet: true})
	must := func(t *testing.T, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	return world{
		kernel: f, path: sandboxOf,
		move: func(t *testing.T, i int, sandbox string) { t.Helper(); must(t, f.Move(endpointID(i), sandbox)) },
		lose: func(_ *testing.T, i int, _ string) { f.Break(endpointID(i)) },
		exit: func(_ *testing.T, sandbox string) { f.Exit(sandbox) },
		parent: func(_ *testing.T, up bool) {
			f.Set(Interface{Name: "eth1", MTU: 1500, Up: up, Running: up, Ethernet: true})
		},
		hold: func(_ *testing.T, a netip.Addr) vxlan.MAC {
			m := vxlan.MAC{2, 9, 9, 9, 9, 9}
			f.Hold(a, m)
			return m
		},
	}
}

// box makes a container's sandbox, a network namespace bound on a file as Docker does it. It may go before the test.
func box(t *testing.T, path string) {
	t.Helper()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("unshare", "--net="+path, "true").CombinedOutput(); err != nil {
		t.Fatalf("make a sandbox: %v: %s", err, out)
	}
	t.Cleanup(func() { exec.Command("umount", "-l", path).Run() })
}

func linuxWorld(t *testing.T) world {
	dir := t.TempDir()
	host, far := nettest.Namespace(t), nettest.Namespace(t)
	nettest.Sh(t, host, "ip link add eth1 mtu 1500 type veth peer name far1 netns "+far+" && ip link set eth1 up")
	nettest.Sh(t, far, "ip link set far1 up")
	k, err := OpenLinux(host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { k.Close() })
	return world{
		kernel: k, ns: [2]string{host, far}, path: func(i int) string { return filepath.Join(dir, fmt.Sprint("box", i)) },
		move: func(t *testing.T, i int, sandbox string) {
			t.Helper()
			name := PortName(endpointID(i))
			if sandbox == "" {
				nettest.Sh(t, filepath.Join(dir, fmt.Sprint("box", i)), "ip link set eth0 down && ip link set eth0 name "+name+" netns "+host)
				return
			}
			if _, err := os.Stat(sandbox); err != nil {
				box(t, sandbox)
			}
			nettest.Sh(t, host, "ip link set "+name+" netns "+sandbox+" name eth0")
			nettest.Sh(t, sandbox, fmt.Sprintf("ip address add 192.0.2.%d/24 dev eth0 && ip link set eth0 up", i))
		},
		lose: func(t *testing.T, _ int, sandbox string) { t.Helper(); nettest.Sh(t, sandbox, "ip link del eth0") },
		exit: func(t *testing.T, sandbox string) {
			t.Helper()
			if err := unix.Unmount(sandbox, unix.MNT_DETACH); err != nil {
				t.Fatal(err)
			}
		},
		parent: func(t *testing.T, up bool) {
			t.Helper()
			nettest.Sh(t, host, "ip link set eth1 "+map[bool]string{true: "up", false: "down"}[up])
		},
		hold: func(t *testing.T, a netip.Addr) (m vxlan.MAC) {
			t.Helper()
			nettest.Sh(t, far, fmt.Sprintf("ip address add %s dev far1 nodad", netip.PrefixFrom(a, a.BitLen())))
			m, err := vxlan.ParseMAC(strings.TrimSpace(nettest.Sh(t, far, "cat /proc/net/dev >/dev/null; ip -br link show far1 | tr -s ' ' | cut -d' ' -f3")))
			if err != nil {
				t.Fatal(err)
			}
			return m
		},
	}
}

// reach makes the kernel have want and says what it has then.
func (w world) reach(t *testing.T, want Network) Network {
	t.Helper()
	have, err := w.kernel.Read(t.Context(), want)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.kernel.Run(t.Context(), plan(have, want)); err != nil {
		t.Fatal(err)
	}
	if have, err = w.kernel.Read(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	if ops := plan(have, want); len(ops) > 0 {
		t.Fatalf("still to be done: %v", ops)
	}
	return have
}

func TestBothKernelsHaveWhatWasPlannedAndSayTheSame(t *testing.T) {
	seen := map[string][]Network{}
	for name, w := range worlds(t) {
		t.Run(name, func(t *testing.T) {
			var got []Network
			for _, want := range []Network{
				onLAN(macvlanPort(1, "eth1")), withSeat(onLAN(macvlanPort(1, "eth1"), macvlanPort(2, "eth1")), 1, 2),
				withSeat(onLAN(macvlanPort(2, "eth1")), 2), onLAN(), {Name: "lan"},
			} {
				got = append(got, w.reach(t, want))
			}
			for _, want := range []Network{bridged(), bridged(1, 2), bridged(2), {Name: "apps"}} {
				got = append(got, w.reach(t, want))
			}
			if all, err := w.kernel.Present(t.Context()); err != nil || len(all) > 0 {
				t.Errorf("left: %+v, error %v", all, err)
			}
			seen[name] = got
		})
	}
	for i := range seen["fake"] { // the MACs of pairs' ends are nobody's
		for _, ns := range seen {
			for k := range ns[i].Ports {
				if ns[i].Ports[k].Kind == Veth {
					ns[i].Ports[k].MAC = vxlan.MAC{}
				}
			}
		}
	}
	if diff := cmp.Diff(seen["linux"], seen["fake"], equal()); diff != "" {
		t.Errorf("the kernels differ (-linux +fake):\n%s", diff)
	}
}

func TestAnInterfaceIsFollowedIntoItsContainerAndMadeAnewThere(t *testing.T) {
	for name, w := range worlds(t) {
		t.Run(name, func(t *testing.T) {
			box := w.path(1)
			want := onLAN(macvlanPort(1, "eth1"))
			w.reach(t, want)
			w.move(t, 1, box)
			want.Ports[0].Sandbox = box
			if have := w.reach(t, want); have.Ports[0].Sandbox != box {
				t.Fatalf("not found in its container: %+v", have)
			}
			if err := w.kernel.Announce(t.Context(), want.Ports[0]); err != nil {
				t.Errorf("announce: %v", err)
			}
			w.lose(t, 1, box)
			if err := w.kernel.Announce(t.Context(), want.Ports[0]); !errors.Is(err, ErrNotThere) {
				t.Errorf("announce without an interface: %v", err)
			}
			have := w.reach(t, want)
			if p := have.Ports[0]; p.Sandbox != box || p.MAC != macOfEndpoint(1) || p.Kind != Macvlan || p.Mode != BridgeMode {
				t.Errorf("made anew: %+v", p)
			}
			w.exit(t, box)
			if have := w.reach(t, want); !have.Ports[0].Gone {
				t.Errorf("after the container's end: %+v", have.Ports)
			}
		})
	}
}

func TestAnInterfaceThatDockerMovedBackIsRemoved(t *testing.T) {
	for name, w := range worlds(t) {
		t.Run(name, func(t *testing.T) {
			want := onLAN(macvlanPort(1, "eth1"))
			w.reach(t, want)
			w.move(t, 1, w.path(1))
			w.move(t, 1, "")
			if have := w.reach(t, onLAN()); len(have.Ports) > 0 {
				t.Errorf("left: %+v", have)
			}
		})
	}
}

func TestWhoHasAnAddressInTheLANIsFoundOut(t *testing.T) {
	for name, w := range worlds(t) {
		t.Run(name, func(t *testing.T) {
			for _, a := range []netip.Addr{addr("192.0.2.77"), addr("2001:db8::77")} {
				if holder, found, err := w.kernel.Probe(t.Context(), "eth1", a); found || err != nil {
					t.Errorf("%s, which nobody has: %s, error %v", a, holder, err)
				}
				mac := w.hold(t, a)
				if holder, found, err := w.kernel.Probe(t.Context(), "eth1", a); !found || holder != mac || err != nil {
					t.Errorf("%s: held by %s, found %t, error %v; want %s", a, holder, found, err, mac)
				}
				if holder, found, err := w.kernel.Probe(t.Context(), "eth1", a.Next()); found || err != nil {
					t.Errorf("%s, which nobody has: %s, error %v", a.Next(), holder, err)
				}
			}
			w.parent(t, false)
			if _, _, err := w.kernel.Probe(t.Context(), "eth1", addr("192.0.2.78")); err == nil {
				t.Error("nobody was asked, for the interface is down, and that is no error")
			}
		})
	}
}

func TestAParentThatCannotHaveAnotherDeviceIsExplained(t *testing.T) {
	for name, w := range worlds(t) {
		t.Run(name, func(t *testing.T) {
			first, second := macvlanPort(1, "eth1"), macvlanPort(2, "eth1")
			first.Mode, second.Mode = Passthru, Passthru
			w.reach(t, onLAN(first))
			err := w.kernel.Run(t.Context(), plan(onLAN(first), onLAN(first, second)))
			if err == nil || !strings.Contains(err.Error(), "passthru") {
				t.Errorf("a second device in passthru mode: %v", err)
			}
			err = w.kernel.Run(t.Context(), plan(onLAN(), onLAN(macvlanPort(3, "eth9"))))
			if err == nil || !strings.Contains(err.Error(), "eth9") {
				t.Errorf("a parent that is missing: %v", err)
			}
		})
	}
}

func TestChangesOnTheHostAreTold(t *testing.T) {
	for name, w := range worlds(t) {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			changes, err := w.kernel.Changes(ctx)
			if err != nil {
				t.Fatal(err)
			}
			w.parent(t, false)
			select {
			case <-changes:
			case <-time.After(5 * time.Second):
				t.Error("an interface that went down was not told of")
			}
			is, err := w.kernel.Interfaces(t.Context())
			i := slices.IndexFunc(is, func(i Interface) bool { return i.Name == "eth1" })
			if err != nil || i < 0 || is[i].Up || is[i].Running {
				t.Errorf("interfaces %+v, error %v", is, err)
			}
		})
	}
}

// A daemon that was killed between two messages leaves a device without alias.
func TestADeviceThatWasLeftHalfMadeIsReplaced(t *testing.T) {
	w := linuxWorld(t)
	host := w.kernel.(*Linux)
	err := within(host.host, func() error {
		return exec.Command("ip", "link", "add", "link", "eth1", "name", PortName(endpointID(1)), "type", "macvlan", "mode", "vepa").Run()
	})
	if err != nil {
		t.Fatal(err)
	}
	if have := w.reach(t, onLAN(macvlanPort(1, "eth1"))); have.Ports[0].Mode != BridgeMode {
		t.Errorf("%+v", have)
	}
}
