//go:build linux

package dataplane

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/dataplane/guard"
)

// policedPair is a pair with a policy on both hosts: container 1 is web, 2 and 3 are db, unless of says otherwise.
func policedPair(t *testing.T, of map[int]uint32) *pair {
	p := newPair(t, 1500, "192.0.2.1", "192.0.2.2")
	for i := range 2 {
		p.police(t, i, of)
	}
	return p
}

func (p *pair) police(t *testing.T, i int, of map[int]uint32) {
	t.Helper()
	h, local, remote := p.a, []int{1, 2}, []int{3}
	if i == 1 {
		h, local, remote = p.b, remote, local
	}
	n := with(p.network(i, local, remote), func(n *Network) { n.Guard = (&testNet{*n}).guarded().classes(of).Guard })
	if _, err := NewPlane(h.kernel, quiet()).Apply(t.Context(), n); err != nil {
		t.Fatal(err)
	}
}

// echoes answers on a TCP and a UDP port of a container with what it gets.
func (p *pair) echoes(t *testing.T, i int, port int) {
	t.Helper()
	for _, version := range []string{"4", "6"} {
		var l net.Listener
		var u net.PacketConn
		p.inside(t, i, func() (err error) {
			address := fmt.Sprintf(":%d", port)
			if l, err = net.Listen("tcp"+version, address); err == nil {
				u, err = net.ListenPacket("udp"+version, address)
			}
			return err
		})
		t.Cleanup(func() { l.Close(); u.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() { defer c.Close(); io.Copy(c, c) }()
			}
		}()
		go func() {
			b := make([]byte, 1<<16)
			for {
				n, from, err := u.ReadFrom(b)
				if err != nil {
					return
				}
				u.WriteTo(b[:n], from)
			}
		}()
	}
}

// patience is how long something that is allowed may take.
const patience = 2 * time.Second

// exchange sends size bytes from a container and wants them back.
func (p *pair) exchange(from int, network string, to netip.Addr, port, size int) error {
	return p.within(from, func() error {
		c, err := net.DialTimeout(network, netip.AddrPortFrom(to, uint16(port)).String(), patience)
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
			return err
		}
		if _, err := c.Write(make([]byte, size)); err != nil {
			return err
		}
		b := make([]byte, 1<<16)
		for got := 0; got < size; {
			n, err := c.Read(b)
			if err != nil {
				return err
			}
			got += n
		}
		return nil
	})
}

// TestOnlyWhatTheRulesAllowGetsThrough tries every direction, family and protocol, on one host and across two.
func TestOnlyWhatTheRulesAllowGetsThrough(t *testing.T) {
	p := policedPair(t, map[int]uint32{1: 1, 2: 2, 3: 2})
	for i := range 3 {
		for _, port := range []int{5432, 5440, 53, 80} {
			p.echoes(t, i+1, port)
		}
	}
	allowed := func(from, to int, proto string, port int) bool {
		return from == 1 && to > 1 && (proto == "tcp" && port >= 5432 && port <= 5440 || proto == "udp" && port == 53)
	}
	var all sync.WaitGroup
	for _, from := range []int{1, 2, 3} {
		for _, to := range []int{1, 2, 3} {
			for _, addr := range []netip.Addr{endpointIP(to), insideIP6(to)} {
				for _, proto := range []string{"tcp", "udp"} {
					for _, port := range []int{5432, 5440, 53, 80} {
						if from == to {
							continue
						}
						all.Go(func() {
							want := allowed(from, to, proto, port)
							if err := p.exchange(from, proto, addr, port, 100); (err == nil) != want {
								t.Errorf("%s from %d to %s port %d: %v, allowed: %v", proto, from, addr, port, err, want)
							}
						})
					}
				}
			}
		}
	}
	all.Wait()
	if err := p.exchange(1, "udp", endpointIP(3), 53, 8000); err != nil {
		t.Errorf("a datagram in fragments: %v", err)
	}
	if err := p.exchange(1, "udp", insideIP6(3), 53, 8000); err != nil {
		t.Errorf("a datagram in fragments over IPv6: %v", err)
	}
	if denied(t, p.b, 3) == 0 || denied(t, p.a, 1) == 0 {
		t.Error("nothing was counted")
	}
}

func denied(t *testing.T, h *host, endpoint int) uint64 {
	t.Helper()
	all, err := h.kernel.Drops(t.Context(), testVNI)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range all {
		if d.Port == PortName(endpointID(endpoint)) {
			return d.Denied
		}
	}
	return 0
}

// TestAnswersPassAndNothingElseDoes: from the port that a server answers from, nothing reaches a client that did not ask.
func TestAnswersPassAndNothingElseDoes(t *testing.T) {
	p := policedPair(t, map[int]uint32{1: 1, 2: 2, 3: 2})
	p.echoes(t, 1, 7777)
	err := p.within(3, func() error {
		c, err := net.DialUDP("udp", &net.UDPAddr{Port: 53}, &net.UDPAddr{IP: endpointIP(1).AsSlice(), Port: 7777})
		if err != nil {
			return err
		}
		defer c.Close()
		if _, err := c.Write([]byte("unasked")); err != nil {
			return err
		}
		_ = c.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
		n, err := c.Read(make([]byte, 100))
		if err == nil {
			return fmt.Errorf("an unasked datagram from the server's port got through and was answered with %d bytes", n)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	p.echoes(t, 3, 53)
	if err := p.exchange(1, "udp", endpointIP(3), 53, 10); err != nil {
		t.Errorf("an asked one: %v", err)
	}
	// A segment that begins a connection, from the port on which db answers.
	me, to := open(t, p.c[3]), open(t, p.c[1])
	segment := func(flags byte, mark uint16) frame {
		f := udp4(endpointMAC(1), endpointMAC(3), endpointIP(3), endpointIP(1))
		f[14+9] = unix.IPPROTO_TCP
		f[14+3] = 40
		f[14+10], f[14+11] = 0, 0
		s := sum(f[14:34])
		f[14+10], f[14+11] = byte(s>>8), byte(s)
		return append(f[:34:34], byte(5432>>8), 5432&0xff, byte(mark>>8), byte(mark), 0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0, 9, 0, 0, 0, 0)
	}
	syn, ack := segment(2, 100), segment(0x10, 101)
	me.send(t, syn)
	me.send(t, ack)
	if to.receives(t, syn, ack) {
		t.Error("the beginning of a connection against the rules got through")
	}
	if err := p.exchange(1, "tcp", endpointIP(3), 5432, 10); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("a connection to a closed port: %v, want the refusal to come back", err)
	}
}

// TestAddressResolutionAndErrorsPass: who may not speak to each other may still find each other, as a link needs it.
func TestAddressResolutionAndErrorsPass(t *testing.T) {
	p := policedPair(t, map[int]uint32{1: 1, 2: 0, 3: 2})
	if _, err := try(p.c[2], "busybox arping -c 1 -w 2 -I eth0 "+endpointIP(1).String()); err != nil {
		t.Errorf("ARP: %v", err)
	}
	if _, err := try(p.c[2], "busybox ping -c 1 -W 1 "+endpointIP(1).String()); err == nil {
		t.Error("an echo request got through without a rule")
	}
	// The error that a closed UDP port is comes back.
	err := p.exchange(1, "udp", endpointIP(3), 53, 10)
	if err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("a datagram to a closed port: %v, want the refusal to come back", err)
	}
}

// TestAClassThatChangesCountsAtOnce: for what begins afterwards.
func TestAClassThatChangesCountsAtOnce(t *testing.T) {
	p := policedPair(t, map[int]uint32{1: 1, 2: 2, 3: 2})
	p.echoes(t, 2, 5432)
	p.echoes(t, 3, 5432)
	for _, to := range []int{2, 3} {
		if err := p.exchange(1, "tcp", endpointIP(to), 5432, 10); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 2 {
		p.police(t, i, map[int]uint32{1: 0, 2: 2, 3: 2})
	}
	for _, to := range []int{2, 3} {
		if p.exchange(1, "tcp", endpointIP(to), 5432, 10) == nil {
			t.Errorf("web is none any more and reaches db at %d", to)
		}
	}
}

// TestRefusalsAreTold: which frames are dropped, with who sent them, at which port.
func TestRefusalsAreTold(t *testing.T) {
	p := policedPair(t, map[int]uint32{1: 1, 2: 2, 3: 2})
	told := make(chan string, 100)
	background(t, func(ctx context.Context) error {
		return p.a.kernel.Refusals(ctx, func(port string, r guard.Refusal) { told <- r.Kind + " at " + port + ": " + r.String() })
	})
	time.Sleep(100 * time.Millisecond) // until it listens
	open(t, p.c[1]).send(t, udp4(endpointMAC(2), endpointMAC(1), endpointIP(77), endpointIP(2)))
	open(t, p.c[2]).send(t, udp4(endpointMAC(1), endpointMAC(2), endpointIP(2), endpointIP(1)))
	want := map[string]bool{
		"spoofed at " + PortName(endpointID(1)) + ": udp from 10.0.0.77 (MAC 02:42:0a:00:00:01) to 10.0.0.2:9": true,
		"denied at " + PortName(endpointID(1)) + ": udp from 10.0.0.2 (MAC 02:42:0a:00:00:02) to 10.0.0.1:9":   true,
	}
	for len(want) > 0 {
		select {
		case got := <-told:
			t.Log(got)
			delete(want, got)
		case <-time.After(5 * time.Second):
			t.Fatalf("not told: %v", want)
		}
	}
}
