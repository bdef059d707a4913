package dataplane

import (
	"slices"

	"github.com/netdriver/netdriver/dataplane/guard"
	"github.com/netdriver/netdriver/dataplane/rate"
	"github.com/netdriver/netdriver/internal/sorted"
	"github.com/netdriver/netdriver/vxlan"
)

// plan returns the operations that lead from have to want, which must have passed Network.Check. Devices come before
// the entries on them and additions before removals, so that traffic between endpoints that stay is never interrupted.
// The exception is a VXLAN device whose identity differs (its address, UDP port or underlay): the kernel cannot change
// these, and two devices with one VNI and port cannot exist, so it goes first and all on it is made again.
func plan(have, want Network) []Op {
	p := planner{have: have, want: settled(have, want)}
	filter := guard.Plan(p.on(0, "", "").VNI, p.have.Guard, p.want.Guard)
	p.guard(MakeGuard, filter.Make)
	p.have.FDB = slices.DeleteFunc(slices.Clone(have.FDB), p.goesAnyway)
	if !have.Bridge.Present || !want.Bridge.Present { // the bridge's neighbours go with it
		p.have.Neighbours = nil
	}
	p.bridge()
	p.vxlan()
	p.ports()
	slices.Reverse(p.dels)
	p.entries()
	p.services()
	p.guard(PutGuard, filter.Put)
	return slices.Concat(p.ops, p.guarded(DelGuard, filter.Del), p.dels)
}

// guard plans changes of the packet filter's table.
func (p *planner) guard(v Verb, changes []guard.Change) {
	p.ops = append(p.ops, p.guarded(v, changes)...)
}

func (p *planner) guarded(v Verb, changes []guard.Change) []Op {
	ops := make([]Op, len(changes))
	for i, c := range changes {
		ops[i] = p.on(v, "", "")
		ops[i].Guard = c
	}
	return ops
}

// settled returns want as it can be: without ports to adopt that are not there, and without their entries; and with
// what follows from the services.
func settled(have, want Network) Network {
	missing, devices := map[string]bool{}, map[string]bool{}
	sorted.Merge(have.Ports, want.Ports, comparePorts, func(h, w *Port) {
		if w != nil && w.Adopt && h == nil {
			missing[w.Endpoint], devices[PortName(w.Endpoint)] = true, true
		}
	})
	if len(missing) > 0 {
		want.Ports = slices.DeleteFunc(slices.Clone(want.Ports), func(p Port) bool { return missing[p.Endpoint] })
		want.FDB = slices.DeleteFunc(slices.Clone(want.FDB), func(e FDBEntry) bool { return missing[e.Port] })
		want.Guard = want.Guard.Without(func(port string) bool { return devices[port] })
	}
	return want.balanced()
}

// planner collects a plan: the removals wait until the rest is there.
type planner struct {
	have, want Network
	ops, dels  []Op
}

// goesAnyway says whether an entry that is there needs no removal of its own: its device or bridge is gone, or goes.
func (p *planner) goesAnyway(e FDBEntry) bool {
	if !e.VTEP.IsValid() && !(p.have.Bridge.Present && p.want.Bridge.Present) {
		return true
	}
	if e.Port == "" {
		return !p.have.VXLAN.Present || !p.want.VXLAN.Present || p.remakesVXLAN()
	}
	_, wanted := slices.BinarySearchFunc(p.want.Ports, Port{Endpoint: e.Port}, comparePorts)
	return !wanted
}

// remakesVXLAN says whether the VXLAN device differs in what the kernel cannot change.
func (p *planner) remakesVXLAN() bool {
	have, want := p.have.VXLAN, p.want.VXLAN
	return have.Present && want.Present &&
		(have.Local != want.Local || have.Underlay != want.Underlay || have.Port != want.Port)
}

// on starts an operation on a device of the network.
func (p *planner) on(v Verb, device, endpoint string) Op {
	n := p.want
	if n.VNI == 0 {
		n = p.have
	}
	return Op{Verb: v, VNI: n.VNI, Network: n.Name, Device: device, Endpoint: endpoint}
}

func (p *planner) bridge() {
	op := p.on(AddBridge, "", "")
	op.Device = BridgeName(op.VNI)
	p.device(op, p.have.Bridge.link(), p.want.Bridge.link())
}

func (p *planner) vxlan() {
	op, have, want := p.on(AddVXLAN, "", ""), p.have.VXLAN, p.want.VXLAN
	op.Device = VXLANName(op.VNI)
	if p.remakesVXLAN() {
		p.ops = append(p.ops, p.on(DelLink, op.Device, ""))
		have.Present = false
	}
	op.Local, op.Underlay, op.UDPPort = want.Local, want.Underlay, want.Port
	p.device(op, have.link(), want.link())
}

func (p *planner) ports() {
	sorted.Merge(p.have.Ports, p.want.Ports, comparePorts, func(have, want *Port) {
		if want == nil {
			p.device(p.on(0, PortName(have.Endpoint), have.Endpoint), have.link(), nil)
			return
		}
		op := p.on(AddPort, PortName(want.Endpoint), want.Endpoint)
		op.MAC = want.MAC
		p.device(op, have.link(), want.link())
	})
}

// link is the part that all devices have in common; a device that is not there has none.
type link struct {
	mtu                    int
	up, enslaved, balanced bool
	limit                  rate.Limit
}

func (b Bridge) link() *link {
	if !b.Present {
		return nil
	}
	return &link{mtu: b.MTU, up: b.Up}
}

func (x VXLAN) link() *link {
	if !x.Present {
		return nil
	}
	return &link{mtu: x.MTU, up: x.Up, enslaved: x.Enslaved}
}

func (p *Port) link() *link {
	if p == nil {
		return nil
	}
	return &link{p.MTU, p.Up, p.Enslaved, p.Balanced, p.Limit}
}

// device plans what leads from have to want; add is the operation that makes the device. Removals are reversed in the
// end, so that ports go first and the bridge last.
func (p *planner) device(add Op, have, want *link) {
	if want == nil {
		if have != nil {
			p.dels = append(p.dels, p.on(DelLink, add.Device, add.Endpoint))
		}
		return
	}
	if have == nil {
		add.MTU = want.mtu
		p.ops = append(p.ops, add)
		have = &link{mtu: want.mtu}
	}
	p.set(add, *have, *want)
}

// set plans what brings a device that is there from have to want. The flags follow the enslaving, since the kernel
// resets them with it; a device comes up last, so that no frame meets it half-configured.
func (p *planner) set(dev Op, have, want link) {
	add := func(v Verb) {
		op := p.on(v, dev.Device, dev.Endpoint)
		if v == SetMTU {
			op.MTU, op.Local, op.Underlay = want.mtu, dev.Local, dev.Underlay
		}
		if v == SetRate {
			op.Limit = want.limit
		}
		p.ops = append(p.ops, op)
	}
	if have.mtu != want.mtu {
		add(SetMTU)
	}
	if want.enslaved && !have.enslaved {
		add(SetMaster)
		add(SetFlags)
	}
	switch {
	case have.limit == want.limit:
	case want.limit == rate.Limit{}:
		add(DelRate)
	default:
		add(SetRate)
	}
	if want.up && !have.up {
		add(SetUp)
	}
}

// entries plans the forwarding and neighbour entries. Their removals come before those of devices.
func (p *planner) entries() {
	var dels []Op
	put := map[fdbKey]bool{}
	sorted.Merge(p.have.FDB, p.want.FDB, compareFDB, func(have, want *FDBEntry) {
		switch {
		case have == nil:
			put[keyOf(*want)] = true
			p.ops = append(p.ops, p.fdb(PutFDB, *want))
		case want == nil:
			dels = append(dels, p.fdb(DelFDB, *have))
		}
	})
	// A MAC has one place in each table, so putting it elsewhere has removed it here. Only the flood list has several.
	dels = slices.DeleteFunc(dels, func(o Op) bool {
		return !o.MAC.IsZero() && put[fdbKey{o.MAC, o.VTEP.IsValid()}]
	})
	sorted.Merge(p.have.Neighbours, p.want.Neighbours, compareNeighbours, func(have, want *Neighbour) {
		switch {
		case want == nil:
			dels = append(dels, p.neighbour(DelNeighbour, *have))
		case have == nil || have.MAC != want.MAC:
			p.ops = append(p.ops, p.neighbour(PutNeighbour, *want))
			if p.have.Bridge.Present { // else nobody is there who could remember a former holder
				p.ops = append(p.ops, p.neighbour(Announce, *want))
			}
		}
	})
	p.dels = slices.Concat(dels, p.dels)
}

func (p *planner) fdb(v Verb, e FDBEntry) Op {
	op := p.on(v, "", e.Port)
	op.Device = VXLANName(op.VNI)
	if e.Port != "" {
		op.Device = PortName(e.Port)
	}
	op.MAC, op.VTEP = e.MAC, e.VTEP
	return op
}

func (p *planner) neighbour(v Verb, n Neighbour) Op {
	op := p.on(v, "", "")
	op.Device, op.Address = BridgeName(op.VNI), n.Address
	if v != DelNeighbour {
		op.MAC = n.MAC
	}
	return op
}

// fdbKey is what the kernel keeps one entry for: a MAC in the VXLAN device's table or in the bridge's.
type fdbKey struct {
	mac  vxlan.MAC
	self bool
}

func keyOf(e FDBEntry) fdbKey { return fdbKey{e.MAC, e.VTEP.IsValid()} }
