package dataplane

import (
	"context"

	"github.com/netdriver/netdriver/internal/sorted"
	"github.com/netdriver/netdriver/vxlan"
)

// Change lets another program change a network behind the data plane's back; change may do anything to its argument.
// The kernel's own consequences (entries of a device that goes, for example) are the caller's to make.
func (f *Fake) Change(v vxlan.VNI, change func(*Network)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := &Network{VNI: v}
	if there := f.nets[v]; there != nil {
		n = there
	}
	before := n.clone()
	change(n)
	n.Sort()
	f.master[VXLANName(v)] = n.VXLAN.Enslaved
	for _, p := range n.Ports {
		f.master[PortName(p.Endpoint)] = p.Enslaved
	}
	for _, e := range n.FDB {
		f.place(v, e)
	}
	f.keep(n)
	f.announce(before, *n)
}

// event is what the kernel reports after an operation on an entry.
func (op Op) event() Event {
	e := Event{VNI: op.VNI, Deleted: op.Verb == DelFDB || op.Verb == DelNeighbour}
	if op.Verb == PutFDB || op.Verb == DelFDB {
		e.FDB = op.entry()
	} else {
		e.Neighbour = Neighbour{Address: op.Address, MAC: op.MAC}
	}
	return e
}

// LoseEvents tells every reader that events were lost.
func (f *Fake) LoseEvents() { f.events.Send(Event{Lost: true}) }

// Events implements Kernel.
func (f *Fake) Events(ctx context.Context) (<-chan Event, error) { return f.events.Listen(ctx), nil }

// announce sends what differs between two states of a network, unless nobody listens.
func (f *Fake) announce(before, after Network) {
	if !f.events.Heard() {
		return
	}
	v := after.VNI
	devices := func(was, is devices) {
		for name := range was {
			if _, there := is[name]; !there {
				f.events.Send(Event{VNI: v, Device: name, Deleted: true})
			}
		}
		for name, l := range is {
			if was[name] != l {
				f.events.Send(Event{VNI: v, Device: name, MTU: l.mtu, Up: l.up, Enslaved: l.enslaved})
			}
		}
	}
	devices(devicesOf(before), devicesOf(after))
	sorted.Merge(before.FDB, after.FDB, compareFDB, func(was, is *FDBEntry) {
		switch {
		case is == nil:
			f.events.Send(Event{VNI: v, FDB: *was, Deleted: true})
		case was == nil:
			f.events.Send(Event{VNI: v, FDB: *is})
		}
	})
	sorted.Merge(before.Neighbours, after.Neighbours, compareNeighbours, func(was, is *Neighbour) {
		switch {
		case is == nil:
			f.events.Send(Event{VNI: v, Neighbour: *was, Deleted: true})
		case was == nil || *was != *is:
			f.events.Send(Event{VNI: v, Neighbour: *is})
		}
	})
}

// devices are a network's devices by name.
type devices map[string]link

func devicesOf(n Network) devices {
	d := devices{}
	if l := n.Bridge.link(); l != nil {
		d[BridgeName(n.VNI)] = *l
	}
	if l := n.VXLAN.link(); l != nil {
		d[VXLANName(n.VNI)] = *l
	}
	for _, p := range n.Ports {
		d[PortName(p.Endpoint)] = *p.link()
	}
	return d
}
