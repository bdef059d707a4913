package balance

import (
	"errors"
	"net/netip"

	"github.com/netdriver/netdriver/vxlan"
)

// ErrUnsupported is wrapped by the error of whatever needs a kernel that can balance services.
var ErrUnsupported = errors.New("this kernel cannot balance services")

// MaxServiceID is the largest length of a service's id, in bytes (SERVICE of bpf/maps.h).
const MaxServiceID = 64

// Backend is one address behind a service. Another MAC makes it another backend.
type Backend struct {
	Service string
	Address netip.Addr
	MAC     vxlan.MAC
	// Draining: open flows go on to it, new ones do not.
	Draining bool
}

// VIP is a virtual address of a service and what new flows to it are balanced over.
type VIP struct {
	Address  netip.Addr
	Service  string
	Backends []Target
	// Broken is set on one that was read if its table is not the one that its backends make.
	Broken bool
}

// Target names a backend of a service.
type Target struct {
	Address netip.Addr
	MAC     vxlan.MAC
}

// Count is what clients on this node have sent to a backend since it is there.
type Count struct {
	Backend
	// Flows is the number of flows begun, Packets and Bytes (with the Ethernet header) what went to the backend in them.
	Flows, Packets, Bytes uint64
}

// backendKey is what one id stands for.
type backendKey struct {
	service string
	Target
}

func (b Backend) key() backendKey { return backendKey{b.Service, Target{b.Address, b.MAC}} }
