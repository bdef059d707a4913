package capture

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/dataplane"
	"github.com/netdriver/netdriver/diag/host"
	"github.com/netdriver/netdriver/vxlan"
)

const (
	// MaxTime bounds how long a node captures for one question.
	MaxTime = time.Hour
	// maxPorts is how many ports a node looks at, and buffers the memory in bytes that their sockets share. A socket has
	// room for some of the largest frames at least, of 64 KiB when the kernel cuts them late (GSO).
	maxPorts  = 256
	buffers   = 32 << 20
	minBuffer = 256 << 10
	// maxFrame is the largest frame: 64 KiB and an Ethernet header.
	maxFrame = 1<<16 + etherSize
	// round is how much is read in one go, in bytes, so that frames come in time order soon, and all ports have their turn.
	round = 1 << 20
	// beat is how often a node says how far it is if nothing comes, and lookAgain how often it looks for new ports.
	beat      = 100 * time.Millisecond
	lookAgain = time.Second
	// settle is how long a frame may be on its way from where it is stamped to the socket: through a CPU's backlog queue
	// (net/core/dev.c, netdev_tstamp_prequeue).
	settle = 10 * time.Millisecond
)

// ErrQuestion is wrapped by the error about a question that is not to be answered.
var ErrQuestion = errors.New("impossible question")

// Question is what a node is asked to capture. It needs no record to do so.
type Question struct {
	Network string    `json:"network"`
	VNI     vxlan.VNI `json:"vni"`
	// Endpoints are the ids of those whose ports are looked at; empty: all of the network, also those that come meanwhile.
	Endpoints []string `json:"endpoints,omitempty"`
	// Filter is what Compile returns.
	Filter []bpf.RawInstruction `json:"filter"`
	// Seconds is how long.
	Seconds int `json:"seconds"`
}

// Check bounds what a node does for who asks.
func (q Question) Check() error {
	if q.Seconds < 1 || time.Duration(q.Seconds)*time.Second > MaxTime || len(q.Filter) < 1 || len(q.Filter) > maxProgram || len(q.Endpoints) > maxPorts {
		return fmt.Errorf("%w: %d s, %d instructions, %d endpoints; at most %d, %d and %d are allowed", ErrQuestion,
			q.Seconds, len(q.Filter), len(q.Endpoints), int(MaxTime.Seconds()), maxProgram, maxPorts)
	}
	return nil
}

// Port is where frames are read: the node's end of an endpoint's veth pair.
type Port struct {
	Endpoint string `json:"endpoint"`
	Device   string `json:"device"`
	MTU      int    `json:"mtu"`
}

// Packet is one frame at a port.
type Packet struct {
	// Port is its number, in the order in which the node has told of them.
	Port int `json:"port"`
	// Time is when the kernel had it, in nanoseconds since 1970 by the node's clock.
	Time int64 `json:"time"`
	// Sent: the container sent it, rather than being sent it.
	Sent bool `json:"sent,omitempty"`
	// Length is the whole frame's in bytes, of which Data is as much as was asked for.
	Length int    `json:"length"`
	Data   []byte `json:"data"`
}

// Batch is a part of what a node has captured.
type Batch struct {
	// Ports are new ones.
	Ports []Port `json:"ports,omitempty"`
	// Packets are in time order, and not before those of the batches before.
	Packets []Packet `json:"packets,omitempty"`
	// Until is the time up to which the node has told all.
	Until int64 `json:"until"`
	// Lost is how many passed the filter, by port, for which there was no room, since the batch before.
	Lost map[int]uint64 `json:"lost,omitempty"`
	// Note says what else the reader should know.
	Note string `json:"note,omitempty"`
}

// Node captures on this host.
type Node struct {
	// RunDir has netdriver's namespace.
	RunDir string
}

// Run answers a question until ctx ends, the time is over or emit fails.
func (n Node) Run(ctx context.Context, q Question, emit func(Batch) error) error {
	if err := q.Check(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(q.Seconds)*time.Second)
	defer cancel()
	if !dataplane.Exists(n.RunDir) {
		return fmt.Errorf("capture network %s: this host has no namespace of netdriver in %s: no daemon has run since it booted", q.Network, n.RunDir)
	}
	space, err := host.Open(dataplane.NamespaceIn(n.RunDir))
	if err != nil {
		return err
	}
	defer space.Close()
	t := &taps{question: q, space: space, frame: make([]byte, maxFrame), control: make([]byte, 256)}
	defer t.close()
	for ctx.Err() == nil {
		b := Batch{}
		if err := t.look(&b); err != nil {
			return err
		}
		t.read(&b, settle)
		if err := emit(b); err != nil {
			return err
		}
	}
	last := Batch{}
	t.read(&last, 0)
	return emit(last)
}

// taps are the packet sockets of one question.
type taps struct {
	question Question
	space    *host.Space
	looked   time.Time
	ports    []tap
	// later are frames that came while others were read: they are told when nothing older can come any more.
	later          []Packet
	frame, control []byte
	crowded        bool
}

type tap struct {
	Port
	index int
	fd    int // -1 when the port has gone
}

// look finds new ports, and gives up those that are gone.
func (t *taps) look(b *Batch) error {
	if time.Since(t.looked) < lookAgain {
		return nil
	}
	t.looked = time.Now()
	links, err := t.space.Links()
	if err != nil {
		return err
	}
	var present []host.Link
	for _, l := range links {
		id, network, ours := dataplane.EndpointOf(l.Name, l.Alias)
		if ours && network == t.question.Network && (len(t.question.Endpoints) == 0 || slices.Contains(t.question.Endpoints, id)) {
			present = append(present, l)
		}
	}
	open := 0
	for i := range t.ports {
		p := &t.ports[i]
		there := slices.ContainsFunc(present, func(l host.Link) bool { return l.Index == p.index })
		if p.fd >= 0 && !there {
			unix.Close(p.fd)
			p.fd = -1
		}
		if p.fd >= 0 {
			open++
		}
	}
	for _, l := range present {
		if slices.ContainsFunc(t.ports, func(p tap) bool { return p.fd >= 0 && p.index == l.Index }) {
			continue
		}
		if open++; open > maxPorts {
			if !t.crowded {
				t.crowded = true
				b.Note = fmt.Sprintf("only %d of its ports are captured: name an endpoint to see others", maxPorts)
			}
			return nil
		}
		if err := t.open(l, len(present)); err != nil {
			continue // it has gone meanwhile; if not, the next look says the same
		}
		b.Ports = append(b.Ports, t.ports[len(t.ports)-1].Port)
	}
	return nil
}

// open taps a port, one of so many.
func (t *taps) open(l host.Link, of int) error {
	id, _, _ := dataplane.EndpointOf(l.Name, l.Alias)
	filter := make([]unix.SockFilter, len(t.question.Filter))
	for i, r := range t.question.Filter {
		filter[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	fd, err := host.Tap(host.Point{Place: id, Space: t.space, Link: l}, filter)
	if err != nil {
		return err
	}
	room := max(buffers/max(of, 8), minBuffer)
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, room),
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1),
	)
	if err != nil {
		return errors.Join(err, unix.Close(fd))
	}
	t.ports = append(t.ports, tap{Port{id, l.Name, l.MTU}, l.Index, fd})
	return nil
}

// read waits for frames and takes what there is, as far as it is older than settled.
func (t *taps) read(b *Batch, settled time.Duration) {
	polls := make([]unix.PollFd, 0, len(t.ports))
	for _, p := range t.ports {
		polls = append(polls, unix.PollFd{Fd: int32(p.fd), Events: unix.POLLIN}) // a negative one is skipped (man 2 poll)
	}
	wait := beat
	if settled == 0 || len(t.later) > 0 {
		wait = settled
	}
	_, _ = unix.Poll(polls, int(wait/time.Millisecond)) // interrupted or not: what is there is read
	until := time.Now().Add(-settled).UnixNano()
	left := round
	all := t.later
	for i := range polls {
		if polls[i].Revents == 0 {
			continue
		}
		share := max(left/(len(polls)-i), maxFrame)
		packets, whole := t.drain(i, share)
		for _, p := range packets {
			left -= len(p.Data)
		}
		if last := len(packets) - 1; !whole && last >= 0 {
			until = min(until, packets[last].Time) // there is more, which may be older than what others had
		}
		all = append(all, packets...)
		if lost := t.lost(i); lost > 0 {
			if b.Lost == nil {
				b.Lost = map[int]uint64{}
			}
			b.Lost[i] = lost
		}
	}
	slices.SortStableFunc(all, func(x, y Packet) int { return cmp.Compare(x.Time, y.Time) })
	n, _ := slices.BinarySearchFunc(all, until, func(p Packet, until int64) int { return cmp.Compare(p.Time, until+1) })
	b.Packets, t.later, b.Until = all[:n], slices.Clone(all[n:]), until
}

// drain reads a port's frames, until there are no more (whole) or more than share bytes.
func (t *taps) drain(i, share int) (out []Packet, whole bool) {
	for share > 0 {
		n, oob, flags, from, err := unix.Recvmsg(t.ports[i].fd, t.frame, t.control, unix.MSG_TRUNC)
		if err != nil {
			return out, true // there is no more, or the port has gone
		}
		ll, _ := from.(*unix.SockaddrLinklayer)
		if ll == nil || flags&unix.MSG_CTRUNC != 0 {
			continue
		}
		p := Packet{
			Port: i, Time: host.Stamp(t.control[:oob]).UnixNano(), Sent: ll.Pkttype != unix.PACKET_OUTGOING, Length: n,
			Data: slices.Clone(t.frame[:min(n, len(t.frame))]),
		}
		p.complete(t.control[:oob])
		share -= len(p.Data)
		out = append(out, p)
	}
	return out, false
}

// complete puts back what the kernel took off the frame: what a filter cut is in its length, and a VLAN tag beside it
// (struct tpacket_auxdata of linux/if_packet.h).
func (p *Packet) complete(control []byte) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return
	}
	for _, m := range messages {
		if m.Header.Level != unix.SOL_PACKET || m.Header.Type != unix.PACKET_AUXDATA || len(m.Data) < int(unsafe.Sizeof(unix.TpacketAuxdata{})) {
			continue
		}
		a := *(*unix.TpacketAuxdata)(unsafe.Pointer(&m.Data[0]))
		p.Length = max(int(a.Len), len(p.Data))
		if a.Status&unix.TP_STATUS_VLAN_VALID != 0 && len(p.Data) >= offType {
			tpid := uint16(unix.ETH_P_8021Q)
			if a.Status&unix.TP_STATUS_VLAN_TPID_VALID != 0 {
				tpid = a.Vlan_tpid
			}
			tag := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, tpid), a.Vlan_tci)
			p.Data = slices.Insert(p.Data, offType, tag...)
			p.Length += len(tag)
		}
	}
}

// lost is how many frames found no room since it was last asked; asking sets the kernel's count to 0.
func (t *taps) lost(i int) uint64 {
	st, err := unix.GetsockoptTpacketStats(t.ports[i].fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		return 0
	}
	return uint64(st.Drops)
}

func (t *taps) close() {
	for _, p := range t.ports {
		if p.fd >= 0 {
			unix.Close(p.fd)
		}
	}
}
