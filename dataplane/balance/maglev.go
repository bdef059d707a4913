package balance

import (
	"hash/fnv"
)

// slots is the size of a service's table, SLOTS of bpf/maps.h. It must be prime.
const slots = 983

// fill makes a Maglev table (Eisenbud et al., NSDI 2016, §3.4): each backend has its own order of all slots and they take
// turns, so that all have the same number of slots but for one, and when one backend comes or goes, few slots of the others
// change. The order is made of the backend's address, so that it is the same on every node and after every restart.
// ids are what the table holds for the backends, of which only the first 983 find room.
func fill(table *[slots]uint32, backends []Target, ids []uint32) {
	if len(backends) > slots {
		backends = backends[:slots]
	}
	next, step := make([]uint32, len(backends)), make([]uint32, len(backends))
	for i, t := range backends {
		h := fnv.New64a()
		b := t.Address.As16()
		h.Write(b[:])
		sum := h.Sum64()
		sum ^= sum >> 29 // FNV's high bits hardly depend on the last bytes, in which addresses differ
		sum *= 0xbf58476d1ce4e5b9
		sum ^= sum >> 32
		next[i], step[i] = uint32(sum)%slots, uint32(sum>>32)%(slots-1)+1
	}
	*table = [slots]uint32{}
	for taken := 0; taken < slots && len(backends) > 0; {
		for i := range backends {
			for table[next[i]] != 0 {
				next[i] = (next[i] + step[i]) % slots
			}
			table[next[i]] = ids[i]
			if taken++; taken == slots {
				break
			}
		}
	}
}
