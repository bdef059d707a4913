//go:build linux

package dataplane

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/internal/netlink"
)

// The virtual addresses of the tests' service and the port that its tasks listen on.
const (
	vip4         = "10.0.0.100"
	vip6         = "fd00::100"
	tcpPort      = 7000
	closed       = 7999
	webID        = "web0000000000000000000000"
	testPatience = 5 * time.Second
)

func vips() []netip.Addr { return []netip.Addr{netip.MustParseAddr(vip4), netip.MustParseAddr(vip6)} }

// families runs a test with the virtual address of each family.
func families(t *testing.T, test func(t *testing.T, vip string, at func(i int) netip.Addr)) {
	t.Run("IPv4", func(t *testing.T) { test(t, vip4, endpointIP) })
	t.Run("IPv6", func(t *testing.T) { test(t, vip6, insideIP6) })
}

// service is the tests' service over containers, of which some drain.
func service(ids []int, draining ...int) Service {
	s := Service{ID: webID, VIPs: vips()}
	for _, i := range ids {
		for _, a := range []netip.Addr{endpointIP(i), insideIP6(i)} {
			s.Backends = append(s.Backends, Backend{Address: a, MAC: endpointMAC(i), Draining: slices.Contains(draining, i)})
		}
	}
	slices.SortFunc(s.Backends, compareBackends)
	return s
}

// cluster is a pair of hosts of which a balances a service; every container runs a server of it.
type cluster struct {
	*pair
	plane *Plane
	want  Network
}

func newCluster(t *testing.T, ids ...int) *cluster {
	t.Helper()
	c := &cluster{pair: newPair(t, 1500, "192.0.2.1", "192.0.2.2")}
	c.plane = NewPlane(c.a.kernel, quiet())
	c.balance(t, service(ids))
	for i := range c.c {
		c.listen(t, i)
	}
	return c
}

// balance makes host a balance these services from now on.
func (c *cluster) balance(t *testing.T, services ...Service) {
	t.Helper()
	c.want = c.network(0, []int{1, 2}, []int{3})
	c.want.Services = services
	if _, err := c.plane.Apply(t.Context(), c.want); err != nil {
		t.Fatal(err)
	}
}

// inside runs f in a container's network namespace, on a thread of its own.
func (p *pair) inside(t testing.TB, i int, f func() error) {
	t.Helper()
	if err := p.within(i, f); err != nil {
		t.Fatal(err)
	}
}

func (p *pair) within(i int, f func() error) error {
	fd, err := openBound(p.c[i])
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return netlink.In(fd, f)
}

// listen starts the servers of container i: TCP says who it is and whom it sees, then echoes; UDP answers with its name
// and what it got.
func (p *pair) listen(t *testing.T, i int) {
	t.Helper()
	for _, version := range []string{"4", "6"} { // one socket for both is not to be had where the host has no IPv6
		var l net.Listener
		var u net.PacketConn
		p.inside(t, i, func() (err error) {
			address := fmt.Sprintf(":%d", tcpPort)
			if l, err = net.Listen("tcp"+version, address); err == nil {
				u, err = net.ListenPacket("udp"+version, address)
			}
			return err
		})
		t.Cleanup(func() { l.Close(); u.Close() })
		go accept(l, i)
		go answer(u, i)
	}
}

func accept(l net.Listener, i int) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			fmt.Fprintf(conn, "%d %s\n", i, conn.RemoteAddr())
			io.Copy(conn, conn)
		}()
	}
}

func answer(u net.PacketConn, i int) {
	b := make([]byte, 1<<16)
	for {
		n, from, err := u.ReadFrom(b)
		if err != nil {
			return
		}
		u.WriteTo(append([]byte{byte('0' + i)}, b[:n]...), from)
	}
}

func target(address string, port int) string { return net.JoinHostPort(address, strconv.Itoa(port)) }

// call opens a connection from the thread's namespace and returns which server answered.
func call(address string) (*net.TCPConn, string, error) {
	conn, err := net.DialTimeout("tcp", address, testPatience)
	if err != nil {
		return nil, "", err
	}
	conn.SetDeadline(time.Now().Add(testPatience))
	line, err := bufio.NewReader(io.LimitReader(conn, 100)).ReadString('\n')
	if err != nil {
		conn.Close()
		return nil, "", err
	}
	who, _, _ := strings.Cut(line, " ")
	return conn.(*net.TCPConn), who, nil
}

// calls makes n short connections and counts who answered.
func (p *pair) calls(t *testing.T, from int, address string, n int) map[string]int {
	t.Helper()
	by := map[string]int{}
	p.inside(t, from, func() error {
		for range n {
			conn, who, err := call(address)
			if err != nil {
				return fmt.Errorf("after %v: %w", by, err)
			}
			by[who]++
			if err := conn.Close(); err != nil {
				return err
			}
		}
		return nil
	})
	return by
}

// held is an open connection.
type held struct {
	net.Conn
	who string
}

// hold opens n connections.
func (p *pair) hold(t *testing.T, from int, address string, n int) []held {
	t.Helper()
	var all []held
	p.inside(t, from, func() error {
		for range n {
			conn, who, err := call(address)
			if err != nil {
				return err
			}
			t.Cleanup(func() { conn.Close() })
			all = append(all, held{conn, who})
		}
		return nil
	})
	return all
}

// echo sends a byte and waits for it.
func (h held) echo() error {
	h.SetDeadline(time.Now().Add(testPatience))
	if _, err := h.Write([]byte("x")); err != nil {
		return err
	}
	_, err := io.ReadFull(h, make([]byte, 1))
	return err
}

// datagrams sends n datagrams of size bytes, each from a socket of its own, and counts who answered with the same bytes.
func (p *pair) datagrams(t *testing.T, from int, address string, size, n int) map[string]int {
	t.Helper()
	by := map[string]int{}
	p.inside(t, from, func() error {
		for range n {
			who, err := datagram(address, size)
			if err != nil {
				return fmt.Errorf("%d bytes, after %v: %w", size, by, err)
			}
			by[who]++
		}
		return nil
	})
	return by
}

func datagram(address string, size int) (string, error) {
	conn, err := net.Dial("udp", address)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	sent, got := make([]byte, size), make([]byte, size+2)
	for i := range sent {
		sent[i] = byte(rand.Uint32())
	}
	conn.SetDeadline(time.Now().Add(testPatience))
	if _, err := conn.Write(sent); err != nil {
		return "", err
	}
	n, err := conn.Read(got)
	if err != nil {
		return "", err
	}
	if !bytes.Equal(got[1:n], sent) {
		return "", errors.New("other bytes came back")
	}
	return string(got[:1]), nil
}

// shared says whether all of these servers answered, each at least a third as often as it should on average.
func shared(t *testing.T, by map[string]int, servers ...string) {
	t.Helper()
	total := 0
	for _, n := range by {
		total += n
	}
	for _, s := range servers {
		if by[s]*3*len(servers) < total {
			t.Errorf("server %s answered %d of %d: %v", s, by[s], total, by)
		}
	}
	if len(by) != len(servers) {
		t.Errorf("%v answered, want %v", by, servers)
	}
}

func dialUDP(address string) (net.Conn, error) { return net.Dial("udp", address) }

// setOffloads changes what a container's device does for the stack, as ethtool -K does.
func setOffloads(t *testing.T, ns, features string) error {
	_, err := try(ns, "ethtool -K eth0 "+features)
	return err
}
