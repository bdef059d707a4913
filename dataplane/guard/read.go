//go:build linux

package guard

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"

	"github.com/netdriver/netdriver/vxlan"
)

// ownerComment is kept with each element, so that a network's elements are found whose ports are gone.
func ownerComment(v vxlan.VNI) string { return "vni " + strconv.FormatUint(uint64(v), 10) }

func (r rule) comment() []byte {
	return userdata.AppendString(nil, userdata.TypeComment, r.fingerprint())
}

// told returns the chain's rules, without those that copy frames if the kernel cannot do that.
func (c chain) told(tell bool) []rule {
	if tell {
		return c.rules
	}
	return slices.DeleteFunc(slices.Clone(c.rules), func(r rule) bool {
		return slices.ContainsFunc(r, func(e expr.Any) bool { _, log := e.(*expr.Log); return log })
	})
}

// Read returns what the table holds of each network. ownerOf tells whose port of that name is, for elements that do not
// say it themselves because somebody else put them.
func (t *Table) Read(ownerOf func(port string) (vxlan.VNI, bool)) (map[vxlan.VNI]*Network, bool, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	d, err := t.read()
	if err != nil {
		return nil, false, fmt.Errorf("read table bridge %s: %w", tableName, err)
	}
	intact := d.intact(!t.silent)
	c := collector{nets: map[vxlan.VNI]*Network{}, ownerOf: ownerOf}
	c.ports(d)
	for _, set := range []string{setOwn4, setOwn6} {
		for _, e := range d.elements[set] {
			c.source(e)
		}
	}
	c.policies(d)
	for _, n := range c.nets {
		n.Table = intact
		n.Sort()
	}
	return c.nets, intact, nil
}

// collector puts networks together.
type collector struct {
	nets    map[vxlan.VNI]*Network
	ownerOf func(port string) (vxlan.VNI, bool)
}

// network returns the network that an element about a port belongs to, nil if nobody knows.
func (c *collector) network(e element, port string) *Network {
	var v vxlan.VNI
	if text, ours := strings.CutPrefix(e.comment, "vni "); ours {
		n, err := strconv.ParseUint(text, 10, 24)
		if err != nil {
			return nil
		}
		v = vxlan.VNI(n)
	} else if owner, known := c.ownerOf(port); known {
		v = owner
	} else {
		return nil
	}
	return c.of(v)
}

func (c *collector) of(v vxlan.VNI) *Network {
	if c.nets[v] == nil {
		c.nets[v] = &Network{}
	}
	return c.nets[v]
}

// ports adds the ports that are in each of the sets that count.
func (c *collector) ports(d *dump) {
	classes := d.judged()
	in := map[string]int{}
	for _, set := range counted() {
		for _, e := range d.elements[set] {
			name := nameOf(e.key)
			if in[name]++; in[name] == len(counted()) {
				if n := c.network(e, name); n != nil {
					n.Ports = append(n.Ports, Port{Name: name, Class: classes[name]})
				}
			}
		}
	}
}

// judged returns the classes of ports that are judged.
func (d *dump) judged() map[string]string {
	learns, classes := map[string]bool{}, map[string]string{}
	for _, e := range d.elements[setLearns] {
		learns[nameOf(e.key)] = true
	}
	for _, e := range d.elements[mapTo] {
		name := nameOf(e.key)
		if _, _, class, ok := parseName(e.chain); ok {
			classes[name] = class
		}
		if !learns[name] { // half of it: to be put again in the place of what is there
			classes[name] = incomplete
		}
	}
	return classes
}

// incomplete is the class of a port that has one and lacks what goes with it. No class has such a name.
const incomplete = "?"

func (c *collector) source(e element) {
	if len(e.key) < addressAt {
		return
	}
	s := Source{Port: nameOf(e.key[:ifNameSize])}
	copy(s.MAC[:], e.key[macAt:])
	s.Address, _ = netip.AddrFromSlice(e.key[addressAt:])
	if n := c.network(e, s.Port); n != nil && s.Address.IsValid() {
		n.Sources = append(n.Sources, s)
	}
}

func nameOf(key []byte) string { return string(bytes.TrimRight(key, "\x00")) }

// intact says whether the table has the chains that all networks share, as this version makes them.
func (d *dump) intact(tell bool) bool {
	for _, c := range chains() {
		if !slices.Equal(d.rules[c.name], c.fingerprints(tell)) {
			return false
		}
	}
	return true
}

func (c chain) fingerprints(tell bool) []string {
	var out []string
	for _, r := range c.told(tell) {
		out = append(out, r.fingerprint())
	}
	return out
}

// Drops returns the counters by port.
func (t *Table) Drops() (map[string]Drops, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := map[string]Drops{}
	for _, set := range counted() {
		elements, err := t.elements(set)
		if err != nil {
			return nil, err
		}
		for _, e := range elements {
			d := all[nameOf(e.key)]
			d.Port = nameOf(e.key)
			d.count(set, e.packets)
			all[d.Port] = d
		}
	}
	return all, nil
}
