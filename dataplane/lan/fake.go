package lan

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/internal/broadcast"
	"github.com/netdriver/netdriver/vxlan"
)

// Fake is a Kernel in memory: one host with its interfaces, and the sandboxes of its containers. It refuses what Linux
// would refuse, so that a plan that works on it works there.
type Fake struct {
	// FailOn, if set, is asked before every operation; the error it returns is that operation's. Set it before use.
	FailOn func(Op) error

	mu        sync.Mutex
	host      map[string]*fakeDevice
	sandboxes map[string]map[string]*fakeDevice
	outside   map[netip.Addr]vxlan.MAC // what hosts outside answer for
	lacks     map[Kind]bool
	changes   *broadcast.Source[struct{}]
	ran       []Op
	told      []Port
}

// fakeDevice is one interface.
type fakeDevice struct {
	Interface
	alias    string
	parent   string // of macvlan, ipvlan and VLAN devices
	mode     string
	mac      vxlan.MAC
	answers  bool
	routes   []netip.Prefix
	peer     string // of a pair
	endpoint string
}

// NewFake returns a host with these interfaces.
func NewFake(host ...Interface) *Fake {
	f := &Fake{
		host: map[string]*fakeDevice{}, sandboxes: map[string]map[string]*fakeDevice{},
		outside: map[netip.Addr]vxlan.MAC{}, lacks: map[Kind]bool{}, changes: broadcast.New(1, struct{}{}),
	}
	for _, i := range host {
		f.host[i.Name] = &fakeDevice{Interface: i, parent: i.VLANParent}
	}
	return f
}

// Set puts an interface of the host as it is from now on, or removes the one of that name if it has nothing else.
func (f *Fake) Set(i Interface) {
	f.mu.Lock()
	defer f.mu.Unlock()
	defer f.changes.Send(struct{}{})
	if i.MTU == 0 {
		f.remove(i.Name)
		return
	}
	if d := f.host[i.Name]; d != nil {
		d.Interface = i
		return
	}
	f.host[i.Name] = &fakeDevice{Interface: i}
}

// Hold makes a host outside the cluster answer for an address; a zero MAC ends that.
func (f *Fake) Hold(a netip.Addr, mac vxlan.MAC) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.outside[a] = mac; mac.IsZero() {
		delete(f.outside, a)
	}
}

// Lack makes the kernel know no such devices.
func (f *Fake) Lack(kind Kind) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lacks[kind] = true
}

// Move does what libnetwork does with an endpoint's interface: into a sandbox, which it makes, or back if path is empty.
func (f *Fake) Move(endpoint, path string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	defer f.changes.Send(struct{}{})
	from, name := f.find(endpoint)
	if name == "" {
		return fmt.Errorf("no interface %s: %w", PortName(endpoint), unix.ENODEV)
	}
	d := from[name]
	delete(from, name)
	if path == "" {
		f.host[PortName(endpoint)] = d
		return nil
	}
	if f.sandboxes[path] == nil {
		f.sandboxes[path] = map[string]*fakeDevice{}
	}
	f.sandboxes[path]["eth0"] = d
	d.Up = true
	return nil
}

// find returns where an endpoint's own interface is.
func (f *Fake) find(endpoint string) (map[string]*fakeDevice, string) {
	for _, ns := range append([]map[string]*fakeDevice{f.host}, slices.Collect(maps.Values(f.sandboxes))...) {
		for name, d := range ns {
			if d.endpoint == endpoint {
				return ns, name
			}
		}
	}
	return nil, ""
}

// Exit ends a container: its sandbox goes with all that is in it.
func (f *Fake) Exit(path string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	defer f.changes.Send(struct{}{})
	for _, d := range f.sandboxes[path] {
		delete(f.host, d.peer)
	}
	delete(f.sandboxes, path)
}

// Break removes an endpoint's interface, wherever it is, as somebody else might.
func (f *Fake) Break(endpoint string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	defer f.changes.Send(struct{}{})
	if ns, name := f.find(endpoint); name != "" {
		delete(f.host, ns[name].peer)
		delete(ns, name)
	}
}

// Inside returns the endpoints whose interfaces a sandbox has.
func (f *Fake) Inside(path string) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []string
	for _, d := range f.sandboxes[path] {
		out = append(out, d.endpoint)
	}
	slices.Sort(out)
	return out
}

// Ran returns all operations that succeeded so far, Told what was announced.
func (f *Fake) Ran() []Op {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.ran)
}

// Told returns what was announced so far.
func (f *Fake) Told() []Port {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.told)
}

// Interfaces implements Kernel.
func (f *Fake) Interfaces(context.Context) ([]Interface, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.interfaces(), nil
}

func (f *Fake) interfaces() []Interface {
	var out []Interface
	for _, name := range slices.Sorted(maps.Keys(f.host)) {
		i := f.host[name].Interface
		i.Children = f.children(name)
		out = append(out, i)
	}
	return out
}

// children are the kinds of the devices on one, wherever these are.
func (f *Fake) children(parent string) []string {
	var out []string
	for _, ns := range append([]map[string]*fakeDevice{f.host}, slices.Collect(maps.Values(f.sandboxes))...) {
		for _, d := range ns {
			if d.parent == parent && (d.Kind == string(Macvlan) || d.Kind == string(IPvlan)) {
				out = append(out, d.Kind)
			}
		}
	}
	slices.Sort(out)
	return out
}

// Read implements Kernel.
func (f *Fake) Read(_ context.Context, want Network) (Network, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := Network{Name: want.Name}
	for name, d := range f.host {
		n.takeFake(name, d)
		if name == want.VLAN.Device && d.alias == vlanAlias {
			n.VLAN = VLAN{Device: name, Parent: d.parent, ID: d.VLANID, Up: d.Up}
		}
		if name == want.Seat.Device {
			n.Seat = Seat{Device: name, Addresses: slices.Clone(d.Addrs), Routes: slices.Clone(d.routes), Answers: d.answers, Up: d.Up}
		}
	}
	for _, p := range want.Ports {
		if p.Sandbox == "" || slices.ContainsFunc(n.Ports, func(h Port) bool { return h.Endpoint == p.Endpoint }) {
			continue
		}
		inside, exists := f.sandboxes[p.Sandbox]
		if !exists {
			n.Ports = append(n.Ports, Port{Endpoint: p.Endpoint, Kind: p.Kind, Sandbox: p.Sandbox, Gone: true})
		}
		for _, d := range inside {
			if d.endpoint == p.Endpoint {
				n.Ports = append(n.Ports, Port{Endpoint: p.Endpoint, Kind: Kind(d.Kind), Mode: d.mode, MAC: d.mac, MTU: d.MTU, Sandbox: p.Sandbox})
			}
		}
	}
	n.Sort()
	return n, nil
}

// takeFake adds what a device is of the network, if it is of the network.
func (n *Network) takeFake(name string, d *fakeDevice) {
	if d.alias == bridgeAlias(n.Name) {
		n.Bridge = Bridge{Device: name, MTU: d.MTU, Up: d.Up}
	}
	if endpoint, network, ok := endpointOf(d.alias); ok && network == n.Name {
		p := Port{Endpoint: endpoint, Kind: Kind(d.Kind), Parent: d.parent, Mode: d.mode, MAC: d.mac, MTU: d.MTU}
		if p.Kind == Veth {
			p.Parent, p.Attached = d.Master, d.Up && d.Master != ""
		}
		n.Ports = append(n.Ports, p)
	}
}

// Present implements Kernel.
func (f *Fake) Present(context.Context) ([]Network, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	found := map[string]*Network{}
	var out []Network
	for _, name := range slices.Sorted(maps.Keys(f.host)) {
		d := f.host[name]
		_, network, ok := endpointOf(d.alias)
		if rest, isBridge := cutBridge(d.alias); isBridge {
			network, ok = rest, true
		}
		if ok {
			if found[network] == nil {
				found[network] = &Network{Name: network}
			}
			found[network].takeFake(name, d)
		} else if d.alias == vlanAlias {
			out = append(out, Network{VLAN: VLAN{Device: name, Parent: d.parent, ID: d.VLANID, Up: d.Up}})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(found)) {
		found[name].Sort()
		out = append(out, *found[name])
	}
	return out, nil
}

// Changes implements Kernel.
func (f *Fake) Changes(ctx context.Context) (<-chan struct{}, error) {
	return f.changes.Listen(ctx), nil
}

// Probe implements Kernel.
func (f *Fake) Probe(_ context.Context, device string, a netip.Addr) (vxlan.MAC, bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	d := f.host[device]
	if d == nil {
		return vxlan.MAC{}, false, fmt.Errorf("find %s: %w", device, unix.ENODEV)
	}
	if !d.Up {
		return vxlan.MAC{}, false, fmt.Errorf("ask on %s: %w", device, ErrDown)
	}
	mac, found := f.outside[a]
	return mac, found, nil
}

// Announce implements Kernel.
func (f *Fake) Announce(_ context.Context, p Port) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	ns := f.host
	if p.Sandbox != "" {
		ns = f.sandboxes[p.Sandbox]
	}
	for _, d := range ns {
		if d.endpoint == p.Endpoint && d.Up {
			f.told = append(f.told, p)
			return nil
		}
	}
	return ErrNotThere
}

// Supports implements Kernel.
func (f *Fake) Supports(_ context.Context, kind Kind) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.lacks[kind] {
		return unsupported(string(kind))
	}
	return nil
}

// Close implements Kernel.
func (f *Fake) Close() error { return nil }

// Run implements Kernel.
func (f *Fake) Run(_ context.Context, ops []Op) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	defer f.changes.Send(struct{}{})
	var errs []error
	failed := failedDevices{}
	for _, op := range ops {
		if failed.dependsOn(op) {
			failed.note(op)
			continue
		}
		if err := f.do(op); err != nil {
			failed.note(op)
			errs = append(errs, &OpError{op, err})
			continue
		}
		f.ran = append(f.ran, op)
	}
	return errors.Join(errs...)
}
