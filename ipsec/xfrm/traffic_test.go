//go:build linux

package xfrm

import (
	"encoding/binary"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/dataplane/firewall"
	"github.com/netdriver/netdriver/internal/nettest"
	"github.com/netdriver/netdriver/ipsec"
	"github.com/netdriver/netdriver/vxlan"
)

// end is one of two hosts with a veth between them, and a VXLAN device that has an address of the overlay.
type end struct {
	ns      string
	self    ipsec.Identity
	overlay netip.Addr
	kernel  *Linux
	machine *ipsec.Machine
	filter  firewall.Kernel
	begin   time.Time
}

// pair is two ends and the store between them.
type pair struct {
	t      *testing.T
	ends   [2]*end
	offers map[string]ipsec.Offer
	links  map[string]ipsec.Link // by key
	wire   *sniffer
}

// newPair connects two hosts. Each has its own kernel state and no SA yet; rounds give them what they need.
func newPair(t *testing.T, v6 bool, ciphers ...ipsec.Cipher) *pair {
	t.Helper()
	return newPairWith(t, "nftables", v6, 0, ciphers...)
}

// filters are the packet filters that a host may have, with the command by which somebody else empties them.
func filters(t *testing.T, test func(t *testing.T, filter, flush string)) {
	for filter, flush := range map[string]string{
		"nftables": "nft flush ruleset", "iptables": "iptables-legacy -t mangle -F; iptables-legacy -t mangle -X",
	} {
		t.Run(filter, func(t *testing.T) { test(t, filter, flush) })
	}
}

// newPairWith does so with a packet filter of that kind, and with ESP-in-UDP if a port is given.
func newPairWith(t *testing.T, filter string, v6 bool, encap uint16, ciphers ...ipsec.Cipher) *pair {
	t.Helper()
	p := &pair{t: t, offers: map[string]ipsec.Offer{}, links: map[string]ipsec.Link{}}
	mtu, err := vxlan.EncryptedMTU(1500, vtep(0, v6), encap != 0)
	if err != nil {
		t.Fatal(err)
	}
	for i := range p.ends {
		p.ends[i] = newEnd(t, i, v6, filter, encap, ciphers)
	}
	a, b := p.ends[0], p.ends[1]
	nettest.Sh(t, a.ns, "ip link add eth0 address 02:00:00:00:00:01 type veth peer name eth0 address 02:00:00:00:00:02 netns "+b.ns)
	for i, e := range p.ends {
		bits := map[bool]string{false: "24", true: "64 nodad"}[v6]
		nettest.Sh(t, e.ns, fmt.Sprintf(`echo 0 >/proc/sys/net/ipv4/conf/all/rp_filter
			ip addr add %s/%s dev eth0; ip link set eth0 up
			ip link add vx address 02:00:00:00:01:0%d type vxlan id 1048576 dstport %d local %s dev eth0 nolearning
			echo 1 >/proc/sys/net/ipv6/conf/vx/disable_ipv6
			ip link set vx mtu %d up; ip addr add %s/24 dev vx
			ip neigh replace %s dev vx lladdr 02:00:00:00:01:0%d`, e.self.VTEP, bits, i+1, port, e.self.VTEP, mtu, e.overlay,
			p.ends[1-i].overlay, 2-i))
		nettest.Sh(t, e.ns, "bridge fdb append 00:00:00:00:00:00 dev vx dst "+p.ends[1-i].self.VTEP.String())
		nettest.Sh(t, e.ns, fmt.Sprintf("ip neigh replace %s dev eth0 lladdr 02:00:00:00:00:0%d", p.ends[1-i].self.VTEP, 2-i))
	}
	p.wire = sniff(t, b.ns)
	return p
}

func vtep(i int, v6 bool) netip.Addr {
	if v6 {
		return netip.MustParseAddr(fmt.Sprintf("2001:db8::%d", i+1))
	}
	return netip.MustParseAddr(fmt.Sprintf("192.0.2.%d", i+1))
}

func newEnd(t *testing.T, i int, v6 bool, filter string, encap uint16, ciphers []ipsec.Cipher) *end {
	t.Helper()
	ns := nettest.Namespace(t)
	e := &end{
		ns: ns, kernel: open(t, ns), begin: time.Now(), overlay: netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)}),
		self: ipsec.Identity{Name: fmt.Sprintf("n%d", i+1), ID: fmt.Sprintf("id%d", i+1), VTEP: vtep(i, v6)},
	}
	if len(ciphers) == 0 {
		ciphers = ipsec.Preferred()
	}
	m, err := ipsec.NewMachine(e.self, ipsec.Config{
		Port: port, Ciphers: ciphers, Rekey: time.Hour, Grace: grace, Keep: time.Hour,
		MaxPackets: ipsec.DefaultMaxPackets, Encap: encap,
	})
	if err != nil {
		t.Fatal(err)
	}
	e.machine = m
	if filter == "nftables" {
		e.filter, err = firewall.OpenNFTables(ns)
	} else {
		e.filter, err = firewall.OpenIPTables(ns, true)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.filter.Close() })
	return e
}

// encapPort is that of ESP-in-UDP.
const encapPort = 4500

// grace is far shorter than the default, so that 200 rekeys end: a node has few epochs at once.
const grace = 500 * time.Millisecond

// round is one round of a daemon; it says whether anything was done.
func (p *pair) round(e *end) (busy bool) {
	p.t.Helper()
	ctx := p.t.Context()
	have, err := e.kernel.Read(ctx)
	if err != nil {
		p.t.Fatal(err)
	}
	e.machine.Found(have)
	view := ipsec.View{Links: map[string]ipsec.Link{}, Fresh: true}
	for name, o := range p.offers {
		if name != e.self.Name {
			view.Offers = append(view.Offers, o)
			view.Links[name] = p.links[ipsec.LinkKey(e.self.Name, name)]
		}
	}
	want, err := e.machine.Step(time.Since(e.begin), view)
	if err != nil {
		p.t.Fatal(err)
	}
	ops := ipsec.Plan(have, want)
	if err := e.kernel.Run(ctx, ops, e.machine.Done); err != nil {
		p.t.Fatal(err)
	}
	o := e.machine.Offer()
	busy = len(ops) > 0 || fmt.Sprint(o) != fmt.Sprint(p.offers[e.self.Name])
	p.offers[e.self.Name] = o
	e.machine.Published(o)
	for _, l := range e.machine.Links() {
		k := ipsec.LinkKey(l.To, l.From)
		busy = busy || fmt.Sprint(l) != fmt.Sprint(p.links[k])
		p.links[k] = l
	}
	return busy
}

// rounds lets both run until they have had nothing to do for twice the grace of old SAs, of which nobody sees the beginning.
func (p *pair) rounds() {
	p.t.Helper()
	for quiet := time.Now(); time.Since(quiet) < 2*grace; {
		if p.round(p.ends[0]) || p.round(p.ends[1]) {
			quiet = time.Now()
		} else {
			time.Sleep(10 * time.Millisecond)
		}
	}
	for _, e := range p.ends {
		for _, peer := range e.machine.Peers() {
			if peer.Blocked != "" || peer.Behind {
				p.t.Fatalf("%s to %s: %+v", e.self.Name, peer.Name, peer)
			}
		}
	}
}

// lock puts the packet filter's lock on a host, or takes it off.
func (p *pair) lock(e *end, on bool) {
	p.t.Helper()
	s := firewall.Ruleset{Owner: firewall.OwnerLock}
	if on {
		s = firewall.Lock(port)
	}
	f := firewall.New(e.filter, slog.New(slog.DiscardHandler))
	if _, err := f.Apply(p.t.Context(), s); err != nil {
		p.t.Fatal(err)
	}
}

// sniffer counts what comes in at eth0 of the second host.
type sniffer struct {
	esp, inUDP, plain, fragments, largest atomic.Int64
	// last is an ESP packet to the second host, with its IPv4 header.
	last atomic.Pointer[[]byte]
}

func sniff(t *testing.T, ns string) *sniffer {
	t.Helper()
	s := &sniffer{}
	nettest.Listen(t, ns, "eth0", s.take)
	return s
}

// take looks at an IP packet, both those that come in and those that leave.
func (s *sniffer) take(b []byte) {
	if len(b) < 48 {
		return
	}
	protocol, header := b[9], 20
	switch b[0] >> 4 {
	case 4:
		if binary.BigEndian.Uint16(b[6:])&0x3fff != 0 {
			s.fragments.Add(1)
		}
	case 6:
		if protocol, header = b[6], 40; protocol == unix.IPPROTO_FRAGMENT {
			s.fragments.Add(1)
		}
	default:
		return
	}
	switch {
	case protocol == unix.IPPROTO_ESP:
		s.esp.Add(1)
		s.largest.Store(max(s.largest.Load(), int64(len(b))))
		if b[0]>>4 == 4 && netip.AddrFrom4([4]byte(b[16:20])) == vtep(1, false) {
			kept := slices.Clone(b)
			s.last.Store(&kept)
		}
	case protocol == unix.IPPROTO_UDP && binary.BigEndian.Uint16(b[header+2:]) == port:
		s.plain.Add(1)
	case protocol == unix.IPPROTO_UDP && binary.BigEndian.Uint16(b[header+2:]) == encapPort:
		s.inUDP.Add(1)
		s.largest.Store(max(s.largest.Load(), int64(len(b))))
	}
}

// inject sends IP packets to the second host, as somebody on the wire would.
func (p *pair) inject(packets ...[]byte) {
	p.t.Helper()
	nettest.Send(p.t, p.ends[0].ns, "eth0", net.HardwareAddr{2, 0, 0, 0, 0, 2}, packets...)
}

// echo answers UDP datagrams at the second host's address in the overlay until the test ends.
func (p *pair) echo() {
	p.t.Helper()
	var c *net.UDPConn
	nettest.In(p.t, p.ends[1].ns, func() (err error) {
		c, err = net.ListenUDP("udp4", &net.UDPAddr{IP: p.ends[1].overlay.AsSlice(), Port: 7})
		return err
	})
	p.t.Cleanup(func() { c.Close() })
	go func() {
		b := make([]byte, 1<<16)
		for {
			n, from, err := c.ReadFromUDP(b)
			if err != nil {
				return
			}
			_, _ = c.WriteToUDP(b[:n], from) // one that is lost is missed by who waits for it
		}
	}()
}

// dial connects to it from the first host.
func (p *pair) dial() *net.UDPConn {
	p.t.Helper()
	var c *net.UDPConn
	nettest.In(p.t, p.ends[0].ns, func() (err error) {
		c, err = net.DialUDP("udp4", nil, &net.UDPAddr{IP: p.ends[1].overlay.AsSlice(), Port: 7})
		return err
	})
	p.t.Cleanup(func() { c.Close() })
	return c
}

// ask sends a datagram and says whether it was answered in time.
func ask(c *net.UDPConn, limit time.Duration) bool {
	b := []byte("are you there?")
	_ = c.SetDeadline(time.Now().Add(limit))
	if _, err := c.Write(b); err != nil {
		return false
	}
	_, err := c.Read(b)
	return err == nil
}

// flood sends numbered datagrams, a window of a few at a time, until stop; it returns how many were sent and lost.
func flood(c *net.UDPConn, stop <-chan struct{}) (sent, lost int) {
	const window = 8
	got := map[uint32]bool{}
	b := make([]byte, 64)
	await := func(n int, limit time.Time) {
		in := make([]byte, 64)
		for len(got) < n && time.Now().Before(limit) {
			_ = c.SetReadDeadline(limit)
			if k, err := c.Read(in); err == nil && k >= 4 {
				got[binary.BigEndian.Uint32(in)] = true
			}
		}
	}
	for n := 0; ; n++ {
		select {
		case <-stop:
			await(n, time.Now().Add(5*time.Second))
			return n, n - len(got)
		default:
		}
		binary.BigEndian.PutUint32(b, uint32(n))
		_, _ = c.Write(b)
		await(n+1-window, time.Now().Add(time.Second))
	}
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited 20 s for: %s", what)
		}
	}
}
