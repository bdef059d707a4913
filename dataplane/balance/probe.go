//go:build linux

package balance

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/vxlan"
)

// Probe is a frame to be sent from the device with that index.
type Probe struct {
	Device int
	Frame  []byte
}

// vipMAC is what vip_mac makes in bpf/answer.h.
func vipMAC() vxlan.MAC { return vxlan.MAC{0x02, 'N', 'D', 'V', 'I', 'P'} }

// probes returns a probe for the client of every open connection to a backend. A client that only waits for an answer
// would wait for ever: it has nothing to send that could be refused. An acknowledgement of something that was never sent
// makes it answer with one (RFC 9293 §3.10.7.4), which the program finds to be of a flow without a backend and resets.
func (s *Set) probes(backend uint32) ([]Probe, error) {
	var out []Probe
	err := s.eachFlow(tcpFlowsMap, func(t tuple, f flowValue) {
		if f.Backend == backend && f.Kind == forwarded {
			out = append(out, Probe{Device: int(f.Device), Frame: probe(t, f.MAC)})
		}
	})
	return out, err
}

// forwarded and answers are FORWARD and ANSWERS of bpf/maps.h.
const (
	forwarded = 0
	answers   = 2
)

// probe makes an empty segment of the flow from its virtual address to the client.
func probe(t tuple, mac [6]byte) []byte {
	ours := vipMAC()
	frame := append(append([]byte{}, mac[:]...), ours[:]...)
	if isIPv4(t.Client) {
		frame = binary.BigEndian.AppendUint16(frame, unix.ETH_P_IP)
		header := []byte{0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, unix.IPPROTO_TCP, 0, 0}
		header = append(append(header, t.Server[12:]...), t.Client[12:]...)
		binary.BigEndian.PutUint16(header[10:], checksum(header))
		frame = append(frame, header...)
	} else {
		frame = binary.BigEndian.AppendUint16(frame, unix.ETH_P_IPV6)
		frame = append(frame, 0x60, 0, 0, 0, 0, tcpHeader, unix.IPPROTO_TCP, 64)
		frame = append(append(frame, t.Server[:]...), t.Client[:]...)
	}
	const ack = 0x10
	segment := append(append([]byte{}, t.ServerPort[:]...), t.ClientPort[:]...)
	segment = append(segment, 0, 0, 0, 0, 0, 0, 0, 0, tcpHeader/4<<4, ack, 0, 0, 0, 0, 0, 0)
	// The prefix of an IPv4 address in IPv6 form, twice, does not change the sum.
	pseudo := append(append([]byte{}, t.Server[:]...), t.Client[:]...)
	pseudo = append(pseudo, 0, tcpHeader, 0, unix.IPPROTO_TCP)
	binary.BigEndian.PutUint16(segment[16:], checksum(append(pseudo, segment...)))
	return append(frame, segment...)
}

// tcpHeader is the size of a TCP header without options, in bytes.
const tcpHeader = 20

func isIPv4(a [16]byte) bool { return [12]byte(a[:12]) == [12]byte{10: 0xff, 11: 0xff} }

// checksum is that of RFC 1071 over an even number of bytes.
func checksum(b []byte) uint16 {
	var sum uint32
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	sum = sum&0xffff + sum>>16
	sum += sum >> 16
	return ^uint16(sum)
}
