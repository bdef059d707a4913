package diag

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/diag/host"
	"github.com/netdriver/netdriver/store"
)

// path is what is known of the way between two endpoints.
type path struct {
	network network
	from    party
	to      party
	records map[string]store.Node
	cluster cluster
	mtu     int
	token   host.Token

	next  int         // sequence number of the next probe
	talk  int         // that of the next one that a container's kernel sends
	sizes map[int]int // of each probe in either direction, by its number in the direction
	said  map[string]Testimony
	errs  map[string]error
	again bool // also who let the question before time out is asked
	door  int  // what the underlay's segment says of the other node
}

// step is a device on the way in one direction.
type step struct {
	node, place string
	out         bool
}

func newPath(w way, to party, c cluster) path {
	return path{
		network: w.network, from: w.source, to: to, records: c.nodes, cluster: c, mtu: w.network.MTU, token: host.NewToken(), next: 1, talk: stackFirst,
		sizes: map[int]int{}, said: map[string]Testimony{}, errs: map[string]error{},
	}
}

// nodes are those of the two ends.
func (p *path) nodes() []string { return slices.Compact([]string{p.from.Node, p.to.Node}) }

// askable are those that are worth a question: one that let the first time out does the same to the second. A daemon that is
// being restarted refuses at once.
func (p *path) askable() []string {
	return slices.DeleteFunc(p.nodes(), func(n string) bool { return p.errs[n] != nil && !p.refused(n) && !(p.again && p.hangs(n)) })
}

// hangs says whether a node's daemon took the connection and said nothing.
func (p *path) hangs(node string) bool {
	_, asked := p.said[node]
	return !asked && errors.Is(p.errs[node], ErrHangs)
}

// refused says whether a node's kernel answered that nobody serves the daemons' port, or that who did has ended.
func (p *path) refused(node string) bool {
	_, asked := p.said[node]
	return !asked && slices.ContainsFunc([]error{unix.ECONNREFUSED, unix.ECONNRESET, io.EOF}, func(e error) bool { return errors.Is(p.errs[node], e) })
}

func (p *path) end(e party) End {
	return End{ID: e.ID, Node: e.Node, VTEP: p.records[e.Node].VTEP, MAC: e.MAC, Addresses: e.Addrs(), Sandbox: e.Sandbox}
}

// question is what a node is asked; what it sends are probes of the given sizes, and its containers' kernels those of stack.
func (p *path) question(node string, sizes, stack []int) Question {
	q := Question{
		Token: p.token, Network: p.network.Name, Mode: p.network.Mode, VNI: p.network.VNI, Port: p.network.Port, MTU: p.network.MTU,
	}
	from, to := p.end(p.from), p.end(p.to)
	for _, e := range []End{from, to} {
		if e.Node == node {
			q.Here = append(q.Here, e)
		} else {
			q.There = append(q.There, e)
		}
	}
	if from.Node == node && (!p.from.host() || p.to.host()) {
		q.Send = append(q.Send, Flight{From: from, To: to, First: p.next, Sizes: sizes, Stack: stack, StackFirst: p.talk})
	}
	if to.Node == node && (!p.to.host() || p.from.host()) {
		q.Send = append(q.Send, Flight{
			From: to, To: from, First: backFirst + p.next, Sizes: sizes, Stack: stack, StackFirst: backFirst + p.talk,
		})
	}
	return q
}

// heard adds a node's answer. What it saw adds up; what is wrong is what it said last.
func (p *path) heard(node string, t Testimony, err error) {
	if err != nil {
		p.errs[node] = err
		return
	}
	before := p.said[node]
	t.Sightings = append(before.Sightings, t.Sightings...)
	t.Moved, t.Dropped = append(before.Moved, t.Moved...), append(before.Dropped, t.Dropped...)
	t.Spoken = append(before.Spoken, t.Spoken...)
	p.said[node] = t
}

// forget leaves out the rounds so far, in which a node could not look.
func (p *path) forget() {
	clear(p.sizes)
	clear(p.said)
}

func (p *path) count(sizes, stack []int) {
	p.talk += len(stack)
	for _, size := range sizes {
		p.sizes[p.next] = size
		p.next++
	}
}

// steps are the devices on the way, forward or back.
func (p *path) steps(back bool) []step {
	from, to := p.from, p.to
	if back {
		from, to = to, from
	}
	var out []step
	if p.network.OnLAN() {
		out = append(out, step{from.Node, at(placeContainer, from.ID), true})
		if from.Node != to.Node {
			out = append(out, step{from.Node, placeUnderlay, true}, step{to.Node, placeUnderlay, false})
		}
		return append(out, step{to.Node, at(placeContainer, to.ID), false})
	}
	if !from.host() {
		out = append(out, step{from.Node, at(placeContainer, from.ID), true}, step{from.Node, at(placePort, from.ID), false})
	}
	if from.Node != to.Node {
		out = append(out,
			step{from.Node, placeVXLAN, true}, step{from.Node, placeUnderlay, true},
			step{to.Node, placeUnderlay, false}, step{to.Node, placeVXLAN, false})
	}
	if to.host() {
		return out
	}
	return append(out, step{to.Node, at(placePort, to.ID), true}, step{to.Node, at(placeContainer, to.ID), false})
}

// own says whether the probes of a direction were sent by its own end; else the answers of the other direction count.
func (p *path) own(back bool) bool {
	from, to := p.from, p.to
	if back {
		from, to = to, from
	}
	_, asked := p.said[from.Node]
	return asked && (!from.host() || to.host())
}

// seen returns when each probe was seen at a step, by its number.
func (p *path) seen(s step, back bool) map[int]time.Time {
	own := p.own(back)
	out := map[int]time.Time{}
	for _, x := range p.said[s.node].Sightings {
		n, backward := int(x.Sequence), x.Sequence >= backFirst
		if backward {
			n -= backFirst
		}
		if n >= stackFirst {
			continue
		}
		if x.Place == s.place && x.Out == s.out && (own && !x.Reply && backward == back || !own && x.Reply && backward != back) {
			if _, already := out[n]; !already {
				out[n] = x.At
			}
		}
	}
	return out
}

// known says whether anybody could look at a step.
func (p *path) known(s step) bool {
	t, asked := p.said[s.node]
	if !asked || s.place == placeUnderlay && p.network.Encrypted {
		return false
	}
	return slices.ContainsFunc(t.Devices, func(d Device) bool { return d.Place == s.place }) ||
		slices.ContainsFunc(t.Faults, func(f Fault) bool { return f.Place == s.place })
}

// came returns the numbers of the probes that came to the end of a direction: seen there, or answered from there.
func (p *path) came(back bool) map[int]bool {
	out := map[int]bool{}
	steps := p.steps(back)
	for n := range p.seen(steps[len(steps)-1], back) {
		out[n] = true
	}
	if len(out) > 0 {
		return out
	}
	// Nobody could look there: an answer that came back from there is as good.
	first := p.steps(!back)
	for _, x := range p.said[steps[0].node].Sightings {
		if n := int(x.Sequence) % backFirst; n < stackFirst && x.Reply && x.Place == first[len(first)-1].place && !x.Out && (x.Sequence >= backFirst) == back {
			out[n] = true
		}
	}
	return out
}

// arrived counts the probes of sizes from low to high that came through.
func (p *path) arrived(back bool, low, high int) (n int) {
	for i := range p.came(back) {
		if size := p.sizes[i]; size >= low && size <= high {
			n++
		}
	}
	return n
}

func (p *path) sent(low, high int) (n int) {
	for _, size := range p.sizes {
		if size >= low && size <= high {
			n++
		}
	}
	return n
}

// whole says whether everything came through.
func (p *path) whole() bool {
	for _, back := range []bool{false, true} {
		if len(p.came(back)) < len(p.sizes) || !p.speaks(back) {
			return false
		}
	}
	return true
}

// largestOf is the largest packet that came through in one direction, largest that in both; smallestLost the smallest size
// of which none did.
func (p *path) largestOf(back bool) (n int) {
	for i := range p.came(back) {
		n = max(n, p.sizes[i])
	}
	return n
}

func (p *path) largest() int { return min(p.largestOf(false), p.largestOf(true)) }

func (p *path) smallestLost() int {
	low, out := p.largest(), p.mtu
	for _, size := range p.sizes {
		if size > low {
			out = min(out, size)
		}
	}
	return out
}

// hops tells what was seen in a direction.
func (p *path) hops(back bool) []Hop {
	var out []Hop
	var before map[int]time.Time
	lost, node := false, ""
	sent := p.sent(small, small)
	for _, s := range p.steps(back) {
		h := Hop{Node: s.node, Place: s.place, State: HopUnknown, Sent: sent}
		for _, d := range p.said[s.node].Devices {
			if d.Place == s.place {
				h.Device = d.Name
			}
		}
		seen := p.seen(s, back)
		for n := range seen {
			h.Largest = max(h.Largest, p.sizes[n])
			if p.sizes[n] == small {
				h.Seen++
			}
		}
		switch {
		case len(seen) > 0:
			h.State = HopPassed
			h.Evidence = append(h.Evidence, fmt.Sprintf("%d of %d marked probes seen on %s", h.Seen, sent, h.Device))
			if node == s.node {
				h.Seconds = between(before, seen)
			}
			before, node = seen, s.node
		case !p.known(s):
		case lost:
			h.State = HopSilent
		default:
			h.State, lost = HopLost, true
		}
		out = append(out, h)
	}
	// What was seen behind a device was there, too.
	for i := len(out) - 1; i > 0; i-- {
		if out[i].State == HopPassed && out[i-1].State != HopPassed && out[i-1].State != HopUnknown {
			out[i-1].State = HopUnknown
		}
	}
	return out
}

// between is the shortest time from one hop to the next.
func between(a, b map[int]time.Time) float64 {
	least := 0.0
	for n, t := range b {
		if s, both := a[n]; both {
			if d := t.Sub(s).Seconds(); d >= 0 && (least == 0 || d < least) {
				least = d
			}
		}
	}
	return least
}

// roundTrip is the shortest time from a probe at the source's interface to its answer there.
func (p *path) roundTrip() float64 {
	place := at(placeContainer, p.from.ID)
	went, came := map[int]time.Time{}, map[int]time.Time{}
	for _, x := range p.said[p.from.Node].Sightings {
		n := int(x.Sequence)
		switch {
		case x.Place != place || x.Sequence >= backFirst || p.sizes[n] != small:
		case x.Out && !x.Reply:
			went[n] = x.At
		case !x.Out && x.Reply:
			came[n] = x.At
		}
	}
	return between(went, came)
}
