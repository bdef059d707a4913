//go:build linux

package nettest

import (
	"errors"
	"net"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/internal/netlink"
)

// In calls f on a thread in a namespace; an error fails the test.
func In(t testing.TB, ns string, f func() error) {
	t.Helper()
	fd, err := netlink.Namespace(ns)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := netlink.In(fd, f); err != nil {
		t.Fatal(err)
	}
}

// listenBuffer is for bursts: what a test counts must not be lost in the test.
const listenBuffer = 64 << 20 // bytes

// Listen hands every packet that a device of a namespace sends or receives to take, from its network header on, until
// the test ends. What take is given is its own until it returns.
func Listen(t testing.TB, ns, device string, take func(packet []byte)) {
	t.Helper()
	var f *os.File
	In(t, ns, func() error {
		link, err := net.InterfaceByName(device)
		if err != nil {
			return err
		}
		const all = unix.ETH_P_ALL>>8 | unix.ETH_P_ALL<<8&0xff00 // in network byte order
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return err
		}
		f = os.NewFile(uintptr(fd), "packets of "+device)
		return errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, listenBuffer),
			unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Index}))
	})
	t.Cleanup(func() { f.Close() })
	go func() {
		b := make([]byte, 1<<17)
		for {
			n, err := f.Read(b)
			if err != nil {
				return
			}
			take(b[:n])
		}
	}()
}

// Send sends IP packets from a device of a namespace to the neighbour with a MAC, as somebody on the wire would.
func Send(t testing.TB, ns, device string, to net.HardwareAddr, packets ...[]byte) {
	t.Helper()
	In(t, ns, func() error {
		link, err := net.InterfaceByName(device)
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		for _, b := range packets {
			kind := uint16(unix.ETH_P_IP)
			if b[0]>>4 == 6 {
				kind = unix.ETH_P_IPV6
			}
			addr := &unix.SockaddrLinklayer{Protocol: kind>>8 | kind<<8, Ifindex: link.Index, Halen: uint8(len(to))}
			copy(addr.Addr[:], to)
			if err := unix.Sendto(fd, b, 0, addr); err != nil {
				return err
			}
		}
		return nil
	})
}
