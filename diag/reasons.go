package diag

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/netdriver/netdriver/store"
)

// reason makes a Reason; format and args are its cause.
func reason(v Verdict, place, remedy, format string, args ...any) Reason {
	return Reason{Verdict: v, Cause: fmt.Sprintf(format, args...), Place: place, Remedy: remedy}
}

// reasons are all that is wrong with a network: this node first, then the others, then the cluster's records.
func (f facts) reasons(r NetworkReport) []Reason {
	out := []Reason{}
	if f.err != nil {
		out = append(out, reason(Degraded, f.me.Name,
			"check that the store runs and can be reached from here; existing traffic goes on, new containers must wait",
			"the store cannot be asked: %v; this is what the node knew last, other nodes' state is unknown", f.err))
	}
	if f.stopped {
		out = append(out, stopped(f.me.Name, f.hangs))
	}
	out = append(out, f.aboutKernel(r)...)
	out = append(out, f.aboutAdmission(r)...)
	for _, p := range r.Peers {
		out = append(out, f.aboutPeer(r, p)...)
	}
	out = append(out, f.aboutEncryption(r)...)
	for _, s := range r.Subnets {
		if s.Used+s.Reserved < s.Usable {
			continue
		}
		remedy, more := "remove containers, or make a network with a larger subnet", ""
		if n := f.unheld(s.Subnet); n > 0 {
			remedy = "`netdriver ipam check` tells which of them have leaked, with --reclaim it frees them; or " + remedy
			more = fmt.Sprintf("; no container has %d of them", n)
		}
		out = append(out, reason(Degraded, s.Subnet.String(), remedy,
			"subnet %s is full: %d of %d addresses are in use%s", s.Subnet, s.Used+s.Reserved, s.Usable, more))
	}
	out = append(out, f.aboutConflicts()...)
	out = append(out, f.aboutServices(r)...)
	return append(out, f.aboutRecords()...)
}

// unheld counts a subnet's leases for containers that no endpoint has: leaked ones, and those of containers that start.
func (f facts) unheld(subnet netip.Prefix) (n int) {
	held := map[netip.Addr]bool{}
	for _, e := range f.endpoints {
		for _, a := range e.Addrs() {
			held[a] = true
		}
	}
	for _, l := range f.leases[subnet] {
		if l.Kind == store.LeaseEndpoint && !l.Swarm && !held[l.Address] {
			n++
		}
	}
	return n
}

// stopped is the reason when no daemon runs on this node, or one that hangs.
func stopped(node string, hangs bool) Reason {
	if hangs {
		return reason(Degraded, node, "restart it: systemctl restart netdriver; before, SIGQUIT makes it write to its log what it waits for",
			"the daemon of this node hangs: traffic goes on, Docker's calls wait and fail, and nothing is repaired")
	}
	return reason(Degraded, node, "start it: `netdriver run`, or systemctl start netdriver; see its log",
		"the daemon of this node does not run: traffic goes on, Docker's calls fail, and nothing is repaired")
}

// unread is the reason when no record is known.
func unread(node string, err error) Reason {
	return reason(Unknown, node,
		"check that the store runs and can be reached from here; existing traffic goes on meanwhile",
		"the cluster's records have not been read since this daemon started: %v", err)
}

func (f facts) aboutKernel(r NetworkReport) []Reason {
	var out []Reason
	if f.problem != nil {
		out = append(out, reason(Failed, f.me.Name,
			"remove the cause named here; it is tried again within 30 s", "%v", f.problem))
	}
	switch {
	case !r.Member:
	case f.planErr != nil:
		out = append(out, reason(Unknown, f.me.Name, "try again; see the daemon's log",
			"the kernel could not be compared with the records: %v", f.planErr))
	case len(f.plan) > 0 && f.problem == nil:
		out = append(out, reason(Degraded, f.me.Name, "it is repaired within 30 s; if this stays, see the daemon's log",
			"the kernel differs from the records in %s, first: %s", count(len(f.plan), "place"), f.plan[0]))
	}
	return out
}

func (f facts) aboutPeer(r NetworkReport, p Peer) []Reason {
	place, look := p.Node, fmt.Sprintf("see its `netdriver inspect %s` and its daemon's log", r.Network)
	if p.Address.IsValid() {
		place = fmt.Sprintf("%s (%s)", p.Node, p.Address)
	}
	var out []Reason
	switch p.State {
	case StateDown:
		out = append(out, reason(Degraded, place,
			"start its host or its `netdriver run`; if they run, check its way to the store",
			"%s is not connected to the store; its %s may be unreachable", p.Node, count(p.Endpoints, "endpoint")))
	case StateBehind:
		out = append(out, reason(Degraded, place, look,
			"%s has applied revision %d of %d: it may not know the newest endpoints", p.Node, p.Applied, r.Revision.Wanted))
	}
	if p.Problem != "" && p.Node != f.me.Name {
		out = append(out, reason(Degraded, place, look, "%s reports: %s", p.Node, p.Problem))
	}
	more := overhead(f.network.Network, f.nodes[p.Node])
	need := r.MTU.MTU + more
	if r.VNI != 0 && p.Address.IsValid() && p.UnderlayMTU > 0 && p.UnderlayMTU < need {
		remedy := fmt.Sprintf("raise the MTU of its underlay to %d, or create the network anew with --opt mtu=%d",
			need, p.UnderlayMTU-more)
		out = append(out, reason(Degraded, place, remedy,
			"%s has an underlay MTU of %d, packets of this network need %d", p.Node, p.UnderlayMTU, need))
	}
	return out
}

// aboutRecords tells of this network's and its members' records that cannot be read.
func (f facts) aboutRecords() []Reason {
	var out []Reason
	mine := map[string]bool{store.NetworkKey(f.network.Name): true}
	for _, n := range members(f.network.Network) {
		mine[store.NodeKey(n)], mine[store.StatusKey(n)] = true, true
	}
	endpoints, services := store.NetworkEndpoints(f.network.Name), store.NetworkServices(f.network.Name)
	for _, key := range slices.Sorted(maps.Keys(f.bad)) {
		if mine[key] || strings.HasPrefix(key, endpoints) || strings.HasPrefix(key, services) {
			out = append(out, reason(Degraded, key,
				"upgrade netdriver on this node if another one runs a later version; else the record is damaged", "%v", f.bad[key]))
		}
	}
	return out
}

// count writes a number with its noun.
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
