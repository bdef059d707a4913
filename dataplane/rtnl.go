//go:build linux

package dataplane

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// message is a netlink message under construction (man 7 netlink). Everything netdriver sends is written here by hand,
// since thousands of entries go into one send and each error must be mapped back to its message.
type message struct{ b []byte }

// appendMessage starts a message at the end of b.
func appendMessage(b []byte, kind, flags uint16, seq uint32) *message {
	b = append(b, make([]byte, unix.SizeofNlMsghdr)...)
	m := &message{b: b}
	h := b[len(b)-unix.SizeofNlMsghdr:]
	binary.NativeEndian.PutUint16(h[4:], kind)
	binary.NativeEndian.PutUint16(h[6:], flags|unix.NLM_F_REQUEST)
	binary.NativeEndian.PutUint32(h[8:], seq)
	return m
}

// bytes appends the parts as they are, padded to four bytes (NLMSG_ALIGN).
func (m *message) bytes(b ...byte) {
	m.b = append(m.b, b...)
	for len(m.b)%unix.NLMSG_ALIGNTO != 0 {
		m.b = append(m.b, 0)
	}
}

// link appends a struct ifinfomsg (linux/rtnetlink.h).
func (m *message) link(family uint8, index int32, flags, change uint32) {
	b := make([]byte, unix.SizeofIfInfomsg)
	b[0] = family
	binary.NativeEndian.PutUint32(b[4:], uint32(index))
	binary.NativeEndian.PutUint32(b[8:], flags)
	binary.NativeEndian.PutUint32(b[12:], change)
	m.bytes(b...)
}

// neigh appends a struct ndmsg (linux/neighbour.h).
func (m *message) neigh(family uint8, index int32, state uint16, flags uint8) {
	b := make([]byte, unix.SizeofNdMsg)
	b[0] = family
	binary.NativeEndian.PutUint32(b[4:], uint32(index))
	binary.NativeEndian.PutUint16(b[8:], state)
	b[10] = flags
	m.bytes(b...)
}

// attr appends an attribute.
func (m *message) attr(kind uint16, value ...byte) {
	var h [unix.SizeofRtAttr]byte
	binary.NativeEndian.PutUint16(h[:], uint16(len(h)+len(value)))
	binary.NativeEndian.PutUint16(h[2:], kind)
	m.b = append(m.b, h[:]...)
	m.bytes(value...)
}

func (m *message) text(kind uint16, s string) { m.attr(kind, append([]byte(s), 0)...) }

func (m *message) u32(kind uint16, v uint32) {
	m.attr(kind, binary.NativeEndian.AppendUint32(nil, v)...)
}

// nest appends an attribute whose value is what inside appends.
func (m *message) nest(kind uint16, inside func()) {
	start := len(m.b)
	m.attr(kind | unix.NLA_F_NESTED)
	inside()
	binary.NativeEndian.PutUint16(m.b[start:], uint16(len(m.b)-start))
}

// finish sets the length of the message that started at offset start and returns the whole buffer.
func (m *message) finish(start int) []byte {
	binary.NativeEndian.PutUint32(m.b[start:], uint32(len(m.b)-start))
	return m.b
}

// attrs calls f for each attribute in b; a nested one's flag is taken off.
func attrs(b []byte, f func(kind uint16, value []byte)) {
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

// reply is one received message.
type reply struct {
	kind  uint16
	flags uint16
	seq   uint32
	body  []byte // valid until the next one is received
}

// messages calls f for each message in b.
func messages(b []byte, f func(reply)) {
	for len(b) >= unix.SizeofNlMsghdr {
		size := int(binary.NativeEndian.Uint32(b))
		if size < unix.SizeofNlMsghdr || size > len(b) {
			return
		}
		f(reply{
			kind: binary.NativeEndian.Uint16(b[4:]), flags: binary.NativeEndian.Uint16(b[6:]),
			seq: binary.NativeEndian.Uint32(b[8:]), body: b[unix.SizeofNlMsghdr:size],
		})
		b = b[min(len(b), align(size)):]
	}
}

// err returns the error in an NLMSG_ERROR, nil if it is an acknowledgement. The kernel's own words follow the number.
func (r reply) err() error {
	if len(r.body) < 4 {
		return errors.New("netlink: short error message")
	}
	n := -int32(binary.NativeEndian.Uint32(r.body))
	if n == 0 {
		return nil
	}
	var words string
	// NETLINK_CAP_ACK: only the header of our message is repeated, then the attributes (linux/netlink.h).
	if off := 4 + unix.SizeofNlMsghdr; r.flags&unix.NLM_F_ACK_TLVS != 0 && len(r.body) > off {
		attrs(r.body[off:], func(kind uint16, v []byte) {
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

// socket is a route netlink socket in the namespace it was opened in.
type socket struct {
	mu  sync.Mutex
	fd  int
	seq uint32
	in  []byte
}

// newSocket opens a socket in the calling thread's namespace.
func newSocket() (*socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
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
	return &socket{fd: fd, in: make([]byte, 1<<17)}, nil
}

func (s *socket) close() error { return unix.Close(s.fd) }

// exchange sends the messages that write appends to its buffer, numbered from first, and calls got for every reply
// until the last message is answered by an acknowledgement, an error or the end of a dump. write returns the last
// number.
func (s *socket) exchange(write func(first uint32) (b []byte, last uint32), got func(reply)) error {
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
		messages(s.in[:n], func(r reply) {
			ends := r.kind == unix.NLMSG_ERROR || r.kind == unix.NLMSG_DONE
			done = done || ends && r.seq == last
			got(r)
		})
	}
	return nil
}

// query sends one request and calls got for the body of every answer. Unless it is a dump, which has an end of its own,
// it asks for an acknowledgement to know the end by.
func (s *socket) query(kind, flags uint16, fill func(*message), got func(body []byte)) error {
	if flags&unix.NLM_F_DUMP == 0 {
		flags |= unix.NLM_F_ACK
	}
	var failed error
	err := s.exchange(func(first uint32) ([]byte, uint32) {
		m := appendMessage(nil, kind, flags, first)
		fill(m)
		return m.finish(0), first
	}, func(r reply) {
		switch {
		case r.kind == unix.NLMSG_ERROR:
			failed = r.err()
		case flags&unix.NLM_F_DUMP != 0 && r.flags&unix.NLM_F_DUMP_INTR != 0:
			failed = unix.EINTR // the dump is inconsistent: something changed meanwhile
		case r.kind != unix.NLMSG_DONE && got != nil:
			got(r.body)
		}
	})
	return errors.Join(err, failed)
}
