package diag

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/dataplane"
	"github.com/netdriver/netdriver/dataplane/guard"
	"github.com/netdriver/netdriver/dataplane/rate"
	"github.com/netdriver/netdriver/diag/host"
	nl "github.com/netdriver/netdriver/internal/netlink"
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
		n += len(f.Sizes) + len(f.Stack)
		for _, size := range slices.Concat(f.Sizes, f.Stack) {
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
	out.Faults, out.Notes, out.Spoken, out.Closed = s.faults, s.notes, s.spoken, s.closed()
	out.Now = time.Now()
	return out, nil
}

// wait looks until all probes and answers have come through all devices, or for as long as was asked.
func (s *scene) wait(ctx context.Context, watch *host.Watch) {
	const look = 15 * time.Millisecond
	probes := 0
	for _, f := range s.q.Send {
		probes += len(f.Sizes) + len(f.Stack)
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
		s.speak(c, f, source, to)
		if s.q.own() { // whose MACs are the LAN's business
			s.speakAll(c, Flight{From: f.From, Stack: f.Sizes, StackFirst: f.First}, source, to)
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

// speak lets a container's kernel send probes, as it would for a program, and tells what became of them.
func (s *scene) speak(c host.Container, f Flight, source, to netip.Addr) {
	s.spoken = append(s.spoken, s.speakAll(c, f, source, to)...)
}

func (s *scene) speakAll(c host.Container, f Flight, source, to netip.Addr) (out []Spoken) {
	for i, size := range f.Stack {
		said := Spoken{Endpoint: f.From.ID, Sequence: f.StackFirst + i, Size: size}
		p := host.Probe{Sequence: uint16(said.Sequence), Source: source, Destination: to, Size: size}
		if err := c.Speak(s.q.Token, p); err != nil && !errors.As(err, &said.Errno) {
			continue // not the network's fault: nothing was tried
		}
		if said.Errno == unix.EMSGSIZE {
			said.Limit = c.Configured(to)
		}
		out = append(out, said)
		time.Sleep(apart)
	}
	return out
}

// closed are the chains that may drop without counting: by default, or by a rule for the network's port.
func (s *scene) closed() []Closed {
	const most = 16 // each rule that is looked at is one call of nft
	var out []Closed
	for name, space := range s.spaces() {
		for _, p := range space.Policies() {
			if p.Table != "netdriver" && !(name == "host" && s.gate().open(space.Accepts(p))) {
				out = append(out, Closed{name, p.Hook, p.String()})
			}
		}
		looked := 0
		for _, r := range space.Rules() {
			if r.Counted || r.Table == "netdriver" || looked == most {
				continue
			}
			looked++
			if text := space.Describe(r); name != "host" || mentions(text, s.q.Port) {
				out = append(out, Closed{name, "", text})
			}
		}
	}
	slices.SortFunc(out, func(a, b Closed) int {
		return cmp.Or(strings.Compare(a.Where, b.Where), strings.Compare(a.Rule, b.Rule))
	})
	return out
}

func (s *scene) gate() doorway {
	w := doorway{port: s.q.Port}
	for _, e := range s.q.There {
		w.from = append(w.from, e.VTEP)
	}
	return w
}

// mentions says whether a rule names a destination port.
func mentions(rule string, port uint16) bool {
	return strings.Contains(rule, "dport") && slices.Contains(strings.FieldsFunc(rule, notDigit), fmt.Sprint(port))
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
	rates    map[string]metered // of this question's endpoints, by port
}

// metered is a port's limit and what it has cost.
type metered struct{ limit, dropped uint64 }

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
	l := ledger{map[string]host.Counters{}, map[string][]host.Rule{}, s.guarded(), s.metered()}
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
	for port, now := range s.metered() {
		if n := now.dropped - before.rates[port].dropped; n > 0 && now.limit > 0 {
			dropped = append(dropped, Dropped{"netdriver", fmt.Sprintf("%s %d bit/s of port %s (--opt rate, or the endpoint's): "+
				"more is sent than it lets through", policyRate, now.limit, port), n})
		}
	}
	return moved, dropped
}

// policyRate begins what a rate has dropped.
const policyRate = "policy: the rate of"

// metered reads the rates of this question's endpoints; none where the kernel has no eBPF.
func (s *scene) metered() map[string]metered {
	out := map[string]metered{}
	if s.ours == nil {
		return out
	}
	_ = nl.In(s.ours.Descriptor(), func() error { // what cannot be read has no rate
		for _, e := range s.q.Here {
			p, there := s.links[dataplane.PortName(e.ID)]
			if limit, from, to, err := rate.Read(p.Index); there && err == nil {
				out[p.Name] = metered{limit.Rate, from + to}
			}
		}
		return nil
	})
	return out
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
