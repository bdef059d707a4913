//go:build linux

package guard

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"

	"github.com/netdriver/netdriver/vxlan"
)

// policy collects one change of a network's policy.
func (b *batch) policy(c Change, comment string) {
	switch c.Verb {
	case PutClass:
		b.end()
		b.note(b.putClass(c))
	case DelClass:
		b.end()
		b.conn.DelChain(&nftables.Chain{Name: chainTo(c.VNI, c.Class), Table: b.table})
		for _, s := range b.classSets(c.VNI, c.Class) {
			b.conn.DelSet(s)
		}
	case DelPolicy:
		b.end()
		for _, m := range b.classMaps(c.VNI) {
			b.conn.DelSet(m)
		}
	case PutMember, DelMember:
		set, e := mapClasses(c.VNI, c.Address), nftables.SetElement{Key: c.Address.AsSlice()}
		if c.Replaces || c.Verb == DelMember {
			b.element(set, true, e)
		}
		if c.Verb == PutMember {
			e.Val = binary.NativeEndian.AppendUint32(nil, c.Number)
			b.element(set, false, e)
		}
	case Judge, Release:
		b.judge(c, comment)
	}
}

func (b *batch) judge(c Change, comment string) {
	e := nftables.SetElement{Key: nameKey(c.Port)}
	if c.Replaces || c.Verb == Release {
		b.element(mapTo, true, e)
	}
	b.element(setLearns, false, nftables.SetElement{Key: e.Key, Comment: comment}) // it may be missing
	if c.Verb == Release {
		b.element(setLearns, true, e)
		return
	}
	e.Comment = comment
	e.VerdictData = &expr.Verdict{Kind: expr.VerdictGoto, Chain: chainTo(c.VNI, c.Class)}
	b.element(mapTo, false, e)
}

// classMaps are the maps of addresses to classes of a network.
func (b *batch) classMaps(v vxlan.VNI) []*nftables.Set {
	of := func(name string, address nftables.SetDatatype) *nftables.Set {
		return &nftables.Set{ID: b.nextID(), Name: name, Table: b.table, IsMap: true, KeyType: address, DataType: nftables.TypeMark}
	}
	return []*nftables.Set{of(mapClasses4(v), nftables.TypeIPAddr), of(mapClasses6(v), nftables.TypeIP6Addr)}
}

// classSets are what a class admits, what it reaches, and with whom it has to do.
func (b *batch) classSets(v vxlan.VNI, class string) []*nftables.Set {
	of := func(name string, ranges bool) *nftables.Set {
		return &nftables.Set{ID: b.nextID(), Name: name, Table: b.table, Interval: ranges, Concatenation: true,
			KeyType: nftables.MustConcatSetType(nftables.TypeMark, nftables.TypeInetProto, nftables.TypeInetService)}
	}
	kin := &nftables.Set{ID: b.nextID(), Name: setKin(v, class), Table: b.table, KeyType: nftables.TypeMark, KeyByteOrder: binaryutil.NativeEndian}
	return []*nftables.Set{
		of(setAdmits(v, class), true), of(setAdmitsPorts(v, class), false),
		of(setReaches(v, class), true), of(setReachesPorts(v, class), false), kin,
	}
}

// nextID numbers the sets of a transaction.
func (b *batch) nextID() uint32 { b.ids++; return b.ids }

// putClass makes the class, or fills what is there of it anew.
func (b *batch) putClass(c Change) error {
	admits, err1 := parseSpans(c.Admits)
	reaches, err2 := parseSpans(c.Reaches)
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	for _, m := range b.classMaps(c.VNI) {
		b.note(b.conn.AddSet(m, nil))
	}
	elements := [][]nftables.SetElement{
		spanElements(admits, false), spanElements(admits, true), spanElements(reaches, false), spanElements(reaches, true),
		kinElements(Class{c.Class, admits, reaches}),
	}
	for i, s := range b.classSets(c.VNI, c.Class) {
		b.note(b.conn.AddSet(s, nil))
		b.conn.FlushSet(s)
		for part := range slices.Chunk(elements[i], maxElements) {
			b.note(b.conn.SetAddElements(s, part))
		}
	}
	to := toClass(c.VNI, c.Class)
	b.conn.AddChain(b.chain(to))
	b.fill(to, true)
	return nil
}

// spanElements are those of the spans that are single ports, or of the others.
func spanElements(spans []Span, single bool) []nftables.SetElement {
	var all []nftables.SetElement
	for _, s := range spans {
		first, last := s.bounds()
		switch {
		case s.single() != single:
		case single:
			all = append(all, nftables.SetElement{Key: first})
		default:
			all = append(all, nftables.SetElement{Key: first, KeyEnd: last})
		}
	}
	return all
}

func kinElements(c Class) []nftables.SetElement {
	var all []nftables.SetElement
	for _, k := range c.kin() {
		all = append(all, nftables.SetElement{Key: binary.NativeEndian.AppendUint32(nil, k)})
	}
	return all
}

// policies adds the classes and members that the table has.
func (c *collector) policies(d *dump) {
	for name, elements := range d.elements {
		what, v, class, ok := parseName(name)
		if !ok {
			continue
		}
		switch what {
		case "admit":
			if k, sound := d.class(v, class); sound {
				n := c.of(v)
				n.Policy.Classes = append(n.Policy.Classes, k)
			}
		case "class4", "class6":
			n := c.of(v)
			for _, e := range elements {
				n.Policy.Members = append(n.Policy.Members, memberOf(e))
			}
		}
	}
}

// class returns a class; sound is false if something of it is not as this version makes it.
func (d *dump) class(v vxlan.VNI, name string) (c Class, sound bool) {
	c.Name = name
	var all, also bool
	c.Admits, all = d.spans(setAdmits(v, name), setAdmitsPorts(v, name))
	c.Reaches, also = d.spans(setReaches(v, name), setReachesPorts(v, name))
	if !all || !also {
		return c, false
	}
	var kin []uint32
	for _, e := range d.elements[setKin(v, name)] {
		kin = append(kin, binary.NativeEndian.Uint32(e.key))
	}
	slices.Sort(kin)
	return c, slices.Equal(kin, c.kin()) && slices.Equal(d.rules[chainTo(v, name)], toClass(v, name).fingerprints(true))
}

// spans are what a set of ranges and one of single ports have; ok is false if something else is in one of them.
func (d *dump) spans(ranges, ports string) (all []Span, ok bool) {
	for set, single := range map[string]bool{ranges: false, ports: true} {
		for _, e := range d.elements[set] {
			last := e.end
			if single {
				last = e.key
			}
			s, ok := spanOf(e.key, last)
			if !ok || s.single() != single {
				return nil, false
			}
			all = append(all, s)
		}
	}
	return all, true
}

func memberOf(e element) (m Member) {
	m.Address, _ = netip.AddrFromSlice(e.key)
	if len(e.value) >= 4 {
		m.Class = binary.NativeEndian.Uint32(e.value)
	}
	return m
}
