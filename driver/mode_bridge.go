package driver

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

	"github.com/docker/go-plugins-helpers/network"

	"github.com/netdriver/netdriver/dataplane"
	"github.com/netdriver/netdriver/dataplane/firewall"
	"github.com/netdriver/netdriver/dataplane/lan"
	"github.com/netdriver/netdriver/store"
	"github.com/netdriver/netdriver/vxlan"
)

// labelPortMap is where libnetwork puts the ports to be published (moby daemon/libnetwork/netlabel/labels.go).
const labelPortMap = "com.docker.network.portmap"

// bridgeMode is a network of one host: a bridge that is its containers' gateway.
type bridgeMode struct{ d *Driver }

func (m bridgeMode) found(_ context.Context, s spec, nw *store.Network) error {
	if s.allocation {
		return errors.New("mode=bridge is for a network of one host; omit the option for a swarm, or make the network with " +
			"--scope local on each host")
	}
	if nw.MTU == 0 {
		nw.MTU = m.d.cfg.Node.UnderlayMTU
	}
	if hasIPv6(nw.Subnets) && nw.MTU < vxlan.MinMTU6 {
		return fmt.Errorf("--opt mtu: %w: IPv6 needs %d, not %d", vxlan.ErrMTU, vxlan.MinMTU6, nw.MTU)
	}
	return errors.Join(m.filtered(), m.d.unrouted(nw.Subnets))
}

// filtered says why this node cannot keep the network apart from others.
func (m bridgeMode) filtered() error {
	if m.d.cfg.Filter == nil {
		return errors.New("mode=bridge needs a packet filter, for NAT and to keep others out: load nf_tables, or install iptables")
	}
	return nil
}

func (m bridgeMode) fits(_ context.Context, _ spec, nw store.Network) error {
	for _, o := range nw.Members {
		if o.Node != m.d.site.node {
			return fmt.Errorf("network %s is a bridge of node %s, and such a network is one host's: choose another "+
				"--opt network=NAME and --subnet, or make an overlay", nw.Name, o.Node)
		}
	}
	return m.filtered()
}

func (m bridgeMode) goal(_ context.Context, nw store.Network) (goal, error) {
	d := m.d
	var want lan.Network
	d.cfg.Mirror.Read(func(r *store.Records) { want = desiredBridge(d.site.node, nw, r.Pools, r.Endpoints[nw.Name]) })
	g := d.lanGoal(want, nil)
	apply := g.apply
	g.apply = func(ctx context.Context) ([]dataplane.Op, error) {
		err := d.filterBridges(ctx) // before anything can be sent through it
		ops, failed := apply(ctx)
		return ops, errors.Join(err, failed)
	}
	return g, nil
}

// desiredBridge says what a node should have of a bridge network. It is pure.
func desiredBridge(
	me string, nw store.Network, pools map[netip.Prefix]store.Pool, endpoints map[string]store.Endpoint,
) lan.Network {
	out := lan.Network{Name: nw.Name, Bridge: lan.Bridge{Device: lan.BridgeName(nw.Name), MTU: nw.MTU, Up: true}}
	out.Seat.Device = out.Bridge.Device
	for _, subnet := range nw.Subnets {
		if g := pools[subnet].Gateway; g.IsValid() {
			out.Seat.Addresses = append(out.Seat.Addresses, netip.PrefixFrom(g, subnet.Bits()))
		}
	}
	for _, k := range distinct(endpoints) {
		if e := endpoints[k.id]; e.Node == me {
			out.Ports = append(out.Ports, lan.Port{
				Endpoint: e.ID, Kind: lan.Veth, Parent: out.Bridge.Device, MAC: e.MAC, MTU: nw.MTU, Sandbox: e.Sandbox,
				Addresses: prefixes(e), Gateways: gateways(nw, pools, e), Attached: true,
			})
		}
	}
	out.Sort()
	return out
}

func (m bridgeMode) remove(ctx context.Context, name string, _ appliedNetwork) error {
	err := m.d.cfg.LAN.Remove(ctx, name, m.d.vlans(name))
	return errors.Join(err, m.d.filterBridges(ctx))
}

// join hands the interface to Docker. A container that publishes ports gets no gateway, so that Docker connects it to
// docker_gwbridge too and publishes them itself: what a driver publishes, `docker port` does not show, for libnetwork
// understands that of its own drivers only (moby daemon/network.go, getPortMapInfo).
func (m bridgeMode) join(ctx context.Context, nw store.Network, req *network.JoinRequest) (*network.JoinResponse, error) {
	if err := m.d.handOver(ctx, nw, req.EndpointID, req.SandboxKey); err != nil {
		return nil, err
	}
	var e store.Endpoint
	m.d.cfg.Mirror.Read(func(r *store.Records) { e = r.Endpoints[nw.Name][req.EndpointID] })
	e.Sandbox = req.SandboxKey
	m.d.arrive(nw, e)
	res := &network.JoinResponse{
		InterfaceName: network.InterfaceName{SrcName: lan.PortName(e.ID), DstPrefix: interfacePrefix},
	}
	if !publishes(req.Options) {
		m.d.route(res, nw, e)
	}
	return res, nil
}

// publishes says whether a container has ports to be published.
func publishes(options map[string]any) bool {
	ports, _ := options[labelPortMap].([]any)
	return len(ports) > 0
}

// filterBridges tells the packet filter of this node's bridge networks.
func (d *Driver) filterBridges(ctx context.Context) error {
	if d.cfg.Filter == nil || !d.cfg.Mirror.Synced("") {
		return nil
	}
	var nets []store.Network
	d.cfg.Mirror.Read(func(r *store.Records) {
		for _, name := range slices.Sorted(maps.Keys(r.Networks)) {
			if nw := r.Networks[name]; nw.Mode == store.ModeBridge && isMember(nw, d.site.node) {
				nets = append(nets, nw)
			}
		}
	})
	rules, allowed := bridgeRules(nets, d.bridges.renamed()...)
	_, err := d.cfg.Filter.Apply(ctx, rules)
	if d.cfg.Allow != nil {
		_, allowErr := d.cfg.Allow.Apply(ctx, allowed)
		err = errors.Join(err, allowErr)
	}
	return err
}

// The owners of the rules in the packet filter. There are two, since both may be in the same one.
const (
	bridgeOwner  = "bridge"
	passageOwner = "passage"
)

// dockerBridges are the names that Docker gives to its own, whose isolation its own rules see to.
func dockerBridges() []string { return []string{"docker*", "br-*"} }

// bridges are the bridges of Docker's own networks that have names of the user's choice (com.docker.network.bridge.name).
type bridges struct {
	mu    sync.Mutex
	names []string
}

func (b *bridges) renamed() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.names
}

// learn notes the names of all of Docker's bridges and says whether there is news.
func (b *bridges) learn(all []string) bool {
	known := func(name string) bool {
		return slices.ContainsFunc(dockerBridges(), func(like string) bool {
			return strings.HasPrefix(name, strings.TrimSuffix(like, "*"))
		})
	}
	names := slices.DeleteFunc(slices.Clone(all), known)
	b.mu.Lock()
	defer b.mu.Unlock()
	news := !slices.Equal(names, b.names)
	b.names = names
	return news
}

// followBridges has the packet filter know Docker's own bridges, whatever their names are, until ctx ends.
func (d *Driver) followBridges(ctx context.Context) {
	if d.cfg.Docker == nil || d.cfg.Filter == nil {
		return
	}
	wake := d.cfg.Docker.Wake(ctx)
	for {
		select {
		case <-ctx.Done():
			return
		case <-wake:
		}
		all, err := d.cfg.Docker.Bridges(ctx)
		if err != nil || !d.bridges.learn(all) { // of an engine that is away we hear again
			continue
		}
		d.admit(ctx)
		if err := d.filterBridges(ctx); err != nil {
			d.log.Warn("the packet filter is not as the bridge networks want it", "error", err)
		}
	}
}

// bridgeRules are the rules for bridge networks: what their containers send to other networks has the host's address, and
// nobody outside reaches them but in reply. The second ruleset lets pass what Docker's filter would drop: it drops whatever is
// forwarded and not its own. docker are Docker's bridges besides those that are known by their names. It is pure.
func bridgeRules(nets []store.Network, docker ...string) (rules, allowed firewall.Ruleset) {
	const replies = firewall.StateEstablished | firewall.StateRelated
	var forward, snat, allow []firewall.Rule
	for _, nw := range nets {
		b := lan.BridgeName(nw.Name)
		forward = append(forward,
			firewall.Rule{In: b, Out: b, Verdict: firewall.Pass}, // br_netfilter shows bridged packets here
			firewall.Rule{Out: b, State: replies, Verdict: firewall.Pass},
			firewall.Rule{Name: "to-bridge", Out: b, Verdict: firewall.Drop})
		allow = append(allow, firewall.Rule{In: b, Out: b, Verdict: firewall.Accept})
		if nw.Internal {
			forward = append(forward, firewall.Rule{Name: "from-internal", In: b, Verdict: firewall.Drop})
			continue
		}
		for _, subnet := range nw.Subnets {
			snat = append(snat, firewall.Rule{From: subnet, Out: b, NotOut: true, Verdict: firewall.Masquerade})
		}
		for _, other := range slices.Concat(dockerBridges(), docker) { // their published ports are for everybody
			forward = append(forward, firewall.Rule{In: b, Out: other, Translated: true, Verdict: firewall.Pass},
				firewall.Rule{Name: "from-bridge", In: b, Out: other, Verdict: firewall.Drop})
			allow = append(allow, firewall.Rule{In: b, Out: other, Verdict: firewall.Pass})
		}
		allow = append(allow, firewall.Rule{In: b, Verdict: firewall.Accept},
			firewall.Rule{Out: b, State: replies, Verdict: firewall.Accept})
	}
	rules, allowed = firewall.Ruleset{Owner: bridgeOwner}, firewall.Ruleset{Owner: passageOwner}
	for hook, list := range map[firewall.Hook][]firewall.Rule{firewall.Forward: forward, firewall.SNAT: snat} {
		if len(list) > 0 {
			rules.Chains = append(rules.Chains, firewall.Chain{Hook: hook, Rules: list})
		}
	}
	slices.SortFunc(rules.Chains, func(a, b firewall.Chain) int { return cmp.Compare(a.Hook, b.Hook) })
	if len(allow) > 0 {
		allowed.Chains = []firewall.Chain{{Hook: firewall.Allow, Rules: allow}}
	}
	return rules, allowed
}
