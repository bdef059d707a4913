package diag

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/netdriver/netdriver/store"
	"github.com/netdriver/netdriver/vxlan"
)

// TraceSchema names the version of a trace's JSON, as Schema does for the reports.
const TraceSchema = "netdriver.trace/v1"

// Trace is the way from one endpoint to another and back, with what was seen on it.
type Trace struct {
	Schema      string    `json:"schema"`
	Verdict     Verdict   `json:"verdict"`
	Findings    []Finding `json:"findings"`
	Network     string    `json:"network"`
	Source      Party     `json:"source"`
	Destination Party     `json:"destination"`
	// Service is set if the destination is a virtual address: Backend is the task that was traced, Others have their own.
	Service string `json:"service,omitempty"`
	Forward []Hop  `json:"forward,omitempty"`
	Back    []Hop  `json:"back,omitempty"`
	// MTU is the network's, PathMTU the largest packet in bytes that came through in both directions; 0 if none did.
	MTU     int `json:"mtu"`
	PathMTU int `json:"pathMTU"`
	// Seconds is the round trip's time as the source's interface saw it; 0 if nothing came back.
	Seconds float64 `json:"seconds"`
	// Sent and Arrived count small probes in both directions.
	Sent    int  `json:"sent"`
	Arrived int  `json:"arrived"`
	Data    Data `json:"data"`
}

// Party is one end of a trace.
type Party struct {
	Name      string       `json:"name"` // as it was asked for
	Endpoint  string       `json:"endpoint,omitempty"`
	Container string       `json:"container,omitempty"`
	Node      string       `json:"node,omitempty"`
	Addresses []netip.Addr `json:"addresses,omitempty"`
	MAC       vxlan.MAC    `json:"mac,omitzero"`
}

// The states of a Hop.
const (
	HopPassed  = "passed"      // a probe was seen there
	HopLost    = "lost"        // it was seen before, and not there
	HopSilent  = "not reached" // it was lost before
	HopUnknown = "unknown"     // nobody could look
)

// Hop is one device on the way.
type Hop struct {
	Node   string `json:"node"`
	Place  string `json:"place"`
	Device string `json:"device,omitempty"`
	State  string `json:"state"`
	// Seen of Sent small probes and the largest packet in bytes that was seen.
	Seen    int `json:"seen"`
	Sent    int `json:"sent"`
	Largest int `json:"largest"`
	// Seconds since the former hop of the same node.
	Seconds  float64  `json:"seconds"`
	Evidence []string `json:"evidence,omitempty"`
}

// Peers asks other nodes' daemons.
type Peers interface {
	// Testify puts a question to a node; ready is called when that looks. A node that cannot be asked is an error.
	Testify(ctx context.Context, node store.Node, q Question, ready func() error) (Testimony, error)
	// Traffic asks a node for its counters.
	Traffic(ctx context.Context, node store.Node) (Traffic, error)
}

// ErrSilent is wrapped by the error about a node whose kernel does not answer at the daemons' port: it refuses nothing, so
// something drops the packets, or the host is away.
var ErrSilent = errors.New("nothing answers at its port")

// ErrHangs is wrapped by the error about a node whose kernel takes the connection, and whose daemon says nothing.
var ErrHangs = errors.New("its daemon takes the connection and says nothing")

// errNoPeers is why other nodes cannot be asked where no channel was made.
var errNoPeers = errors.New("this node has no certificate of the cluster to ask others with")

// Ask is what a trace is about.
type Ask struct {
	// Source and Destination are an endpoint's id, a container's name or id, a task's or service's name, or an address.
	Source, Destination string
	// Network is needed if the two have several in common.
	Network string
}

// Trace follows probes from one endpoint to another. The error says that the source is unknown or ambiguous; all that is
// wrong with the way is in the Trace.
func (d *Diagnosis) Trace(ctx context.Context, a Ask) (Trace, error) {
	t, err := d.traceOnce(ctx, a)
	for range moveTries {
		if err != nil || t.Verdict == Healthy || ctx.Err() != nil || !d.moved(ctx, t) {
			break
		}
		t, err = d.traceOnce(ctx, a)
	}
	return t, err
}

// moveTries is how often a trace is begun anew because one of its ends has gone meanwhile.
const moveTries = 2

// moved says whether an end of a trace is gone, such as a service's task that was replaced while it was looked at.
func (d *Diagnosis) moved(ctx context.Context, t Trace) bool {
	if t.Data.Source != SourceStore {
		return false // who could tell is away
	}
	ctx, cancel := context.WithTimeout(ctx, askStore)
	defer cancel()
	for _, e := range []Party{t.Source, t.Destination} {
		if e.Endpoint == "" {
			continue
		}
		if _, err := d.src.Store.Get(ctx, store.EndpointKey(t.Network, e.Endpoint)); errors.Is(err, store.ErrNotFound) {
			return true
		}
	}
	return false
}

func (d *Diagnosis) traceOnce(ctx context.Context, a Ask) (Trace, error) {
	c := d.cluster(ctx)
	way, err := d.resolve(ctx, &c, a)
	// A node publishes the name of a container within two seconds of its start (internal/names).
	for range nameTries {
		if ctx.Err() != nil || c.err != nil || !unnamed(way, err, a) {
			break
		}
		time.Sleep(askAgainIn)
		way, err = d.resolve(ctx, &c, a)
	}
	if err != nil {
		return Trace{}, err
	}
	t := Trace{
		Schema: TraceSchema, Network: way.network.Name, Source: way.source.party(a.Source), MTU: way.network.MTU,
		Findings: []Finding{}, Data: c.data(), Destination: Party{Name: a.Destination},
	}
	if c.err != nil {
		t.Findings = append(t.Findings, finding("store", Degraded, d.src.Node.Name,
			"check that the store runs and can be reached from here", "the store cannot be asked: %v; this is what the node knew last", c.err))
	}
	switch {
	case way.network.Mode == store.ModeBridge && way.target != nil && way.target.Node != way.source.Node:
		t.Findings = append(t.Findings, finding("destination", Failed, "network "+way.network.Name, "connect both to an overlay",
			"network %s is a bridge on each of its hosts, and joins none of them: %s is on %s, %s on %s", way.network.Name,
			a.Source, way.source.Node, a.Destination, way.target.Node))
	case way.service != nil:
		d.traceService(ctx, c, way, &t)
	case way.target == nil:
		t.Findings = append(t.Findings, way.nobody...)
	default:
		t.Destination = way.target.party(a.Destination)
		d.traceBetween(ctx, c, way, *way.target, &t)
	}
	t.Verdict = verdictOf(t.Findings)
	return t, nil
}

// nameTries is how often a name is looked for, askAgainIn apart.
const nameTries = 8

// unnamed says whether an end was not found that may only not have its name yet.
func unnamed(w way, err error, a Ask) bool {
	isName := func(text string) bool { _, bad := netip.ParseAddr(text); return bad != nil }
	if errors.Is(err, ErrNoSource) {
		return isName(a.Source)
	}
	return err == nil && w.target == nil && w.service == nil && isName(a.Destination)
}

// traceService follows the way to each task behind a virtual address; the first that is broken, or the first, is shown.
func (d *Diagnosis) traceService(ctx context.Context, c cluster, w way, t *Trace) {
	const most = 8 // backends that are traced: more of them make no other cause
	t.Service, t.Destination.Addresses = w.service.Name, w.service.VIPs
	place := "service " + w.service.Name
	if why := c.engines[w.source.Node].Unbalanced; why != "" {
		t.Findings = append(t.Findings, finding("balancing", Failed, w.source.Node,
			"use a later kernel there, or endpoint mode dnsrr", "%s cannot balance virtual addresses: %s", w.source.Node, why))
	}
	shown := false
	ready := 0
	for _, b := range w.backends {
		if ready++; ready > most {
			break
		}
		one := Trace{MTU: t.MTU}
		d.traceBetween(ctx, c, w, b, &one)
		t.Findings = append(t.Findings, one.Findings...)
		if !shown || len(one.Findings) > 0 && verdictOf(one.Findings) != Healthy {
			shown = true
			t.Destination = b.party(t.Destination.Name)
			t.Forward, t.Back, t.PathMTU, t.Seconds, t.Sent, t.Arrived =
				one.Forward, one.Back, one.PathMTU, one.Seconds, one.Sent, one.Arrived
		}
	}
	if ready == 0 {
		t.Findings = append(t.Findings, finding("balancing", Failed, place, fmt.Sprintf("see `docker service ps %s` on a manager", w.service.Name),
			"service %s has no healthy backend%s", w.service.Name, unhealthy(w.row)))
	}
}

// small is the size of the probes that count losses.
const small = 96

// The numbers of the probes: those back begin at backFirst, and within a direction the small ones come first.
const (
	backFirst   = 1000
	smallProbes = 4
	largeProbes = 3
	// surelyProbes are further small ones of the round that decides.
	surelyProbes = 8
	firstWait    = 450  // milliseconds
	secondWait   = 1200 // of the second attempt, which decides that something is lost
	narrowWait   = 300  // of those that look for the largest packet
)

// traceBetween follows probes between two endpoints and judges.
func (d *Diagnosis) traceBetween(ctx context.Context, c cluster, w way, target party, t *Trace) {
	p := newPath(w, target, c)
	sizes := slices.Concat(slices.Repeat([]int{small}, smallProbes), slices.Repeat([]int{p.mtu}, largeProbes))
	for try := range restartTries {
		if try > 0 {
			time.Sleep(2 * askAgainIn)
		}
		if d.rounds(ctx, &p, sizes, try) || ctx.Err() != nil {
			break
		}
	}
	if !p.whole() {
		d.nextDoor(&p)
	}
	if p.arrived(false, small, small) > 0 && p.largest() < p.mtu {
		d.narrow(ctx, &p)
	}
	p.judge(t)
}

// restartTries is how often a path is looked at whose other node refuses or ends meanwhile: its daemon may only be being
// restarted.
const restartTries = 3

// rounds looks at a path, and once more and longer if something was lost. It returns false if it is to be called again: a
// node could not look all the time, so that what it has not seen says nothing. It is not if this is the last time.
func (d *Diagnosis) rounds(ctx context.Context, p *path, sizes []int, try int) bool {
	last := try+1 == restartTries
	p.forget()
	p.again = try > 0
	d.ask(ctx, p, sizes, p.stackSizes(), firstWait)
	p.again = false
	if !last && slices.ContainsFunc(p.nodes(), func(n string) bool { return p.refused(n) || try == 0 && p.whole() && p.hangs(n) }) {
		return false
	}
	if _, heard := p.said[p.to.Node]; p.whole() || !heard && p.from.host() {
		return true
	}
	// What was lost in the first round may have been sent when the other node had looked long enough: the second decides.
	before := slices.DeleteFunc(p.nodes(), func(n string) bool { return !p.hears(n) })
	p.forget()
	more := slices.Concat(slices.Repeat([]int{small}, surelyProbes), sizes)
	d.ask(ctx, p, more, p.stackSizes(), secondWait)
	if !slices.ContainsFunc(before, func(n string) bool { return !p.hears(n) }) {
		return true
	}
	if last {
		p.forget()
		d.ask(ctx, p, sizes, p.stackSizes(), firstWait)
	}
	return false
}

// narrow finds the largest packet that comes through.
func (d *Diagnosis) narrow(ctx context.Context, p *path) {
	const rounds, steps = 3, 12
	for range rounds {
		low, high := p.largest(), p.smallestLost()
		if high-low <= 1 {
			return
		}
		var sizes []int
		for i := 1; i <= steps; i++ {
			sizes = append(sizes, low+(high-low)*i/(steps+1))
		}
		slices.Sort(sizes)
		sizes = slices.Compact(sizes)
		d.ask(ctx, p, slices.DeleteFunc(sizes, func(n int) bool { return n <= low || n >= high }), nil, narrowWait)
	}
}

// ask puts one question to both nodes and lets them send when both are looking.
func (d *Diagnosis) ask(ctx context.Context, p *path, sizes, stack []int, millis int) {
	if len(sizes) == 0 {
		return
	}
	nodes := p.askable()
	gate := newGate(len(nodes))
	var wait sync.WaitGroup
	answers := make([]Testimony, len(nodes))
	errs := make([]error, len(nodes))
	ctx, cancel := context.WithTimeout(ctx, time.Duration(millis)*time.Millisecond+askPeer)
	defer cancel()
	for i, node := range nodes {
		q := p.question(node, sizes, stack)
		q.Millis = millis
		wait.Go(func() {
			answers[i], errs[i] = d.testify(ctx, p, node, q, func() error { return gate.pass(ctx) })
			gate.leave()
		})
	}
	wait.Wait()
	for i, node := range nodes {
		p.heard(node, answers[i], errs[i])
	}
	p.count(sizes, stack)
}

// askPeer bounds what a peer takes besides looking.
const askPeer = 2 * time.Second

// testify asks this node or another one.
func (d *Diagnosis) testify(ctx context.Context, p *path, node string, q Question, ready func() error) (Testimony, error) {
	if node == d.src.Node.Name {
		return Witness{node, d.src.Site.RunDir}.Testify(ctx, q, ready)
	}
	if d.src.Peers == nil {
		return Testimony{}, errNoPeers
	}
	return d.src.Peers.Testify(ctx, p.records[node], q, ready)
}

// gate lets all pass when all have come or have given up.
type gate struct {
	mu   sync.Mutex
	left int
	open chan struct{}
}

func newGate(n int) *gate { return &gate{left: n, open: make(chan struct{})} }

func (g *gate) arrive() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.left--; g.left == 0 {
		close(g.open)
	}
}

// pass waits for the others.
func (g *gate) pass(ctx context.Context) error {
	g.arrive()
	select {
	case <-g.open:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// leave is for who is done, whether it has passed or failed before.
func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.left > 0 {
		if g.left--; g.left == 0 {
			close(g.open)
		}
	}
}

// party is an endpoint as a trace needs it.
type party struct {
	store.Endpoint
	name store.Name
}

func (e party) party(asked string) Party {
	return Party{
		Name: asked, Endpoint: e.ID, Container: e.name.Container, Node: e.Node, Addresses: e.Addrs(), MAC: e.MAC,
	}
}

// called says whether text names the endpoint.
func (e party) called(text string) bool {
	if a, err := netip.ParseAddr(text); err == nil {
		return slices.Contains(e.Addrs(), a.Unmap())
	}
	const least = 4 // characters of an id
	return e.name.Container != "" && text == e.name.Container || e.name.Task != "" && text == e.name.Task ||
		len(text) >= least && (strings.HasPrefix(e.ID, text) || strings.HasPrefix(e.name.ContainerID, text))
}

// way is what a trace goes along.
type way struct {
	network  network
	source   party
	target   *party // nil: see service or nobody
	service  *store.Service
	row      Service
	backends []party
	nobody   []Finding
}

// ErrNoSource is wrapped by the error about a source that is none, or several.
var ErrNoSource = errors.New("no such source")

// resolve finds the ends of a trace.
func (d *Diagnosis) resolve(ctx context.Context, c *cluster, a Ask) (way, error) {
	var rosters []facts
	if c.err != nil && !c.whole {
		rosters = d.kernelRoster(ctx, c)
	}
	for _, name := range slices.Sorted(maps.Keys(c.networks)) {
		rosters = append(rosters, d.roster(ctx, *c, c.networks[name]))
	}
	var found []way
	var sources []string
	only, err := a.Network, error(nil)
	if c.err == nil || c.whole {
		only, err = d.only(*c, a.Network)
	}
	if err != nil {
		return way{}, err
	}
	for _, f := range rosters {
		name := f.network.Name
		if only != "" && only != name {
			continue
		}
		for _, e := range f.parties() {
			if !e.called(a.Source) {
				continue
			}
			w := way{network: f.network, source: e}
			w.aim(f, a.Destination)
			found = append(found, w)
			sources = append(sources, fmt.Sprintf("%s of %s in %s", short(e.ID), e.Node, name))
		}
	}
	slices.SortStableFunc(found, func(x, y way) int { return cmp.Compare(x.rank(), y.rank()) })
	switch {
	case len(found) == 0 && a.Network != "":
		return way{}, fmt.Errorf("%w: network %s has no endpoint, container or address %q; `netdriver inspect %s` lists them",
			ErrNoSource, a.Network, a.Source, a.Network)
	case len(found) == 0 && c.err != nil && c.whole:
		return way{}, fmt.Errorf("%w: no network has an endpoint or address %q; names are not known while the store is away: "+
			"use the address or the endpoint's id, which `netdriver inspect NETWORK` lists (%w)", ErrNoSource, a.Source, c.err)
	case len(found) == 0 && c.err != nil:
		return way{}, fmt.Errorf("%w: %q is no endpoint or address of this node; names are not known while the records cannot be read (%w)",
			ErrNoSource, a.Source, c.err)
	case len(found) == 0:
		return way{}, fmt.Errorf("%w: no network has an endpoint, container or address %q; `netdriver inspect NETWORK` lists them",
			ErrNoSource, a.Source)
	case len(found) > 1 && found[0].rank() == found[1].rank():
		return way{}, fmt.Errorf("%w: %q is several: %s; name one by its address or endpoint id, or the network with --network",
			ErrNoSource, a.Source, strings.Join(sources, ", "))
	}
	return found[0], nil
}

// only returns the network that a name stands for, in the cluster or in Docker; empty for none.
func (d *Diagnosis) only(c cluster, name string) (string, error) {
	if _, known := c.networks[name]; known || name == "" {
		return name, nil
	}
	nw, found, err := c.called(name, d.src.Node.Name)
	if err == nil && !found {
		err = fmt.Errorf("%w %q: the cluster has %s", ErrNoNetwork, name, strings.Join(c.allNames(), ", "))
	}
	return nw.Name, err
}

// rank orders what a destination was found to be, the best first.
func (w way) rank() int {
	switch {
	case w.target != nil || w.service != nil:
		return 0
	case len(w.nobody) > 0 && w.nobody[0].Check == outside:
		return 2
	}
	return 1
}

// roster is who is in a network: from the store, or from the mirror.
func (d *Diagnosis) roster(ctx context.Context, c cluster, nw network) facts {
	f := facts{cluster: c, me: d.src.Node, network: nw, counts: map[netip.Prefix]uint64{}, leases: map[netip.Prefix][]store.Lease{}}
	d.readRecords(ctx, &f, true)
	return f
}

func (f facts) parties() []party {
	out := make([]party, len(f.endpoints))
	for i, e := range f.endpoints {
		out[i] = party{e.Endpoint, f.names[e.ID]}
	}
	slices.SortFunc(out, func(a, b party) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// aim finds what a destination is in a network.
func (w *way) aim(f facts, text string) {
	byID := map[string]store.Endpoint{}
	for _, e := range f.endpoints {
		byID[cmp.Or(e.ID, e.MAC.String())] = e.Endpoint // what only the kernel tells has no id
	}
	holders := store.ByAddress(byID)
	addr, err := netip.ParseAddr(text)
	addr = addr.Unmap()
	if e, has := holders[addr]; err == nil && has {
		w.target = &party{e, f.names[e.ID]}
		return
	}
	for _, s := range f.services {
		if s.Name == text || s.ID == text || slices.Contains(s.VIPs, addr) {
			w.toService(f, s.Service, holders)
			return
		}
	}
	if err == nil {
		w.nobody = f.nobodyAt(addr, w.source)
		return
	}
	for _, e := range f.parties() {
		if e.called(text) && e.ID != w.source.ID {
			w.target = &e
			return
		}
	}
	w.nobody = []Finding{finding("destination", Failed, "network "+f.network.Name,
		fmt.Sprintf("`netdriver inspect %s` lists the network's containers; start it, or connect it: docker network connect", f.network.Name),
		"no container, endpoint or service of network %s is called %q", f.network.Name, text)}
}

func (w *way) toService(f facts, s store.Service, holders map[netip.Addr]store.Endpoint) {
	w.service = &s
	for _, r := range f.serviceRows() {
		if r.ID == s.ID {
			w.row = r
		}
	}
	for _, b := range s.Backends {
		if state, e := b.State(holders); state == store.BackendReady {
			w.backends = append(w.backends, party{e, f.names[e.ID]})
		}
	}
}

// outside is the check of a destination that is in none of a network's subnets.
const outside = "destination outside"

// nobodyAt says why an address is nobody's.
func (f facts) nobodyAt(a netip.Addr, from party) []Finding {
	for _, subnet := range f.network.Subnets {
		if !subnet.Contains(a) {
			continue
		}
		for _, l := range f.leases[subnet] {
			if l.Address == a {
				return []Finding{leased(l, f.network.Name)}
			}
		}
		what := "no container has it: nobody was given this address, or its container has stopped"
		if n := store.Usable(subnet); n > 1 && (a == subnet.Masked().Addr() || !subnet.Contains(a.Next())) {
			what = "it is the subnet's first or last address, which no container gets"
		}
		return []Finding{finding("destination", Failed, a.String(),
			fmt.Sprintf("`netdriver inspect %s` lists who is there", f.network.Name), "nobody has the address %s in network %s: %s", a, f.network.Name, what)}
	}
	return []Finding{finding(outside, Failed, a.String(),
		fmt.Sprintf("connect both to one network; packets to other addresses leave through docker_gwbridge of %s: `netdriver check` there looks at that", from.Node),
		"%s is in no subnet of network %s", a, f.network.Name)}
}

// leased says what an address is that somebody has and no endpoint.
func leased(l store.Lease, network string) Finding {
	place := l.Address.String()
	switch {
	case l.Kind == store.LeaseGateway:
		return finding("destination", Failed, place, "use another address; the way out of a container is docker_gwbridge",
			"%s is the gateway's address of network %s, which no host or container has: an overlay has no router", l.Address, network)
	case l.Kind == store.LeaseAux:
		return finding("destination", Failed, place, "use another address",
			"%s is reserved by --aux-address and no container's", l.Address)
	case l.Swarm && l.Node == "":
		return finding("destination", Failed, place, "see `docker service ps` on a manager; `netdriver ipam check` finds addresses that are forgotten",
			"%s is held by the swarm for a task or service that does not run", l.Address)
	}
	return finding("destination", Failed, place, "see `netdriver ipam check`",
		"%s is leased to %s since %s, and no endpoint has it: its container is starting or gone", l.Address, cmp.Or(l.Node, "nobody"),
		l.Created.Format(time.RFC3339))
}
