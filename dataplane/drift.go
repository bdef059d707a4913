package dataplane

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/netdriver/netdriver/dataplane/rate"
	"github.com/netdriver/netdriver/vxlan"
)

const (
	// settleTime is how long events are collected before a network counts as drifted: one `ip link del` causes many,
	// and our own operations pass through states that contradict what is wanted.
	settleTime = 10 * time.Millisecond
	// maxPostponed bounds, in settleTimes, how long a stream of events can put the judgement off.
	maxPostponed = 20
	// maxReceipts are kept per network; one repair makes at most repairReceipts of them, so that a device that was
	// deleted with its 10,000 entries does not push out everything else.
	maxReceipts    = 32
	repairReceipts = 8
)

// Receipt tells of one repair: an operation that undid what something else had done to a network's kernel state.
type Receipt struct {
	Time    time.Time
	Network string
	// Op is the repairing operation as a command, or the number of further ones of the same repair.
	Op string
	// Took is how long the whole repair took, from plan to done.
	Took time.Duration
	// Error says why the repair failed; empty if it did not.
	Error string
}

// subject is what the kernel keeps one state of: a later Event about it makes an earlier one obsolete.
type subject struct {
	device    string
	flags     bool
	detached  bool
	fdb       fdbKey
	flood     netip.Addr // of which the zero MAC has several
	neighbour netip.Addr
}

func (e Event) subject() subject {
	s := subject{device: e.Device, flags: e.FlagsOnly, detached: e.Detached, fdb: keyOf(e.FDB), neighbour: e.Neighbour.Address}
	if e.FDB.MAC.IsZero() {
		s.flood = e.FDB.VTEP
	}
	return s
}

// Run follows the kernel's events until ctx ends and sends networks that others changed to Drifted. It returns nil at
// the end of ctx, and an error if events end before.
func (p *Plane) Run(ctx context.Context) error {
	events, err := p.kernel.Events(ctx)
	if err != nil {
		return fmt.Errorf("follow kernel events: %w", err)
	}
	suspected := map[vxlan.VNI]bool{} // to be judged when settle fires
	var settle <-chan time.Time
	postponed := 0
	var queue []vxlan.VNI // to be sent
	for {
		if settle == nil && len(suspected) > 0 {
			settle = time.After(settleTime)
		}
		var out chan vxlan.VNI
		var next vxlan.VNI
		if len(queue) > 0 {
			out, next = p.drifted, queue[0]
		}
		select {
		case e, ok := <-events:
			if !ok {
				return ended(ctx)
			}
			queue = enqueue(queue, p.notice(e, suspected))
		case <-settle:
			settle = nil
			// What waits unread may be the very news that all is well again. In a flood of events we stop waiting for it.
			if postponed++; len(events) > 0 && postponed < maxPostponed {
				continue
			}
			postponed = 0
			queue = enqueue(queue, p.judge(suspected))
		case out <- next:
			queue = queue[1:]
		case <-ctx.Done():
			return nil
		}
	}
}

func ended(ctx context.Context) error {
	if ctx.Err() == nil {
		return errors.New("kernel events ended")
	}
	return nil
}

// enqueue appends what is not waiting already.
func enqueue(queue, more []vxlan.VNI) []vxlan.VNI {
	for _, v := range more {
		if !slices.Contains(queue, v) {
			queue = append(queue, v)
		}
	}
	return queue
}

// Drifted delivers networks whose kernel state was changed by others, while Run runs. The receiver calls Apply again.
func (p *Plane) Drifted() <-chan vxlan.VNI { return p.drifted }

// notice takes one event in. It returns the networks that must be read at once: all of them if events were lost.
func (p *Plane) notice(e Event, suspected map[vxlan.VNI]bool) []vxlan.VNI {
	if e.Lost {
		all := p.markAll()
		p.log.Warn("kernel events were lost; reading every network again", "networks", len(all))
		return all
	}
	if e.Guard {
		return p.markAll()
	}
	n := p.find(e.VNI)
	if n == nil {
		return nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if e.Device != "" { // an event about the whole device tells its flags too
		delete(n.suspects, subject{device: e.Device, flags: true})
	}
	switch {
	case n.want.contradicts(e):
		n.suspects[e.subject()] = e
		suspected[e.VNI] = true
	case !e.Deleted || e.FDB == FDBEntry{} || !n.want.wantsMAC(keyOf(e.FDB)):
		delete(n.suspects, e.subject())
	}
	return nil
}

// wantsMAC says whether a MAC is wanted anywhere in a table. An unwanted place that it has lost is then no good news.
func (n *Network) wantsMAC(k fdbKey) bool {
	at := func(port string) bool {
		i, _ := slices.BinarySearchFunc(n.FDB, FDBEntry{MAC: k.mac, Port: port}, compareFDB) // the first, VTEP or not
		for ; i < len(n.FDB) && n.FDB[i].Port == port && n.FDB[i].MAC == k.mac; i++ {
			if keyOf(n.FDB[i]) == k {
				return !k.mac.IsZero()
			}
		}
		return false
	}
	return at("") || !k.self && slices.ContainsFunc(n.Ports, func(p Port) bool { return at(p.Endpoint) })
}

func (p *Plane) markAll() []vxlan.VNI {
	p.mu.Lock()
	all := maps.Clone(p.nets)
	p.mu.Unlock()
	for _, n := range all {
		n.mark()
	}
	return slices.Sorted(maps.Keys(all))
}

// judge returns the suspected networks that have drifted. One that is being applied, or was a moment ago, is judged
// later: the events of our own operations may not all be in.
func (p *Plane) judge(suspected map[vxlan.VNI]bool) []vxlan.VNI {
	var drifted []vxlan.VNI
	for v := range suspected {
		n := p.find(v)
		switch {
		case n == nil:
			delete(suspected, v)
		case n.applying.TryLock():
			if time.Since(n.ran) >= settleTime {
				delete(suspected, v)
				if n.verdict() {
					drifted = append(drifted, v)
				}
			}
			n.applying.Unlock()
		}
	}
	return drifted
}

// verdict says whether what was last heard of anything still contradicts what is wanted, and marks the network if so.
func (n *network) verdict() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	guilty := false
	for _, e := range n.suspects {
		guilty = guilty || n.want.contradicts(e)
	}
	clear(n.suspects)
	n.marked = n.marked || guilty
	return guilty
}

// contradicts says whether e reports something that is not as wanted. It takes O(log n) steps for n entries.
func (n *Network) contradicts(e Event) bool {
	if n.VNI == 0 {
		return false
	}
	switch {
	case e.Device != "":
		want := n.device(e.Device)
		switch {
		case e.Detached:
			return want != nil && (want.balanced || want.limit != rate.Limit{})
		case e.Deleted || want == nil:
			return e.Deleted == (want != nil)
		case e.FlagsOnly:
			return want.enslaved && !e.Enslaved
		}
		return want.mtu != e.MTU || want.up && !e.Up || want.enslaved && !e.Enslaved
	case e.Neighbour.Address.IsValid():
		i, found := slices.BinarySearchFunc(n.Neighbours, e.Neighbour, compareNeighbours)
		if e.Deleted {
			return found
		}
		return !found || n.Neighbours[i] != e.Neighbour
	}
	_, found := slices.BinarySearchFunc(n.FDB, e.FDB, compareFDB)
	return found == e.Deleted
}

// device returns what is wanted of a device of the network, nil if it is not wanted.
func (n *Network) device(name string) *link {
	switch name {
	case BridgeName(n.VNI):
		return n.Bridge.link()
	case VXLANName(n.VNI):
		return n.VXLAN.link()
	}
	// Ports are sorted by endpoint id, and so by the beginning of it that the name has.
	i, found := slices.BinarySearchFunc(n.Ports, name, func(p Port, name string) int {
		return strings.Compare(PortName(p.Endpoint), name)
	})
	if !found {
		return nil
	}
	return n.Ports[i].link()
}

// receipt remembers and logs a repair.
func (p *Plane) receipt(n *network, name string, repairs []Op, start time.Time, failed error) {
	if len(repairs) == 0 {
		return
	}
	p.counts.drift.Add(uint64(len(repairs)))
	r := Receipt{Time: start, Network: name, Took: time.Since(start)}
	if failed != nil {
		r.Error = failed.Error()
	}
	shown := make([]string, 0, repairReceipts)
	for _, op := range repairs[:min(len(repairs), repairReceipts)] {
		shown = append(shown, op.String())
	}
	if more := len(repairs) - repairReceipts + 1; more > 1 {
		shown[repairReceipts-1] = fmt.Sprintf("and %d operations more", more)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.drift += uint64(len(repairs))
	for _, op := range shown {
		r.Op = op
		n.receipts = append(n.receipts, r)
	}
	n.receipts = n.receipts[max(0, len(n.receipts)-maxReceipts):]
	p.repaired(name, shown, failed)
	p.log.Warn("repaired what something else had changed", "network", name, "operations", len(repairs), "did", shown,
		"took", r.Took, "error", r.Error)
}

// Receipts returns the last repairs of a network, 32 at most, oldest first.
func (p *Plane) Receipts(v vxlan.VNI) []Receipt {
	n := p.find(v)
	if n == nil {
		return nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.receipts)
}
