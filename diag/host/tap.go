package host

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	nl "github.com/netdriver/netdriver/internal/netlink"
)

// Point is a device at which marked frames are looked for.
type Point struct {
	// Place is what the trace calls it.
	Place string
	Space *Space
	Link  Link
}

// Sighting is one marked frame at one point.
type Sighting struct {
	Place string `json:"place"`
	// Out: the host was sending it through the device, rather than receiving it.
	Out bool `json:"out"`
	// Reply: it is the answer of the destination's kernel.
	Reply    bool      `json:"reply"`
	Sequence uint16    `json:"sequence"`
	Size     int       `json:"size"` // of the inner IP packet, in bytes
	Cut      bool      `json:"cut"`  // the packet around it was fragmented
	At       time.Time `json:"at"`   // by the host's clock
}

// tokenAt are the places of the token in a frame: behind the headers of a frame between containers, and that behind those
// of VXLAN over IPv4 or IPv6, on a device with an Ethernet header or without one.
func tokenAt() []int {
	const outer4, outer6 = 50, 70
	var at []int
	for _, inner := range []int{etherSize + ip4Size + icmpSize, etherSize + ip6Size + icmpSize} {
		at = append(at, inner, inner+outer4, inner+outer6, inner+outer4-etherSize, inner+outer6-etherSize)
	}
	slices.Sort(at)
	return slices.Compact(at)
}

// filter is a classic BPF program that passes what has the token at one of its places (man 7 socket, SO_ATTACH_FILTER).
// Reading behind a frame's end drops it, so the places are ascending.
func filter(t Token) []unix.SockFilter {
	const load, equal, give = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, unix.BPF_RET | unix.BPF_K
	at := tokenAt()
	var p []unix.SockFilter
	for i, o := range at {
		p = append(p, unix.SockFilter{Code: load, K: uint32(o)},
			unix.SockFilter{Code: equal, Jt: uint8(2*(len(at)-1-i) + 1), K: binary.BigEndian.Uint32(t[:])})
	}
	return append(p, unix.SockFilter{Code: give}, unix.SockFilter{Code: give, K: 0xffff})
}

// Watch looks for frames with a token at several points until it is closed.
type Watch struct {
	token  Token
	points []Point
	fds    []int
	stop   chan struct{}
	done   chan struct{}

	mu   sync.Mutex
	seen []Sighting
}

// Watching begins to look. Points whose device vanished meanwhile are an error.
func Watching(token Token, points []Point) (*Watch, error) {
	w := &Watch{token: token, points: points, stop: make(chan struct{}), done: make(chan struct{})}
	for _, p := range points {
		fd, err := Tap(p, filter(token))
		if err != nil {
			w.closeAll()
			return nil, err
		}
		w.fds = append(w.fds, fd)
	}
	go w.run()
	return w, nil
}

// Tap opens a packet socket that hears what a filter lets through at a point, and when (Stamp). It does not block.
func Tap(p Point, filter []unix.SockFilter) (fd int, err error) {
	err = nl.In(p.Space.fd, func() error {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		return err
	})
	if err != nil {
		return -1, fmt.Errorf("open a packet socket to look at %s: %w", p.Link.Name, err)
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	err = errors.Join(
		unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &program),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: ethAll(), Ifindex: p.Link.Index}),
	)
	if err != nil {
		return -1, errors.Join(fmt.Errorf("look at %s: %w", p.Link.Name, err), unix.Close(fd))
	}
	return fd, nil
}

// ethAll is ETH_P_ALL in network order.
func ethAll() uint16 { return unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8 }

func (w *Watch) run() {
	defer close(w.done)
	polls := make([]unix.PollFd, len(w.fds))
	for i, fd := range w.fds {
		polls[i] = unix.PollFd{Fd: int32(fd), Events: unix.POLLIN}
	}
	const pause = 20 // milliseconds, between looks at stop
	for {
		select {
		case <-w.stop:
			return
		default:
		}
		if n, err := unix.Poll(polls, pause); err != nil || n == 0 {
			continue
		}
		for i := range polls {
			if polls[i].Revents != 0 {
				w.drain(i)
			}
		}
	}
}

// drain reads what a tap has.
func (w *Watch) drain(i int) {
	frame, control := make([]byte, 1<<16), make([]byte, 256)
	for {
		n, oob, _, from, err := unix.Recvmsg(w.fds[i], frame, control, 0)
		if err != nil {
			return // there is no more, or the device has gone
		}
		ll, _ := from.(*unix.SockaddrLinklayer)
		if s, ok := w.read(frame[:n]); ok && ll != nil {
			s.Place, s.Out, s.At = w.points[i].Place, ll.Pkttype == unix.PACKET_OUTGOING, Stamp(control[:oob])
			w.mu.Lock()
			w.seen = append(w.seen, s)
			w.mu.Unlock()
		}
	}
}

// read finds the token in a frame, and what stands before it.
func (w *Watch) read(f []byte) (Sighting, bool) {
	for _, o := range tokenAt() {
		if len(f) < o+len(w.token) || Token(f[o:o+len(w.token)]) != w.token {
			continue
		}
		s := Sighting{Sequence: binary.BigEndian.Uint16(f[o-2:]), Reply: f[o-icmpSize] == 0 || f[o-icmpSize] == 129}
		if four := o - icmpSize - ip4Size; f[four]>>4 == 4 {
			s.Size = int(binary.BigEndian.Uint16(f[four+2:]))
		} else if six := o - icmpSize - ip6Size; six >= 0 {
			s.Size = ip6Size + int(binary.BigEndian.Uint16(f[six+4:]))
		}
		const more = 0x20 // "more fragments" in an IPv4 header (RFC 791 §3.1)
		s.Cut = o > 90 && f[12] == 8 && f[13] == 0 && f[etherSize+6]&more != 0
		return s, true
	}
	return Sighting{}, false
}

// Stamp finds the kernel's time of a frame in what Recvmsg returned beside it.
func Stamp(control []byte) time.Time {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return time.Now()
	}
	for _, m := range messages {
		if m.Header.Type == unix.SCM_TIMESTAMPNS && len(m.Data) >= int(unsafe.Sizeof(unix.Timespec{})) {
			ts := *(*unix.Timespec)(unsafe.Pointer(&m.Data[0]))
			return time.Unix(ts.Unix()).UTC()
		}
	}
	return time.Now()
}

// Seen returns the sightings so far, in time order.
func (w *Watch) Seen() []Sighting {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := slices.Clone(w.seen)
	slices.SortStableFunc(out, func(a, b Sighting) int { return a.At.Compare(b.At) })
	return out
}

// Close ends the watch.
func (w *Watch) Close() {
	close(w.stop)
	<-w.done
	w.closeAll()
}

func (w *Watch) closeAll() {
	for _, fd := range w.fds {
		unix.Close(fd)
	}
}

// Send sends frames out of a device, as the kernel of its namespace would.
func Send(at Point, frames ...[]byte) error {
	var fd int
	err := nl.In(at.Space.fd, func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return fmt.Errorf("open a packet socket: %w", err)
	}
	defer unix.Close(fd)
	for _, f := range frames {
		to := &unix.SockaddrLinklayer{Ifindex: at.Link.Index, Halen: 6, Protocol: binary.NativeEndian.Uint16(f[12:14])}
		copy(to.Addr[:], f[:6])
		if err := unix.Sendto(fd, f, 0, to); err != nil {
			return fmt.Errorf("send a probe of %d bytes through %s: %w", len(f)-etherSize, at.Link.Name, err)
		}
	}
	return nil
}
