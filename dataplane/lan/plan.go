package lan

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// plan returns the operations that lead from have to want, which must have passed Network.Check. Additions come before
// removals, and what others stand on before them; removals the other way round.
func plan(have, want Network) []Op {
	p := planner{name: want.Name}
	if p.name == "" {
		p.name = have.Name
	}
	p.vlan(have.VLAN, want.VLAN)
	p.bridge(have.Bridge, want.Bridge)
	p.ports(have.Ports, want.Ports)
	p.seat(have.Seat, want.Seat)
	slices.Reverse(p.dels)
	return append(p.ops, p.dels...)
}

// planner collects a plan. The removals wait until the rest is there, and are reversed in the end.
type planner struct {
	name      string
	ops, dels []Op
}

func (p *planner) add(op Op) {
	op.Network = p.name
	p.ops = append(p.ops, op)
}

func (p *planner) del(op Op) {
	op.Network = p.name
	p.dels = append(p.dels, op)
}

func (p *planner) vlan(have, want VLAN) {
	if have.Device != "" && want.Device == "" {
		p.del(Op{Verb: DelLink, Device: have.Device})
	}
	if want.Device == "" {
		return
	}
	if have.Device != "" && (have.Parent != want.Parent || have.ID != want.ID) {
		p.add(Op{Verb: DelLink, Device: have.Device}) // the kernel cannot change these
		have = VLAN{}
	}
	if have.Device == "" {
		p.add(Op{Verb: AddVLAN, Device: want.Device, Parent: want.Parent, ID: want.ID})
	}
	if want.Up && !have.Up {
		p.add(Op{Verb: SetUp, Device: want.Device})
	}
}

func (p *planner) bridge(have, want Bridge) {
	switch {
	case want.Device == "":
		if have.Device != "" {
			p.del(Op{Verb: DelLink, Device: have.Device})
		}
		return
	case have.Device == "":
		p.add(Op{Verb: AddBridge, Device: want.Device, MTU: want.MTU})
	case have.MTU != want.MTU:
		p.add(Op{Verb: SetMTU, Device: want.Device, MTU: want.MTU})
	}
	if want.Up && !have.Up {
		p.add(Op{Verb: SetUp, Device: want.Device})
	}
}

// ports walks both sorted slices at once.
func (p *planner) ports(have, want []Port) {
	for len(have) > 0 || len(want) > 0 {
		switch {
		case len(want) == 0 || len(have) > 0 && have[0].Endpoint < want[0].Endpoint:
			p.removePort(have[0])
			have = have[1:]
		case len(have) == 0 || want[0].Endpoint < have[0].Endpoint:
			p.makePort(want[0])
			want = want[1:]
		default:
			p.changePort(have[0], want[0])
			have, want = have[1:], want[1:]
		}
	}
}

func (p *planner) removePort(have Port) {
	if have.Gone {
		return
	}
	p.del(deletion(have))
}

func deletion(have Port) Op {
	op := Op{Verb: DelLink, Device: PortName(have.Endpoint), Endpoint: have.Endpoint, Sandbox: have.Sandbox}
	if have.Kind == Veth {
		op.Device, op.Sandbox = pairName(have.Endpoint), "" // the other end goes with it
	}
	return op
}

// makePort plans a new port: on the host, or in the sandbox if Docker will not move it there (any more).
func (p *planner) makePort(want Port) {
	op := Op{
		Verb: AddPort, Device: PortName(want.Endpoint), Endpoint: want.Endpoint, Parent: want.Parent, Kind: want.Kind,
		Mode: want.Mode, MAC: want.MAC, MTU: want.MTU,
	}
	switch {
	case want.Sandbox != "":
		op.Verb, op.Sandbox = PlacePort, want.Sandbox
		op.Addresses, op.Gateways = words(want.Addresses), words(want.Gateways)
	case want.Placed:
		return // until there is a sandbox
	}
	p.add(op)
	p.attach(want)
}

// attach plans that the bridge's end of a pair works.
func (p *planner) attach(want Port) {
	if want.Kind == Veth && want.Attached {
		op := Op{Device: pairName(want.Endpoint), Endpoint: want.Endpoint, Parent: want.Parent, Verb: SetMaster}
		p.add(op)
		op.Verb, op.Parent = SetUp, ""
		p.add(op)
	}
}

// changePort repairs a port. One that Docker has moved is the container's: it is only to be there.
func (p *planner) changePort(have, want Port) {
	inContainer := have.Sandbox != "" && have.Kind != Veth // of a pair one end stays
	differs := have.Kind != want.Kind || want.Kind != Veth && (have.Parent != want.Parent || have.Mode != want.Mode) ||
		want.Kind == Macvlan && want.Mode != Passthru && have.MAC != want.MAC // passthru has the parent's
	switch {
	case have.Gone || inContainer:
	case want.Kind == Veth && have.Kind == Veth:
		if want.Attached && !have.Attached {
			p.attach(want)
		}
	case differs:
		op := deletion(have)
		p.add(op)
		p.makePort(want)
	case have.MTU != want.MTU:
		p.add(Op{Verb: SetMTU, Device: PortName(want.Endpoint), Endpoint: want.Endpoint, MTU: want.MTU})
	}
}

func (p *planner) seat(have, want Seat) {
	if have.Device != want.Device {
		have = Seat{}
	}
	if want.Device == "" {
		return // the addresses go with the device
	}
	if want.Answers && !have.Answers {
		p.add(Op{Verb: SetAnswers, Device: want.Device})
	}
	if want.Up && !have.Up {
		p.add(Op{Verb: SetUp, Device: want.Device})
	}
	p.prefixes(want.Device, have.Addresses, want.Addresses, AddAddress, DelAddress)
	p.prefixes(want.Device, have.Routes, want.Routes, AddRoute, DelRoute)
}

func (p *planner) prefixes(device string, have, want []netip.Prefix, add, del Verb) {
	for _, w := range want {
		if !slices.Contains(have, w) {
			p.add(Op{Verb: add, Device: device, Prefix: w})
		}
	}
	for _, h := range have {
		if !slices.Contains(want, h) {
			p.del(Op{Verb: del, Device: device, Prefix: h})
		}
	}
}

// words writes a list as an Op has it, which must be comparable.
func words[T fmt.Stringer](list []T) string {
	var out []string
	for _, e := range list {
		out = append(out, e.String())
	}
	return strings.Join(out, " ")
}
