// Package proof finds out what really leaves this host: it sends marked frames through a network to every other node that has
// it, looks at each packet that leaves any of the host's devices meanwhile, and counts which of the marks went out in clear and
// which frames went out as ESP.
//
// A mark is random, so a packet that has it is one of ours, whatever else is on the wire. Of an encrypted packet only the
// length can be told: the frames have lengths in a random order, and what has to be found is that order.
package proof

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"slices"
	"time"

	"github.com/netdriver/netdriver/vxlan"
)

const (
	// etherType is one of those for local experiments (IEEE 802, 9.2.4): no host has a use for it.
	etherType = 0x88b5
	// MaxProbes are as many as there are lengths for within the least MTU that a network with IPv6 has.
	MaxProbes = 250
	// pause between two frames keeps them in order and the queues short; linger is how long packets may be on their way out.
	pause  = 3 * time.Millisecond
	linger = 300 * time.Millisecond
)

// destination is a group address that bridges keep to themselves (IEEE 802.1Q table 8-1): the frames are flooded to all other
// nodes as those have no entry for it, and no container there sees one.
func destination() []byte { return []byte{0x01, 0x80, 0xc2, 0x00, 0x00, 0x0e} }

// ErrProof is wrapped by every error about a proof that could not be made.
var ErrProof = errors.New("cannot prove")

// Network is what is to be proven.
type Network struct {
	// Namespace is the file of the network namespace that has the network's VXLAN device, Device that device's name.
	Namespace, Device string
	VNI               vxlan.VNI
	MTU               int
	Peers             []Peer
	// Encap are UDP ports of ESP-in-UDP.
	Encap []uint16
}

// Peer is another node of the network.
type Peer struct {
	Node    string
	Address netip.Addr
}

// Seen is what left for one peer.
type Seen struct {
	Node    string     `json:"node"`
	Address netip.Addr `json:"address"`
	// Sent frames; ESP of them left encrypted, Clear in clear. What is missing was dropped before it could leave.
	Sent  int `json:"sent"`
	ESP   int `json:"esp"`
	Clear int `json:"clear"`
	// Devices are those that they left by.
	Devices []string `json:"devices,omitempty"`
}

// Result is what was seen.
type Result struct {
	Peers []Seen `json:"peers"`
	// Missed packets could not be looked at, since too many left at once: nothing is proven if there are some.
	Missed uint32 `json:"missed"`
}

// Run sends probes frames to each peer and watches.
func Run(ctx context.Context, n Network, probes int) (Result, error) {
	if probes < 1 || probes > MaxProbes {
		return Result{}, fmt.Errorf("%w: %d probes are not within 1..%d", ErrProof, probes, MaxProbes)
	}
	frames, err := newFrames(n, probes)
	if err != nil {
		return Result{}, err
	}
	w, err := watch()
	if err != nil {
		return Result{}, fmt.Errorf("%w: watch this host's devices: %w", ErrProof, err)
	}
	err = send(ctx, n, frames.frames)
	select {
	case <-ctx.Done():
	case <-time.After(linger):
	}
	packets, missed, end := w.stop()
	if err := errors.Join(err, end, ctx.Err()); err != nil {
		return Result{}, fmt.Errorf("%w: %w", ErrProof, err)
	}
	return Result{Peers: frames.judge(n, packets), Missed: missed}, nil
}

// frames are the probes of one proof.
type frames struct {
	mark   []byte
	frames [][]byte
}

// newFrames makes frames with one mark and lengths in random order. The lengths are multiples of 4 apart, since ESP pads to
// that (RFC 4303 §2.4).
func newFrames(n Network, probes int) (frames, error) {
	const header, least = 14, 64
	steps := (n.MTU + header - least) / 4
	if steps < probes {
		return frames{}, fmt.Errorf("%w: an MTU of %d has room for %d lengths, not for %d", ErrProof, n.MTU, steps, probes)
	}
	f := frames{mark: make([]byte, 16)}
	if _, err := rand.Read(f.mark); err != nil {
		return frames{}, err
	}
	lengths := make([]int, steps)
	for i := range lengths {
		lengths[i] = least + 4*i
	}
	for i := range probes {
		j, err := rand.Int(rand.Reader, big.NewInt(int64(steps-i)))
		if err != nil {
			return frames{}, err
		}
		k := i + int(j.Int64())
		lengths[i], lengths[k] = lengths[k], lengths[i]
		f.frames = append(f.frames, f.frame(uint16(i), lengths[i]))
	}
	return f, nil
}

func (f frames) frame(number uint16, length int) []byte {
	b := make([]byte, 0, length)
	b = append(b, destination()...)
	b = append(b, 0x02, 0x6e, 0x64, f.mark[0], f.mark[1], f.mark[2]) // a local address (IEEE 802 8.2.2)
	b = binary.BigEndian.AppendUint16(b, etherType)
	b = append(b, f.mark...)
	b = binary.BigEndian.AppendUint16(b, number)
	return append(b, make([]byte, length-len(b))...)
}

// packet is what left the host: its bytes from the IP header on, as far as they were kept, and the device.
type packet struct {
	data   []byte
	device string
}

// judge counts what left.
func (f frames) judge(n Network, packets []packet) []Seen {
	out := []Seen{}
	for _, p := range n.Peers {
		out = append(out, f.seen(n, p, packets))
	}
	return out
}

func (f frames) seen(n Network, p Peer, packets []packet) Seen {
	s := Seen{Node: p.Node, Address: p.Address, Sent: len(f.frames)}
	clear := map[uint16]bool{}
	devices := map[string]bool{}
	var lengths []int
	for _, k := range packets {
		h, ok := parse(k.data)
		if !ok || h.to != p.Address.Unmap() {
			continue
		}
		if i := bytes.Index(k.data, f.mark); i >= 0 && len(k.data) >= i+len(f.mark)+2 {
			clear[binary.BigEndian.Uint16(k.data[i+len(f.mark):])] = true
			devices[k.device] = true
		} else if l, esp := h.esp(n.Encap); esp {
			lengths = append(lengths, l)
			devices[k.device] = true
		}
	}
	s.Clear = len(clear)
	s.ESP = f.ordered(lengths)
	if s.Clear+s.ESP > 0 {
		for d := range devices {
			s.Devices = append(s.Devices, d)
		}
		slices.Sort(s.Devices)
	}
	return s
}

// ordered says how many of the frames are among ESP packets with these lengths, in their order: the longest common
// subsequence.
func (f frames) ordered(lengths []int) int {
	row := make([]int, len(f.frames)+1)
	for _, l := range lengths {
		before := 0 // row[j-1] of the packet before
		for j, frame := range f.frames {
			above := row[j+1]
			if espLength(len(frame)) == l {
				row[j+1] = max(row[j+1], before+1)
			}
			row[j+1] = max(row[j+1], row[j])
			before = above
		}
	}
	return row[len(f.frames)]
}

// espLength is the length of the ESP packet, without the IP header, that carries a frame in VXLAN over UDP: header 8, IV 8,
// what is encrypted with 2 bytes of trailer padded to words of 4, ICV 16 (see vxlan.EncryptedMTU).
func espLength(frame int) int {
	inside := 8 + 8 + frame + 2
	return 8 + 8 + (inside+3)&^3 + 16
}

// header is what matters of an IP packet.
type header struct {
	to       netip.Addr
	protocol uint8
	// payload is what follows the IP header, as far as it was kept; length is that of all of it.
	payload []byte
	length  int
}

const (
	protocolUDP = 17
	protocolESP = 50
)

// parse reads an IP header (RFC 791 §3.1, RFC 8200 §3). IPv6 packets of ours have no extension headers.
func parse(b []byte) (header, bool) {
	switch {
	case len(b) >= 20 && b[0]>>4 == 4 && len(b) >= int(b[0]&15)*4:
		n := int(b[0]&15) * 4
		to, _ := netip.AddrFromSlice(b[16:20])
		return header{to, b[9], b[n:], int(binary.BigEndian.Uint16(b[2:])) - n}, true
	case len(b) >= 40 && b[0]>>4 == 6:
		to, _ := netip.AddrFromSlice(b[24:40])
		return header{to, b[6], b[40:], int(binary.BigEndian.Uint16(b[4:]))}, true
	}
	return header{}, false
}

// esp returns the length of an ESP packet, by itself or over UDP to one of the ports.
func (h header) esp(encap []uint16) (int, bool) {
	if h.protocol == protocolESP {
		return h.length, true
	}
	const udp = 8
	if h.protocol == protocolUDP && len(h.payload) >= udp && slices.Contains(encap, binary.BigEndian.Uint16(h.payload[2:])) {
		return h.length - udp, true
	}
	return 0, false
}
