package keying

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
)

// encaps are the sockets that receive ESP-in-UDP: one for each port that a pair of this node uses. A host without a port of its
// own uses its peer's.
type encaps struct {
	open    func(port uint16) (io.Closer, error)
	sockets map[uint16]io.Closer
}

// want opens what is missing and closes what nobody uses.
func (e *encaps) want(ports map[uint16]bool) error {
	var errs []error
	for port, s := range e.sockets {
		if !ports[port] {
			errs = append(errs, s.Close())
			delete(e.sockets, port)
		}
	}
	for _, port := range slices.Sorted(maps.Keys(ports)) {
		if e.sockets[port] != nil {
			continue
		}
		s, err := e.open(port)
		if err != nil {
			errs = append(errs, fmt.Errorf("receive ESP at UDP port %d: %w; is another program using it?", port, err))
			continue
		}
		e.sockets[port] = s
	}
	return errors.Join(errs...)
}

// encapPorts are those of this node's pairs.
func (o outlook) encapPorts(own uint16) map[uint16]bool {
	ports := map[uint16]bool{own: true}
	for name := range o.peers {
		for _, e := range o.offers[name].Epochs {
			if own == 0 {
				ports[e.Encap] = true
			}
		}
	}
	delete(ports, 0)
	return ports
}
