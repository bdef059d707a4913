//go:build linux

package dataplane

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestServiceBalancesThousandsOfConnectionsWithoutAnError(t *testing.T) {
	c := newCluster(t, 2, 3)
	families(t, func(t *testing.T, vip string, _ func(int) netip.Addr) {
		shared(t, c.calls(t, 1, target(vip, tcpPort), 5000), "2", "3")
	})
	counts, err := c.plane.Counts(t.Context(), testVNI)
	if err != nil {
		t.Fatal(err)
	}
	flows := uint64(0)
	for _, n := range counts {
		flows += n.Flows
		if n.Packets < 4*n.Flows || n.Bytes < 60*n.Packets {
			t.Errorf("counters of %s: %+v", n.Address, n)
		}
	}
	if flows != 10000 {
		t.Errorf("%d flows counted, want 10000: %+v", flows, counts)
	}
	if left := c.flows(t); len(left) > 100 {
		t.Errorf("%d entries of connections that have ended are left, which push out those of open ones: %v...", len(left), left[:3])
	}
}

func TestDatagramsOfAnySizeReachAServiceAndItsAnswersComeBack(t *testing.T) {
	c := newCluster(t, 2, 3)
	families(t, func(t *testing.T, vip string, _ func(int) netip.Addr) {
		for _, size := range []int{1, 100, 1400, 3000, 8000} { // from 3000 on in fragments
			shared(t, c.datagrams(t, 1, target(vip, tcpPort), size, 60), "2", "3")
		}
	})
}

// TestFragmentsOfOneDatagramStayTogether: with so many, identifications repeat, and what is remembered of an old
// datagram must not tear a new one apart. Straight datagrams to the same backend are in between.
func TestFragmentsOfOneDatagramStayTogether(t *testing.T) {
	c := newCluster(t, 2, 3)
	for range 20 {
		c.datagrams(t, 1, target(vip4, tcpPort), 4000, 50)
		c.datagrams(t, 1, target(endpointIP(3).String(), tcpPort), 4000, 50)
	}
}

// TestBytesArriveUnchangedWhateverTheDeviceOffloads compares what comes back from an echo, with checksums and
// segmentation left to the devices and without; a wrong checksum would never arrive.
func TestBytesArriveUnchangedWhateverTheDeviceOffloads(t *testing.T) {
	for _, offload := range []string{"on", "off"} {
		t.Run(offload, func(t *testing.T) {
			c := newCluster(t, 2, 3)
			for _, ns := range c.c {
				features := "tx " + offload + " tso " + offload + " gso " + offload + " sg " + offload
				if err := setOffloads(t, ns, features); err != nil {
					t.Fatal(err)
				}
			}
			families(t, func(t *testing.T, vip string, _ func(int) netip.Addr) {
				for _, h := range c.hold(t, 1, target(vip, tcpPort), 6) {
					if err := exchange(h, 4<<20); err != nil {
						t.Errorf("by server %s: %v", h.who, err)
					}
				}
				shared(t, c.datagrams(t, 1, target(vip, tcpPort), 5000, 30), "2", "3")
			})
			if bad := shell(t, c.c[1], "grep -h '^Tcp:' /proc/self/net/snmp | tail -1"); !strings.HasSuffix(bad, " 0\n") {
				t.Errorf("InCsumErrors of the client: %s", bad)
			}
		})
	}
}

// exchange sends bytes to an echo and compares what comes back.
func exchange(h held, size int) error {
	sent, got := make([]byte, size), make([]byte, size)
	for i := range sent {
		sent[i] = byte(rand.Uint32())
	}
	h.SetDeadline(time.Now().Add(20 * time.Second))
	failed := make(chan error, 1)
	go func() { _, err := h.Write(sent); failed <- err }()
	if _, err := io.ReadFull(h, got); err != nil {
		return err
	}
	if !bytes.Equal(sent, got) {
		return errors.New("other bytes came back")
	}
	return <-failed
}

func TestVirtualAddressAnswersEchoOfAnySize(t *testing.T) {
	c := newCluster(t, 2)
	families(t, func(t *testing.T, vip string, _ func(int) netip.Addr) {
		for _, size := range []int{56, 1400, 8000} {
			shell(t, c.c[1], fmt.Sprintf("busybox ping -c 2 -i 0.05 -W 2 -s %d %s", size, vip))
		}
	})
}

func TestNothingAboutAVirtualAddressIsSeenOnTheUnderlay(t *testing.T) {
	c := newCluster(t, 3)
	s := sniff(t, c.a, false)
	families(t, func(t *testing.T, vip string, _ func(int) netip.Addr) {
		c.calls(t, 1, target(vip, tcpPort), 20)
	})
	eventually(t, "the connections on the underlay", func() bool { return s.all.Load() >= 40 })
	if s.arp.Load() > 0 || s.solicit.Load() > 0 {
		t.Errorf("%d ARP and %d ND questions", s.arp.Load(), s.solicit.Load())
	}
}

func TestNoContainerTakesAVirtualAddress(t *testing.T) {
	c := newCluster(t, 2)
	// The control: an address that is nobody's is taken. arping and DAD announce it as any host does.
	for _, tt := range []struct {
		address string
		taken   bool
	}{{"10.0.0.101", true}, {vip4, false}} {
		shell(t, c.c[2], "ip addr add "+tt.address+"/24 dev eth0")
		shell(t, c.c[1], "echo 1 >/proc/sys/net/ipv4/conf/eth0/arp_accept; ip neigh flush dev eth0")
		try(c.c[2], "busybox arping -U -c 2 -w 1 -I eth0 -s "+tt.address+" "+tt.address)
		known := strings.Contains(shell(t, c.c[1], "ip neigh show "+tt.address), endpointMAC(2).String())
		if known != tt.taken {
			t.Errorf("container 2 announces %s: taken is %t, want %t", tt.address, known, tt.taken)
		}
		shell(t, c.c[2], "ip addr del "+tt.address+"/24 dev eth0")
	}
	shell(t, c.c[2], "ip addr add "+vip6+"/64 dev eth0 && ip addr add fd00::101/64 dev eth0")
	within(t, 5*time.Second, "the end of duplicate address detection", func() bool {
		return !strings.Contains(shell(t, c.c[2], "ip -6 addr show dev eth0 to fd00::101"), "tentative")
	})
	if out := shell(t, c.c[2], "ip -6 addr show dev eth0"); !strings.Contains(out, vip6+"/64 scope global dadfailed") {
		t.Errorf("IPv6's duplicate address detection lets a container have the virtual address:\n%s", out)
	}
}

// TestATaskReachesItsOwnService also when it is the only one, and sees itself as the virtual address.
func TestATaskReachesItsOwnService(t *testing.T) {
	c := newCluster(t, 2)
	families(t, func(t *testing.T, vip string, _ func(int) netip.Addr) {
		address := target(vip, tcpPort)
		if by := c.calls(t, 2, address, 200); by["2"] != 200 {
			t.Errorf("answers by %v", by)
		}
		for _, size := range []int{100, 8000} {
			c.datagrams(t, 2, address, size, 50)
		}
		if err := exchange(c.hold(t, 2, address, 1)[0], 1<<20); err != nil {
			t.Error(err)
		}
		refused(t, c, 2, vip)
	})
}

// refused checks that ports without a server are refused at once: the backend's answers are translated.
func refused(t *testing.T, c *cluster, from int, vip string) {
	t.Helper()
	c.inside(t, from, func() error {
		for _, network := range []string{"tcp", "udp"} {
			start := time.Now()
			err := knock(network, target(vip, closed))
			if !errors.Is(err, unix.ECONNREFUSED) || time.Since(start) > time.Second {
				t.Errorf("%s to a closed port of %s: %v after %v, want ECONNREFUSED at once", network, vip, err, time.Since(start))
			}
		}
		return nil
	})
}

// knock connects, sends a byte and waits for one.
func knock(network, address string) error {
	conn, err := net.DialTimeout(network, address, testPatience)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(2 * time.Second))
	if _, err := conn.Write([]byte("x")); err != nil {
		return err
	}
	_, err = conn.Read(make([]byte, 1))
	return err
}

func TestAClosedPortIsRefusedThroughTheVirtualAddress(t *testing.T) {
	for _, backend := range []int{2, 3} {
		c := newCluster(t, backend)
		families(t, func(t *testing.T, vip string, _ func(int) netip.Addr) { refused(t, c, 1, vip) })
	}
}

func TestAServiceWithoutBackendsRefusesAtOnce(t *testing.T) {
	c := newCluster(t)
	families(t, func(t *testing.T, vip string, _ func(int) netip.Addr) { refused(t, c, 1, vip) })
	c.balance(t, service([]int{3}))
	families(t, func(t *testing.T, vip string, _ func(int) netip.Addr) {
		c.calls(t, 1, target(vip, tcpPort), 1)
	})
}

// TestAClientsErrorReachesTheBackend: the server hears that nobody takes its answers any more.
func TestAClientsErrorReachesTheBackend(t *testing.T) {
	for _, backend := range []int{2, 3} {
		c := newCluster(t, backend)
		families(t, func(t *testing.T, vip string, at func(int) netip.Addr) {
			const port = 7100
			var server, client *net.UDPConn
			c.inside(t, backend, func() (err error) {
				server, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(at(backend), port)))
				return err
			})
			defer server.Close()
			c.inside(t, 1, func() (err error) {
				conn, err := net.Dial("udp", target(vip, port))
				if err == nil {
					client = conn.(*net.UDPConn)
					_, err = client.Write([]byte("x"))
				}
				return err
			})
			server.SetDeadline(time.Now().Add(testPatience))
			_, from, err := server.ReadFrom(make([]byte, 1))
			if err != nil {
				t.Fatal(err)
			}
			client.Close()
			// Only a connected socket is told of errors (man 7 udp).
			server.Close()
			var again net.Conn
			c.inside(t, backend, func() (err error) {
				local := net.UDPAddrFromAddrPort(netip.AddrPortFrom(at(backend), port))
				again, err = net.DialUDP("udp", local, from.(*net.UDPAddr))
				return err
			})
			defer again.Close()
			again.Write([]byte("x"))
			again.SetDeadline(time.Now().Add(2 * time.Second))
			if _, err := again.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("the server gets %v, want ECONNREFUSED", err)
			}
		})
	}
}

// bound dials from a source port of its own choice.
func bound(port int, address string) (net.Conn, error) {
	d := net.Dialer{Timeout: testPatience, Control: reuse}
	host, _, _ := net.SplitHostPort(address)
	local := endpointIP(1)
	if netip.MustParseAddr(host).Is6() {
		local = insideIP6(1)
	}
	d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(local, uint16(port)))
	return d.Dial("tcp", address)
}

// TestOneSourcePortServesAServiceAndItsBackendAtOnce: both flows would have the same addresses and ports at the backend.
func TestOneSourcePortServesAServiceAndItsBackendAtOnce(t *testing.T) {
	c := newCluster(t, 3)
	families(t, func(t *testing.T, vip string, at func(int) netip.Addr) {
		c.inside(t, 1, func() error {
			for port := 40000; port < 40020; port++ {
				for _, address := range []string{vip, at(3).String()} {
					conn, err := bound(port, target(address, tcpPort))
					if err != nil {
						return fmt.Errorf("port %d to %s: %w", port, address, err)
					}
					defer conn.Close()
					conn.SetDeadline(time.Now().Add(testPatience))
					if _, err := io.ReadFull(conn, make([]byte, 2)); err != nil {
						return fmt.Errorf("port %d to %s: %w", port, address, err)
					}
				}
			}
			return nil
		})
	})
}

func TestAPrivilegedSourcePortStaysOne(t *testing.T) {
	c := newCluster(t, 3)
	families(t, func(t *testing.T, vip string, _ func(int) netip.Addr) {
		for port, privileged := range map[int]bool{700: true, 45000: false} {
			c.inside(t, 1, func() error {
				conn, err := bound(port, target(vip, tcpPort))
				if err != nil {
					return err
				}
				defer conn.Close()
				conn.SetDeadline(time.Now().Add(testPatience))
				var who int
				var seen string
				if _, err := fmt.Fscan(conn, &who, &seen); err != nil {
					return err
				}
				at, err := netip.ParseAddrPort(seen)
				if err != nil || (at.Port() < 1024) != privileged || at.Port() >= 32768 {
					t.Errorf("a client on port %d is seen as %s, %v", port, seen, err)
				}
				return nil
			})
		}
	})
}
