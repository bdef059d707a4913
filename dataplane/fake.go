package dataplane

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/internal/broadcast"
	"github.com/netdriver/netdriver/vxlan"
)

// Fake is a Kernel in memory. It refuses what Linux would refuse, so that a plan that works on it works there.
type Fake struct {
	// FailOn, if set, is asked before every operation; the error it returns is that operation's. Set it before use.
	FailOn func(Op) error

	mu          sync.Mutex
	nets        map[vxlan.VNI]*Network
	master      map[string]bool // devices that are a bridge's port, whatever their flags
	taken       map[vniPort]bool
	events      *broadcast.Source[Event]
	unsupported bool
	unguarded   bool
	table       bool // the packet filter's, which all networks share
	runs        []Op
	// places says where each MAC was put last, so that moving one needs no search; the entry may be gone meanwhile.
	places map[vxlan.VNI]map[fdbKey]FDBEntry
}

type vniPort struct {
	vni  vxlan.VNI
	port uint16
}

// fakeBacklog is the number of events a Fake keeps for a reader that does not read; then it reports them as lost.
const fakeBacklog = 4096

// NewFake returns a kernel without any network.
func NewFake() *Fake {
	return &Fake{
		nets:   map[vxlan.VNI]*Network{},
		master: map[string]bool{},
		taken:  map[vniPort]bool{},
		events: broadcast.New(fakeBacklog, Event{Lost: true}),
		places: map[vxlan.VNI]map[fdbKey]FDBEntry{},
	}
}

// Take makes another program own a VXLAN device with this VNI and UDP port.
func (f *Fake) Take(v vxlan.VNI, port uint16) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.taken[vniPort{v, port}] = true
}

// Ran returns all operations that succeeded so far.
func (f *Fake) Ran() []Op {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.runs)
}

// Read implements Kernel.
func (f *Fake) Read(context.Context) ([]Network, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []Network
	for _, v := range slices.Sorted(maps.Keys(f.nets)) {
		all = append(all, f.nets[v].clone())
	}
	return all, nil
}

// ReadNetwork implements Kernel.
func (f *Fake) ReadNetwork(_ context.Context, v vxlan.VNI) (Network, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := f.nets[v]; n != nil {
		return n.clone(), nil
	}
	return Network{}, nil
}

// clone returns a copy that shares nothing with n.
func (n *Network) clone() Network {
	c := *n
	c.Ports, c.FDB, c.Neighbours = slices.Clone(n.Ports), slices.Clone(n.FDB), slices.Clone(n.Neighbours)
	c.Services = slices.Clone(n.Services)
	for i, s := range c.Services {
		c.Services[i].VIPs, c.Services[i].Backends = slices.Clone(s.VIPs), slices.Clone(s.Backends)
	}
	c.Guard = n.Guard.Clone()
	return c
}

// Close implements Kernel.
func (f *Fake) Close() error { return nil }

// Run implements Kernel.
func (f *Fake) Run(_ context.Context, ops []Op) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var errs []error
	failed := failedDevices{}
	for _, op := range ops {
		if failed.dependsOn(op) {
			continue
		}
		if err := f.do(op); err != nil {
			failed.note(op)
			errs = append(errs, &OpError{op, err})
			continue
		}
		f.runs = append(f.runs, op)
	}
	return errors.Join(errs...)
}

func (f *Fake) do(op Op) error {
	if f.FailOn != nil {
		if err := f.FailOn(op); err != nil {
			return err
		}
	}
	n := f.nets[op.VNI]
	if n == nil {
		n = &Network{VNI: op.VNI, Name: op.Network}
		n.Guard.Table = f.table
	}
	if op.onEntry() || op.onService() { // of which there are many: no copy of the network for each
		if err := f.change(n, op); err != nil {
			return err
		}
		if op.onEntry() && op.Verb != Announce {
			f.events.Send(op.event())
		}
		return nil
	}
	before := n.clone()
	if err := f.change(n, op); err != nil {
		return err
	}
	f.keep(n)
	f.announce(before, *n)
	return nil
}

// keep stores n, or forgets it if nothing is left of it.
func (f *Fake) keep(n *Network) {
	if n.Bridge.Present || n.VXLAN.Present || len(n.Ports) > 0 || !n.Guard.Empty() {
		f.nets[n.VNI] = n
	} else {
		delete(f.nets, n.VNI)
	}
}

// change performs op on n, of which nothing may be there.
func (f *Fake) change(n *Network, op Op) error {
	switch op.Verb {
	case MakeGuard, PutGuard, DelGuard:
		return f.guard(n, op)
	case AddBridge, AddVXLAN, AddPort:
		return f.add(n, op)
	case DelLink:
		f.unlink(n, op)
		return nil
	case DelFDB, DelNeighbour:
		n.delEntry(op)
		return nil
	case PutBackend, PutVIP, DelVIP, DelBackend:
		return f.balance(n, op)
	case Detach:
		n.detach(op.Endpoint)
		return nil
	}
	up, mtu, enslaved := n.fields(op)
	if up == nil {
		return unix.ENODEV
	}
	switch op.Verb {
	case SetMTU:
		if err := checkMTU(op.MTU); err != nil {
			return err
		}
		*mtu = op.MTU
	case SetUp:
		*up = true
	case SetMaster:
		if !n.Bridge.Present {
			return unix.ENODEV
		}
		f.master[op.Device] = true
	case SetFlags:
		if !f.master[op.Device] {
			return unix.EINVAL
		}
		*enslaved = true
	case Announce:
		if !*up {
			return unix.ENETDOWN
		}
	case SetRate, DelRate:
		n.limit(op)
	case Attach:
		n.attach(op.Endpoint)
	case PutFDB:
		return f.putFDB(n, op)
	case PutNeighbour:
		return n.putNeighbour(op)
	default:
		return unix.EOPNOTSUPP
	}
	return nil
}

// fields returns the changeable fields of the device that op is about, nil if it is not there.
func (n *Network) fields(op Op) (up *bool, mtu *int, enslaved *bool) {
	switch {
	case op.Endpoint != "":
		for i := range n.Ports {
			if p := &n.Ports[i]; p.Endpoint == op.Endpoint {
				return &p.Up, &p.MTU, &p.Enslaved
			}
		}
	case op.Device == BridgeName(n.VNI) && n.Bridge.Present:
		return &n.Bridge.Up, &n.Bridge.MTU, new(bool)
	case op.Device == VXLANName(n.VNI) && n.VXLAN.Present:
		return &n.VXLAN.Up, &n.VXLAN.MTU, &n.VXLAN.Enslaved
	}
	return nil, nil, nil
}

func checkMTU(mtu int) error {
	if mtu < vxlan.MinMTU4 || mtu > 65535 { // ETH_MIN_MTU and ETH_MAX_MTU of linux/if_ether.h
		return fmt.Errorf("MTU %d: %w", mtu, unix.EINVAL)
	}
	return nil
}

func (f *Fake) add(n *Network, op Op) error {
	if len(op.Device) >= unix.IFNAMSIZ {
		return fmt.Errorf("device name %q: %w", op.Device, unix.ERANGE)
	}
	if err := checkMTU(op.MTU); err != nil {
		return err
	}
	if up, _, _ := n.fields(op); up != nil || f.portNamed(op.Device) {
		return nameTaken(op)
	}
	switch op.Verb {
	case AddBridge:
		n.Bridge = Bridge{Present: true, MTU: op.MTU}
	case AddVXLAN:
		if f.taken[vniPort{op.VNI, op.UDPPort}] {
			return vniTaken(op)
		}
		n.VXLAN = VXLAN{Present: true, Local: op.Local, Underlay: op.Underlay, Port: op.UDPPort, MTU: op.MTU}
	case AddPort:
		n.Ports = append(n.Ports, Port{Endpoint: op.Endpoint, MTU: op.MTU})
		n.Sort()
	}
	return nil
}

// portNamed says whether any network has a port whose device has that name.
func (f *Fake) portNamed(device string) bool {
	for _, n := range f.nets {
		if slices.ContainsFunc(n.Ports, func(p Port) bool { return PortName(p.Endpoint) == device }) {
			return true
		}
	}
	return false
}

// unlink removes a device with all that the kernel removes along with it.
func (f *Fake) unlink(n *Network, op Op) {
	delete(f.master, op.Device)
	drop := func(gone func(FDBEntry) bool) { n.FDB = slices.DeleteFunc(n.FDB, gone) }
	switch {
	case op.Endpoint != "":
		n.Ports = slices.DeleteFunc(n.Ports, func(p Port) bool { return p.Endpoint == op.Endpoint })
		drop(func(e FDBEntry) bool { return e.Port == op.Endpoint })
		n.detach("") // nobody by that name: looks whether a port is left that holds the maps
	case op.Device == VXLANName(n.VNI):
		n.VXLAN = VXLAN{}
		drop(func(e FDBEntry) bool { return e.Port == "" })
	default:
		n.Bridge, n.Neighbours = Bridge{}, nil
		n.VXLAN.Enslaved = false
		delete(f.master, VXLANName(n.VNI))
		for i := range n.Ports {
			n.Ports[i].Enslaved = false
			delete(f.master, PortName(n.Ports[i].Endpoint))
		}
		drop(func(e FDBEntry) bool { return !e.VTEP.IsValid() })
	}
}

func (op Op) entry() FDBEntry { return FDBEntry{MAC: op.MAC, Port: op.Endpoint, VTEP: op.VTEP} }

func (f *Fake) putFDB(n *Network, op Op) error {
	e := op.entry()
	switch {
	case !e.VTEP.IsValid() && !f.master[op.Device]:
		return unix.EINVAL
	case e.VTEP.IsValid() && (e.Port != "" || e.VTEP.Is4() != n.VXLAN.Local.Is4()):
		return unix.EAFNOSUPPORT
	}
	if was, found := f.places[n.VNI][keyOf(e)]; found && !e.MAC.IsZero() { // one place for each MAC in each table
		if i, there := slices.BinarySearchFunc(n.FDB, was, compareFDB); there {
			n.FDB = slices.Delete(n.FDB, i, i+1)
		}
	}
	f.place(n.VNI, e)
	if i, found := slices.BinarySearchFunc(n.FDB, e, compareFDB); !found {
		n.FDB = slices.Insert(n.FDB, i, e)
	}
	return nil
}

func (f *Fake) place(v vxlan.VNI, e FDBEntry) {
	if f.places[v] == nil {
		f.places[v] = map[fdbKey]FDBEntry{}
	}
	f.places[v][keyOf(e)] = e
}

func (n *Network) putNeighbour(op Op) error {
	if !n.Bridge.Present || op.Device != BridgeName(n.VNI) {
		return unix.ENODEV
	}
	e := Neighbour{Address: op.Address, MAC: op.MAC}
	i, found := slices.BinarySearchFunc(n.Neighbours, e, compareNeighbours)
	if found {
		n.Neighbours[i] = e
	} else {
		n.Neighbours = slices.Insert(n.Neighbours, i, e)
	}
	return nil
}

func (n *Network) delEntry(op Op) {
	if op.Verb == DelFDB {
		if i, found := slices.BinarySearchFunc(n.FDB, op.entry(), compareFDB); found {
			n.FDB = slices.Delete(n.FDB, i, i+1)
		}
		return
	}
	if i, found := slices.BinarySearchFunc(n.Neighbours, Neighbour{Address: op.Address}, compareNeighbours); found {
		n.Neighbours = slices.Delete(n.Neighbours, i, i+1)
	}
}
