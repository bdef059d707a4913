package diag

import (
	"slices"
	"strings"

	"github.com/netdriver/netdriver/dataplane/lan"
	"github.com/netdriver/netdriver/diag/host"
	"github.com/netdriver/netdriver/store"
)

// examineOwn looks at a path of a network that uses the host's own network: macvlan, ipvlan or a bridge.
func (s *scene) examineOwn() {
	for _, e := range s.q.Here {
		s.examineSandbox(e)
	}
}

// examineSandbox looks at an endpoint's interface, which only its sandbox has, and at what carries it on the host.
func (s *scene) examineSandbox(e End) {
	place := at(placeContainer, e.ID)
	space, err := host.Open(e.Sandbox)
	if e.Sandbox == "" || err != nil {
		s.fault(place, revive, "the network namespace %q of endpoint %s's container is not there", e.Sandbox, short(e.ID))
		return
	}
	c := host.Container{Space: space}
	s.containers[e.ID] = c
	links, err := space.Links()
	i := slices.IndexFunc(links, func(l host.Link) bool { id, is := lan.Owner(l.Alias); return is && id == e.ID })
	if err != nil || i < 0 {
		s.fault(place, repaired, "the interface of endpoint %s is not in its container", short(e.ID))
		return
	}
	c.Device = links[i]
	if c.Addresses, err = space.Addresses(c.Device.Index); err != nil {
		s.note(place, "%v", err)
	}
	s.containers[e.ID] = c
	s.look(place, space, c.Device)
	below := slices.IndexFunc(s.hostLinks, func(l host.Link) bool { return l.Index == c.Device.Underlay })
	switch {
	case below < 0:
		s.fault(placeUnderlay, repaired, "the host's device under the interface of endpoint %s is gone", short(e.ID))
	case s.q.Mode == store.ModeBridge:
		s.examinePair(e, s.hostLinks[below])
	default:
		s.examineParent(e, s.hostLinks[below])
	}
	s.examineInside(e, c)
}

// examinePair looks at the bridge's end of a pair, and at the bridge.
func (s *scene) examinePair(e End, pair host.Link) {
	s.look(at(placePort, e.ID), s.host, pair)
	if !pair.Up {
		s.fault(at(placePort, e.ID), repaired, "the container's port %s is down", pair.Name)
	}
	bridge := lan.BridgeName(s.q.Network)
	i := slices.IndexFunc(s.hostLinks, func(l host.Link) bool { return l.Name == bridge })
	switch {
	case i < 0:
		s.fault(placeBridge, repaired, "the network's bridge %s is gone", bridge)
	case !s.hostLinks[i].Up:
		s.fault(placeBridge, repaired, "the network's bridge %s is down", bridge)
	case pair.Master != s.hostLinks[i].Index:
		s.fault(at(placePort, e.ID), repaired, "the container's port %s is not on the network's bridge %s", pair.Name, bridge)
	}
}

// examineParent looks at the device that containers share with the host, and whether somebody else in its LAN has their
// addresses: containers themselves do not hear what their own parent sends (linux/Documentation, macvlan).
func (s *scene) examineParent(e End, parent host.Link) {
	if !slices.ContainsFunc(s.points, func(p host.Point) bool { return p.Place == placeUnderlay }) {
		s.look(placeUnderlay, s.host, parent)
		if !parent.Up || !parent.Carrier {
			s.fault(placeUnderlay, "bring it up (ip link set "+parent.Name+" up), look at its cable", "the network's parent %s is down", parent.Name)
		}
	}
	if !parent.Up {
		return
	}
	for _, a := range e.Addresses {
		holders, err := s.host.Holders(parent, a)
		if err != nil {
			s.note(placeUnderlay, "%v", err)
		}
		for _, mac := range holders {
			if mac != e.MAC && mac != parent.MAC {
				s.fault(placeUnderlay, "give that device another address, or keep this one from containers: --aux-address, or --ip-range without it",
					"the address %s of endpoint %s is used in the LAN of %s by another device, MAC %s", a, short(e.ID), parent.Name, mac)
			}
		}
	}
}

// examineInside looks at the interface in its container.
func (s *scene) examineInside(e End, c host.Container) {
	place := at(placeContainer, e.ID)
	switch {
	case !c.Device.Up:
		s.fault(place, "bring it up in the container, or restart that", "the interface %s in the container is down", c.Device.Name)
		return
	case c.Device.Mute && !strings.HasPrefix(c.Device.Kind, store.ModeIPvlan):
		s.fault(place, "ip link set "+c.Device.Name+" arp on, in the container's network namespace",
			"ARP is switched off on the interface %s in the container: it finds nobody's MAC", c.Device.Name)
		return
	case c.Device.MAC != e.MAC && s.q.Mode != store.ModeIPvlan:
		s.fault(place, revive, "the interface %s in the container has MAC %s, its endpoint %s", c.Device.Name, c.Device.MAC, e.MAC)
	case c.Device.MTU != s.q.MTU:
		s.fault(place, revive, "the interface %s in the container has MTU %d, the network %d", c.Device.Name, c.Device.MTU, s.q.MTU)
	}
	s.examineAddresses(e, c)
}
