package diag

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/dataplane"
	"github.com/netdriver/netdriver/diag/host"
	"github.com/netdriver/netdriver/store"
	"github.com/netdriver/netdriver/vxlan"
)

// scene is a node's part of a path, with everything open that is looked at.
type scene struct {
	q          Question
	ours, host *host.Space // ours is nil if netdriver has no namespace here
	containers map[string]host.Container
	links      map[string]host.Link // of our namespace, by name
	hostLinks  []host.Link
	points     []host.Point
	faults     []Fault
	notes      []Fault
	spoken     []Spoken
}

const (
	repaired = "the daemon repairs it within 30 s; if it does not run, start it (`netdriver run`), or see its log"
	revive   = "restart the container: Docker gives it a new interface"
)

func (s *scene) fault(place, remedy, format string, args ...any) {
	s.faults = append(s.faults, Fault{Place: place, Cause: fmt.Sprintf(format, args...), Remedy: remedy})
}

func (s *scene) harmless(place, remedy, format string, args ...any) {
	s.fault(place, remedy, format, args...)
	s.faults[len(s.faults)-1].Harmless = true
}

func (s *scene) note(place, format string, args ...any) {
	s.notes = append(s.notes, Fault{Place: place, Cause: fmt.Sprintf(format, args...)})
}

// openScene opens the namespaces of a question. What cannot be opened is a fault.
func openScene(q Question, runDir string) (*scene, error) {
	s := &scene{q: q, containers: map[string]host.Container{}, links: map[string]host.Link{}}
	var err error
	if s.host, err = host.Open(""); err != nil {
		return nil, err
	}
	if s.hostLinks, err = s.host.Links(); err != nil {
		s.close()
		return nil, err
	}
	if q.own() {
		return s, nil
	}
	if !dataplane.Exists(runDir) {
		s.fault(placeBridge, "start the daemon: `netdriver run`",
			"netdriver's network namespace %s is not there: no daemon has run since the host booted", dataplane.NamespaceIn(runDir))
		return s, nil
	}
	if s.ours, err = host.Open(dataplane.NamespaceIn(runDir)); err != nil {
		s.close()
		return nil, err
	}
	all, err := s.ours.Links()
	if err != nil {
		s.close()
		return nil, err
	}
	for _, l := range all {
		s.links[l.Name] = l
	}
	return s, nil
}

func (s *scene) close() {
	for _, c := range s.containers {
		_ = c.Close() // only read from
	}
	_, _ = s.ours.Close(), s.host.Close()
}

func (s *scene) look(place string, in *host.Space, l host.Link) {
	s.points = append(s.points, host.Point{Place: place, Space: in, Link: l})
}

// examine looks at everything that the frames of the question pass on this node.
func (s *scene) examine() {
	if s.q.own() {
		s.examineOwn()
		return
	}
	if s.ours == nil {
		return
	}
	bridge, hasBridge := s.links[dataplane.BridgeName(s.q.VNI)]
	s.examineBridge(bridge, hasBridge)
	for _, e := range s.q.Here {
		if e.ID != "" {
			s.examinePort(e, bridge)
		}
	}
	s.examineVXLAN(bridge)
	s.examineEntries(bridge)
	s.examineUnderlay()
}

func (s *scene) examineBridge(b host.Link, there bool) {
	switch {
	case !there:
		s.fault(placeBridge, repaired, "the network's bridge %s is gone", dataplane.BridgeName(s.q.VNI))
		return
	case !b.Up:
		s.fault(placeBridge, repaired, "the network's bridge %s is down", b.Name)
	case b.MTU != s.q.MTU:
		s.fault(placeBridge, repaired, "the bridge %s has MTU %d, the network %d", b.Name, b.MTU, s.q.MTU)
	}
	for _, name := range []string{"iptables", "ip6tables", "arptables"} {
		if s.ours.Setting("net/bridge/bridge-nf-call-"+name) == "1" {
			s.harmless(placeBridge, "set it to 0: nsenter --net=RUN_DIR/netns sysctl -w net.bridge.bridge-nf-call-"+name+"=0; "+
				"the daemon does so at its start",
				"bridge-nf-call-%s is on in netdriver's namespace: frames between containers go through its packet filter", name)
		}
	}
}

func (s *scene) examinePort(e End, bridge host.Link) {
	place := at(placePort, e.ID)
	p, there := s.links[dataplane.PortName(e.ID)]
	if !there {
		s.fault(place, revive, "the interface of endpoint %s is gone: neither its port %s nor the container's end is there",
			short(e.ID), dataplane.PortName(e.ID))
		return
	}
	s.look(place, s.ours, p)
	switch {
	case !p.Up:
		s.fault(place, repaired, "the container's port %s is down", p.Name)
	case p.Master != bridge.Index || bridge.Index == 0:
		s.fault(place, repaired, "the container's port %s is not on the network's bridge", p.Name)
	case p.MTU != s.q.MTU:
		s.fault(place, repaired, "the container's port %s has MTU %d, the network %d", p.Name, p.MTU, s.q.MTU)
	}
	s.examineContainer(e, p)
}

func (s *scene) examineContainer(e End, port host.Link) {
	place := at(placeContainer, e.ID)
	c, err := s.ours.Peer(port)
	if err != nil {
		s.fault(place, revive, "the container of endpoint %s cannot be looked at: %v", short(e.ID), err)
		return
	}
	s.containers[e.ID] = c
	s.look(place, c.Space, c.Device)
	switch {
	case c.Device.Name == dataplane.ContainerEnd(e.ID):
		s.fault(place, revive, "the interface of endpoint %s is not in its container: Docker has not put it there, or it was taken out", short(e.ID))
		return
	case !c.Device.Up:
		s.fault(place, "bring it up in the container, or restart that", "the interface %s in the container is down", c.Device.Name)
	case c.Device.Mute:
		s.fault(place, fmt.Sprintf("ip link set %s arp on, in the container's network namespace", c.Device.Name),
			"ARP is switched off on the interface %s in the container: it finds nobody's MAC", c.Device.Name)
		return
	case c.Device.MAC != e.MAC:
		s.fault(place, revive, "the interface %s in the container has MAC %s, its endpoint %s: the guard drops what it sends",
			c.Device.Name, c.Device.MAC, e.MAC)
	case c.Device.MTU != s.q.MTU:
		s.fault(place, revive, "the interface %s in the container has MTU %d, the network %d", c.Device.Name, c.Device.MTU, s.q.MTU)
	}
	s.examineAddresses(e, c)
}

// examineAddresses looks at an interface's addresses, and at what its container's kernel knows of the others.
func (s *scene) examineAddresses(e End, c host.Container) {
	place := at(placeContainer, e.ID)
	for _, a := range e.Addresses {
		if !slices.ContainsFunc(c.Addresses, func(p netip.Prefix) bool { return p.Addr() == a }) {
			s.fault(place, revive, "the interface %s in the container does not have its address %s", c.Device.Name, a)
			return // its routes have gone with it
		}
	}
	if c.Setting("net/ipv4/icmp_echo_ignore_all") == "1" {
		s.note(place, "the container does not answer echo requests (icmp_echo_ignore_all)")
	}
	for _, o := range append(slices.Clone(s.q.There), s.q.Here...) {
		if o.ID != e.ID {
			s.examineView(c, place, o)
		}
	}
}

// examineView looks at what a container's own kernel knows of another endpoint.
func (s *scene) examineView(c host.Container, place string, other End) {
	for _, a := range other.Addresses {
		if n, known := c.Neighbour(c.Device.Index, a); known && n.MAC != other.MAC && s.q.Mode != store.ModeIPvlan {
			s.fault(place, fmt.Sprintf("delete the entry in the container (ip neigh del %s dev %s); find who answers for the address", a, c.Device.Name),
				"the container believes that %s has MAC %s, which is %s", a, n.MAC, other.MAC)
		}
		if r, err := c.Route(a); c.Device.Up && (err != nil || r.Device != c.Device.Index) {
			s.fault(place, fmt.Sprintf("remove what is wrong in the container's `ip route` and `ip rule`, or restart it; `ip route get %s` there has to name %s", a, c.Device.Name),
				"the container does not send packets to %s through its interface %s: %s", a, c.Device.Name, wrongWay(c, r, err))
		}
	}
}

// wrongWay says where a container's packets go instead.
func wrongWay(c host.Container, r host.Route, err error) string {
	if err != nil {
		return noRoute(err)
	}
	name := fmt.Sprintf("device %d", r.Device)
	if links, err := c.Links(); err == nil {
		if i := slices.IndexFunc(links, func(l host.Link) bool { return l.Index == r.Device }); i >= 0 {
			name = links[i].Name
		}
	}
	return fmt.Sprintf("its routes lead them to %s", name)
}

// noRoute says why a kernel has no way to an address.
func noRoute(err error) string {
	switch {
	case errors.Is(err, unix.EINVAL):
		return "a blackhole route or rule drops them"
	case errors.Is(err, unix.EACCES):
		return "a prohibit route or rule forbids them"
	case errors.Is(err, unix.EHOSTUNREACH):
		return "an unreachable route or rule refuses them"
	}
	return "no route leads there"
}

func (s *scene) examineVXLAN(bridge host.Link) {
	remote := slices.ContainsFunc(s.q.There, func(e End) bool { return e.VTEP.IsValid() })
	v, there := s.links[dataplane.VXLANName(s.q.VNI)]
	switch {
	case !there && !remote:
		return
	case !there:
		s.fault(placeVXLAN, repaired, "the network's VXLAN device %s is gone", dataplane.VXLANName(s.q.VNI))
	default:
		s.look(placeVXLAN, s.ours, v)
	}
	for _, l := range s.hostLinks {
		// One of ours is there for the moment in which it is made.
		if l.Kind == "vxlan" && l.VNI == s.q.VNI && l.Port == s.q.Port && l.Name != dataplane.VXLANName(l.VNI) {
			s.fault(placeVXLAN, fmt.Sprintf("remove it (ip link del %s), or make the network with another VNI or port", l.Name),
				"another VXLAN device %s of this host has the same VNI %d and UDP port %d", l.Name, l.VNI, l.Port)
		}
	}
	switch {
	case !there:
	case !v.Up:
		s.fault(placeVXLAN, repaired, "the VXLAN device %s is down", v.Name)
	case v.Master != bridge.Index:
		s.fault(placeVXLAN, repaired, "the VXLAN device %s is not on the network's bridge", v.Name)
	case v.MTU != s.q.MTU:
		s.fault(placeVXLAN, repaired, "the VXLAN device %s has MTU %d, the network %d", v.Name, v.MTU, s.q.MTU)
	case v.Port != s.q.Port:
		s.fault(placeVXLAN, repaired, "the VXLAN device %s uses UDP port %d, the network %d", v.Name, v.Port, s.q.Port)
	}
}

// examineEntries compares the forwarding and neighbour entries with where the endpoints are.
func (s *scene) examineEntries(bridge host.Link) {
	v, ok := s.links[dataplane.VXLANName(s.q.VNI)]
	if bridge.Index == 0 {
		return
	}
	for _, e := range s.q.There {
		if !ok || e.ID == "" {
			continue
		}
		s.examineNeighbours(bridge, e)
		vteps, on := s.ours.Forwarding(e.MAC, v.Index)
		switch {
		case len(vteps) == 0:
			s.fault(placeVXLAN, repaired, "the VXLAN device %s has no forwarding entry for %s, which is on %s (%s)", v.Name, e.MAC, e.Node, e.VTEP)
		case vteps[0] != e.VTEP:
			s.fault(placeVXLAN, repaired, "the VXLAN device %s sends frames for %s to %s, and the endpoint is on %s (%s)",
				v.Name, e.MAC, vteps[0], e.Node, e.VTEP)
		}
		if on != v.Index && v.Master == bridge.Index {
			s.fault(placeBridge, repaired, "the bridge %s does not know that %s is behind the VXLAN device", bridge.Name, e.MAC)
		}
	}
	for _, e := range s.q.Here {
		if e.ID == "" {
			continue
		}
		s.examineNeighbours(bridge, e)
		port, there := s.links[dataplane.PortName(e.ID)]
		if _, on := s.ours.Forwarding(e.MAC, 0); there && on != port.Index {
			s.fault(placeBridge, repaired, "the bridge %s does not know that %s is at port %s", bridge.Name, e.MAC, port.Name)
		}
	}
}

func (s *scene) examineNeighbours(bridge host.Link, e End) {
	for _, a := range e.Addresses {
		n, known := s.ours.Neighbour(bridge.Index, a)
		switch {
		case !known:
			s.harmless(placeBridge, repaired, "the bridge %s has no neighbour entry for %s: it cannot answer for it", bridge.Name, a)
		case n.MAC != e.MAC:
			s.fault(placeBridge, repaired, "the bridge %s answers that %s has MAC %s, which is %s", bridge.Name, a, n.MAC, e.MAC)
		}
	}
}

// examineUnderlay looks at the device that carries the packets between hosts.
func (s *scene) examineUnderlay() {
	var own netip.Addr
	for _, e := range s.q.Here {
		own = e.VTEP
	}
	under, found := s.underlay(own)
	if !own.IsValid() {
		return
	}
	if !found {
		s.fault(placeUnderlay, "give the address back to its device, or start the daemon with another --underlay",
			"no device of the host has the address %s that the others send to", own)
		return
	}
	s.look(placeUnderlay, s.host, under)
	if !under.Up || !under.Carrier {
		s.fault(placeUnderlay, "bring it up, look at its cable", "the underlay's device %s is down", under.Name)
	}
	if under.Mute && under.Up {
		s.fault(placeUnderlay, fmt.Sprintf("ip link set %s arp on", under.Name),
			"ARP is switched off on the underlay's device %s: the host finds no other one's MAC", under.Name)
	}
	need := s.q.MTU + vxlan.Overhead(own)
	for _, e := range s.q.There {
		if e.VTEP == own || !e.VTEP.IsValid() {
			continue
		}
		r, err := s.host.Route(e.VTEP)
		switch {
		case err != nil:
			s.fault(placeUnderlay, fmt.Sprintf("give the host a route to it: look at `ip route get %s`, `ip route` and `ip rule`", e.VTEP),
				"the host has no route to %s (%s): %s", e.Node, e.VTEP, noRoute(err))
		case r.Device != under.Index:
			s.harmless(placeUnderlay, fmt.Sprintf("look at `ip route get %s`; or start the daemon with the --underlay that leads to its peers", e.VTEP),
				"packets to %s (%s) do not leave through the underlay's device %s but through %s", e.Node, e.VTEP, under.Name, s.deviceName(r.Device))
		case r.MTU > 0 && r.MTU < need:
			s.fault(placeUnderlay, fmt.Sprintf("raise it to %d, or make the network with --opt mtu=%d", need, r.MTU-vxlan.Overhead(own)),
				"the route to %s (%s) has MTU %d, packets of this network need %d", e.Node, e.VTEP, r.MTU, need)
		}
	}
	if under.MTU < need && len(s.q.There) > 0 {
		s.fault(placeUnderlay, fmt.Sprintf("raise it to %d, or make the network with --opt mtu=%d", need, under.MTU-vxlan.Overhead(own)),
			"the underlay's device %s has MTU %d, packets of this network need %d", under.Name, under.MTU, need)
	}
}

// deviceName is that of a device of the host.
func (s *scene) deviceName(index int) string {
	for _, l := range s.hostLinks {
		if l.Index == index {
			return l.Name
		}
	}
	return fmt.Sprintf("device %d", index)
}

// underlay returns the device of the host that has an address.
func (s *scene) underlay(own netip.Addr) (host.Link, bool) {
	for _, l := range s.hostLinks {
		addresses, err := s.host.Addresses(l.Index)
		if err == nil && slices.ContainsFunc(addresses, func(p netip.Prefix) bool { return p.Addr() == own }) {
			return l, true
		}
	}
	return host.Link{}, false
}

// short is as much of an id as people read.
func short(id string) string { return id[:min(len(id), 10)] }
