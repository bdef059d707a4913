package host

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/dataplane/discovery"
	nl "github.com/netdriver/netdriver/internal/netlink"
	"github.com/netdriver/netdriver/vxlan"
)

// askEvery is the time between two questions, askTimes how many there are: one may be lost.
const (
	askEvery = 80 * time.Millisecond
	askTimes = 3
)

// Holders asks on a device who has an address, by ARP or neighbour discovery, as one who has no address himself (RFC 5227
// §1.1, RFC 4862 §5.4.2): nobody learns anything by it. It returns the MACs of all who answer within a quarter of a second.
func (s *Space) Holders(device Link, a netip.Addr) ([]vxlan.MAC, error) {
	var fd int
	err := nl.In(s.fd, func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open a packet socket: %w", err)
	}
	defer unix.Close(fd)
	err = errors.Join(
		unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP,
			&unix.PacketMreq{Ifindex: int32(device.Index), Type: unix.PACKET_MR_ALLMULTI}),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: ethAll(), Ifindex: device.Index}))
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", device.Name, err)
	}
	var out []vxlan.MAC
	for range askTimes {
		question := discovery.Probe(a, device.MAC)
		if err := unix.Sendto(fd, question, 0, &unix.SockaddrLinklayer{Ifindex: device.Index}); err != nil {
			return out, fmt.Errorf("ask on %s: %w", device.Name, err)
		}
		out = hear(fd, a, out)
	}
	return out, nil
}

// hear collects answers for a while.
func hear(fd int, a netip.Addr, out []vxlan.MAC) []vxlan.MAC {
	frame := make([]byte, 2048)
	for end := time.Now().Add(askEvery); time.Now().Before(end); {
		left := int(time.Until(end).Milliseconds()) + 1
		if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, left); err != nil {
			continue // interrupted
		}
		n, from, err := unix.Recvfrom(fd, frame, 0)
		if l, ok := from.(*unix.SockaddrLinklayer); err != nil || !ok || l.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		if mac, found := discovery.Holder(frame[:n], a); found && !slices.Contains(out, mac) {
			out = append(out, mac)
		}
	}
	return out
}
