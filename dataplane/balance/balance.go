//go:build linux

// Package balance runs the program that balances services' virtual addresses at containers' ports, with eBPF at tc (see
// bpf/balance.c for what it does to a packet). A Set is what one network has: the maps and the two programs.
//
// Nothing is pinned: the programs on the ports hold the maps, and so they live exactly as long as a port of ours has
// them. A daemon that starts finds the maps through those programs, and one of another version puts its own programs in
// their place over the same maps, as long as their layout is the same. With the last port all is gone.
package balance

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"sync"

	"github.com/cilium/ebpf"

	"github.com/cilium/ebpf/rlimit"
	"github.com/netdriver/netdriver/dataplane/tc"
)

// object is bpf/balance.c compiled by `make generate`.
//
//go:embed balance.o
var object []byte

// The names of the programs and maps in the object. The programs' are those by which we know them on a device.
const (
	fromContainer = "nd_from_ct"
	toContainer   = "nd_to_ct"
	vipsMap       = "vips"
	backendsMap   = "backends"
	countsMap     = "counts"
	tcpFlowsMap   = "tcp_flows"
	udpFlowsMap   = "udp_flows"
)

// Set is one network's maps and programs. Its methods may be called from any goroutine; those that take a device's index
// from a thread in that device's network namespace.
type Set struct {
	mu       sync.Mutex
	maps     map[string]*ebpf.Map
	from, to *ebpf.Program
	ids      map[backendKey]uint32
	used     map[uint32]bool // ids that no new backend gets
	hook     tc.Hook
}

// New makes a Set that balances nothing yet.
func New() (*Set, error) {
	spec, err := specification()
	if err != nil {
		return nil, err
	}
	return load(spec, nil)
}

// load makes the programs, over maps that are there if given, of which it keeps copies.
func load(spec *ebpf.CollectionSpec, maps map[string]*ebpf.Map) (*Set, error) {
	if err := rlimit.RemoveMemlock(); err != nil { // before Linux 5.11 maps count as locked memory
		return nil, fmt.Errorf("lift the limit on locked memory: %w", err)
	}
	c, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: maps})
	if err != nil {
		return nil, fmt.Errorf("load the program that balances services: %w", err)
	}
	s := &Set{maps: c.Maps, from: c.Programs[fromContainer], to: c.Programs[toContainer], ids: map[backendKey]uint32{},
		used: map[uint32]bool{}}
	s.hook = tc.Choose()
	return s, nil
}

// specification parses the object.
func specification() (*ebpf.CollectionSpec, error) {
	spec, err := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(object))
	if err != nil {
		return nil, fmt.Errorf("read the program that balances services: %w", err)
	}
	return spec, nil
}

// Close gives up the programs and maps; where they are on a device, they stay and go on.
func (s *Set) Close() error {
	errs := []error{s.from.Close(), s.to.Close()}
	for _, m := range s.maps {
		errs = append(errs, m.Close())
	}
	return errors.Join(errs...)
}
