//go:build linux

package balance

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Flow is one that clients of this node have with a service. A UDP flow is one for as long as it is remembered.
type Flow struct {
	// Protocol is that of IP: 6 for TCP, 17 for UDP.
	Protocol    uint8
	Client, VIP netip.AddrPort
	// Backend is the zero Target if it is gone; the flow ends with the client's next packet.
	Backend Target
}

// flowBatch is how many flows are read with one system call.
const flowBatch = 1024

// Flows lists the flows, in no order.
func (s *Set) Flows() ([]Flow, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	byID := make(map[uint32]Target, len(s.ids))
	for k, id := range s.ids {
		byID[id] = k.Target
	}
	var out []Flow
	for name, protocol := range map[string]uint8{tcpFlowsMap: unix.IPPROTO_TCP, udpFlowsMap: unix.IPPROTO_UDP} {
		err := s.eachFlow(name, func(t tuple, f flowValue) {
			if f.Kind != answers {
				out = append(out, Flow{protocol, addrPort(t.Client, t.ClientPort), addrPort(t.Server, t.ServerPort),
					byID[f.Backend]})
			}
		})
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

func addrPort(a [16]byte, port [2]byte) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16(a).Unmap(), binary.BigEndian.Uint16(port[:]))
}

// eachFlow calls f with each entry of a flow map.
func (s *Set) eachFlow(name string, f func(tuple, flowValue)) error {
	keys, values := make([]tuple, flowBatch), make([]flowValue, flowBatch)
	var cursor ebpf.MapBatchCursor
	for {
		n, err := s.maps[name].BatchLookup(&cursor, keys, values, nil)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("list the flows: %w", err)
		}
		for i := range n {
			f(keys[i], values[i])
		}
		if err != nil {
			return nil // those were the last
		}
	}
}
