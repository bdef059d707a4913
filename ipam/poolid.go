package ipam

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/netdriver/netdriver/internal/plugin"
)

// The address spaces that Docker asks with: the local one on plain engines, the global one for networks of a swarm.
const (
	LocalSpace  = plugin.LocalSpace
	GlobalSpace = plugin.GlobalSpace
)

// PoolID is what Docker calls a pool by. It says everything about the pool's use on this host, so nothing need be
// remembered.
type PoolID struct {
	// Space is the address space that the pool was asked for in.
	Space string
	// Subnet is the pool's, cluster-wide.
	Subnet netip.Prefix
	// Range is where this host allocates (--ip-range), zero for the whole subnet.
	Range netip.Prefix
}

// String returns the id as Docker keeps it: SPACE/SUBNET or SPACE/SUBNET/RANGE.
func (id PoolID) String() string {
	s := id.Space + "/" + id.Subnet.String()
	if id.Range.IsValid() {
		s += "/" + id.Range.String()
	}
	return s
}

// ParsePoolID undoes String. It refuses what String cannot have written.
func ParsePoolID(s string) (PoolID, error) {
	parts := strings.Split(s, "/")
	if len(parts) != 3 && len(parts) != 5 {
		return PoolID{}, fmt.Errorf("pool id %q: want SPACE/SUBNET or SPACE/SUBNET/RANGE, as RequestPool answered it",
			s)
	}
	id := PoolID{Space: parts[0]}
	var err error
	if id.Subnet, err = parseSubnet(parts[1] + "/" + parts[2]); err != nil {
		return PoolID{}, fmt.Errorf("pool id %q: %w", s, err)
	}
	if len(parts) == 5 {
		if id.Range, err = parseRange(id.Subnet, parts[3]+"/"+parts[4]); err != nil {
			return PoolID{}, fmt.Errorf("pool id %q: %w", s, err)
		}
	}
	if err := checkSpace(id.Space); err != nil {
		return PoolID{}, fmt.Errorf("pool id %q: %w", s, err)
	}
	if id.String() != s {
		return PoolID{}, fmt.Errorf("pool id %q: want it as RequestPool answered it, %s", s, id)
	}
	return id, nil
}

// swarm says whether a swarm's managers ask, for the whole swarm, and not a node for itself.
func (id PoolID) swarm() bool { return id.Space == GlobalSpace }

// allocates returns where this host takes addresses from.
func (id PoolID) allocates() netip.Prefix {
	if id.Range.IsValid() {
		return id.Range
	}
	return id.Subnet
}

// checkSpace refuses the address spaces that are not served.
func checkSpace(space string) error {
	switch space {
	case LocalSpace, GlobalSpace:
		return nil
	}
	return fmt.Errorf("unknown address space %q; create the network with --ipam-driver custom-overlay", space)
}
