package swarm

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/netdriver/netdriver/internal/engine"
	"github.com/netdriver/netdriver/store"
)

// records is what the tasks of services mean for our networks. It is pure.
func records(
	networks map[string]store.Network, services []engine.Service, running, draining []engine.Task,
) map[string]store.Service {
	out := map[string]store.Service{}
	names := map[string]string{}
	for _, s := range services {
		names[s.ID] = s.Name
		for dockerID, vips := range s.VIPs {
			if nw, ours := networks[dockerID]; ours {
				out[store.ServiceKey(nw.Name, s.ID)] = store.Service{
					ID: s.ID, Name: s.Name, Network: nw.Name, Idle: s.Idle, VIPs: sorted(vips),
				}
			}
		}
	}
	for i, t := range slices.Concat(running, draining) {
		name, known := names[t.Service]
		if !known || !t.Running {
			continue
		}
		for dockerID, addresses := range t.Addresses {
			nw, ours := networks[dockerID]
			if !ours {
				continue
			}
			key := store.ServiceKey(nw.Name, t.Service)
			s := out[key] // new for a service in endpoint mode dnsrr
			s.ID, s.Name, s.Network = t.Service, name, nw.Name
			s.Backends = append(s.Backends, store.Backend{
				Task: t.ID, Name: name + "." + t.Slot, Addresses: sorted(addresses), Draining: i >= len(running),
			})
			out[key] = s
		}
	}
	for _, s := range out {
		slices.SortFunc(s.Backends, func(a, b store.Backend) int { return cmp.Compare(a.Task, b.Task) })
	}
	return out
}

func sorted(as []netip.Addr) []netip.Addr {
	return slices.SortedFunc(slices.Values(as), netip.Addr.Compare)
}

// equal compares two records by what is stored of them.
func equal(a, b store.Service) bool { return string(store.Encode(a)) == string(store.Encode(b)) }
