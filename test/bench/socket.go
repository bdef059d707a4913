package main

import (
	"errors"
	"fmt"
	"net/netip"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The traffic is made with blocking sockets and plain system calls on threads of its own: Go's network poller would
// move work between threads, and the CPU time of a thread could not be told any more.

// silence is how long a socket waits before the measurement counts as broken.
const silence = 2 * time.Second

// socketIn opens a socket in a host's namespace. It waits for silence at most.
func socketIn(h *host, kind int) (fd int, err error) {
	err = inside(h.ns, func() error { fd, err = socket(kind); return err })
	return fd, err
}

// socket opens one in the namespace of the calling thread.
func socket(kind int) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open a socket: %w", err)
	}
	wait := unix.NsecToTimeval(int64(silence))
	err = errors.Join(
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &wait))
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("set up a socket: %w", err)
	}
	return fd, nil
}

// listener opens a socket in h that waits at addr for connections, or for packets if it is of kind SOCK_DGRAM, and
// returns where.
func listener(h *host, kind int, addr netip.Addr) (fd int, at unix.Sockaddr, err error) {
	if fd, err = socketIn(h, kind); err != nil {
		return -1, nil, err
	}
	err = errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1), // after the last measurement's connections
		unix.Bind(fd, &unix.SockaddrInet4{Addr: addr.As4(), Port: h.port}))
	if err == nil && kind == unix.SOCK_STREAM {
		err = unix.Listen(fd, 1)
	}
	if err == nil {
		at, err = unix.Getsockname(fd)
	}
	if err != nil {
		unix.Close(fd)
		return -1, nil, fmt.Errorf("listen at %s: %w", addr, err)
	}
	return fd, at, nil
}

// connected returns the two ends of a TCP connection from one host to another's address; the client calls via, which is
// the address itself or a virtual one that leads there.
func connected(from, to *host, addr, via netip.Addr) (client, server int, err error) {
	l, at, err := listener(to, unix.SOCK_STREAM, addr)
	if err != nil {
		return -1, -1, err
	}
	defer unix.Close(l)
	if client, err = socketIn(from, unix.SOCK_STREAM); err != nil {
		return -1, -1, err
	}
	err = connect(client, called(at, via))
	if err == nil {
		server, err = accept(l)
	}
	if err != nil {
		unix.Close(client)
		return -1, -1, fmt.Errorf("connect to %s: %w", via, err)
	}
	wait := unix.NsecToTimeval(int64(silence))
	err = errors.Join(
		unix.SetsockoptTimeval(server, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait),
		unix.SetsockoptInt(client, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1),
		unix.SetsockoptInt(server, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1))
	if err != nil {
		unix.Close(client)
		unix.Close(server)
		return -1, -1, fmt.Errorf("set up a connection: %w", err)
	}
	return client, server, nil
}

// connect is unix.Connect, which a signal does not end: the connection is made meanwhile (man 2 connect).
func connect(fd int, to unix.Sockaddr) error {
	err := unix.Connect(fd, to)
	if !errors.Is(err, unix.EINTR) {
		return err
	}
	waiting := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	for errors.Is(err, unix.EINTR) {
		_, err = unix.Poll(waiting, int(silence.Milliseconds()))
	}
	if err != nil {
		return err
	}
	failure, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err == nil && failure != 0 {
		err = unix.Errno(failure)
	}
	return err
}

// accept is unix.Accept4, tried again after a signal.
func accept(listener int) (fd int, err error) {
	for {
		if fd, _, err = unix.Accept4(listener, unix.SOCK_CLOEXEC); !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

// called is the port of at at another address.
func called(at unix.Sockaddr, via netip.Addr) unix.Sockaddr {
	return &unix.SockaddrInet4{Port: at.(*unix.SockaddrInet4).Port, Addr: via.As4()}
}

// mmsghdr is struct mmsghdr of man 2 sendmmsg.
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
	_   [4]byte
}

// A burst is room for several packets that are sent, or received, by one system call: so that the measurement is of the
// packets' way and less of the calls.
type burst struct {
	headers []mmsghdr
	vectors []unix.Iovec
	bytes   []byte
}

// newBurst makes room for count packets of size bytes.
func newBurst(count, size int) *burst {
	b := &burst{
		headers: make([]mmsghdr, count), vectors: make([]unix.Iovec, count), bytes: make([]byte, count*size),
	}
	for i := range b.headers {
		b.vectors[i].Base = &b.bytes[i*size]
		b.vectors[i].SetLen(size)
		b.headers[i].hdr.Iov = &b.vectors[i]
		b.headers[i].hdr.SetIovlen(1)
	}
	return b
}

// send sends the first n packets and returns how many were.
func (b *burst) send(fd, n int) (int, error) { return b.do(unix.SYS_SENDMMSG, fd, n, 0) }

// receive takes what has come, without waiting.
func (b *burst) receive(fd int) (int, error) {
	n, err := b.do(unix.SYS_RECVMMSG, fd, len(b.headers), unix.MSG_DONTWAIT)
	if errors.Is(err, unix.EAGAIN) {
		return 0, nil
	}
	return n, err
}

func (b *burst) do(call uintptr, fd, n, flags int) (int, error) {
	for {
		did, _, errno := unix.Syscall6(
			call, uintptr(fd), uintptr(unsafe.Pointer(&b.headers[0])), uintptr(n), uintptr(flags), 0, 0)
		if errno == 0 {
			return int(did), nil
		}
		if errno != unix.EINTR {
			return 0, errno
		}
	}
}
