package proof

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

var (
	peer4 = Peer{"n2", netip.MustParseAddr("192.0.2.2")}
	peer6 = Peer{"n3", netip.MustParseAddr("2001:db8::3")}
)

// ip is an IP packet to a peer.
func ip(to netip.Addr, protocol uint8, payload []byte) []byte {
	if to.Is4() {
		b := make([]byte, 20, 20+len(payload))
		b[0], b[9] = 0x45, protocol
		binary.BigEndian.PutUint16(b[2:], uint16(20+len(payload)))
		copy(b[16:], to.AsSlice())
		return append(b, payload...)
	}
	b := make([]byte, 40, 40+len(payload))
	b[0], b[6] = 0x60, protocol
	binary.BigEndian.PutUint16(b[4:], uint16(len(payload)))
	copy(b[24:], to.AsSlice())
	return append(b, payload...)
}

// udp is a datagram to a port.
func udp(port uint16, payload []byte) []byte {
	b := make([]byte, 8)
	binary.BigEndian.PutUint16(b[2:], port)
	return append(b, payload...)
}

// inClear and asESP are what the kernel makes of a frame.
func inClear(to netip.Addr, frame []byte) []byte {
	return ip(to, protocolUDP, udp(4789, append(make([]byte, 8), frame...)))
}

func asESP(to netip.Addr, frame []byte) []byte {
	return ip(to, protocolESP, make([]byte, espLength(len(frame))))
}

// kept is a packet as the watcher keeps it.
func kept(b []byte) packet { return packet{b[:min(len(b), snap)], "eth0"} }

func TestEachFrameIsFoundAsWhatItLeft(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := Network{MTU: 1416, Peers: []Peer{peer4, peer6}, Encap: []uint16{4500}}
		f, err := newFrames(n, rapid.IntRange(1, 60).Draw(t, "probes"))
		if err != nil {
			t.Fatal(err)
		}
		var packets []packet
		want := []Seen{{Node: "n2", Address: peer4.Address}, {Node: "n3", Address: peer6.Address}}
		for _, frame := range f.frames {
			for i, p := range n.Peers {
				want[i].Sent++
				switch rapid.IntRange(0, 3).Draw(t, "fate") {
				case 0:
					want[i].Clear++
					packets = append(packets, kept(inClear(p.Address, frame)), kept(inClear(p.Address, frame))) // two devices
				case 1:
					want[i].ESP++
					packets = append(packets, kept(asESP(p.Address, frame)))
				case 2:
					want[i].ESP++
					packets = append(packets, kept(ip(p.Address, protocolUDP, udp(4500, make([]byte, espLength(len(frame)))))))
				}
				// What others send: to the same node in clear, ESP of other lengths, and to somebody else.
				packets = append(packets, kept(inClear(p.Address, make([]byte, 100))), kept(ip(p.Address, protocolESP, make([]byte, 50))),
					kept(asESP(netip.MustParseAddr("198.51.100.1"), frame)), packet{[]byte{0x45}, "eth0"}, packet{nil, "eth0"})
			}
		}
		for i, s := range f.judge(n, packets) {
			if s.Sent != want[i].Sent || s.ESP != want[i].ESP || s.Clear != want[i].Clear || s.Address != want[i].Address {
				t.Fatalf("%+v, want %+v", s, want[i])
			}
		}
	})
}

// Packets of the same lengths in another order are somebody else's.
func TestLengthsInAnotherOrderAreNoProof(t *testing.T) {
	n := Network{MTU: 1416, Peers: []Peer{peer4}}
	f, err := newFrames(n, 50)
	if err != nil {
		t.Fatal(err)
	}
	shuffled := slices.Clone(f.frames)
	rand.New(rand.NewPCG(1, 1)).Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
	var packets []packet
	for _, frame := range shuffled {
		packets = append(packets, kept(asESP(peer4.Address, frame)))
	}
	if got := f.judge(n, packets)[0].ESP; got > 25 {
		t.Errorf("%d of 50 are taken for ours", got)
	}
}

func TestNoTwoProofsHaveTheSameFrames(t *testing.T) {
	n := Network{MTU: 1280}
	for _, probes := range []int{1, MaxProbes} {
		a, errA := newFrames(n, probes)
		b, errB := newFrames(n, probes)
		if errA != nil || errB != nil || slices.Equal(a.mark, b.mark) {
			t.Errorf("%d: marks %x, %x; errors %v, %v", probes, a.mark, b.mark, errA, errB)
		}
		for _, frame := range a.frames {
			if len(frame) > 1280+14 {
				t.Errorf("a frame of %d bytes", len(frame))
			}
		}
	}
	if _, err := newFrames(Network{MTU: 100}, 50); err == nil {
		t.Error("more probes than lengths")
	}
}
