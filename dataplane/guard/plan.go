package guard

import "github.com/netdriver/netdriver/vxlan"

// Changes are what Plan returns, apart since they have different places among a network's other operations: the table is
// made before any port comes up, removals come last.
type Changes struct{ Make, Put, Del []Change }

// Plan returns the changes that lead from have to want.
func Plan(v vxlan.VNI, have, want Network) Changes {
	var c Changes
	put := func(ch Change) { ch.VNI = v; c.Put = append(c.Put, ch) }
	del := func(ch Change) { ch.VNI = v; c.Del = append(c.Del, ch) }
	if want.Table && !have.Table {
		c.Make = append(c.Make, Change{Verb: MakeTable})
	}
	merge(have.Ports, want.Ports, comparePorts, func(h, w *Port) {
		switch {
		case w == nil:
			del(Change{Verb: DelPort, Port: h.Name})
		case h == nil:
			put(Change{Verb: PutPort, Port: w.Name})
		}
	})
	merge(have.Sources, want.Sources, compareSources, func(h, w *Source) {
		switch {
		case w == nil:
			del(Change{Verb: DelSource, Port: h.Port, MAC: h.MAC, Address: h.Address})
		case h == nil:
			put(Change{Verb: PutSource, Port: w.Port, MAC: w.MAC, Address: w.Address})
		}
	})
	return c
}

// merge walks two sorted slices at once and calls f with what compares equal; what one of them lacks is nil.
func merge[T any](have, want []T, compare func(a, b T) int, f func(have, want *T)) {
	for len(have) > 0 || len(want) > 0 {
		c := 0
		switch {
		case len(have) == 0:
			c = 1
		case len(want) == 0:
			c = -1
		default:
			c = compare(have[0], want[0])
		}
		var h, w *T
		if c <= 0 {
			h, have = &have[0], have[1:]
		}
		if c >= 0 {
			w, want = &want[0], want[1:]
		}
		f(h, w)
	}
}
