package dataplane

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/netdriver/netdriver/dataplane/balance"
	"github.com/netdriver/netdriver/vxlan"
)

// The orders of a Network's slices.
func comparePorts(a, b Port) int { return cmp.Compare(a.Endpoint, b.Endpoint) }

func compareFDB(a, b FDBEntry) int {
	return cmp.Or(cmp.Compare(a.Port, b.Port), bytes.Compare(a.MAC[:], b.MAC[:]), a.VTEP.Compare(b.VTEP))
}

func compareNeighbours(a, b Neighbour) int { return a.Address.Compare(b.Address) }

// Sort puts the slices of n into the order that Network promises and removes duplicates, in place.
func (n *Network) Sort() {
	slices.SortFunc(n.Ports, comparePorts)
	slices.SortFunc(n.FDB, compareFDB)
	n.FDB = slices.Compact(n.FDB)
	slices.SortFunc(n.Neighbours, compareNeighbours)
	n.Neighbours = slices.Compact(n.Neighbours)
	n.Guard.Sort()
	slices.SortFunc(n.Services, compareServices)
	for i := range n.Services {
		slices.SortFunc(n.Services[i].VIPs, netip.Addr.Compare)
		slices.SortFunc(n.Services[i].Backends, compareBackends)
	}
}

// ErrWant is wrapped by errors about a wanted network that no kernel could have.
var ErrWant = errors.New("impossible network")

// Check says whether n can be wanted: a valid VNI, sorted slices, every entry on a device that is wanted too, one place
// for each MAC in each table, and no two endpoints whose devices would have the same name. The error wraps ErrWant.
func (n Network) Check() error {
	err := errors.Join(vxlan.CheckVNI(n.VNI), n.checkOrder(), n.checkPorts(), n.checkEntries(), n.checkServices(), n.Guard.Check())
	if err != nil {
		return fmt.Errorf("%w %s: %w", ErrWant, n.Name, err)
	}
	return nil
}

// strictly says whether s is sorted by compare without duplicates.
func strictly[T any](s []T, compare func(a, b T) int) bool {
	for i := 1; i < len(s); i++ {
		if compare(s[i-1], s[i]) >= 0 {
			return false
		}
	}
	return true
}

func (n Network) checkOrder() error {
	if !strictly(n.Ports, comparePorts) || !strictly(n.FDB, compareFDB) || !strictly(n.Neighbours, compareNeighbours) {
		return errors.New("ports or entries are not sorted, or one is there twice")
	}
	return nil
}

// checkServices: one service for each virtual address, one backend of a service for each address.
func (n Network) checkServices() error {
	if !strictly(n.Services, compareServices) {
		return errors.New("services are not sorted, or one is there twice")
	}
	holder := map[netip.Addr]string{}
	for _, s := range n.Services {
		if s.ID == "" || len(s.ID) > balance.MaxServiceID {
			return fmt.Errorf("service id %q: 1 to %d characters are allowed", s.ID, balance.MaxServiceID)
		}
		if !strictly(s.Backends, func(a, b Backend) int { return a.Address.Compare(b.Address) }) {
			return fmt.Errorf("the backends of service %s are not sorted, or two have the same address", s.ID)
		}
		for _, vip := range s.VIPs {
			if other, taken := holder[vip]; taken || !vip.IsValid() {
				return fmt.Errorf("virtual address %s of service %s is that of service %s too", vip, s.ID, other)
			}
			holder[vip] = s.ID
		}
		for _, b := range s.Backends {
			if !b.Address.IsValid() || b.MAC.IsZero() {
				return fmt.Errorf("backend %s of service %s has no address or no MAC", b.Address, s.ID)
			}
		}
	}
	return nil
}

func (n Network) checkPorts() error {
	if (len(n.Ports) > 0 || len(n.Neighbours) > 0 || n.VXLAN.Enslaved) && !n.Bridge.Present {
		return errors.New("ports or neighbours without a bridge")
	}
	for i, p := range n.Ports { // sorted, so that those that begin alike are side by side
		if p.Endpoint == "" {
			return errors.New("port without endpoint id")
		}
		if i > 0 && PortName(n.Ports[i-1].Endpoint) == PortName(p.Endpoint) {
			return fmt.Errorf("endpoints %s and %s begin with the same %d characters, so that both devices would be %s; "+
				"remove one of the containers and start it again",
				n.Ports[i-1].Endpoint, p.Endpoint, idInName, PortName(p.Endpoint))
		}
	}
	return nil
}

// remoteTwice says whether the MAC of entry i is behind the VXLAN device a second time. The order makes that cheap to
// find: a second VTEP is next to the first, and the bridge's entry on the VXLAN device has nothing but the MAC.
func (n Network) remoteTwice(i int) bool {
	e := n.FDB[i]
	if e.Port != "" {
		_, found := slices.BinarySearchFunc(n.FDB, FDBEntry{MAC: e.MAC}, compareFDB)
		return found
	}
	return i > 0 && n.FDB[i-1].MAC == e.MAC && n.FDB[i-1].VTEP.IsValid()
}

func (n Network) checkEntries() error {
	ports := make(map[string]bool, len(n.Ports))
	for _, p := range n.Ports {
		ports[p.Endpoint] = true
	}
	local := make(map[vxlan.MAC]bool, len(n.Ports))
	for i, e := range n.FDB {
		switch {
		case e.Port != "" && !ports[e.Port]:
			return fmt.Errorf("MAC %s on endpoint %s, which has no port", e.MAC, e.Port)
		case e.Port != "" && e.VTEP.IsValid():
			return fmt.Errorf("MAC %s on endpoint %s has a VTEP %s too", e.MAC, e.Port, e.VTEP)
		case e.Port == "" && (!n.VXLAN.Present || !e.VTEP.IsValid() && !n.VXLAN.Enslaved):
			return fmt.Errorf("MAC %s on a VXLAN device that is not wanted so", e.MAC)
		case e.VTEP.IsValid() && e.VTEP.Is4() != n.VXLAN.Local.Is4():
			return fmt.Errorf("VTEP %s of MAC %s is not of the same IP version as our own %s", e.VTEP, e.MAC, n.VXLAN.Local)
		case e.MAC.IsZero() && !e.VTEP.IsValid():
			return errors.New("zero MAC in the bridge's table")
		case !e.MAC.IsZero() && (local[e.MAC] || n.remoteTwice(i)):
			return fmt.Errorf("MAC %s is in two places", e.MAC)
		}
		if e.Port != "" {
			local[e.MAC] = true
		}
	}
	if i := len(n.Neighbours) - 1; i >= 0 && n.Neighbours[i].Address.Is6() && n.Bridge.MTU < vxlan.MinMTU6 {
		// Sorted: IPv4 comes first. The kernel takes IPv6 off a device with less (net/ipv6/addrconf.c).
		return fmt.Errorf("IPv6 neighbour %s needs an MTU of at least %d, not %d",
			n.Neighbours[i].Address, vxlan.MinMTU6, n.Bridge.MTU)
	}
	return nil
}
