package lan

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

func cutBridge(alias string) (network string, ok bool) { return strings.CutPrefix(alias, bridgeWord) }

// do runs one operation.
func (f *Fake) do(op Op) error {
	if f.FailOn != nil {
		if err := f.FailOn(op); err != nil {
			return err
		}
	}
	switch op.Verb {
	case AddVLAN:
		return f.addVLAN(op)
	case AddBridge:
		return f.put(f.host, op.Device, &fakeDevice{
			Interface: Interface{Name: op.Device, MTU: op.MTU, Kind: "bridge", Ethernet: true}, alias: bridgeAlias(op.Network),
		})
	case AddPort:
		return f.addPort(op, f.host, op.Device)
	case PlacePort:
		return f.placePort(op)
	}
	if op.Sandbox != "" { // a removal
		for name, d := range f.sandboxes[op.Sandbox] {
			if d.endpoint == op.Endpoint {
				delete(f.sandboxes[op.Sandbox], name)
			}
		}
		return nil
	}
	d := f.host[op.Device]
	if d == nil {
		if removes(op) {
			return nil
		}
		return fmt.Errorf("device %s: %w", op.Device, unix.ENODEV)
	}
	return f.change(d, op)
}

func (f *Fake) put(ns map[string]*fakeDevice, name string, d *fakeDevice) error {
	if ns[name] != nil {
		return fmt.Errorf("device %s is %w: %w", name, ErrTaken, unix.EEXIST)
	}
	ns[name] = d
	return nil
}

// remove removes a device of the host with what is on it, in containers too, as the kernel does.
func (f *Fake) remove(name string) {
	d := f.host[name]
	if d == nil {
		return
	}
	delete(f.host, name)
	delete(f.host, d.peer)
	for _, inside := range f.sandboxes {
		for n, c := range inside {
			if c.parent == name || c.Name == d.peer && d.peer != "" {
				delete(inside, n)
			}
		}
	}
	for n, c := range f.host {
		if c.parent == name {
			f.remove(n)
		}
		if c.Master == name {
			c.Master = ""
		}
	}
}

func (f *Fake) addVLAN(op Op) error {
	parent := f.host[op.Parent]
	switch {
	case f.lacks["vlan"]:
		return unsupported("vlan")
	case parent == nil:
		return fmt.Errorf("find parent %s: %w", op.Parent, unix.ENODEV)
	case op.ID < 1 || op.ID > maxVLAN:
		return fmt.Errorf("VLAN %d: %w", op.ID, unix.ERANGE)
	}
	for _, d := range f.host {
		if d.parent == op.Parent && d.VLANID == op.ID {
			return unix.EEXIST
		}
	}
	return f.put(f.host, op.Device, &fakeDevice{
		Interface: Interface{
			Name: op.Device, MTU: parent.MTU, Kind: "vlan", Ethernet: true, VLANParent: op.Parent, VLANID: op.ID, Ours: true,
			Running: parent.Running,
		},
		alias: vlanAlias, parent: op.Parent,
	})
}

// addPort makes an endpoint's interface in one namespace.
func (f *Fake) addPort(op Op, ns map[string]*fakeDevice, name string) error {
	d := &fakeDevice{
		Interface: Interface{Name: op.Device, MTU: op.MTU, Kind: string(op.Kind), Ethernet: true, Running: true},
		parent:    op.Parent, mode: op.Mode, mac: op.MAC, endpoint: op.Endpoint, alias: portAlias(op.Endpoint, op.Network),
	}
	if op.Kind == Veth {
		d.alias, d.parent, d.peer = "", "", pairName(op.Endpoint)
		pair := &fakeDevice{
			Interface: Interface{Name: d.peer, MTU: op.MTU, Kind: string(Veth), Ethernet: true, Running: true},
			alias:     portAlias(op.Endpoint, op.Network), peer: op.Device,
		}
		if err := f.put(f.host, d.peer, pair); err != nil {
			return err
		}
		return f.put(ns, name, d)
	}
	parent := f.host[op.Parent]
	switch {
	case f.lacks[op.Kind]:
		return unsupported(string(op.Kind))
	case parent == nil:
		return fmt.Errorf("find parent %s: %w", op.Parent, unix.ENODEV)
	case op.MTU > parent.MTU:
		return fmt.Errorf("MTU %d on %s, which has %d: %w", op.MTU, op.Parent, parent.MTU, unix.EINVAL)
	case op.Kind == Macvlan && !slices.Contains(Submodes(), op.Mode):
		return fmt.Errorf("unknown macvlan mode %q", op.Mode)
	}
	children := f.children(op.Parent)
	excluded := slices.ContainsFunc(children, func(k string) bool { return k != string(op.Kind) })
	if parent.Master != "" || excluded || len(children) > 0 && f.passthru(op) {
		return busy(f.interfaces(), op, unix.EBUSY)
	}
	return f.put(ns, name, d)
}

// passthru says whether a macvlan device on the parent excludes others.
func (f *Fake) passthru(op Op) bool {
	if op.Mode == Passthru {
		return true
	}
	for _, d := range f.host {
		if d.parent == op.Parent && d.mode == Passthru {
			return true
		}
	}
	return false
}

// placePort makes one in a sandbox; a sandbox that is gone is no error.
func (f *Fake) placePort(op Op) error {
	inside, exists := f.sandboxes[op.Sandbox]
	if !exists {
		return nil
	}
	name := ""
	for n := 0; name == "" || inside[name] != nil; n++ {
		name = fmt.Sprintf("eth%d", n)
	}
	if err := f.addPort(op, inside, name); err != nil {
		return err
	}
	d := inside[name]
	d.Up = true
	for _, text := range strings.Fields(op.Addresses) {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return err
		}
		d.Addrs = append(d.Addrs, p)
	}
	return nil
}

// change changes a device of the host.
func (f *Fake) change(d *fakeDevice, op Op) error {
	switch op.Verb {
	case SetMaster:
		if f.host[op.Parent] == nil {
			return fmt.Errorf("bridge %s: %w", op.Parent, unix.ENODEV)
		}
		d.Master = op.Parent
	case SetMTU:
		d.MTU = op.MTU
	case SetAnswers:
		d.answers = true
	case SetUp:
		if p := f.host[d.parent]; p != nil && d.Kind == "vlan" && !p.Up {
			return fmt.Errorf("the interface of VLAN %d is down; bring it up (ip link set … up): %w", d.VLANID, ErrDown)
		}
		d.Up = true
	case AddAddress:
		if !slices.Contains(d.Addrs, op.Prefix) {
			d.Addrs = append(d.Addrs, op.Prefix)
			slices.SortFunc(d.Addrs, comparePrefixes)
		}
	case DelAddress:
		d.Addrs = slices.DeleteFunc(d.Addrs, func(p netip.Prefix) bool { return p == op.Prefix })
	case AddRoute:
		if !d.Up {
			return fmt.Errorf("route through %s, which is down: %w", op.Device, unix.ENETDOWN)
		}
		if op.Prefix != op.Prefix.Masked() {
			return fmt.Errorf("route to %s: %w", op.Prefix, unix.EINVAL)
		}
		if !slices.Contains(d.routes, op.Prefix) {
			d.routes = append(d.routes, op.Prefix)
			slices.SortFunc(d.routes, comparePrefixes)
		}
	case DelRoute:
		d.routes = slices.DeleteFunc(d.routes, func(p netip.Prefix) bool { return p == op.Prefix })
	case DelLink:
		f.remove(op.Device)
	default:
		return fmt.Errorf("unknown operation %d", op.Verb)
	}
	return nil
}

var _ Kernel = (*Fake)(nil)
