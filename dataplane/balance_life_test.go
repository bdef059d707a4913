//go:build linux

package dataplane

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/dataplane/balance"
	"github.com/netdriver/netdriver/internal/netlink"
)

// reuse lets a source port be used for several destinations.
func reuse(_, _ string, raw syscall.RawConn) (err error) {
	if failed := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	}); failed != nil {
		return failed
	}
	return err
}

// flows lists the flows that host a knows of.
func (c *cluster) flows(t *testing.T) []balance.Flow {
	t.Helper()
	b := c.a.kernel.balancing.all[testVNI]
	if b == nil {
		t.Fatal("nothing is balanced")
	}
	all, err := b.Flows()
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// split separates the connections to a server from the others.
func split(all []held, server string) (with, without []held) {
	return partition(all, func(h held) bool { return h.who == server })
}

// live checks that connections still work.
func live(t *testing.T, all []held) {
	t.Helper()
	for _, h := range all {
		if err := h.echo(); err != nil {
			t.Errorf("connection %s to server %s: %v", h.LocalAddr(), h.who, err)
		}
	}
}

func TestADrainingBackendKeepsItsOpenConnectionsAndGetsNoNewOnes(t *testing.T) {
	c := newCluster(t, 2, 3)
	families(t, func(t *testing.T, vip string, _ func(int) netip.Addr) {
		address := target(vip, tcpPort)
		open := c.hold(t, 1, address, 12)
		c.balance(t, service([]int{2, 3}, 2))
		if by := c.calls(t, 1, address, 100); by["3"] != 100 {
			t.Errorf("new connections: %v", by)
		}
		live(t, open)
		c.balance(t, service([]int{2, 3}))
		shared(t, c.calls(t, 1, address, 100), "2", "3")
		live(t, open)
	})
}

// TestADeadBackendsConnectionsAreResetWithinASecond: those that are in use and those whose client only waits.
func TestADeadBackendsConnectionsAreResetWithinASecond(t *testing.T) {
	c := newCluster(t, 2, 3)
	families(t, func(t *testing.T, vip string, _ func(int) netip.Addr) {
		address := target(vip, tcpPort)
		lost, kept := split(c.hold(t, 1, address, 16), "2")
		if len(lost) < 2 || len(kept) < 2 {
			t.Fatalf("%d and %d connections, want some of each", len(lost), len(kept))
		}
		start := time.Now()
		c.balance(t, service([]int{3}))
		for i, h := range lost {
			h.SetDeadline(start.Add(time.Second))
			var writing error
			if i%2 == 0 {
				_, writing = h.Write([]byte("x"))
			}
			_, err := io.ReadFull(h, make([]byte, 2))
			if err = errors.Join(writing, err); !errors.Is(err, unix.ECONNRESET) {
				t.Errorf("connection %d: %v after %v, want ECONNRESET", i, err, time.Since(start))
			}
		}
		live(t, kept)
		if by := c.calls(t, 1, address, 100); by["3"] != 100 {
			t.Errorf("new connections: %v", by)
		}
		c.balance(t, service([]int{2, 3}))
	})
}

// TestABackendThatComesBackIsAnotherOne: a new task with an old one's address knows nothing of its connections.
func TestABackendThatComesBackIsAnotherOne(t *testing.T) {
	c := newCluster(t, 3)
	open := c.hold(t, 1, target(vip4, tcpPort), 1)
	c.balance(t)
	c.balance(t, service([]int{3}))
	dead(t, open)
	c.calls(t, 1, target(vip4, tcpPort), 5)
}

// TestADatagramFlowGoesOnToAnotherBackendWhenItsOwnIsGone from one socket, without an error.
func TestADatagramFlowGoesOnToAnotherBackendWhenItsOwnIsGone(t *testing.T) {
	c := newCluster(t, 2)
	families(t, func(t *testing.T, vip string, _ func(int) netip.Addr) {
		c.balance(t, service([]int{2}))
		c.inside(t, 1, func() error {
			conn, err := dialUDP(target(vip, tcpPort))
			if err != nil {
				return err
			}
			defer conn.Close()
			for _, server := range []int{2, 3, 2} {
				c.balance(t, service([]int{server}))
				conn.SetDeadline(time.Now().Add(testPatience))
				b := make([]byte, 10)
				if _, err := conn.Write([]byte("x")); err != nil {
					return err
				}
				if n, err := conn.Read(b); err != nil || string(b[:n]) != fmt.Sprint(server)+"x" {
					t.Errorf("answer %q, %v: want it by server %d", b[:n], err, server)
				}
			}
			return nil
		})
	})
}

// TestABackendThatDoesNotAnswerIsPassedOver though nobody has said yet that it is dead: the client's next try, a second
// later, goes elsewhere.
func TestABackendThatDoesNotAnswerIsPassedOver(t *testing.T) {
	c := newCluster(t, 2, 3)
	shell(t, c.c[2], "ip link set eth0 down")
	for range 6 {
		if by := c.calls(t, 1, target(vip4, tcpPort), 1); by["3"] != 1 {
			t.Errorf("answered by %v", by)
		}
	}
}

// TestAnEvictedConnectionIsReset: the table of flows has a limit. Whoever is pushed out must hear of it.
func TestAnEvictedConnectionIsReset(t *testing.T) {
	c := newCluster(t, 3)
	open := c.hold(t, 1, target(vip4, tcpPort), 1)
	live(t, open)
	for _, m := range c.maps(t, "tcp_flows") { // as the kernel does when it is full
		key := make([]byte, m.KeySize())
		if err := m.NextKey(nil, &key); err != nil {
			t.Fatal(err)
		}
		if err := m.Delete(key); err != nil {
			t.Fatal(err)
		}
	}
	dead(t, open)
}

// maps opens the maps of that name that the programs on container 1's port use.
func (c *cluster) maps(t *testing.T, name string) (found []*ebpf.Map) {
	t.Helper()
	for _, id := range c.programs(t) {
		p, err := ebpf.NewProgramFromID(id)
		if err != nil {
			t.Fatal(err)
		}
		info, err := p.Info()
		if err != nil {
			t.Fatal(err)
		}
		p.Close()
		ids, _ := info.MapIDs()
		for _, id := range ids {
			m, err := ebpf.NewMapFromID(id)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { m.Close() })
			if i, err := m.Info(); err == nil && i.Name == name && len(found) == 0 {
				found = append(found, m)
			}
		}
	}
	return found
}

// programs lists the programs on container 1's port.
func (c *cluster) programs(t *testing.T) (ids []ebpf.ProgramID) {
	t.Helper()
	port, err := linkNamed(c.a.kernel.in, PortName(endpointID(1)))
	if err != nil {
		t.Fatal(err)
	}
	b := c.a.kernel.balancing.all[testVNI]
	err = netlink.In(c.a.kernel.ours, func() (err error) { ids, err = b.Programs(int(port.index)); return err })
	if err != nil {
		t.Fatal(err)
	}
	return ids
}

// TestOpenConnectionsOutliveTheDaemon: while it is dead they work, and new ones too; the next daemon changes nothing.
func TestOpenConnectionsOutliveTheDaemon(t *testing.T) {
	c := newCluster(t, 2, 3)
	var open []held
	families(t, func(_ *testing.T, vip string, _ func(int) netip.Addr) { // which outlive the subtest
		open = append(open, c.hold(t, 1, target(vip, tcpPort), 6)...)
	})
	before := c.programs(t)
	c.a.kernel.Close()
	live(t, open)
	families(t, func(t *testing.T, vip string, _ func(int) netip.Addr) {
		shared(t, c.calls(t, 1, target(vip, tcpPort), 60), "2", "3")
	})
	c.a.open(t)
	c.plane = NewPlane(c.a.kernel, quiet())
	if ops, err := c.plane.Apply(t.Context(), c.want); err != nil || len(ops) > 0 {
		t.Errorf("the next daemon does %v, %v", ops, err)
	}
	if after := c.programs(t); !slices.Equal(before, after) {
		t.Errorf("programs %v became %v", before, after)
	}
	live(t, open)
	c.balance(t, service([]int{2}))
	lost, kept := split(open, "3")
	live(t, kept)
	dead(t, lost)
}

// TestBalancingIsRepairedWithinASecond when others take it away.
func TestBalancingIsRepairedWithinASecond(t *testing.T) {
	c := newCluster(t, 2, 3)
	follow(t, c.plane, c.want)
	open := c.hold(t, 1, target(vip4, tcpPort), 4)
	c.strip(t)
	eventually(t, "a repair", func() bool { return c.plane.Drift(testVNI) > 0 })
	eventually(t, "the wanted state", func() bool {
		n, err := c.a.kernel.ReadNetwork(t.Context(), testVNI)
		return err == nil && n.Ports[0].Balanced
	})
	live(t, open)
	if rs := c.plane.Receipts(testVNI); !strings.Contains(fmt.Sprint(rs), "balance attach dev "+PortName(endpointID(1))) {
		t.Errorf("receipts %+v", rs)
	}
}

// strip takes the programs off container 1's port, as another program may.
func (c *cluster) strip(t *testing.T) {
	t.Helper()
	port, err := linkNamed(c.a.kernel.in, PortName(endpointID(1)))
	if err != nil {
		t.Fatal(err)
	}
	b := c.a.kernel.balancing.all[testVNI]
	if err := netlink.In(c.a.kernel.ours, func() error { return b.Detach(int(port.index)) }); err != nil {
		t.Fatal(err)
	}
}

// TestWhatOthersChangeInTheMapsIsFoundByReading: no event tells of it.
func TestWhatOthersChangeInTheMapsIsFoundByReading(t *testing.T) {
	c := newCluster(t, 2, 3)
	for _, name := range []string{"vips", "backends"} {
		t.Run(name, func(t *testing.T) {
			m := c.maps(t, name)[0]
			key := make([]byte, m.KeySize())
			if err := m.NextKey(nil, &key); err != nil {
				t.Fatal(err)
			}
			if err := m.Delete(key); err != nil {
				t.Fatal(err)
			}
			c.repaired(t)
		})
	}
	t.Run("table", func(t *testing.T) {
		m := c.maps(t, "vips")[0]
		key, value := make([]byte, m.KeySize()), make([]byte, m.ValueSize())
		if err := m.NextKey(nil, &key); err != nil {
			t.Fatal(err)
		}
		if err := m.Lookup(key, &value); err != nil {
			t.Fatal(err)
		}
		clear(value[balance.MaxServiceID+400:])
		if err := m.Put(key, value); err != nil {
			t.Fatal(err)
		}
		c.repaired(t)
	})
}

func (c *cluster) repaired(t *testing.T) {
	t.Helper()
	before := c.plane.Drift(testVNI)
	c.plane.Refresh(testVNI)
	if _, err := c.plane.Apply(t.Context(), c.want); err != nil {
		t.Fatal(err)
	}
	if c.plane.Drift(testVNI) == before {
		t.Error("nothing was repaired")
	}
	expect(t, c.a.kernel, c.want)
	families(t, func(t *testing.T, vip string, _ func(int) netip.Addr) {
		shared(t, c.calls(t, 1, target(vip, tcpPort), 60), "2", "3")
	})
}

// TestNothingOfBalancingIsLeft when the services are gone, or the network.
func TestNothingOfBalancingIsLeft(t *testing.T) {
	for what, end := range map[string]func(*cluster, *testing.T) error{
		"services": func(c *cluster, t *testing.T) error { c.balance(t); return nil },
		"network":  func(c *cluster, t *testing.T) error { return c.plane.Remove(t.Context(), testVNI) },
		"network without a daemon": func(c *cluster, t *testing.T) error {
			c.a.kernel.Close()
			c.a.open(t)
			return NewPlane(c.a.kernel, quiet()).Remove(t.Context(), testVNI)
		},
	} {
		t.Run(what, func(t *testing.T) {
			c := newCluster(t, 2, 3)
			ids := c.programs(t)
			if len(ids) != 2 {
				t.Fatalf("programs %v", ids)
			}
			if err := end(c, t); err != nil {
				t.Fatal(err)
			}
			for _, id := range ids { // the kernel frees a program a moment after its last user is gone
				eventually(t, fmt.Sprintf("the end of program %d", id), func() bool {
					p, err := ebpf.NewProgramFromID(id)
					if err == nil {
						p.Close()
					}
					return errors.Is(err, os.ErrNotExist)
				})
			}
		})
	}
}
