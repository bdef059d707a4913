package diag

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/netdriver/netdriver/dataplane"
	"github.com/netdriver/netdriver/dataplane/guard"
	"github.com/netdriver/netdriver/diag/host"
	"github.com/netdriver/netdriver/vxlan"
)

// Witness answers questions about this node's part of paths. It reads the kernel and needs neither store nor daemon.
type Witness struct {
	Node string
	// RunDir has netdriver's namespace.
	RunDir string
}

const (
	// maxMillis bounds how long a question lasts, maxProbes how many frames it makes and maxEnds its endpoints.
	maxMillis = 5000
	maxProbes = 64
	maxEnds   = 64
	// apart is the time between two probes, so that a queue that is nearly full is not the reason for a loss.
	apart = 3 * time.Millisecond
)

// ErrQuestion is wrapped by the error about a question that is not to be answered.
var ErrQuestion = errors.New("impossible question")

// check bounds what a node does for a peer.
func (q Question) check() error {
	n := 0
	for _, f := range q.Send {
		n += len(f.Sizes)
		for _, size := range f.Sizes {
			if size > 1<<16-1 {
				return fmt.Errorf("%w: a probe of %d bytes", ErrQuestion, size)
			}
		}
	}
	if n > maxProbes || len(q.Here)+len(q.There) > maxEnds || q.Millis < 0 || q.Millis > maxMillis {
		return fmt.Errorf("%w: %d probes, %d endpoints, %d ms; at most %d, %d and %d are allowed",
			ErrQuestion, n, len(q.Here)+len(q.There), q.Millis, maxProbes, maxEnds, maxMillis)
	}
	return nil
}

// Testify looks at this node's part of a path and at the marked frames that pass. It calls ready when it is looking, and
// go on only then: who asked several nodes lets them send when all are.
func (w Witness) Testify(ctx context.Context, q Question, ready func() error) (Testimony, error) {
	out := Testimony{Node: w.Node}
	if err := q.check(); err != nil {
		return out, err
	}
	s, err := openScene(q, w.RunDir)
	if err != nil {
		return out, err
	}
	defer s.close()
	s.examine()
	for _, p := range s.points {
		out.Devices = append(out.Devices, Device{Place: p.Place, Name: p.Link.Name, MTU: p.Link.MTU})
	}
	watch, err := host.Watching(q.Token, s.points)
	if err != nil {
		return out, err
	}
	defer watch.Close()
	before := s.account()
	if err := ready(); err != nil {
		return out, err
	}
	s.send(ctx)
	s.wait(ctx, watch)
	out.Sightings = watch.Seen()
	out.Moved, out.Dropped = s.compare(before)
	out.Faults, out.Notes = s.faults, s.notes
	return out, nil
}

// wait looks until all probes and answers have come through all devices, or for as long as was asked.
func (s *scene) wait(ctx context.Context, watch *host.Watch) {
	const look = 15 * time.Millisecond
	probes := 0
	for _, f := range s.q.Send {
		probes += len(f.Sizes)
	}
	end := time.Now().Add(time.Duration(s.q.Millis) * time.Millisecond)
	for time.Now().Before(end) && ctx.Err() == nil {
		time.Sleep(look)
		if n := len(watch.Seen()); probes > 0 && n >= 2*probes*len(s.points) {
			return
		}
	}
}

// send makes the probes of this node's endpoints.
func (s *scene) send(ctx context.Context) {
	for _, f := range s.q.Send {
		if f.From.ID == "" {
			s.sendPlain(f)
			continue
		}
		c, here := s.containers[f.From.ID]
		if !here {
			continue // a fault already says so
		}
		source, to, ok := pair(f.From, f.To)
		if !ok {
			s.fault(at(placeContainer, f.From.ID), "give both an address of the same family", "the two have no addresses of one IP version")
			continue
		}
		// What the container's kernel would do: its own entry, else the answer that the bridge gives to its question.
		mac := f.To.MAC
		if n, known := c.Neighbour(c.Device.Index, to); known {
			mac = n.MAC
		} else if b, there := s.links[dataplane.BridgeName(s.q.VNI)]; there {
			if n, known := s.ours.Neighbour(b.Index, to); known {
				mac = n.MAC
			}
		}
		from := host.Point{Space: c.Space, Link: c.Device}
		for i, size := range f.Sizes {
			p := host.Probe{
				Sequence: uint16(f.First + i), Source: source, Destination: to, From: c.Device.MAC, To: mac, Size: size,
			}
			if err := host.Send(from, p.Frame(s.q.Token)); err != nil && ctx.Err() == nil {
				s.note(at(placeContainer, f.From.ID), "%v", err)
			}
			time.Sleep(apart)
		}
	}
}

// sendPlain makes probes from the node's VXLAN device itself to all others. Their destination is a MAC that no bridge
// forwards (IEEE 802.1D table 7-10; net/bridge/br_input.c), and their type one that no protocol has (IEEE 802 9.2.4), so
// that they end where they arrive.
func (s *scene) sendPlain(f Flight) {
	v, there := s.links[dataplane.VXLANName(s.q.VNI)]
	if !there {
		return // a fault already says so
	}
	for i, size := range f.Sizes {
		nowhere := netip.IPv4Unspecified()
		p := host.Probe{
			Sequence: uint16(f.First + i), Source: nowhere, Destination: nowhere, From: v.MAC,
			To: vxlan.MAC{0x01, 0x80, 0xc2, 0, 0, 0x0e}, Size: size,
		}
		if err := host.Send(host.Point{Space: s.ours, Link: v}, p.Inert(s.q.Token)); err != nil {
			s.note(placeVXLAN, "%v", err)
		}
		time.Sleep(apart)
	}
}

// pair returns an address of each of two endpoints, of one IP version.
func pair(from, to End) (a, b netip.Addr, ok bool) {
	for _, a := range from.Addresses {
		for _, b := range to.Addresses {
			if a.Is4() == b.Is4() {
				return a, b, true
			}
		}
	}
	return a, b, false
}

// ledger is what the kernel has counted.
type ledger struct {
	counters map[string]host.Counters
	rules    map[string][]host.Rule
	guarded  map[string]guard.Drops
}

// spaces are the namespaces whose counters are read, by what people call them.
func (s *scene) spaces() map[string]*host.Space {
	out := map[string]*host.Space{"host": s.host}
	if s.ours != nil {
		out["netdriver"] = s.ours
	}
	for id, c := range s.containers {
		out["container "+short(id)] = c.Space
	}
	return out
}

func (s *scene) account() ledger {
	l := ledger{map[string]host.Counters{}, map[string][]host.Rule{}, s.guarded()}
	for name, space := range s.spaces() {
		l.counters[name], l.rules[name] = space.Counters(), space.Rules()
	}
	return l
}

// compare returns what has moved since.
func (s *scene) compare(before ledger) (moved []host.Moved, dropped []Dropped) {
	for name, space := range s.spaces() {
		for _, m := range space.Counters().Since(before.counters[name]) {
			m.Name = name + ": " + m.Name
			moved = append(moved, m)
		}
		for _, r := range host.Dropped(before.rules[name], space.Rules()) {
			dropped = append(dropped, Dropped{name, space.Describe(r), r.Packets})
		}
	}
	for port, now := range s.guarded() {
		was := before.guarded[port]
		if n := now.Spoofed - was.Spoofed; n > 0 {
			dropped = append(dropped, Dropped{"netdriver", fmt.Sprintf("policy: anti-spoofing in nft table bridge netdriver, set spoofed: "+
				"port %s sends only with its endpoint's own MAC and addresses", port), n})
		}
		if n := now.Denied - was.Denied; n > 0 {
			dropped = append(dropped, Dropped{"netdriver", fmt.Sprintf("policy: isolation in nft table bridge netdriver, set denied: "+
				"the network's rules keep these frames from port %s", port), n})
		}
	}
	return moved, dropped
}

// guarded are the counters of netdriver's own packet filter, by port; nil if it has none.
func (s *scene) guarded() map[string]guard.Drops {
	if s.ours == nil {
		return nil
	}
	t, err := guard.Look(s.ours.Descriptor())
	if err != nil {
		return nil
	}
	defer t.Close()
	drops, err := t.Drops()
	if err != nil {
		return nil // the kernel has no such table
	}
	return drops
}
