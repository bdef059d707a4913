package store

import "net/netip"

// The states of a backend.
const (
	BackendReady    = "ready"       // new flows go to it
	BackendDraining = "draining"    // only open connections do
	BackendAbsent   = "no endpoint" // the swarm says it runs, and no endpoint has its address: nothing goes to it
)

// State returns the backend's state and the endpoint that has its address, if one has; holders are the network's
// endpoints by address.
func (b Backend) State(holders map[netip.Addr]Endpoint) (string, Endpoint) {
	for _, a := range b.Addresses {
		e, alive := holders[a]
		switch {
		case !alive:
		case b.Draining:
			return BackendDraining, e
		default:
			return BackendReady, e
		}
	}
	return BackendAbsent, Endpoint{}
}

// ByAddress returns the endpoint that has each address. Of two it is the newer, since the other is left from a node that
// was lost, and of two equally old ones that with the lower id: on all nodes the same.
func ByAddress(endpoints map[string]Endpoint) map[netip.Addr]Endpoint {
	out := make(map[netip.Addr]Endpoint, len(endpoints))
	for _, e := range endpoints {
		for _, a := range e.Addrs() {
			old, taken := out[a]
			if newer := e.Created.Compare(old.Created); !taken || newer > 0 || newer == 0 && e.ID < old.ID {
				out[a] = e
			}
		}
	}
	return out
}
