package diag

import (
	"fmt"

	"github.com/netdriver/netdriver/diag/host"
	"github.com/netdriver/netdriver/store"
	"github.com/netdriver/netdriver/vxlan"
)

// The answers to the question who has the other node's address on the underlay's segment.
const (
	doorUnasked = iota // nobody was asked: it is behind a router, or the path is whole
	doorSilent         // nobody has it
	doorOpen           // one has it, and packets go there
)

// nextDoor asks the underlay's segment for the other node, when something was lost on the way to it: a host that is up says so
// whatever its packet filters drop. What is wrong with this host's own entry becomes a fault of its underlay.
func (d *Diagnosis) nextDoor(p *path) {
	me := d.src.Node.Name
	other := p.to.Node
	if me == other {
		other = p.from.Node
	}
	n, known := p.records[other]
	t, asked := p.said[me]
	if other == me || p.network.Mode != store.ModeOverlay || !known || !asked || p.cutOff(other) {
		return
	}
	s := scene{}
	var err error
	if s.host, err = host.Open(""); err != nil {
		return // what cannot be looked at is not judged
	}
	defer s.close()
	r, err := s.host.Route(n.VTEP)
	if err == nil {
		s.hostLinks, err = s.host.Links()
	}
	if err != nil {
		return
	}
	under, found := s.underlay(p.records[me].VTEP)
	if !found || under.Index != r.Device || under.Mute {
		return
	}
	hop := n.VTEP
	if r.Gateway.IsValid() {
		hop = r.Gateway
	}
	holders, err := s.host.Holders(under, hop)
	if err != nil {
		return
	}
	if r.Gateway.IsValid() {
		other = fmt.Sprintf("the router on the way to %s", other)
	} else {
		p.door = doorSilent
		if len(holders) > 0 {
			p.door = doorOpen
		}
	}
	s.judgeDoor(other, hop.String(), under, holders)
	if e, has := s.host.Neighbour(r.Device, hop); has {
		s.judgeEntry(other, hop.String(), under.Name, e, holders)
	}
	t.Faults = append(t.Faults, s.faults...)
	p.said[me] = t
}

func (s *scene) judgeDoor(other, address string, device host.Link, holders []vxlan.MAC) {
	if len(holders) > 1 {
		s.fault(placeUnderlay, "find the second host by its MAC in the switch, and give it another address",
			"several hosts on %s say that they have the address %s of %s: MAC %s and %s", device.Name, address, other, holders[0], holders[1])
	}
}

func (s *scene) judgeEntry(other, address, device string, e host.Neighbour, holders []vxlan.MAC) {
	if len(holders) == 1 && holders[0] != e.MAC {
		s.fault(placeUnderlay, fmt.Sprintf("ip neigh del %s dev %s; find who made the entry", address, device),
			"this host's %s neighbour entry sends packets for %s (%s) to MAC %s, and %s answers for it", e.State, other, address, e.MAC, holders[0])
	}
}
