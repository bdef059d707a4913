package driver

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/docker/go-plugins-helpers/network"

	"github.com/netdriver/netdriver/dataplane"
	"github.com/netdriver/netdriver/dataplane/lan"
	"github.com/netdriver/netdriver/ipam"
	"github.com/netdriver/netdriver/store"
	"github.com/netdriver/netdriver/vxlan"
)

// mode is what differs between the kinds of network. Records, phases, leases, membership and repair are the same in all.
type mode interface {
	// found puts what was asked, and what was left open, into a new network's record.
	found(ctx context.Context, s spec, nw *store.Network) error
	// fits says why this node cannot be in a network that exists.
	fits(ctx context.Context, s spec, nw store.Network) error
	// goal is what this node should have of a network, by the mirror's records.
	goal(ctx context.Context, nw store.Network) (goal, error)
	// remove takes all of a network from this node.
	remove(ctx context.Context, name string, a appliedNetwork) error
	// join says how Docker attaches an endpoint. It returns once the endpoint's interface may be taken.
	join(ctx context.Context, nw store.Network, req *network.JoinRequest) (*network.JoinResponse, error)
}

// goal is what this node should have of one network.
type goal struct {
	// size is how many parts it has: one that shrinks is confirmed by the store.
	size int
	// apply makes it so, diff says what that would take.
	apply func(context.Context) ([]dataplane.Op, error)
	diff  func(context.Context) ([]string, error)
}

// LAN is what the driver needs of the data plane of the host's own networks; *lan.Plane is the real one.
type LAN interface {
	Interfaces(ctx context.Context) ([]lan.Interface, error)
	Supports(ctx context.Context, kind lan.Kind) error
	Probe(ctx context.Context, device string, a netip.Addr) (vxlan.MAC, bool, error)
	Apply(ctx context.Context, want lan.Network) ([]lan.Op, error)
	Diff(ctx context.Context, want lan.Network) ([]lan.Op, error)
	Fail(network string)
	Remove(ctx context.Context, network string, keep []string) error
	Sweep(ctx context.Context, wanted func(network string) bool, keep []string) error
	Announce(ctx context.Context, p lan.Port) error
	Drifted() <-chan string
}

// modeOf returns the mode by its name, "" being the default one.
func (d *Driver) modeOf(name string) (mode, error) {
	switch host := d.cfg.LAN != nil; {
	case name == "" || name == store.ModeOverlay:
		return overlayMode{d}, nil
	case host && (name == store.ModeMacvlan || name == store.ModeIPvlan):
		return lanMode{d}, nil
	case host && name == store.ModeBridge:
		return bridgeMode{d}, nil
	}
	return nil, fmt.Errorf("mode %q is not available on node %s", name, d.site.node)
}

// overlayMode is a VXLAN network.
type overlayMode struct{ d *Driver }

func (m overlayMode) found(ctx context.Context, s spec, nw *store.Network) error {
	d := m.d
	err := s.settle(nw)
	if err == nil && !s.allocation {
		err = errors.Join(d.encrypts(ctx, *nw), d.judges(*nw))
	}
	if err == nil {
		err = d.unrouted(nw.Subnets)
	}
	if err != nil {
		return err
	}
	nw.HostAccess = s.hostAccess
	if err := d.accessible(*nw); err != nil && !s.allocation {
		return err
	}
	if nw.VNI, nw.Port = s.vni, s.port; nw.Port == 0 {
		nw.Port = d.defaultPort(*nw)
	}
	if nw.MTU == 0 {
		if nw.MTU, err = d.largestMTU(*nw); err != nil {
			return err
		}
	}
	if err := d.checkMTU(*nw); err != nil {
		return fmt.Errorf("--opt mtu: %w", err)
	}
	nw.VNI, err = d.chooseVNI(ctx, s, nw.Name)
	return err
}

func (m overlayMode) fits(ctx context.Context, s spec, nw store.Network) error {
	if err := m.d.checkMTU(nw); err != nil {
		return fmt.Errorf("network %s does not fit this node's underlay %s: %w", nw.Name, m.d.site.underlay, err)
	}
	if !isMember(nw, m.d.site.node) {
		if err := m.d.unrouted(nw.Subnets); err != nil {
			return err
		}
	}
	if s.allocation {
		return nil // a manager need not have a part in it
	}
	return errors.Join(m.d.encrypts(ctx, nw), m.d.judges(nw), m.d.accessible(nw))
}

// unrouted refuses subnets that a route of this host overlaps. IPAM lets a subnet pass that this host is in, since it
// cannot know whether the network is to be in that LAN.
func (d *Driver) unrouted(subnets []netip.Prefix) error {
	if d.cfg.Routes == nil {
		return nil
	}
	routes, err := d.cfg.Routes()
	if err != nil {
		return err
	}
	for _, subnet := range subnets {
		if err := ipam.CheckRoutes(subnet, routes, d.site.node); err != nil {
			return err
		}
	}
	return nil
}

func (m overlayMode) goal(_ context.Context, nw store.Network) (goal, error) {
	d := m.d
	want := d.want(nw.Name)
	seat := d.overlaySeat(nw)
	return goal{
		size: size(want),
		apply: func(ctx context.Context) ([]dataplane.Op, error) {
			unsafe, want := d.guard(ctx, nw.Name), want
			if unsafe != nil {
				want = cutOff(want)
			}
			ops, err := d.cfg.Plane.Apply(ctx, want)
			return ops, errors.Join(unsafe, err, d.applySeat(ctx, seat))
		},
		diff: func(ctx context.Context) ([]string, error) {
			ops, err := d.cfg.Plane.Diff(ctx, want)
			more, seatErr := d.diffSeat(ctx, seat)
			return append(lines(ops), more...), errors.Join(err, seatErr)
		},
	}, nil
}

func (m overlayMode) remove(ctx context.Context, name string, a appliedNetwork) error {
	if m.d.cfg.LAN != nil {
		if err := m.d.cfg.LAN.Remove(ctx, name, m.d.vlans(name)); err != nil {
			return err
		}
	}
	return errors.Join(m.d.cfg.Plane.Remove(ctx, a.vni), m.d.filterSeats(ctx))
}

// join hands the interface to Docker. No gateway is named, so that Docker connects the container to docker_gwbridge for
// NAT and published ports, unless the network is internal.
func (m overlayMode) join(ctx context.Context, nw store.Network, req *network.JoinRequest) (*network.JoinResponse, error) {
	if err := m.d.handOver(ctx, nw, req.EndpointID, ""); err != nil {
		return nil, err
	}
	return &network.JoinResponse{
		InterfaceName: network.InterfaceName{SrcName: dataplane.ContainerEnd(req.EndpointID), DstPrefix: interfacePrefix},
	}, nil
}

// lines writes operations as commands.
func lines[Op fmt.Stringer](ops []Op) []string {
	out := make([]string, len(ops))
	for i, op := range ops {
		out[i] = op.String()
	}
	return out
}

// gateways are those of a network's subnets for the address families of an endpoint, IPv4's first.
func gateways(nw store.Network, pools map[netip.Prefix]store.Pool, e store.Endpoint) (out []netip.Addr) {
	if nw.Internal {
		return nil
	}
	for _, a := range e.Addrs() {
		if subnet, ok := subnetOf(nw, a); ok && pools[subnet].Gateway.IsValid() {
			out = append(out, pools[subnet].Gateway)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}
