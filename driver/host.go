package driver

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/netdriver/netdriver/dataplane"
	"github.com/netdriver/netdriver/dataplane/firewall"
	"github.com/netdriver/netdriver/dataplane/lan"
	"github.com/netdriver/netdriver/store"
	"github.com/netdriver/netdriver/vxlan"
)

// A node's own place in a network with host access is an endpoint like any other, but that no container has it: its
// interface stays on the host. So it is published, forwarded to, balanced and shown as the others are.

// takeSeat makes this node's own endpoint in a network with host access, unless it is there.
func (d *Driver) takeSeat(ctx context.Context, network string) error {
	nw := d.record(network)
	if !nw.HostAccess || d.cfg.Leases == nil || !isMember(nw, d.site.node) {
		return nil
	}
	id := store.HostEndpoint(d.site.node, nw.Name)
	_, _, found, err := read[store.Endpoint](ctx, d.cfg.Store, store.EndpointKey(nw.Name, id))
	if found || err != nil {
		return err
	}
	e := store.Endpoint{
		ID: id, Network: nw.Name, Node: d.site.node, Phase: store.PhaseCreated, Host: true, Created: d.cfg.Now(),
	}
	for _, subnet := range nw.Subnets {
		a, err := d.cfg.Leases.LeaseNode(ctx, subnet, id)
		if err != nil {
			return fmt.Errorf("an address of network %s for node %s itself: %w", nw.Name, d.site.node, err)
		}
		p := netip.PrefixFrom(a, subnet.Bits())
		if a.Is4() && !e.IPv4.IsValid() {
			e.IPv4 = p
		} else if a.Is6() && !e.IPv6.IsValid() {
			e.IPv6 = p
		}
	}
	e.MAC = vxlan.MACFor(e.Addrs()[0])
	revision, err := d.publish(ctx, nw, e)
	if err != nil {
		return fmt.Errorf("node %s's own endpoint in network %s: %w", d.site.node, nw.Name, err)
	}
	d.log.Info("this node has an address of its own", "network", nw.Name, "addresses", e.Addrs())
	return d.await(ctx, nw.Name, store.EndpointKey(nw.Name, id), revision)
}

// takeSeats does so in all networks: a daemon may have died between joining a network and this.
func (d *Driver) takeSeats(ctx context.Context) error {
	var errs []error
	for _, nw := range d.mine() {
		if nw.HostAccess {
			errs = append(errs, d.takeSeat(ctx, nw.Name))
		}
	}
	return errors.Join(errs...)
}

// leaveSeat removes this node's own endpoint when its last Docker network that stands for the network goes.
func (d *Driver) leaveSeat(ctx context.Context, nw store.Network, dockerID string) error {
	for _, m := range nw.Members {
		if m.Node == d.site.node && m.DockerID != dockerID {
			return nil
		}
	}
	if !nw.HostAccess {
		return nil
	}
	if err := d.withdraw(ctx, nw, store.HostEndpoint(d.site.node, nw.Name), releaseNow); err != nil {
		return fmt.Errorf("this node's own endpoint: %w", err)
	}
	return nil
}

// overlaySeat is what the host has of its own endpoint in an overlay: the addresses of the end of the pair that is a
// container's otherwise. Without host access it is nothing.
func (d *Driver) overlaySeat(nw store.Network) (out lan.Network) {
	out.Name = nw.Name
	d.cfg.Mirror.Read(func(r *store.Records) {
		if e, ok := r.Endpoints[nw.Name][store.HostEndpoint(d.site.node, nw.Name)]; ok {
			out.Seat = lan.Seat{Device: dataplane.ContainerEnd(e.ID), Addresses: prefixes(e), Up: true}
		}
	})
	out.Sort()
	return out
}

// applySeat makes the kernel have it. A network that never had a seat here costs nothing.
func (d *Driver) applySeat(ctx context.Context, seat lan.Network) error {
	if d.cfg.LAN == nil || seat.Seat.Device == "" {
		return nil
	}
	closed := d.filterSeats(ctx) // before the host has an address there
	_, err := d.cfg.LAN.Apply(ctx, seat)
	return errors.Join(closed, err)
}

// seatOwner is whose the rules are in the packet filter.
const seatOwner = "seat"

// filterSeats keeps this node from being a router: what comes in from a network in which it has a place is for the node
// itself or for nobody.
func (d *Driver) filterSeats(ctx context.Context) error {
	if d.cfg.Filter == nil || !d.cfg.Mirror.Synced("") {
		return nil
	}
	var devices []string
	for _, nw := range d.mine() {
		if !nw.HostAccess {
			continue
		}
		id := store.HostEndpoint(d.site.node, nw.Name)
		if nw.OnLAN() {
			devices = append(devices, lan.PortName(id))
		} else {
			devices = append(devices, dataplane.ContainerEnd(id))
		}
	}
	slices.Sort(devices)
	_, err := d.cfg.Filter.Apply(ctx, seatRules(devices))
	return err
}

// seatRules drop what would be forwarded from or to the host's own places in networks.
func seatRules(devices []string) firewall.Ruleset {
	rules := firewall.Ruleset{Owner: seatOwner}
	var forward []firewall.Rule
	for _, device := range devices {
		forward = append(forward, firewall.Rule{Name: "routed", In: device, Verdict: firewall.Drop},
			firewall.Rule{Name: "routed", Out: device, Verdict: firewall.Drop})
	}
	if len(forward) > 0 {
		rules.Chains = []firewall.Chain{{Hook: firewall.Forward, Rules: forward}}
	}
	return rules
}

// accessible says why this node cannot be given a place of its own in a network.
func (d *Driver) accessible(nw store.Network) error {
	if nw.HostAccess && (d.cfg.Filter == nil || d.cfg.LAN == nil) {
		return fmt.Errorf("--opt %s needs a packet filter, which keeps node %s from forwarding between networks: load nf_tables, "+
			"or install iptables; or omit the option", optionHostAccess, d.site.node)
	}
	return nil
}

func (d *Driver) diffSeat(ctx context.Context, seat lan.Network) ([]string, error) {
	if d.cfg.LAN == nil || seat.Seat.Device == "" {
		return nil, nil
	}
	ops, err := d.cfg.LAN.Diff(ctx, seat)
	return lines(ops), err
}
