package plugin

import (
	"context"

	"github.com/docker/go-plugins-helpers/ipam"
	"github.com/docker/go-plugins-helpers/network"
)

// Name is what Docker knows the plugin by: -d custom-overlay. On plain engines it follows from the socket's file name.
const Name = "custom-overlay"

// SwarmSocket is the file in the daemon's run directory at which it answers for a swarm. The managed plugin, which is
// what a swarm accepts, forwards to it: package door.
const SwarmSocket = "swarm.sock"

// The address spaces. Docker names one in each request for a pool: a swarm's managers ask in the global one, engines
// for themselves in the local one.
const (
	LocalSpace  = "netdriver-local"
	GlobalSpace = "netdriver-global"
)

// Constants are the calls whose answers never change: what a driver can do. Docker makes them when it enables a managed
// plugin, also at its own start, when the daemon need not run yet: so a door answers them by itself.
//
// scope is network.LocalScope if each engine allocates its networks by itself, with NetworkIDs of its own, and
// network.GlobalScope if a swarm does. Connectivity is global in both, since a network spans hosts.
func Constants(scope string) []Method {
	return []Method{
		Call("NetworkDriver.GetCapabilities", func(context.Context, *Empty) (NetworkCapabilities, error) {
			return NetworkCapabilities{Scope: scope, ConnectivityScope: network.GlobalScope, GwAllocChecker: true}, nil
		}),
		// With the MAC a request of a new container is told from the replay of an address in use; the replay itself makes
		// a restarted engine ask for what it holds, so that it hears of what it holds no more.
		Call("IpamDriver.GetCapabilities", func(context.Context, *Empty) (IpamCapabilities, error) {
			return IpamCapabilities{RequiresMACAddress: true, RequiresRequestReplay: true}, nil
		}),
		Call("IpamDriver.GetDefaultAddressSpaces", func(context.Context, *Empty) (ipam.AddressSpacesResponse, error) {
			return ipam.AddressSpacesResponse{
				LocalDefaultAddressSpace: LocalSpace, GlobalDefaultAddressSpace: GlobalSpace,
			}, nil
		}),
	}
}
