//go:build linux

package keying

import (
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// udpEncapESP is UDP_ENCAP_ESPINUDP (linux/udp.h): the kernel takes what arrives for ESP (RFC 3948 §2.1).
const udpEncapESP = 2

// OpenEncap opens a UDP port for ESP: a socket for each address family that the host has, since not every kernel takes what
// comes by IPv4 from a socket of both.
func OpenEncap(port uint16) (io.Closer, error) {
	var fds sockets
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if errors.Is(err, unix.EAFNOSUPPORT) {
			continue
		}
		if err != nil {
			return nil, errors.Join(err, fds.Close())
		}
		fds = append(fds, fd)
		if err := bind(fd, family, int(port)); err != nil {
			return nil, errors.Join(err, fds.Close())
		}
	}
	return fds, nil
}

func bind(fd, family, port int) error {
	var at unix.Sockaddr = &unix.SockaddrInet4{Port: port}
	if family == unix.AF_INET6 {
		at = &unix.SockaddrInet6{Port: port}
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
			return err
		}
	}
	if err := unix.Bind(fd, at); err != nil {
		return err
	}
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_ENCAP, udpEncapESP); err != nil {
		return fmt.Errorf("set UDP_ENCAP: %w", err)
	}
	return nil
}

// sockets are closed together.
type sockets []int

// Close implements io.Closer.
func (s sockets) Close() error {
	var errs []error
	for _, fd := range s {
		errs = append(errs, unix.Close(fd))
	}
	return errors.Join(errs...)
}
