//go:build linux

package proof

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/internal/netlink"
)

const (
	// snap is how much of a packet is kept: more than the headers before a mark.
	snap = 256
	// buffer is what may wait to be looked at, in bytes.
	buffer = 16 << 20
	// glance is how often the watcher looks whether it shall stop.
	glance = 50 * time.Millisecond
)

// networkOrder is a protocol number as packet sockets want it.
func networkOrder(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}

// send sends frames by the network's VXLAN device, as if its bridge did.
func send(ctx context.Context, n Network, all [][]byte) error {
	ns, err := netlink.Namespace(n.Namespace)
	if err != nil {
		return err
	}
	defer unix.Close(ns)
	fd := -1
	var device *net.Interface
	err = netlink.In(ns, func() (err error) {
		if device, err = net.InterfaceByName(n.Device); err != nil {
			return fmt.Errorf("device %s: %w", n.Device, err)
		}
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0) // protocol 0: it receives nothing
		return err
	})
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	to := &unix.SockaddrLinklayer{Protocol: networkOrder(etherType), Ifindex: device.Index}
	for _, frame := range all {
		if err := unix.Sendto(fd, frame, 0, to); err != nil && !errors.Is(err, unix.ENOBUFS) {
			return fmt.Errorf("send by %s: %w", n.Device, err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
	return nil
}

// watcher keeps what leaves this host's devices.
type watcher struct {
	fd      int
	quit    chan struct{}
	done    chan error
	packets []packet
	names   map[int]string
}

// watch begins to watch all devices of the process's own network namespace, so that it does not matter by which one a packet
// leaves.
func watch() (*watcher, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(networkOrder(unix.ETH_P_ALL)))
	if err != nil {
		return nil, err
	}
	timeout := unix.NsecToTimeval(int64(glance))
	err = errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, buffer),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout))
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	w := &watcher{fd: fd, quit: make(chan struct{}), done: make(chan error, 1), names: map[int]string{}}
	go func() { w.done <- w.run() }()
	return w, nil
}

func (w *watcher) run() error {
	b := make([]byte, snap)
	for {
		select {
		case <-w.quit:
			return nil
		default:
		}
		n, from, err := unix.Recvfrom(w.fd, b, 0)
		switch {
		case errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) || errors.Is(err, unix.ENETDOWN):
			continue
		case err != nil:
			return err
		}
		at, ok := from.(*unix.SockaddrLinklayer)
		if !ok || at.Pkttype != unix.PACKET_OUTGOING || at.Hatype == unix.ARPHRD_LOOPBACK {
			continue
		}
		w.packets = append(w.packets, packet{append([]byte(nil), b[:n]...), w.name(at.Ifindex)})
	}
}

func (w *watcher) name(index int) string {
	if w.names[index] == "" {
		w.names[index] = fmt.Sprintf("device %d", index)
		if i, err := net.InterfaceByIndex(index); err == nil {
			w.names[index] = i.Name
		}
	}
	return w.names[index]
}

// stop ends the watch and returns what was seen, and how much was not.
func (w *watcher) stop() ([]packet, uint32, error) {
	close(w.quit)
	err := <-w.done
	stats, statErr := unix.GetsockoptTpacketStats(w.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err = errors.Join(err, statErr, unix.Close(w.fd)); err != nil {
		return nil, 0, err
	}
	return w.packets, stats.Drops, nil
}
