package main

import (
	"cmp"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"

	"github.com/netdriver/netdriver/diag"
)

// network is the text of `netdriver inspect NETWORK`: the verdict first, then what is wrong and what to do, then the
// numbers.
func (p painter) network(r diag.NetworkReport) string {
	var b strings.Builder
	b.WriteString(p.headline(r))
	if d := dockerNames(r); d != "" {
		line(&b, "docker", d)
	}
	for _, s := range r.Subnets {
		line(&b, "subnet", subnet(s, r.Data))
	}
	line(&b, "mtu", r.MTU.Derived)
	p.crypto(&b, r)
	line(&b, "kernel", p.kernel(r))
	if r.Isolation != nil {
		line(&b, "isolation", isolation(*r.Isolation))
	}
	if r.Unheard != "" {
		line(&b, "events", "what is dropped at endpoints is counted and not told: "+r.Unheard)
	}
	if r.Admission != nil {
		line(&b, "admission", p.admission(*r.Admission))
	}
	for _, d := range r.Kernel.Differences {
		line(&b, "", "wants: "+d)
	}
	for _, reason := range r.Reasons {
		fmt.Fprintf(
			&b,
			"\n  %s  %s: %s\n    └ try: %s\n",
			p.verdict(reason.Verdict),
			reason.Place,
			reason.Cause,
			reason.Remedy,
		)
	}
	if len(r.Host) > 0 {
		fmt.Fprintf(&b, "\n  `netdriver check` found %s on this host, which need not be about this network:\n", plural(len(r.Host), "problem"))
		b.WriteString(p.findings(r.Host))
	}
	if len(r.Peers) > 0 {
		b.WriteString("\n" + p.peers(r.Peers))
	}
	if r.Encryption != nil && len(r.Encryption.Pairs) > 0 {
		b.WriteString("\n" + p.pairs(r.Encryption))
	}
	if len(r.Services) > 0 {
		b.WriteString("\n" + p.services(r.Services))
	}
	b.WriteString("\n" + p.endpoints(r))
	return b.String()
}

func line(b *strings.Builder, what, s string) { fmt.Fprintf(b, "  %-9s  %s\n", what, s) }

func (p painter) headline(r diag.NetworkReport) string {
	kind := medium(r)
	if r.Encryption != nil {
		kind = slices.Insert(kind, 1, "encrypted")
	}
	if r.Internal {
		kind = append(kind, "internal")
	}
	data := map[string]string{
		diag.SourceStore: "data " + p.age(
			r.Data.Taken,
		) + " old", diag.SourceMirror: "data from this node's copy", diag.SourceKernel: "data from the kernel",
	}
	return fmt.Sprintf(
		"%s  %s    %s  %s    %s\n",
		r.Network,
		strings.Join(kind, " · "),
		p.verdict(r.Verdict),
		summary(r),
		data[r.Data.Source],
	)
}

// medium says how the network is carried.
func medium(r diag.NetworkReport) []string {
	kind := []string{r.Mode}
	if m := r.Medium.Submode; m != "" {
		kind[0] += " " + m
	}
	if r.VNI != 0 {
		kind = append(kind, fmt.Sprintf("VNI %d", r.VNI), fmt.Sprintf("UDP %d", r.Port))
	}
	if p := r.Medium.Parent; p != "" {
		kind = append(kind, "parent "+p)
	}
	if r.Medium.HostAccess {
		kind = append(kind, "host access")
	}
	return kind
}

// summary says in a few words why the verdict is what it is.
func summary(r diag.NetworkReport) string {
	down, others := 0, 0
	for _, peer := range r.Peers {
		if peer.State != diag.StateLocal {
			others++
		}
		if peer.State == diag.StateDown {
			down++
		}
	}
	switch {
	case down > 0 && down == len(r.Reasons):
		return fmt.Sprintf("%d of %s DOWN", down, plural(others, "peer"))
	case len(r.Reasons) > 0:
		return plural(len(r.Reasons), "problem")
	}
	text := fmt.Sprintf("%s, %s", plural(others, "peer"), plural(r.EndpointCount, "endpoint"))
	if r.ServiceCount > 0 {
		text += ", " + plural(r.ServiceCount, "service")
	}
	return text
}

func subnet(s diag.Subnet, d diag.Data) string {
	usable := fmt.Sprint(s.Usable)
	if s.Usable == math.MaxUint64 {
		usable = "2^64"
	}
	text := fmt.Sprintf(
		"%s  gateway %s  %d of %s used",
		s.Subnet,
		addressOr(s.Gateway.IsValid(), s.Gateway),
		s.Used,
		usable,
	)
	if d.Source == diag.SourceStore {
		text += fmt.Sprintf(", %d reserved", s.Reserved)
	}
	if s.First.IsValid() {
		text += fmt.Sprintf(", leases %s to %s", s.First, s.Last)
	}
	return text
}

// addressOr writes an address if there is one.
func addressOr(valid bool, a fmt.Stringer) string {
	if !valid {
		return "none"
	}
	return a.String()
}

func (p painter) kernel(r diag.NetworkReport) string {
	k := r.Kernel
	var text string
	switch {
	case !r.Member:
		return "this node is no member"
	case !k.Checked:
		text = "not compared"
	case k.InSync:
		text = "in sync"
	default:
		text = plural(k.Differing, "difference")
	}
	text += fmt.Sprintf(", rev %d", r.Revision.Applied)
	if r.Revision.Wanted > r.Revision.Applied {
		text += fmt.Sprintf(" of %d", r.Revision.Wanted)
	}
	if len(k.Drifts) == 0 {
		return text
	}
	d := k.Drifts[len(k.Drifts)-1]
	text += fmt.Sprintf(" · last drift %s ago, ", p.age(d.Time))
	if d.Error != "" {
		return text + "not repaired: " + d.Error
	}
	return text + fmt.Sprintf("repaired in %s: %s", span(time.Duration(d.Seconds*float64(time.Second))), d.Command)
}

// admission says who may send to this node's networks, and what was dropped.
func (p painter) admission(a diag.Admission) string {
	if a.Filter == "" {
		return "anybody, for want of a packet filter"
	}
	text := fmt.Sprintf("the cluster's nodes (%s) · dropped: %s from strangers, %d from containers", a.Filter,
		plural(int(a.Strangers), "packet"), a.Containers)
	if len(a.Drifts) == 0 {
		return text
	}
	d := a.Drifts[len(a.Drifts)-1]
	return text + fmt.Sprintf(" · last drift %s ago: %s", p.age(d.Time), d.Command)
}

func (p painter) peers(peers []diag.Peer) string {
	header := table.Row{"PEER", "ADDRESS", "STATE", "REV", "MTU", "ENDPOINTS", "LAST STATUS"}
	swarm := slices.ContainsFunc(peers, func(peer diag.Peer) bool { return peer.Role != "" })
	if swarm {
		header = slices.Insert(header, 1, any("ROLE"))
	}
	var rows []table.Row
	for _, peer := range peers {
		row := table.Row{
			peer.Node, addressOr(peer.Address.IsValid(), peer.Address), p.state(peer.State), known(peer.Applied),
			known(peer.UnderlayMTU),
			peer.Endpoints, p.age(peer.LastStatus),
		}
		if swarm {
			row = slices.Insert(row, 1, any(known(peer.Role)))
		}
		rows = append(rows, row)
	}
	return columns(header, rows)
}

func (p painter) endpoints(r diag.NetworkReport) string {
	if len(r.Endpoints) == 0 {
		return "no endpoint: no container is connected\n"
	}
	header := table.Row{"ENDPOINT", "CONTAINER", "NODE", "ADDRESS", "MAC", "PHASE", "AGE", "SEEN BY"}
	swarm := slices.ContainsFunc(r.Endpoints, func(e diag.Endpoint) bool { return e.Service != "" })
	if swarm {
		header = slices.Insert(header, 2, any("SERVICE"))
	}
	grouped := r.Isolation != nil && len(r.Isolation.Allow) > 0
	if grouped {
		header = append(header, "GROUP")
	}
	dropped := slices.ContainsFunc(r.Endpoints, func(e diag.Endpoint) bool { return e.Drops != nil && e.Drops.Any() })
	if dropped {
		header = append(header, "DROPPED")
	}
	var rows []table.Row
	for _, e := range r.Endpoints[:min(len(r.Endpoints), mostRows)] {
		row := p.endpoint(e)
		if grouped {
			row = append(row, cmp.Or(e.Group, none))
		}
		if dropped {
			row = append(row, drops(e))
		}
		if swarm {
			row = slices.Insert(row, 2, any(known(e.Service)))
		}
		rows = append(rows, row)
	}
	return columns(header, rows) + more(len(r.Endpoints))
}

// endpoint is the row of one endpoint, without its service.
func (p painter) endpoint(e diag.Endpoint) table.Row {
	mac, seen := none, none
	if !e.MAC.IsZero() {
		mac = e.MAC.String()
	}
	if e.SeenBy >= 0 {
		seen = fmt.Sprintf("%d/%d", e.SeenBy, e.Members)
	}
	return table.Row{
		e.ID[:min(len(e.ID), 12)], container(e), e.Node, addresses(e.Addresses, none), mac, cmp.Or(e.Phase, none),
		p.age(e.Created), seen,
	}
}

// more tells of rows that are left out.
func more(rows int) string {
	if rows <= mostRows {
		return ""
	}
	return fmt.Sprintf("… and %d more (-o json shows all)\n", rows-mostRows)
}

// addresses writes a list, or what stands for an empty one.
func addresses(as []netip.Addr, empty string) string {
	var out []string
	for _, a := range as {
		out = append(out, a.String())
	}
	return cmp.Or(strings.Join(out, " "), empty)
}
