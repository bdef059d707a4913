//go:build linux

// Package netlink builds and exchanges netlink messages (man 7 netlink). Everything netdriver sends is written here by hand,
// since thousands of entries go into one send and each error must be mapped back to its message.
package netlink

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Message is a netlink message under construction.
type Message struct{ b []byte }

// AppendMessage starts a message at the end of b.
func AppendMessage(b []byte, kind, flags uint16, seq uint32) *Message {
	b = append(b, make([]byte, unix.SizeofNlMsghdr)...)
	m := &Message{b: b}
	h := b[len(b)-unix.SizeofNlMsghdr:]
	binary.NativeEndian.PutUint16(h[4:], kind)
	binary.NativeEndian.PutUint16(h[6:], flags|unix.NLM_F_REQUEST)
	binary.NativeEndian.PutUint32(h[8:], seq)
	return m
}

// Bytes appends the parts as they are, padded to four bytes (NLMSG_ALIGN).
func (m *Message) Bytes(b ...byte) {
	m.b = append(m.b, b...)
	for len(m.b)%unix.NLMSG_ALIGNTO != 0 {
		m.b = append(m.b, 0)
	}
}

// Attr appends an attribute.
func (m *Message) Attr(kind uint16, value ...byte) {
	var h [unix.SizeofRtAttr]byte
	binary.NativeEndian.PutUint16(h[:], uint16(len(h)+len(value)))
	binary.NativeEndian.PutUint16(h[2:], kind)
	m.b = append(m.b, h[:]...)
	m.Bytes(value...)
}

// Text appends an attribute with a string that ends in a zero byte.
func (m *Message) Text(kind uint16, s string) { m.Attr(kind, append([]byte(s), 0)...) }

// U32 appends an attribute with a number in the order of this machine.
func (m *Message) U32(kind uint16, v uint32) {
	m.Attr(kind, binary.NativeEndian.AppendUint32(nil, v)...)
}

// Nest appends an attribute whose value is what inside appends.
func (m *Message) Nest(kind uint16, inside func()) {
	start := len(m.b)
	m.Attr(kind | unix.NLA_F_NESTED)
	inside()
	binary.NativeEndian.PutUint16(m.b[start:], uint16(len(m.b)-start))
}

// Buffer returns what has been appended, for a part that is no message of its own.
func (m *Message) Buffer() []byte { return m.b }

// Finish sets the length of the message that started at offset start and returns the whole buffer.
func (m *Message) Finish(start int) []byte {
	binary.NativeEndian.PutUint32(m.b[start:], uint32(len(m.b)-start))
	return m.b
}

// Attrs calls f for each attribute in b; a nested one's flag is taken off.
func Attrs(b []byte, f func(kind uint16, value []byte)) {
	for len(b) >= unix.SizeofRtAttr {
		size := int(binary.NativeEndian.Uint16(b))
		if size < unix.SizeofRtAttr || size > len(b) {
			return
		}
		f(binary.NativeEndian.Uint16(b[2:])&^uint16(unix.NLA_F_NESTED), b[unix.SizeofRtAttr:size])
		b = b[min(len(b), align(size)):]
	}
}

func align(n int) int { return (n + unix.NLMSG_ALIGNTO - 1) &^ (unix.NLMSG_ALIGNTO - 1) }

// Reply is one received message.
type Reply struct {
	Kind  uint16
	Flags uint16
	Seq   uint32
	Body  []byte // valid until the next one is received
}

// Messages calls f for each message in b.
func Messages(b []byte, f func(Reply)) {
	for len(b) >= unix.SizeofNlMsghdr {
		size := int(binary.NativeEndian.Uint32(b))
		if size < unix.SizeofNlMsghdr || size > len(b) {
			return
		}
		f(Reply{
			Kind: binary.NativeEndian.Uint16(b[4:]), Flags: binary.NativeEndian.Uint16(b[6:]),
			Seq: binary.NativeEndian.Uint32(b[8:]), Body: b[unix.SizeofNlMsghdr:size],
		})
		b = b[min(len(b), align(size)):]
	}
}

// Err returns the error in an NLMSG_ERROR, nil if it is an acknowledgement. The kernel's own words follow the number.
func (r Reply) Err() error {
	if len(r.Body) < 4 {
		return errors.New("netlink: short error message")
	}
	n := -int32(binary.NativeEndian.Uint32(r.Body))
	if n == 0 {
		return nil
	}
	var words string
	// NETLINK_CAP_ACK: only the header of our message is repeated, then the attributes (linux/netlink.h).
	if off := 4 + unix.SizeofNlMsghdr; r.Flags&unix.NLM_F_ACK_TLVS != 0 && len(r.Body) > off {
		Attrs(r.Body[off:], func(kind uint16, v []byte) {
			if kind == unix.NLMSGERR_ATTR_MSG {
				words = unix.ByteSliceToString(v)
			}
		})
	}
	if words != "" {
		return fmt.Errorf("%w (%s)", unix.Errno(n), words)
	}
	return unix.Errno(n)
}

// socketBuffer is the size of both socket buffers, in bytes: a send of 500 endpoints and all its errors must fit.
// Beyond net.core.{r,w}mem_max it needs CAP_NET_ADMIN (man 7 socket, SO_SNDBUFFORCE).
const socketBuffer = 8 << 20

// Socket is a netlink socket in the namespace it was opened in.
type Socket struct {
	mu  sync.Mutex
	fd  int
	seq uint32
	in  []byte
}

// Open opens a socket of a protocol (NETLINK_ROUTE, for example) in the calling thread's namespace.
func Open(protocol int) (*Socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	for _, o := range []struct{ level, name, value int }{
		{unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, socketBuffer},
		{unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, socketBuffer},
		{unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1},
		{unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1},
		// Dumps take filters only then (linux 4.20).
		{unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1},
	} {
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			unix.Close(fd)
			return nil, fmt.Errorf("set option %d of a netlink socket: %w", o.name, err)
		}
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("bind netlink socket: %w", err)
	}
	return &Socket{fd: fd, in: make([]byte, 1<<17)}, nil
}

// Close closes the socket.
func (s *Socket) Close() error { return unix.Close(s.fd) }

// Exchange sends the messages that write appends to its buffer, numbered from first, and calls got for every Reply
// until the last message is answered by an acknowledgement, an error or the end of a dump. write returns the last
// number.
func (s *Socket) Exchange(write func(first uint32) (b []byte, last uint32), got func(Reply)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, last := write(s.seq + 1)
	s.seq = last
	if err := unix.Sendto(s.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("send %d bytes to netlink: %w", len(b), err)
	}
	for done := false; !done; {
		n, _, err := unix.Recvfrom(s.fd, s.in, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("receive from netlink: %w", err)
		}
		Messages(s.in[:n], func(r Reply) {
			ends := r.Kind == unix.NLMSG_ERROR || r.Kind == unix.NLMSG_DONE
			done = done || ends && r.Seq == last
			got(r)
		})
	}
	return nil
}

// Query sends one request and calls got for the body of every answer. Unless it is a dump, which has an end of its own,
// it asks for an acknowledgement to know the end by.
func (s *Socket) Query(kind, flags uint16, fill func(*Message), got func(body []byte)) error {
	if flags&unix.NLM_F_DUMP == 0 {
		flags |= unix.NLM_F_ACK
	}
	var failed error
	err := s.Exchange(func(first uint32) ([]byte, uint32) {
		m := AppendMessage(nil, kind, flags, first)
		fill(m)
		return m.Finish(0), first
	}, func(r Reply) {
		switch {
		case r.Kind == unix.NLMSG_ERROR:
			failed = r.Err()
		case flags&unix.NLM_F_DUMP != 0 && r.Flags&unix.NLM_F_DUMP_INTR != 0:
			failed = unix.EINTR // the dump is inconsistent: something changed meanwhile
		case r.Kind != unix.NLMSG_DONE && got != nil:
			got(r.Body)
		}
	})
	return errors.Join(err, failed)
}

// Subscribe opens a socket that receives what the kernel tells of the given groups (RTNLGRP_LINK, for example), in the
// calling thread's namespace. Its receive buffer has that many bytes. Closing the file ends a Read; one that fails with
// ENOBUFS says that messages were lost.
func Subscribe(protocol, buffer int, groups ...uint32) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket for events: %w", err)
	}
	errs := []error{
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, buffer),
		unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}),
	}
	for _, g := range groups {
		errs = append(errs, unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, int(g)))
	}
	if err := errors.Join(errs...); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("subscribe to netlink events: %w", err)
	}
	return os.NewFile(uintptr(fd), "netlink events"), nil // non-blocking: Close ends a Read
}
