package diag

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/dataplane"
	"github.com/netdriver/netdriver/diag/host"
	"github.com/netdriver/netdriver/store"
	"github.com/netdriver/netdriver/vxlan"
)

// CheckSchema names the version of a check's JSON.
const CheckSchema = "netdriver.check/v1"

// CheckReport is what was found on one node.
type CheckReport struct {
	Schema   string    `json:"schema"`
	Node     string    `json:"node"`
	Verdict  Verdict   `json:"verdict"`
	Findings []Finding `json:"findings"`
	// Checks are those that were made, by name, with what they look at.
	Checks []CheckRow `json:"checks"`
	Data   Data       `json:"data"`
}

// CheckRow is one check that was made.
type CheckRow struct {
	Name    string  `json:"name"`
	Looks   string  `json:"looks"`
	Verdict Verdict `json:"verdict"`
}

// Site is what a daemon runs with, as far as checks look at it. It holds no secret.
type Site struct {
	RunDir  string `json:"runDir"`
	DataDir string `json:"dataDir"`
	// Certificates are files that are used for the store, if there are any.
	Certificates []string `json:"certificates,omitempty"`
	// Ports are the TCP ports that nodes use between them, with what for.
	Ports map[uint16]string `json:"ports,omitempty"`
	// Sockets are those that Docker and commands use, Docker the URL of the engine.
	Sockets []string `json:"sockets,omitempty"`
}

// examiner makes the checks of one report.
type examiner struct {
	d     *Diagnosis
	site  Site
	c     cluster
	space *host.Space // the host's
	ours  *host.Space // nil if there is none
	links []host.Link
	mine  []network // overlays that this node is a member of
	peer  string    // only this one is probed; empty: all
}

// check is one row of the table.
type check struct {
	name, looks string
	run         func(context.Context, *examiner) []Finding
}

// checks is the table. docs/troubleshooting.md has it, too.
func checks() []check {
	return []check{
		{"kernel", "veth, bridges, VXLAN, nftables for bridges, eBPF at tc, each tried", checkKernel},
		{"underlay", "the device with this node's address: up, MTU, other VXLAN devices beside it", checkUnderlay},
		{"namespace", "settings of netdriver's namespace: no forwarding, no packet filter for bridged frames", checkNamespace},
		{"filter", "rules of the host's packet filter that drop this cluster's packets", checkFilter},
		{"gateway", "docker_gwbridge and forwarding, the containers' way out", checkGateway},
		{"sockets", "the sockets that Docker and commands use", checkSockets},
		{"docker", "the engine answers", checkDocker},
		{"store", "how long the store takes to answer", checkStore},
		{"certificates", "those for the store, and the clock", checkCertificates},
		{"clock", "other nodes' times against this one's", checkClock},
		{"disk", "space under the data directory", checkDisk},
		{"leases", "addresses that are held by nothing", checkLeases},
		{"peers", "marked frames to each other node and back, small and large", checkPeers},
		{"networks", "every network of the cluster, as `netdriver inspect` does", checkNetworks},
	}
}

// Check looks at this node and at its way to the others, or to one of them if peer is not empty.
func (d *Diagnosis) Check(ctx context.Context, peer string) (CheckReport, error) {
	c := d.cluster(ctx)
	if _, known := c.nodes[peer]; peer != "" && !known {
		return CheckReport{}, fmt.Errorf("there is no node %q: see `netdriver nodes`", peer)
	}
	e, err := d.examiner(c)
	if err != nil {
		return CheckReport{}, err
	}
	defer e.close()
	e.peer = peer
	return e.report(ctx), nil
}

// examiner opens what checks look at.
func (d *Diagnosis) examiner(c cluster) (_ *examiner, err error) {
	e := &examiner{d: d, site: d.src.Site, c: c}
	defer func() {
		if err != nil {
			e.close()
		}
	}()
	if e.space, err = host.Open(""); err != nil {
		return nil, err
	}
	if dataplane.Exists(e.site.RunDir) {
		if e.ours, err = host.Open(dataplane.NamespaceIn(e.site.RunDir)); err != nil {
			return nil, err
		}
	}
	if e.links, err = e.space.Links(); err != nil {
		return nil, err
	}
	for _, nw := range e.c.networks {
		if nw.Mode == store.ModeOverlay && slices.Contains(members(nw.Network), d.src.Node.Name) {
			e.mine = append(e.mine, nw)
		}
	}
	slices.SortFunc(e.mine, func(a, b network) int { return strings.Compare(a.Name, b.Name) })
	return e, nil
}

func (e *examiner) close() {
	_ = errors.Join(e.space.Close(), e.ours.Close()) // they were only read
}

// report makes all checks side by side.
func (e *examiner) report(ctx context.Context) CheckReport {
	r := CheckReport{Schema: CheckSchema, Node: e.d.src.Node.Name, Findings: []Finding{}, Data: e.c.data()}
	all := checks()
	found := make([][]Finding, len(all))
	var g errgroup.Group
	for i, c := range all {
		g.Go(func() error { found[i] = c.run(ctx, e); return nil })
	}
	_ = g.Wait() // none fails: what cannot be found out is a finding
	for i, c := range all {
		r.Checks = append(r.Checks, CheckRow{c.name, c.looks, verdictOf(found[i])})
		r.Findings = append(r.Findings, found[i]...)
	}
	r.Findings = unique(r.Findings)
	r.Verdict = verdictOf(r.Findings)
	return r
}

func (e *examiner) here(what string) string { return e.d.src.Node.Name + " " + what }

func checkKernel(_ context.Context, e *examiner) []Finding {
	all, err := host.Abilities()
	if err != nil {
		return []Finding{finding("kernel", Unknown, e.here("kernel"), "run it as root", "the kernel could not be tried: %v", err)}
	}
	var out []Finding
	for _, a := range all {
		if a.Err == nil {
			continue
		}
		severity := Degraded
		if a.Essential {
			severity = Failed
		}
		out = append(out, finding("kernel", severity, e.here("kernel"), "load or install the modules: "+a.Modules,
			"this kernel has no %s: %v", a.Name, a.Err))
	}
	return out
}

func checkUnderlay(_ context.Context, e *examiner) []Finding {
	me := e.d.src.Node
	var out []Finding
	say := func(severity Verdict, place, remedy, format string, args ...any) {
		out = append(out, finding("underlay", severity, e.here(place), remedy, format, args...))
	}
	s := scene{host: e.space, hostLinks: e.links}
	under, found := s.underlay(me.VTEP)
	if !found {
		say(Failed, me.VTEP.String(), "give the address back to its device, or restart the daemon with another --underlay",
			"no device of this host has the address %s that the other nodes send to", me.VTEP)
		return out
	}
	if !under.Up || !under.Carrier {
		say(Failed, under.Name, "bring it up, look at its cable", "the underlay's device %s is down", under.Name)
	}
	for _, nw := range e.mine {
		need := nw.MTU + vxlan.Overhead(me.VTEP)
		if under.MTU < need {
			say(Degraded, under.Name, fmt.Sprintf("raise it to %d, or make the network anew with --opt mtu=%d", need, under.MTU-vxlan.Overhead(me.VTEP)),
				"the underlay's device %s has MTU %d, packets of network %s need %d", under.Name, under.MTU, nw.Name, need)
		}
		for _, l := range e.links {
			if l.Kind == "vxlan" && l.VNI == nw.VNI && l.Port == nw.Port && l.Name != dataplane.VXLANName(l.VNI) { // which is being made
				say(Failed, l.Name, fmt.Sprintf("remove it (ip link del %s), or make the network with another VNI or port", l.Name),
					"another VXLAN device %s of this host has VNI %d and UDP port %d, which are network %s's", l.Name, l.VNI, l.Port, nw.Name)
			}
		}
	}
	if under.MTU != me.UnderlayMTU && me.UnderlayMTU > 0 && len(out) == 0 {
		say(Degraded, under.Name, "restart the daemon, which tells the other nodes, or set the MTU back",
			"the underlay's device %s has MTU %d, and had %d when the daemon started", under.Name, under.MTU, me.UnderlayMTU)
	}
	return out
}

func checkNamespace(_ context.Context, e *examiner) []Finding {
	if e.ours == nil {
		return []Finding{finding("namespace", Failed, e.here(dataplane.NamespaceIn(e.site.RunDir)), "start the daemon (`netdriver run`), or restart it, and the containers that have lost their interfaces",
			"netdriver's network namespace is not there: no daemon has run since this host booted, or somebody removed its file")}
	}
	var out []Finding
	for name, effect := range map[string]string{
		"net/bridge/bridge-nf-call-iptables":  "frames between containers go through iptables",
		"net/bridge/bridge-nf-call-ip6tables": "frames between containers go through ip6tables",
		"net/ipv4/ip_forward":                 "a packet could get from one network into another",
	} {
		if e.ours.Setting(name) == "1" {
			key := strings.ReplaceAll(name, "/", ".")
			out = append(out, finding("namespace", Degraded, e.here(key),
				fmt.Sprintf("nsenter --net=%s sysctl -w %s=0; the daemon does so at its start", dataplane.NamespaceIn(e.site.RunDir), key),
				"%s is on in netdriver's namespace: %s", key, effect))
		}
	}
	for _, r := range e.ours.Rules() {
		if r.Table != "netdriver" {
			out = append(out, finding("namespace", Degraded, e.here("netdriver's namespace"), "remove the rule, or whatever makes it",
				"somebody's packet filter drops in netdriver's namespace: %s", e.ours.Describe(r)))
		}
	}
	return out
}

// checkFilter finds rules that name one of our ports and drop. netdriver's own accept what comes from the cluster's nodes.
func checkFilter(_ context.Context, e *examiner) []Finding {
	var out []Finding
	for _, r := range e.space.Rules() {
		text := e.space.Describe(r)
		if r.Table == "netdriver" || strings.Contains(strings.ToLower(r.Chain+text), "netdriver") {
			continue
		}
		counted := "it counts nothing"
		if r.Counted {
			counted = fmt.Sprintf("%d packets so far", r.Packets)
		}
		for _, nw := range e.mine {
			if mentions(text, nw.Port) {
				out = append(out, finding("filter", Failed, e.here("packet filter"), "remove that rule, or accept the cluster's nodes before it",
					"a rule drops UDP port %d, which network %s uses: %s", nw.Port, nw.Name, text).because("%s", counted))
			}
		}
		for port, use := range e.site.Ports {
			if mentions(text, port) && strings.Contains(text, "tcp") {
				out = append(out, finding("filter", Degraded, e.here("packet filter"), "remove that rule, or accept the cluster's nodes before it",
					"a rule drops TCP port %d, %s: %s", port, use, text).because("%s", counted))
			}
		}
	}
	return unique(append(out, e.closedTo()...))
}

// closedTo finds chains that drop by default what other nodes send, and have no rule that accepts it.
func (e *examiner) closedTo() []Finding {
	var out []Finding
	for _, p := range e.space.Policies() {
		if p.Table == "netdriver" || !inward[p.Hook] && !outward[p.Hook] {
			continue
		}
		accepting := e.space.Accepts(p)
		for _, nw := range e.mine {
			w := doorway{port: nw.Port}
			for _, m := range members(nw.Network) {
				w.from = append(w.from, e.c.nodes[m].VTEP)
			}
			if !w.open(accepting) {
				out = append(out, finding("filter", Failed, e.here("packet filter"),
					fmt.Sprintf("accept UDP port %d from the cluster's nodes there, or from each of them everything; their TCP ports are in docs/operations.md", nw.Port),
					"%s, and no rule there accepts UDP port %d, which network %s uses", p, nw.Port, nw.Name))
			}
		}
	}
	return out
}

func notDigit(r rune) bool { return r < '0' || r > '9' }

func checkGateway(_ context.Context, e *examiner) []Finding {
	i := slices.IndexFunc(e.links, func(l host.Link) bool { return l.Name == "docker_gwbridge" })
	if i < 0 {
		return nil // no container needed a way out so far
	}
	var out []Finding
	if !e.links[i].Up {
		out = append(out, finding("gateway", Degraded, e.here("docker_gwbridge"), "ip link set docker_gwbridge up",
			"docker_gwbridge is down: containers have no way out, and published ports lead nowhere"))
	}
	if e.space.Setting("net/ipv4/ip_forward") == "0" {
		out = append(out, finding("gateway", Degraded, e.here("net.ipv4.ip_forward"), "sysctl -w net.ipv4.ip_forward=1; find who set it to 0",
			"the host forwards no packets: containers have no way out, and published ports lead nowhere"))
	}
	for _, r := range e.space.Rules() {
		if text := e.space.Describe(r); strings.Contains(text, "docker_gwbridge") && !strings.Contains(r.Chain, "ISOLATION") && !dockersOwn(text) {
			out = append(out, finding("gateway", Degraded, e.here("packet filter"), "remove that rule",
				"a rule drops what goes through docker_gwbridge: %s", text))
		}
	}
	return out
}

// dockersOwn says whether a rule is one of those that Docker makes: no container reaches another through the gateway's
// bridge (moby daemon/libnetwork/drivers/bridge/setup_ip_tables.go, icc=false).
func dockersOwn(rule string) bool {
	return strings.Count(rule, "docker_gwbridge") == 2
}

func checkStore(ctx context.Context, e *examiner) []Finding {
	const slow = 500 * time.Millisecond
	if e.c.err != nil {
		const patience = 2500 * time.Millisecond // with what was waited before, less than 5 s
		ask, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		begin := time.Now()
		if _, err := e.d.src.Store.Count(ask, store.NodePrefix); err == nil {
			return []Finding{slowStore(e, fmt.Sprintf("one question took %s, and several did not end within %s", time.Since(begin).Round(time.Millisecond), askStore))}
		}
		return []Finding{finding("store", Degraded, e.here("store"),
			"start the store's members and look at the way to them; existing traffic goes on, new containers must wait",
			"the store does not answer: %v", e.c.err)}
	}
	ctx, cancel := context.WithTimeout(ctx, 2*askStore)
	defer cancel()
	var least time.Duration
	for range 3 {
		begin := time.Now()
		if _, err := e.d.src.Store.Count(ctx, store.NodePrefix); err != nil {
			return []Finding{finding("store", Degraded, e.here("store"), "look at the store's members", "the store does not answer: %v", err)}
		}
		if took := time.Since(begin); least == 0 || took < least {
			least = took
		}
	}
	if least > slow {
		return []Finding{slowStore(e, fmt.Sprintf("the fastest of three questions took %s", least.Round(time.Millisecond)))}
	}
	return nil
}

func slowStore(e *examiner, what string) Finding {
	return finding("store", Degraded, e.here("store"), "look at the members' disks and CPUs, and at the network to them", "the store is slow: %s", what)
}

func checkCertificates(_ context.Context, e *examiner) []Finding {
	const soon = 7 * 24 * time.Hour
	var out []Finding
	now := e.d.src.Now()
	for _, file := range e.site.Certificates {
		text, err := os.ReadFile(file)
		block, _ := pem.Decode(text)
		var c *x509.Certificate
		if err == nil && block != nil {
			c, err = x509.ParseCertificate(block.Bytes)
		}
		renew := "in a cluster of `netdriver cluster` the daemon renews it by itself: see its log; else put a new one there"
		switch place := e.here(file); {
		case err != nil || c == nil:
			out = append(out, finding("certificates", Failed, place, "put a PEM certificate there", "the certificate %s cannot be read: %v", file, err))
		case now.Before(c.NotBefore):
			out = append(out, finding("certificates", Failed, place, "set this host's clock",
				"the certificate %s is valid from %s, and the clock says %s: it is behind", file, c.NotBefore.Format(time.RFC3339), now.UTC().Format(time.RFC3339)))
		case now.After(c.NotAfter):
			out = append(out, finding("certificates", Failed, place, renew+"; or set the clock, if that is wrong",
				"the certificate %s ended at %s", file, c.NotAfter.Format(time.RFC3339)))
		case c.NotAfter.Sub(now) < min(soon, c.NotAfter.Sub(c.NotBefore)/10):
			out = append(out, finding("certificates", Degraded, place, renew, "the certificate %s ends at %s", file, c.NotAfter.Format(time.RFC3339)))
		}
	}
	return out
}

// checkClock looks at the times that nodes have written: one in the future was written by a clock that is ahead. Peers that
// answer questions say what their clocks show, see (*path).clocks.
func checkClock(_ context.Context, e *examiner) []Finding {
	var out []Finding
	now := e.d.src.Now()
	for name, st := range e.c.statuses {
		if ahead := st.Updated.Sub(now); ahead > clockLimit && name != e.d.src.Node.Name {
			out = append(out, finding("clock", Degraded, name, clockRemedy,
				"the clock of %s is %s ahead of this node's, or this one is behind", name, ahead.Round(time.Second)))
		}
	}
	return out
}

// clockLimit is how far two clocks may be apart: certificates, leases and signatures bear minutes, so this is noticed in time.
const (
	clockLimit  = 10 * time.Second
	clockRemedy = "set the clocks by NTP; certificates and signatures are refused when they are far apart"
)

func checkDisk(_ context.Context, e *examiner) []Finding {
	const low, none = 256 << 20, 16 << 20
	var st unix.Statfs_t
	if err := unix.Statfs(e.site.DataDir, &st); err != nil {
		return []Finding{finding("disk", Unknown, e.here(e.site.DataDir), "name the daemon's --data-dir", "the data directory cannot be looked at: %v", err)}
	}
	free := uint64(st.Bsize) * st.Bavail
	severity := Degraded
	switch {
	case free < none:
		severity = Failed
	case free >= low:
		return nil
	}
	return []Finding{finding("disk", severity, e.here(e.site.DataDir), "make room: the store writes there and stops when it cannot",
		"%d MiB are free under %s", free>>20, e.site.DataDir)}
}

// checkLeases finds addresses of this node that no endpoint has: a container that starts has one for moments only.
func checkLeases(ctx context.Context, e *examiner) []Finding {
	const young = 5 * time.Minute
	var out []Finding
	for _, nw := range e.mine {
		f := e.d.roster(ctx, e.c, nw)
		have := map[netip.Addr]bool{}
		for _, p := range f.endpoints {
			for _, a := range p.Addrs() {
				have[a] = true
			}
		}
		for _, subnet := range nw.Subnets {
			var lost []string
			for _, l := range f.leases[subnet] {
				if l.Kind == store.LeaseEndpoint && !l.Swarm && !have[l.Address] && e.d.src.Now().Sub(l.Created) > young {
					lost = append(lost, l.Address.String())
				}
			}
			if len(lost) > 0 {
				slices.Sort(lost)
				out = append(out, finding("leases", Degraded, "network "+nw.Name, "`netdriver ipam check --reclaim` frees them",
					"%d addresses of %s are leased and no container has them: %s", len(lost), subnet, strings.Join(lost[:min(len(lost), 8)], ", ")))
			}
		}
	}
	return out
}

// checkNetworks adds what inspect knows.
func checkNetworks(ctx context.Context, e *examiner) []Finding {
	r, err := e.d.networksIn(ctx, e.c)
	if err != nil {
		return []Finding{finding("networks", Unknown, e.here("networks"), "see the other findings", "the networks cannot be judged: %v", err)}
	}
	var out []Finding
	for _, n := range r.Networks {
		for _, x := range n.Reasons {
			out = append(out, finding("networks", x.Verdict, x.Place, x.Remedy, "network %s: %s", n.Network, x.Cause))
		}
	}
	return out
}
