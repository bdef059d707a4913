package driver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/docker/go-plugins-helpers/network"

	"github.com/netdriver/netdriver/dataplane"
	"github.com/netdriver/netdriver/dataplane/lan"
	"github.com/netdriver/netdriver/internal/plugin"
	"github.com/netdriver/netdriver/store"
	"github.com/netdriver/netdriver/vxlan"
)

// lanMode puts containers into the LAN that an interface of the host is in.
type lanMode struct{ d *Driver }

func (m lanMode) found(ctx context.Context, s spec, nw *store.Network) error {
	nw.LAN = store.LAN{Parent: s.parent}
	if nw.Mode == store.ModeMacvlan {
		nw.LAN.Submode = cmp.Or(s.submode, lan.BridgeMode)
	}
	nw.HostAccess = s.hostAccess
	parent, err := m.parent(ctx, *nw)
	if err == nil && parent.Down {
		err = downError(parent)
	}
	if err != nil {
		return err
	}
	if nw.MTU == 0 {
		nw.MTU = parent.MTU
	}
	return m.carries(ctx, *nw, parent)
}

// fits: a manager of a swarm need not have the parent.
func (m lanMode) fits(ctx context.Context, s spec, nw store.Network) error {
	if s.allocation {
		return nil
	}
	parent, err := m.parent(ctx, nw)
	if err == nil && parent.Down {
		err = downError(parent)
	}
	if err != nil {
		return err
	}
	return m.carries(ctx, nw, parent)
}

// carries says whether this node's parent and kernel can have the network.
func (m lanMode) carries(ctx context.Context, nw store.Network, parent lan.Parent) error {
	if nw.MTU > parent.MTU {
		return fmt.Errorf("network %s has MTU %d, interface %s of node %s only %d; raise it there, or create the network with "+
			"--opt mtu=%d", nw.Name, nw.MTU, parent.Device, m.d.site.node, parent.MTU, parent.MTU)
	}
	if hasIPv6(nw.Subnets) && nw.MTU < vxlan.MinMTU6 {
		return fmt.Errorf("%w: IPv6 needs %d, not %d", vxlan.ErrMTU, vxlan.MinMTU6, nw.MTU)
	}
	return errors.Join(m.d.accessible(nw), m.d.cfg.LAN.Supports(ctx, lan.Kind(nw.Mode)))
}

// parent finds the network's parent on this node.
func (m lanMode) parent(ctx context.Context, nw store.Network) (lan.Parent, error) {
	host, err := m.d.cfg.LAN.Interfaces(ctx)
	if err != nil {
		return lan.Parent{}, err
	}
	return lan.Resolve(nw.LAN.Parent, m.d.cfg.Parents, host)
}

func downError(p lan.Parent) error {
	device := cmp.Or(p.VLAN.Parent, p.Device)
	return fmt.Errorf("%w: %s is switched off or has no link; bring it up (ip link set %s up) and look at its cable; "+
		"containers go on when it is back", lan.ErrDown, device, device)
}

func (m lanMode) goal(ctx context.Context, nw store.Network) (goal, error) {
	parent, err := m.parent(ctx, nw)
	if err != nil {
		m.d.cfg.LAN.Fail(nw.Name) // until something changes on the host
		return goal{}, err
	}
	var want lan.Network
	m.d.cfg.Mirror.Read(func(r *store.Records) {
		want = desiredLAN(m.d.site.node, nw, parent, r.Pools, r.Endpoints[nw.Name])
	})
	want.Ports = slices.DeleteFunc(want.Ports, func(p lan.Port) bool { return m.d.departed.has(p.Endpoint) })
	var down error
	if parent.Down {
		down = downError(parent)
	}
	g := m.d.lanGoal(want, down)
	if apply := g.apply; nw.HostAccess {
		g.apply = func(ctx context.Context) ([]dataplane.Op, error) {
			closed := m.d.filterSeats(ctx) // before the host has an address there
			ops, err := apply(ctx)
			return ops, errors.Join(closed, err)
		}
	}
	return g, nil
}

// lanGoal is a goal that is wholly the business of the host's own networks. problem is what is wrong besides.
func (d *Driver) lanGoal(want lan.Network, problem error) goal {
	return goal{
		size: len(want.Ports),
		apply: func(ctx context.Context) ([]dataplane.Op, error) {
			_, err := d.cfg.LAN.Apply(ctx, want)
			if problem != nil {
				d.cfg.LAN.Fail(want.Name) // whatever changes on the host may be the end of it
			}
			return nil, errors.Join(err, problem)
		},
		diff: func(ctx context.Context) ([]string, error) {
			ops, err := d.cfg.LAN.Diff(ctx, want)
			return lines(ops), err
		},
	}
}

// desiredLAN says what a node should have of a network that is in a LAN: an interface for each endpoint here. It is pure.
func desiredLAN(
	me string, nw store.Network, parent lan.Parent, pools map[netip.Prefix]store.Pool, endpoints map[string]store.Endpoint,
) lan.Network {
	out := lan.Network{Name: nw.Name, Parent: parent.Device, VLAN: parent.VLAN}
	for _, k := range distinct(endpoints) {
		e := endpoints[k.id]
		if e.Node != me {
			continue
		}
		out.Ports = append(out.Ports, lan.Port{
			Endpoint: e.ID, Kind: lan.Kind(nw.Mode), Parent: parent.Device, Mode: cmp.Or(nw.LAN.Submode, "l2"), MAC: e.MAC,
			MTU: min(nw.MTU, parent.MTU), Sandbox: e.Sandbox, Addresses: prefixes(e), Gateways: gateways(nw, pools, e),
			Placed: nw.Mode == store.ModeIPvlan,
		})
		if e.Host {
			out.Seat.Device, out.Seat.Up, out.Seat.Answers = lan.PortName(e.ID), true, true
			out.Seat.Addresses = whole(e.Addrs())
		} else if nw.HostAccess {
			out.Seat.Routes = append(out.Seat.Routes, whole(e.Addrs())...)
		}
	}
	if out.Seat.Device == "" { // the host's own endpoint is still to be made
		out.Seat = lan.Seat{}
	}
	out.Sort()
	return out
}

// prefixes are an endpoint's addresses with their lengths.
func prefixes(e store.Endpoint) (out []netip.Prefix) {
	for _, p := range []netip.Prefix{e.IPv4, e.IPv6} {
		if p.IsValid() {
			out = append(out, p)
		}
	}
	return out
}

// whole makes host routes of addresses.
func whole(addrs []netip.Addr) (out []netip.Prefix) {
	for _, a := range addrs {
		out = append(out, netip.PrefixFrom(a, a.BitLen()))
	}
	return out
}

func (m lanMode) remove(ctx context.Context, name string, _ appliedNetwork) error {
	return errors.Join(m.d.cfg.LAN.Remove(ctx, name, m.d.vlans(name)), m.d.filterSeats(ctx))
}

// join hands the interface to Docker with the LAN's gateway, so that Docker adds nothing of its own. The record is written
// before: once Docker has the interface nothing of it is left on the host, and the repair would make another.
func (m lanMode) join(ctx context.Context, nw store.Network, req *network.JoinRequest) (*network.JoinResponse, error) {
	e, err := m.d.moveIn(ctx, nw, req)
	if err != nil {
		return nil, err
	}
	res := &network.JoinResponse{DisableGatewayService: nw.Internal}
	if nw.Mode == store.ModeIPvlan {
		// Docker sets the MAC of what it moves, which an ipvlan device refuses: it is placed by netdriver instead.
		res.DisableGatewayService = true
		return res, nil
	}
	res.InterfaceName = network.InterfaceName{SrcName: lan.PortName(e.ID), DstPrefix: interfacePrefix}
	m.d.route(res, nw, e)
	return res, nil
}

// route tells Docker the network's gateways.
func (d *Driver) route(res *network.JoinResponse, nw store.Network, e store.Endpoint) {
	d.cfg.Mirror.Read(func(r *store.Records) {
		for _, a := range gateways(nw, r.Pools, e) {
			if a.Is4() {
				res.Gateway = a.String()
			} else {
				res.GatewayIPv6 = a.String()
			}
		}
	})
}

// arrive has it announced that a container takes its interface.
func (d *Driver) arrive(nw store.Network, e store.Endpoint) {
	d.departed.set(e.ID, false)
	select {
	case d.arrivals <- arrival{nw, e}:
	default: // the container's own first packet will tell
	}
}

// moveIn records that Docker takes an endpoint's interface into a sandbox, and announces it when it is there.
func (d *Driver) moveIn(ctx context.Context, nw store.Network, req *network.JoinRequest) (store.Endpoint, error) {
	e, err := d.ready(ctx, nw, req.EndpointID)
	if err != nil {
		return e, err
	}
	j := joined{network: nw.Name, endpoint: e.ID, sandbox: req.SandboxKey}
	revision, err := d.markJoined(ctx, j)
	if err == nil && revision > 0 {
		err = d.cfg.Mirror.Wait(ctx, store.EndpointKey(nw.Name, e.ID), revision)
	}
	if err != nil {
		return e, err
	}
	e.Sandbox = req.SandboxKey
	d.arrive(nw, e)
	return e, nil
}

// arrival is an endpoint whose interface Docker is moving into its container.
type arrival struct {
	nw store.Network
	e  store.Endpoint
}

// announceArrivals tells the LAN of each container that arrives, until ctx ends.
func (d *Driver) announceArrivals(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case a := <-d.arrivals:
			go d.announceArrival(ctx, a)
		}
	}
}

func (d *Driver) announceArrival(ctx context.Context, a arrival) {
	if a.nw.Mode == store.ModeIPvlan {
		d.place(ctx, a)
	}
	err := d.cfg.LAN.Announce(ctx, lan.Port{Endpoint: a.e.ID, Sandbox: a.e.Sandbox, Addresses: prefixes(a.e)})
	if err != nil && ctx.Err() == nil {
		d.log.Info("an address was not announced", "network", a.nw.Name, "endpoint", a.e.ID, "error", err)
	}
}

// place makes the interface of a container that netdriver itself places, as soon as Docker has made the sandbox.
func (d *Driver) place(ctx context.Context, a arrival) {
	ctx, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	for ctx.Err() == nil {
		if _, err := os.Stat(a.e.Sandbox); err == nil {
			d.doubt(a.nw.Name)
			d.syncAll(ctx, []string{a.nw.Name})
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// departed has the endpoints that Docker takes out of their containers now, between Leave and DeleteEndpoint: nothing is
// repaired of them. A daemon that forgets them repairs what goes anyway.
type departed struct {
	mu  sync.Mutex
	ids map[string]bool
}

func (l *departed) set(id string, left bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ids == nil {
		l.ids = map[string]bool{}
	}
	if l.ids[id] = left; !left {
		delete(l.ids, id)
	}
}

func (l *departed) has(id string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ids[id]
}

// leave: libnetwork moves the interface back by itself, and DeleteEndpoint, which follows, removes it. The body of a
// repeated call is empty.
func (d *Driver) leave(_ context.Context, req *network.LeaveRequest) (plugin.Empty, error) {
	if req.EndpointID != "" {
		d.departed.set(req.EndpointID, true)
	}
	return plugin.Empty{}, nil
}

// lanDrifted is nil, which nobody sends on, without a data plane for the host's own networks.
func (d *Driver) lanDrifted() <-chan string {
	if d.cfg.LAN == nil {
		return nil
	}
	return d.cfg.LAN.Drifted()
}

// vlans are the VLAN interfaces that this node's networks need, but for one network. One whose parent cannot be found now
// needs none that netdriver could make; what is there under its name stays all the same.
func (d *Driver) vlans(but string) (out []string) {
	if d.cfg.LAN == nil {
		return nil
	}
	host, err := d.cfg.LAN.Interfaces(context.Background())
	if err != nil {
		d.log.Warn("cannot list the host's interfaces", "error", err)
	}
	for _, nw := range d.mine() {
		if nw.Name == but || !nw.OnLAN() {
			continue
		}
		out = append(out, nw.LAN.Parent)
		if p, err := lan.Resolve(nw.LAN.Parent, d.cfg.Parents, host); err == nil {
			out = append(out, p.Device)
		}
	}
	return out
}

// mine are the networks that this node is a member of.
func (d *Driver) mine() (out []store.Network) {
	d.cfg.Mirror.Read(func(r *store.Records) {
		for _, nw := range r.Networks {
			if isMember(nw, d.site.node) {
				out = append(out, nw)
			}
		}
	})
	return out
}

// sweepLAN removes what no record wants of the host's own networks.
func (d *Driver) sweepLAN(ctx context.Context) {
	if d.cfg.LAN == nil {
		return
	}
	mine := d.mine()
	wanted := func(name string) bool {
		return slices.ContainsFunc(mine, func(nw store.Network) bool { return nw.Name == name })
	}
	if err := d.cfg.LAN.Sweep(ctx, wanted, d.vlans("")); err != nil {
		d.log.Warn("cannot remove what no record wants", "error", err)
	}
	if err := errors.Join(d.filterBridges(ctx), d.filterSeats(ctx)); err != nil {
		d.log.Warn("the packet filter is not as the host's networks want it", "error", err)
	}
}
