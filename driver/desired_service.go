package driver

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"github.com/netdriver/netdriver/dataplane"
	"github.com/netdriver/netdriver/store"
)

// balanced returns the services that this node balances at its ports: those with a virtual address. Of their backends
// only those whose address a living endpoint has: a task that has lost its endpoint is out on all nodes before any manager
// has noticed. It is pure.
func balanced(me site, services map[string]store.Service, endpoints map[string]store.Endpoint) []dataplane.Service {
	var out []dataplane.Service
	var holders map[netip.Addr]store.Endpoint
	for _, id := range slices.Sorted(maps.Keys(services)) {
		s := services[id]
		if len(s.VIPs) == 0 {
			continue
		}
		if holders == nil { // most networks have no services, and some have 10,000 endpoints
			holders = store.ByAddress(endpoints)
		}
		out = append(out, dataplane.Service{ID: s.ID, VIPs: s.VIPs, Backends: backends(me, s, holders)})
	}
	return out
}

// backends returns what stands behind a service, sorted by address and without duplicates.
func backends(me site, s store.Service, holders map[netip.Addr]store.Endpoint) []dataplane.Backend {
	var out []dataplane.Backend
	for _, b := range s.Backends {
		for _, a := range b.Addresses {
			e, alive := holders[a]
			if !alive {
				continue
			}
			backend := dataplane.Backend{Address: a, MAC: e.MAC, Draining: b.Draining}
			if e.Node == me.node {
				backend.Port = e.ID
			}
			out = append(out, backend)
		}
	}
	slices.SortFunc(out, func(a, b dataplane.Backend) int {
		// The old and the new task of an address may be listed at once: the one that takes new flows comes first.
		return cmp.Or(a.Address.Compare(b.Address), compareBool(a.Draining, b.Draining))
	})
	return slices.CompactFunc(out, func(a, b dataplane.Backend) bool { return a.Address == b.Address })
}

// compareBool orders false before true.
func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}
