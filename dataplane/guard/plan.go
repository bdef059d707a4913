package guard

import (
	"github.com/netdriver/netdriver/internal/sorted"
	"github.com/netdriver/netdriver/vxlan"
)

// Changes are what Plan returns, apart since they have different places among a network's other operations: the table is
// made before any port comes up, removals come last.
type Changes struct{ Make, Put, Del []Change }

// Plan returns the changes that lead from have to want. Classes come before the ports that are judged by them, and the
// other way round when they go.
func Plan(v vxlan.VNI, have, want Network) Changes {
	p := planner{vni: v}
	if want.Table && !have.Table {
		p.Make = append(p.Make, Change{Verb: MakeTable})
	}
	p.ports(have.Ports, want.Ports)
	p.policy(have.Policy, want.Policy)
	p.Put = append(p.Put, p.judge...)
	sorted.Merge(have.Sources, want.Sources, compareSources, func(h, w *Source) {
		switch {
		case w == nil:
			p.del(Change{Verb: DelSource, Port: h.Port, MAC: h.MAC, Address: h.Address})
		case h == nil:
			p.put(Change{Verb: PutSource, Port: w.Port, MAC: w.MAC, Address: w.Address})
		}
	})
	return p.Changes
}

type planner struct {
	Changes
	vni   vxlan.VNI
	judge []Change
}

func (p *planner) put(c Change) { c.VNI = p.vni; p.Put = append(p.Put, c) }
func (p *planner) del(c Change) { c.VNI = p.vni; p.Del = append(p.Del, c) }

func (p *planner) ports(have, want []Port) {
	sorted.Merge(have, want, comparePorts, func(h, w *Port) {
		var was, is string
		if h != nil {
			was = h.Class
		}
		if w != nil {
			is = w.Class
		}
		if h == nil {
			p.put(Change{Verb: PutPort, Port: w.Name})
		}
		switch {
		case was == is:
		case is == "":
			p.del(Change{Verb: Release, Port: h.Name})
		default:
			p.judge = append(p.judge, Change{Verb: Judge, VNI: p.vni, Port: w.Name, Class: is, Replaces: was != ""})
		}
		if w == nil {
			p.del(Change{Verb: DelPort, Port: h.Name})
		}
	})
}

func (p *planner) policy(have, want Policy) {
	sorted.Merge(have.Classes, want.Classes, compareClasses, func(h, w *Class) {
		if w != nil && (h == nil || !h.equal(*w)) {
			p.put(Change{Verb: PutClass, Class: w.Name, Admits: formatSpans(w.Admits), Reaches: formatSpans(w.Reaches)})
		}
	})
	sorted.Merge(have.Members, want.Members, compareMembers, func(h, w *Member) {
		switch {
		case w == nil && len(want.Classes) > 0: // else the map goes
			p.del(Change{Verb: DelMember, Address: h.Address})
		case w != nil && (h == nil || h.Class != w.Class):
			p.put(Change{Verb: PutMember, Address: w.Address, Number: w.Class, Replaces: h != nil})
		}
	})
	sorted.Merge(have.Classes, want.Classes, compareClasses, func(h, w *Class) {
		if w == nil {
			p.del(Change{Verb: DelClass, Class: h.Name})
		}
	})
	if len(want.Classes) == 0 && len(have.Classes)+len(have.Members) > 0 {
		p.del(Change{Verb: DelPolicy})
	}
}
