//go:build linux

package lan

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/dataplane/discovery"
	"github.com/netdriver/netdriver/vxlan"
)

// A probe is sent probes times, probeEvery apart, and the last one may be answered for probeWait. RFC 5227 §1.1 takes
// seconds, for links that are slow to come up and for hosts that sleep; a container's start should not.
const (
	probes     = 3
	probeEvery = 60 * time.Millisecond
	probeWait  = 120 * time.Millisecond
)

// Probe implements Kernel. It asks from the parent itself, whose MAC the answers go to.
func (l *Linux) Probe(ctx context.Context, device string, a netip.Addr) (holder vxlan.MAC, found bool, err error) {
	link, err := l.h.LinkByName(device)
	if err != nil {
		return holder, false, fmt.Errorf("find %s: %w", device, err)
	}
	fd := -1
	if err := within(l.host, func() (err error) { fd, err = listen(link.Attrs().Index); return err }); err != nil {
		return holder, false, fmt.Errorf("listen on %s: %w", device, err)
	}
	defer unix.Close(fd)
	question := discovery.Probe(a, macOf(link))
	for range probes {
		if err := send(fd, link.Attrs().Index, question); err != nil {
			return holder, false, fmt.Errorf("ask on %s: %w", device, err)
		}
		if holder, found, err = hear(ctx, fd, a, probeEvery); found || err != nil {
			return holder, found, err
		}
	}
	return hear(ctx, fd, a, probeWait-probeEvery)
}

// listen opens a packet socket on a device that takes ARP and neighbour advertisements only, ours excepted.
func listen(index int) (int, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, err
	}
	filter := answersOnly()
	all := uint16(unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8) // network byte order; before macvlan takes frames away
	err = errors.Join(
		unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}),
		unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP,
			&unix.PacketMreq{Ifindex: int32(index), Type: unix.PACKET_MR_ALLMULTI}),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: index}))
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// answersOnly is a classic filter (man 7 packet, linux/filter.h): untagged frames of ARP, and of ICMPv6 of type 136.
func answersOnly() []unix.SockFilter {
	const (
		tagged    = 1<<32 - 0x1000 + 48 // SKF_AD_OFF + SKF_AD_VLAN_TAG_PRESENT
		word      = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		half, byt = unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, unix.BPF_LD | unix.BPF_B | unix.BPF_ABS
		equal     = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		ret       = unix.BPF_RET | unix.BPF_K
	)
	return []unix.SockFilter{
		{Code: word, K: tagged}, // another VLAN's
		{Code: equal, K: 0, Jf: 8},
		{Code: half, K: 12},
		{Code: equal, K: unix.ETH_P_ARP, Jt: 5},
		{Code: equal, K: unix.ETH_P_IPV6, Jf: 5},
		{Code: byt, K: 20},
		{Code: equal, K: unix.IPPROTO_ICMPV6, Jf: 3},
		{Code: byt, K: 54},
		{Code: equal, K: 136, Jf: 1},
		{Code: ret, K: 256},
		{Code: ret},
	}
}

func send(fd, index int, b []byte) error {
	return unix.Sendto(fd, b, 0, &unix.SockaddrLinklayer{Ifindex: index})
}

// hear reads frames for a while.
func hear(ctx context.Context, fd int, a netip.Addr, wait time.Duration) (mac vxlan.MAC, found bool, err error) {
	b := make([]byte, 2048)
	for end := time.Now().Add(wait); ; {
		left := time.Until(end)
		if left <= 0 || ctx.Err() != nil {
			return mac, false, context.Cause(ctx)
		}
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(left.Milliseconds())+1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return mac, false, fmt.Errorf("wait for an answer: %w", err)
		}
		n, from, err := unix.Recvfrom(fd, b, 0)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			continue
		}
		if errors.Is(err, unix.ENETDOWN) {
			return mac, false, ErrDown
		}
		if err != nil {
			return mac, false, fmt.Errorf("receive: %w", err)
		}
		if l, ok := from.(*unix.SockaddrLinklayer); ok && l.Pkttype == unix.PACKET_OUTGOING {
			continue // what this host sends itself
		}
		if mac, found = discovery.Holder(b[:n], a); found {
			return mac, true, nil
		}
	}
}

// Announce implements Kernel. It is sent through the interface itself, so that neighbours on this host hear it, too.
func (l *Linux) Announce(_ context.Context, p Port) error {
	tell := func(ns netns.NsHandle, h *netlink.Handle) error {
		link, err := findPort(h, p.Endpoint)
		if err != nil {
			return err
		}
		if link == nil || link.Attrs().RawFlags&unix.IFF_UP == 0 {
			return ErrNotThere
		}
		return within(ns, func() error { return announce(link.Attrs().Index, macOf(link), p.Addresses) })
	}
	if p.Sandbox == "" {
		return tell(l.host, l.h)
	}
	exists, err := inSandbox(p.Sandbox, tell)
	if err == nil && !exists {
		return ErrNotThere
	}
	return err
}

func announce(index int, mac vxlan.MAC, addrs []netip.Prefix) error {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0) // receives nothing (man 7 packet)
	if err != nil {
		return fmt.Errorf("open a packet socket: %w", err)
	}
	defer unix.Close(fd)
	for _, a := range addrs {
		if err := send(fd, index, discovery.Announcement(a.Addr(), mac)); err != nil {
			return fmt.Errorf("announce %s: %w", a.Addr(), err)
		}
	}
	return nil
}
