package diag

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/vxlan"
)

// judge turns what was seen into a trace's hops and findings. It is pure.
func (p *path) judge(t *Trace) {
	t.Forward, t.Back = p.hops(false), p.hops(true)
	t.Seconds, t.PathMTU = p.roundTrip(), p.largest()
	t.Sent = 2 * p.sent(small, small)
	t.Arrived = p.arrived(false, small, small) + p.arrived(true, small, small)
	alive := t.Arrived > 0 && len(p.came(false)) > 0 && len(p.came(true)) > 0 && p.speaks(false) && p.speaks(true)
	found := p.faulty(alive)
	for _, back := range []bool{false, true} {
		if !p.away() {
			found = append(found, p.losses(back, t)...)
		}
		found = append(found, p.stackLoss(back)...)
	}
	found = append(found, p.mute(false)...)
	found = append(found, p.mute(true)...)
	found = append(found, p.saturated()...)
	found = append(found, p.unheard(alive)...)
	found = append(found, p.clocks()...)
	t.Findings = append(t.Findings, unique(found)...)
	if h, asked := p.stackHop(false); asked {
		t.Forward = slices.Insert(t.Forward, 0, h)
	}
	if h, asked := p.stackHop(true); asked {
		t.Back = slices.Insert(t.Back, 0, h)
	}
}

// placeOf names a place of a node with the names that people know.
func (p *path) placeOf(node, place string) string {
	kind, id, found := strings.Cut(place, " ")
	if !found {
		return node + " " + place
	}
	for _, e := range []party{p.from, p.to} {
		if e.ID == id && e.name.Container != "" {
			return fmt.Sprintf("%s %s %s (%s)", node, kind, e.name.Container, short(id))
		}
	}
	return fmt.Sprintf("%s %s %s", node, kind, short(id))
}

// faulty are what the nodes found wrong at their places. What does not stop traffic is not a failure.
func (p *path) faulty(alive bool) []Finding {
	var out []Finding
	for _, node := range slices.Sorted(maps.Keys(p.said)) {
		for _, f := range p.said[node].Faults {
			severity := Failed
			if alive || f.Harmless {
				severity = Degraded
			}
			out = append(out, finding("path", severity, p.placeOf(node, f.Place), f.Remedy, "%s", f.Cause))
		}
	}
	return out
}

// mute says why a container does not answer what has come to its interface.
func (p *path) mute(back bool) []Finding {
	steps := p.steps(back)
	last := steps[len(steps)-1]
	if p.from.host() || !p.own(back) || len(p.seen(last, back)) == 0 {
		return nil
	}
	for _, x := range p.said[last.node].Sightings {
		if x.Place == last.place && x.Out && x.Reply && (x.Sequence >= backFirst) == back {
			return nil
		}
	}
	t := p.said[last.node]
	if len(p.stackLoss(!back)) > 0 {
		return nil // what does not send does not answer
	}
	if slices.ContainsFunc(t.Notes, func(f Fault) bool { return f.Place == last.place }) ||
		slices.ContainsFunc(t.Faults, func(f Fault) bool { return f.Place == last.place && !f.Harmless }) {
		return nil // it is not to answer, or is told already
	}
	_, id, _ := strings.Cut(last.place, " ")
	where := "container " + short(id)
	f := finding("container", Degraded, p.placeOf(last.node, last.place), "look at the packet filter and the settings in the container's namespace",
		"the probes arrive at the interface in %s on %s, and its kernel does not answer them", where, last.node)
	for _, d := range t.Dropped {
		if d.Where == where {
			f = filtered(f, last.node, d)
		}
	}
	if f.Severity != Failed {
		f = closedIn(f, t, where, last.node)
	}
	for _, m := range t.Moved {
		if space, name, _ := strings.Cut(m.Name, ": "); space == where {
			f = f.because("%s counted %d: %s", name, m.By, m.Meaning)
			if cause, remedy, ok := named(name, "the container on "+last.node); ok && f.Severity == Degraded {
				f.Severity, f.Cause, f.Remedy = Failed, cause, remedy
			}
		}
	}
	return []Finding{f}
}

// closedIn blames what drops in a container without counting, if anything does.
func closedIn(f Finding, t Testimony, where, node string) Finding {
	var rules []string
	for _, c := range t.Closed {
		if c.Where == where && c.Hook != "forward" {
			rules = append(rules, c.Rule)
		}
	}
	if len(rules) > 0 {
		f.Severity = Failed
		f.Cause = fmt.Sprintf("the packet filter in the container on %s drops without counting: %s", node, strings.Join(rules, "; "))
		f.Remedy = "accept what is meant to come through in the container's network namespace, or remove that rule"
	}
	return f
}

// clocks are those of the two nodes that differ by more than an exchange can take.
func (p *path) clocks() []Finding {
	from, to := p.said[p.from.Node].Now, p.said[p.to.Node].Now
	apart := to.Sub(from)
	if from.IsZero() || to.IsZero() || apart.Abs() < clockLimit {
		return nil
	}
	side := "ahead of"
	if apart < 0 {
		side = "behind"
	}
	return []Finding{finding("clock", Degraded, p.to.Node, clockRemedy, "the clock of %s is %s %s that of %s: it says %s",
		p.to.Node, apart.Abs().Round(time.Second), side, p.from.Node, to.Format(time.RFC3339))}
}

// unheard are the nodes that could not be asked.
func (p *path) unheard(alive bool) []Finding {
	var out []Finding
	for _, node := range slices.Sorted(maps.Keys(p.errs)) {
		if _, asked := p.said[node]; asked || p.cutOff(node) {
			continue
		}
		if f, wrong := p.aboutDaemon(node, alive); wrong {
			out = append(out, f.because("%v", p.errs[node]))
		}
	}
	return out
}

// cutOff says whether the asking node has found why it cannot reach another one.
func (p *path) cutOff(node string) bool {
	for other, t := range p.said {
		if other != node && slices.ContainsFunc(t.Faults, func(f Fault) bool { return f.Place == placeUnderlay }) {
			return true
		}
	}
	return false
}

// aboutDaemon says why a node's daemon cannot be asked; alive says whether its containers answer.
func (p *path) aboutDaemon(node string, alive bool) (Finding, bool) {
	n, err := p.records[node], p.errs[node]
	place := fmt.Sprintf("%s (%s)", node, n.VTEP)
	down := p.cluster.err == nil && p.cluster.alive[node] != n.ID
	connected := p.cluster.err == nil && !down
	const start = "start it there: `netdriver run`, and see its log"
	switch {
	case down && alive && !errors.Is(err, ErrHangs):
		return finding("peer daemon", Degraded, place, start,
			"the daemon of %s does not run; its containers are reached all the same", node), true
	case down && errors.Is(err, unix.ECONNREFUSED):
		return finding("peer daemon", Degraded, place, start, "the daemon of %s does not run: its part of the path is not seen", node), true
	case down && p.door == doorOpen && !errors.Is(err, ErrHangs):
		return finding("peer", Failed, place, fmt.Sprintf("run `netdriver check` on %s: its own packet filter is the likeliest, or its daemon hangs", node),
			"%s is up and answers on the underlay's segment, but not at its daemon's port, and it is not connected to the store", node), true
	case down && !errors.Is(err, ErrHangs) || p.door == doorSilent:
		return finding("peer", Failed, place, "start the host, or its `netdriver run`; then trace again",
			"%s %s, its daemon does not answer, and nothing comes back from its containers: the host is down or cut off", node, p.gone(down)), true
	case errors.Is(err, unix.ECONNREFUSED):
		return finding("peer daemon", Degraded, place, start+"; all nodes need the same peer-port",
			"the daemon of %s does not answer: its part of the path is not seen", node), true
	case errors.Is(err, ErrHangs):
		return finding("peer daemon", Degraded, place, "look at its log there, and restart it; or at what keeps its host busy",
			"the daemon of %s hangs: it takes connections and answers nothing", node), true
	case err != nil && strings.Contains(err.Error(), "certificate"):
		return finding("certificates", Degraded, place, "look at both certificates and both clocks: `netdriver check` on each of the two nodes",
			"this node and %s do not believe each other's certificates", node), true
	case connected && errors.Is(err, ErrSilent):
		return finding("peer daemon", Degraded, place,
			fmt.Sprintf("accept TCP from the cluster's nodes at the daemons' port (setting peer-port) in firewalls; `netdriver check` on %s looks for the rule", node),
			"the daemon of %s is connected to the store, and its port for other nodes' questions answers nothing: packets to it, or its answers, are dropped", node), true
	case !alive:
		return finding("peer daemon", Unknown, place, "trace from there, too; open the daemons' TCP port (setting peer-port) between nodes",
			"%s cannot be asked: its part of the path is not seen", node), true
	}
	return Finding{}, false
}

// away says whether one of the nodes is down or cut off, as far as the store and the underlay's segment tell.
func (p *path) away() bool {
	for node, err := range p.errs {
		_, asked := p.said[node]
		down := p.cluster.err == nil && p.cluster.alive[node] != p.records[node].ID
		if !asked && !p.refused(node) && (p.door == doorSilent || down && p.door == doorUnasked && errors.Is(err, ErrSilent)) {
			return true
		}
	}
	return false
}

// gone says by what a node is known to be away.
func (p *path) gone(down bool) string {
	switch {
	case down && p.door == doorSilent:
		return "is not connected to the store, nobody on the underlay's segment has its address"
	case down:
		return "is not connected to the store"
	}
	return "has an address that nobody on the underlay's segment has"
}

// losses say where the probes of a direction are lost.
func (p *path) losses(back bool, t *Trace) []Finding {
	hops := t.Forward
	if back {
		hops = t.Back
	}
	if _, asked := p.said[p.to.Node]; p.from.host() && !asked {
		return nil // devices do not answer: whether something arrived only that node knows
	}
	arrived := p.arrived(back, small, small)
	switch sent := p.sent(small, small); {
	case len(p.came(back)) == 0:
		return p.lost(back, hops, func(h Hop) bool { return h.State == HopPassed }, Failed, "every packet")
	case p.largestOf(back) < p.mtu:
		limit := p.largestOf(back)
		return p.lost(back, hops, func(h Hop) bool { return h.Largest >= p.mtu }, Degraded, fmt.Sprintf("packets larger than %d bytes", limit))
	case arrived*100 < sent*lossy:
		return p.lost(back, hops, func(h Hop) bool { return h.Seen*100 >= sent*lossy }, Degraded,
			fmt.Sprintf("%d of %d packets", sent-arrived, sent))
	}
	return nil
}

// lossy is the percentage of probes that have to arrive.
const lossy = 90

// lost finds the segment in which something is lost and its cause; passed says whether it was seen at a hop. A direction
// that cannot be seen because nothing was sent into it is not judged.
func (p *path) lost(back bool, hops []Hop, passed func(Hop) bool, severity Verdict, what string) []Finding {
	last := -1
	for i, h := range hops {
		if passed(h) {
			last = i
		}
	}
	if last == len(hops)-1 {
		return nil
	}
	if last < 0 {
		// Nothing was sent: a fault says why, or nobody could, or what should be answered did not arrive.
		return nil
	}
	next := last + 1
	for next < len(hops)-1 && hops[next].State == HopUnknown {
		next++
	}
	a, b := hops[last], hops[next]
	if hops[next].State == HopUnknown && p.answered(back) {
		return nil
	}
	if p.explained(a, b) || severity != Failed && p.metered(a, b) {
		return nil
	}
	f := p.segment(a, b, what, severity)
	if hops[next].State == HopUnknown {
		f = f.because("the devices of %s behind it could not be looked at: the answers may be lost as well as the packets", b.Node)
	}
	return []Finding{f}
}

// metered says whether a rate dropped packets between two hops, which is told already.
func (p *path) metered(a, b Hop) bool {
	return slices.ContainsFunc(p.said[a.Node].Dropped, func(d Dropped) bool {
		return strings.HasPrefix(d.Rule, policyRate) && relevant(d.Where, a, b)
	})
}

// answered says whether something has come back from the end of a direction.
func (p *path) answered(back bool) bool { return len(p.came(back)) > 0 }

// explained says whether a node found something wrong between two hops, which is told already.
func (p *path) explained(a, b Hop) bool {
	for node, t := range p.said {
		for _, f := range t.Faults {
			if f.Harmless || node != a.Node && node != b.Node {
				continue
			}
			if f.Place == a.Place && node == a.Node || f.Place == b.Place && node == b.Node || inside(f.Place, a, b) ||
				node == a.Node && a.Node != b.Node && (f.Place == placeVXLAN || f.Place == placeUnderlay) ||
				p.network.OnLAN() && f.Place == placeUnderlay || behind(f.Place, a) && node == a.Node || behind(f.Place, b) && node == b.Node {
				return true
			}
		}
	}
	return false
}

// behind says whether a place is the container of a port: a veth without the other end carries nothing.
func behind(place string, h Hop) bool {
	id, isPort := strings.CutPrefix(h.Place, placePort+" ")
	return isPort && place == at(placeContainer, id)
}

// inside says whether the bridge or the underlay's host is between two hops.
func inside(place string, a, b Hop) bool {
	ours := func(h Hop) bool { return h.Place == placeVXLAN || strings.HasPrefix(h.Place, placePort) }
	return place == placeBridge && ours(a) && ours(b) ||
		place == placeVXLAN && ours(a) && !(strings.HasPrefix(a.Place, placePort) && strings.HasPrefix(b.Place, placePort)) ||
		place == placeUnderlay && (a.Place == placeVXLAN || b.Place == placeVXLAN) && a.Place != b.Place
}

// segment says what is lost between two hops, and why if counters or rules tell.
func (p *path) segment(a, b Hop, what string, severity Verdict) Finding {
	place := fmt.Sprintf("%s: between %s and %s", a.Node, describe(a), describe(b))
	if a.Node != b.Node {
		place = fmt.Sprintf("between %s (%s) and %s (%s)", a.Node, describe(a), b.Node, describe(b))
	}
	cause, remedy := p.generic(a, b, what)
	f := finding("path", severity, place, remedy, "%s", cause)
	for _, node := range slices.Compact([]string{a.Node, b.Node}) {
		for _, d := range totals(p.said[node].Dropped) {
			if relevant(d.Where, a, b) && !strings.HasPrefix(d.Rule, policyRate) {
				f = p.blame(f, node, d, what, a, b)
			}
		}
		for _, m := range p.said[node].Moved {
			if where, name, _ := strings.Cut(m.Name, ": "); relevant(where, a, b) {
				f = f.because("%s: %s counted %d: %s", node, name, m.By, m.Meaning)
				if c, r, ok := named(name, node); ok && f.Cause == cause {
					f.Cause, f.Remedy = c, r
				}
			}
		}
	}
	if f.Cause == cause {
		return p.suspected(f, a, b, what)
	}
	return f
}

// totals adds up what each rule has dropped in all rounds.
func totals(all []Dropped) (out []Dropped) {
	for _, d := range all {
		i := slices.IndexFunc(out, func(o Dropped) bool { return o.Where == d.Where && o.Rule == d.Rule })
		if i < 0 {
			out = append(out, d)
			continue
		}
		out[i].Packets += d.Packets
	}
	return out
}

// blame makes a finding one about a rule that dropped meanwhile.
func (p *path) blame(f Finding, node string, d Dropped, what string, a, b Hop) Finding {
	who := "the packet filter of " + node
	if d.Where != "host" {
		who = fmt.Sprintf("the packet filter in %s of %s", spaceName(d.Where), node)
	}
	if strings.HasPrefix(d.Rule, "policy: ") {
		f.Check = "policy"
		f.Cause = fmt.Sprintf("%s: dropped by %s", d.Rule, who)
		f.Remedy = "this is as the network was made: change the container or the network's options if it should be allowed"
		f.Evidence = append(f.Evidence, p.rules()...)
	} else {
		f.Cause = fmt.Sprintf("%s drops %s between %s and %s: rule %s", who, what, describe(a), describe(b), d.Rule)
		f.Remedy = "remove that rule, or accept the packets before it"
	}
	return f.because("it dropped %d packets while the probes were sent", d.Packets)
}

// rules are what the network's own rules say of the two ends.
func (p *path) rules() []string {
	i := p.network.Isolation
	group := func(e party) string { return cmp.Or(e.Group, "none") }
	ends := fmt.Sprintf("the group of %s is %s, that of %s %s", short(p.from.ID), group(p.from), short(p.to.ID), group(p.to))
	switch {
	case len(i.Allow) > 0:
		return []string{"the network allows only: " + strings.Join(i.Allow, ", ") + "; the probes are icmp", ends}
	case i.Isolate:
		return []string{"the network was made with isolate=true: its endpoints do not reach each other"}
	}
	return nil
}

// saturated tells of rates that dropped something meanwhile, whether a probe or other packets.
func (p *path) saturated() []Finding {
	var out []Finding
	for _, node := range slices.Sorted(maps.Keys(p.said)) {
		for _, d := range totals(p.said[node].Dropped) {
			if strings.HasPrefix(d.Rule, policyRate) {
				out = append(out, finding("policy", Degraded, node+" netdriver's namespace",
					"let the container send less, or raise the rate: connect it anew with driver-opt=rate=", "%s", d.Rule).
					because("it dropped %d packets while the probes were sent", d.Packets))
			}
		}
	}
	return out
}

// suspected names the chains and rules in the way that drop and count nothing.
func (p *path) suspected(f Finding, a, b Hop, what string) Finding {
	var rules []string
	var at []string
	for _, node := range slices.Compact([]string{a.Node, b.Node}) {
		for _, c := range p.said[node].Closed {
			if relevant(c.Where, a, b) && inTheWay(c, a, b) || c.Where == "host" && a.Node != b.Node && inward[c.Hook] {
				rules, at = append(rules, c.Rule), append(at, node)
			}
		}
	}
	if len(rules) == 0 {
		return f
	}
	f.Cause = fmt.Sprintf("%s is lost where the packet filter of %s drops without counting: %s", what, at[0], strings.Join(rules, "; "))
	f.Remedy = fmt.Sprintf("accept UDP port %d from the cluster's nodes there, or remove that rule", p.network.Port)
	return f
}

// inward are the hooks that packets from other hosts pass, outward those to them.
var inward = map[string]bool{"ingress": true, "prerouting": true, "input": true}
var outward = map[string]bool{"output": true, "postrouting": true, "egress": true}

// inTheWay says whether a chain's hook, if it is known, is one between two hops.
func inTheWay(c Closed, a, b Hop) bool {
	switch {
	case c.Where != "host" || c.Hook == "":
		return true
	case b.Place == placeUnderlay:
		return outward[c.Hook]
	}
	return inward[c.Hook]
}

// named is the cause that a counter of the host names by itself.
func named(counter, node string) (cause, remedy string, ok bool) {
	switch {
	case counter == "IPReversePathFilter":
		return node + " drops packets by rp_filter: their source is not reached through the device they came in by",
			"set net.ipv4.conf.*.rp_filter to 2 (loose) or 0 on " + node, true
	case counter == "XfrmOutPolBlock":
		return fmt.Sprintf("IPsec of %s lets nothing out without a key (%s): it has none for that peer, or it was flushed", node, counter),
			"the daemons agree on new keys by themselves within seconds; see `netdriver inspect` and their logs if they do not", true
	case strings.HasPrefix(counter, "Xfrm"):
		return fmt.Sprintf("IPsec of %s refuses the packets (%s): the two nodes' keys or policies do not fit", node, counter),
			"the daemons exchange new keys within a minute; see `netdriver inspect` and their logs", true
	}
	return "", "", false
}

func spaceName(where string) string {
	if where == "netdriver" {
		return "netdriver's namespace"
	}
	return where
}

// relevant says whether what a namespace dropped can be what was lost between two hops.
func relevant(where string, a, b Hop) bool {
	host := func(h Hop) bool { return h.Place == placeUnderlay }
	switch {
	case where == "host":
		return host(a) || host(b) || a.Node != b.Node // between VXLAN devices, where ESP hides the underlay's hops
	case where == "netdriver":
		return !host(a) && !host(b)
	}
	return strings.HasPrefix(a.Place, placeContainer) || strings.HasPrefix(b.Place, placeContainer)
}

func describe(h Hop) string {
	kind, _, _ := strings.Cut(h.Place, " ")
	if h.Device == "" {
		return "its " + kind
	}
	return kind + " " + h.Device
}

// hears says whether a node answered the question.
func (p *path) hears(node string) bool {
	_, asked := p.said[node]
	return asked
}

// generic is what is known of a loss from its place alone.
func (p *path) generic(a, b Hop, what string) (cause, remedy string) {
	wire := fmt.Sprintf("UDP port %d", p.network.Port)
	if p.network.Encrypted {
		wire = "ESP (IP protocol 50), or its UDP port"
	}
	big := strings.HasPrefix(what, "packets larger")
	need := p.mtu + vxlan.Overhead(p.records[a.Node].VTEP)
	switch {
	case p.network.OnLAN() && a.Node != b.Node:
		return fmt.Sprintf("%s leaves the parent %s on %s and does not arrive on %s: the LAN between them drops it", what, a.Device, a.Node, b.Node),
			"a switch, hypervisor or cloud may let only one MAC pass at each port (promiscuous mode, port security): allow several, or use mode=ipvlan or an overlay; compare VLANs and MTUs"
	case a.Place == placeUnderlay && b.Place == placeUnderlay && big || big && a.Node != b.Node:
		return fmt.Sprintf("%s leave %s and do not arrive at %s: the underlay between them carries less than the %d bytes that this network's packets need",
				what, a.Node, b.Node, need),
			fmt.Sprintf("raise the MTU of the underlay to %d all the way, or make the network with --opt mtu=%d", need, p.largest())
	case a.Node != b.Node && p.door == doorOpen:
		return fmt.Sprintf("%s leaves %s for %s and does not arrive; %s is up, so something between the hosts drops %s, or the packet filter of %s does",
				what, a.Node, b.Node, b.Node, wire, b.Node),
			fmt.Sprintf("run `netdriver check` on %s; open %s from %s to %s in firewalls and security groups", b.Node, wire, a.Node, b.Node)
	case a.Node != b.Node && p.hears(b.Node):
		return fmt.Sprintf("%s leaves %s for %s and does not arrive: something between the hosts drops %s", what, a.Node, b.Node, wire),
			fmt.Sprintf("open %s from %s to %s in firewalls and security groups; look at the switch", wire, a.Node, b.Node)
	case a.Node != b.Node || a.Place == placeUnderlay && b.Place == placeUnderlay:
		return fmt.Sprintf("%s leaves %s for %s and does not arrive: something between the hosts drops %s, or %s is down",
				what, a.Node, b.Node, wire, b.Node),
			fmt.Sprintf("open %s from %s to %s in firewalls and security groups; look at the cable or switch", wire, a.Node, b.Node)
	case a.Place == placeVXLAN && b.Place == placeUnderlay:
		return fmt.Sprintf("%s is lost in %s's own network stack before it leaves: an output filter, a missing route, a full queue", what, a.Node),
			fmt.Sprintf("look at `nft list ruleset`, `ip route get` and `tc -s qdisc` on %s", a.Node)
	case a.Place == placeUnderlay && b.Place == placeVXLAN:
		return fmt.Sprintf("%s arrives at %s and its kernel does not hand it to the network's VXLAN device: an input filter, rp_filter, or another VNI or port", what, a.Node),
			fmt.Sprintf("open %s in the packet filter of %s; `netdriver diff` there shows whether the device is as it has to be", wire, a.Node)
	case strings.HasPrefix(b.Place, placeContainer):
		return fmt.Sprintf("%s is lost between the host's side and the container's side of the container's interface on %s", what, a.Node),
			"restart the container"
	case strings.HasPrefix(a.Place, placeContainer):
		return fmt.Sprintf("%s is lost between the container and its port on %s: a queue or filter on the container's interface", what, a.Node),
			"look at `tc -s qdisc` in the container's namespace"
	}
	return fmt.Sprintf("%s is lost in the network's bridge on %s, between %s and %s", what, a.Node, describe(a), describe(b)),
		fmt.Sprintf("`netdriver diff %s --fix` on %s repairs the bridge; a filter in netdriver's namespace would show in `nft list ruleset` there",
			p.network.Name, a.Node)
}

// unique leaves out findings that say the same of one place.
func unique(all []Finding) []Finding {
	out := []Finding{}
	for _, f := range all {
		if !slices.ContainsFunc(out, func(o Finding) bool { return o.Place == f.Place && o.Cause == f.Cause }) {
			out = append(out, f)
		}
	}
	return out
}
