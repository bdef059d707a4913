//go:build linux

package dataplane

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/internal/netlink"
	"github.com/netdriver/netdriver/vxlan"
)

// device is what a link message says of a device that may be ours.
type device struct {
	index, master int32
	name, alias   string
	kind          string
	mtu           int
	up            bool
	// learning and suppress are the bridge port's flags; flags says whether the message had them.
	flags, learning, suppress bool
	// Of a VXLAN device; underlay is an index in the host's namespace.
	underlay int32
	local    netip.Addr
	port     uint16
}

func u32(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(b)
}

// parseLink reads the body of a link message (struct ifinfomsg and attributes).
func parseLink(body []byte) (d device) {
	if len(body) < unix.SizeofIfInfomsg {
		return d
	}
	d.index = int32(u32(body[4:]))
	d.up = u32(body[8:])&unix.IFF_UP != 0
	netlink.Attrs(body[unix.SizeofIfInfomsg:], func(kind uint16, v []byte) {
		switch kind {
		case unix.IFLA_IFNAME:
			d.name = unix.ByteSliceToString(v)
		case unix.IFLA_IFALIAS:
			d.alias = unix.ByteSliceToString(v)
		case unix.IFLA_MTU:
			d.mtu = int(u32(v))
		case unix.IFLA_MASTER:
			d.master = int32(u32(v))
		case unix.IFLA_LINKINFO:
			d.parseInfo(v)
		case unix.IFLA_PROTINFO: // of a message of the bridge (AF_BRIDGE)
			d.parsePort(v)
		}
	})
	return d
}

func (d *device) parseInfo(info []byte) {
	var data, slave []byte
	var slaveKind string
	netlink.Attrs(info, func(kind uint16, v []byte) {
		switch kind {
		case unix.IFLA_INFO_KIND:
			d.kind = unix.ByteSliceToString(v)
		case unix.IFLA_INFO_DATA:
			data = v
		case unix.IFLA_INFO_SLAVE_KIND:
			slaveKind = unix.ByteSliceToString(v)
		case unix.IFLA_INFO_SLAVE_DATA:
			slave = v
		}
	})
	if slaveKind == "bridge" {
		d.parsePort(slave)
	}
	if d.kind == "vxlan" {
		d.parseVXLAN(data)
	}
}

func (d *device) parsePort(b []byte) {
	netlink.Attrs(b, func(kind uint16, v []byte) {
		on := len(v) > 0 && v[0] != 0
		switch kind {
		case unix.IFLA_BRPORT_LEARNING:
			d.flags, d.learning = true, on
		case unix.IFLA_BRPORT_NEIGH_SUPPRESS:
			d.suppress = on
		}
	})
}

func (d *device) parseVXLAN(b []byte) {
	netlink.Attrs(b, func(kind uint16, v []byte) {
		switch kind {
		case unix.IFLA_VXLAN_LINK:
			d.underlay = int32(u32(v))
		case unix.IFLA_VXLAN_LOCAL, unix.IFLA_VXLAN_LOCAL6:
			d.local = addr(v)
		case unix.IFLA_VXLAN_PORT:
			d.port = binary.BigEndian.Uint16(v)
		}
	})
}

// flagsAsSet says whether the bridge port's flags are those of SetFlags.
func (d device) flagsAsSet(o owner) bool {
	return d.flags && !d.learning && (o.endpoint != "" || d.suppress)
}

// devices returns our devices in our namespace by index.
func (l *Linux) devices(s *netlink.Socket) (map[int32]device, map[int32]owner, error) {
	all, owners := map[int32]device{}, map[int32]owner{}
	err := retried(func() error {
		clear(all)
		clear(owners)
		return s.Query(unix.RTM_GETLINK, unix.NLM_F_DUMP, func(m *netlink.Message) {
			putLink(m, unix.AF_UNSPEC, 0, 0, 0)
			m.U32(unix.IFLA_EXT_MASK, rtextSkipStats)
		}, func(body []byte) {
			d := parseLink(body)
			if o, ok := ownerOf(d.name, d.alias); ok {
				all[d.index], owners[d.index] = d, o
			}
		})
	})
	if err != nil {
		return nil, nil, fmt.Errorf("list the devices: %w", err)
	}
	return all, owners, nil
}

// retried repeats a dump that changes of other networks interrupted.
func retried(dump func() error) error {
	const tries = 50
	var err error
	for range tries {
		if err = dump(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
	return err
}

// Read implements Kernel.
func (l *Linux) Read(context.Context) ([]Network, error) { return l.readNetworks(0) }

// ReadNetwork implements Kernel.
func (l *Linux) ReadNetwork(_ context.Context, v vxlan.VNI) (Network, error) {
	ns, err := l.readNetworks(v)
	if err != nil || len(ns) == 0 {
		return Network{}, err
	}
	return ns[0], nil
}

// readNetworks reads the network with that VNI, or all if it is 0.
func (l *Linux) readNetworks(only vxlan.VNI) ([]Network, error) {
	devices, owners, err := l.devices(l.read)
	if err != nil {
		return nil, err
	}
	r := reader{l: l, devices: devices, owners: owners, nets: map[vxlan.VNI]*Network{}, underlays: map[int32]string{}}
	maps.DeleteFunc(owners, func(_ int32, o owner) bool { return only != 0 && o.vni != only })
	for i, o := range owners {
		if err := r.addDevice(devices[i], o); err != nil {
			return nil, err
		}
	}
	if err := r.readEntries(only); err != nil {
		return nil, fmt.Errorf("list the forwarding and neighbour entries: %w", err)
	}
	if err := r.readServices(); err != nil {
		return nil, fmt.Errorf("read what is balanced: %w", err)
	}
	if err := r.readRates(); err != nil {
		return nil, err
	}
	if err := r.readGuards(only); err != nil {
		return nil, err
	}
	var all []Network
	for _, v := range slices.Sorted(maps.Keys(r.nets)) {
		r.nets[v].Sort()
		all = append(all, *r.nets[v])
	}
	return all, nil
}

// reader puts networks together from what the kernel lists.
type reader struct {
	l         *Linux
	devices   map[int32]device
	owners    map[int32]owner // of the wanted networks only
	nets      map[vxlan.VNI]*Network
	underlays map[int32]string
}

func (r *reader) addDevice(d device, o owner) error {
	n := r.nets[o.vni]
	if n == nil {
		n = &Network{Name: o.network, VNI: o.vni}
		r.nets[o.vni] = n
	}
	bridge, ours := r.owners[d.master]
	enslaved := ours && r.devices[d.master].name == BridgeName(o.vni) && bridge.vni == o.vni && d.flagsAsSet(o)
	switch {
	case o.endpoint != "":
		n.Ports = append(n.Ports, Port{Endpoint: o.endpoint, MTU: d.mtu, Up: d.up, Enslaved: enslaved})
	case d.name == BridgeName(o.vni):
		n.Bridge = Bridge{Present: true, MTU: d.mtu, Up: d.up}
	default:
		underlay, err := r.underlay(d.underlay)
		if err != nil {
			return err
		}
		n.VXLAN = VXLAN{Present: true, Local: d.local, Underlay: underlay, Port: d.port,
			MTU: d.mtu, Up: d.up, Enslaved: enslaved}
	}
	return nil
}

// underlay names a device of the host; it is empty if the device is gone.
func (r *reader) underlay(index int32) (string, error) {
	if name, known := r.underlays[index]; known || index == 0 {
		return name, nil
	}
	h, err := linkAt(r.l.hostLinks, index, func(*netlink.Message) {})
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return "", fmt.Errorf("find the underlay device with index %d: %w", index, err)
	}
	r.underlays[index] = h.name
	return h.name, nil
}

// readEntries lists the entries of everything, or with filters that the kernel applies of one network.
func (r *reader) readEntries(only vxlan.VNI) error {
	if only == 0 {
		return errors.Join(r.dump(unix.AF_BRIDGE, 0, 0), r.dump(unix.AF_INET, 0, 0), r.dump(unix.AF_INET6, 0, 0))
	}
	var errs []error
	for i, o := range r.owners {
		switch d := r.devices[i]; {
		case d.name == BridgeName(o.vni):
			errs = append(errs, r.dump(unix.AF_BRIDGE, 0, i), r.dump(unix.AF_INET, i, 0), r.dump(unix.AF_INET6, i, 0))
		case o.endpoint == "" && r.owners[d.master].vni != o.vni: // the filter by bridge does not find it
			errs = append(errs, r.dump(unix.AF_BRIDGE, i, 0))
		}
	}
	return errors.Join(errs...)
}

// dump lists entries of one family: of one device, of the ports of one bridge, or all.
func (r *reader) dump(family uint8, index, bridge int32) error {
	var all []entry
	err := retried(func() error {
		all = all[:0]
		return r.l.read.Query(unix.RTM_GETNEIGH, unix.NLM_F_DUMP, func(m *netlink.Message) {
			if family == unix.AF_BRIDGE {
				putNeigh(m, family, index, 0, 0)
			} else {
				putNeigh(m, family, 0, 0, 0)
				if index != 0 {
					m.U32(unix.NDA_IFINDEX, uint32(index))
				}
			}
			if bridge != 0 {
				m.U32(unix.NDA_MASTER, uint32(bridge))
			}
		}, func(body []byte) {
			if e := parseEntry(body); e.ours() {
				all = append(all, e)
			}
		})
	})
	for _, e := range all {
		o, ours := r.owners[e.index]
		switch {
		case !ours:
		case e.family == unix.AF_BRIDGE:
			r.nets[o.vni].FDB = append(r.nets[o.vni].FDB, e.fdb(o))
		case o.name == BridgeName(o.vni):
			r.nets[o.vni].Neighbours = append(r.nets[o.vni].Neighbours, Neighbour{e.dst, e.mac})
		}
	}
	return err
}

// entry is what a neighbour message says: of a forwarding table if family is AF_BRIDGE.
type entry struct {
	family uint8
	index  int32
	state  uint16
	flags  uint8
	dst    netip.Addr
	mac    vxlan.MAC
	master bool // in the bridge's table
	vlan   bool // of a VLAN of its own: not ours, and without effect as long as the bridge does not filter VLANs
}

// parseEntry reads the body of a neighbour message (struct ndmsg and attributes).
func parseEntry(body []byte) (e entry) {
	if len(body) < unix.SizeofNdMsg {
		return e
	}
	e.family, e.index = body[0], int32(u32(body[4:]))
	e.state, e.flags = binary.NativeEndian.Uint16(body[8:]), body[10]
	netlink.Attrs(body[unix.SizeofNdMsg:], func(kind uint16, v []byte) {
		switch kind {
		case unix.NDA_DST:
			e.dst = addr(v)
		case unix.NDA_LLADDR:
			copy(e.mac[:], v)
		case unix.NDA_MASTER:
			e.master = true
		case unix.NDA_VLAN:
			e.vlan = true
		}
	})
	return e
}

// ours says whether the entry is of the kind that we make: static in a bridge's table (a permanent one there is a
// device's own MAC), permanent elsewhere.
func (e entry) ours() bool {
	switch {
	case e.family != unix.AF_BRIDGE:
		return e.state&unix.NUD_PERMANENT != 0 && e.dst.IsValid()
	case e.vlan:
		return false
	case e.master:
		return e.state&unix.NUD_NOARP != 0
	}
	return e.flags&unix.NTF_SELF != 0 && e.dst.IsValid() && e.state&(unix.NUD_PERMANENT|unix.NUD_NOARP) != 0
}

// fdb returns an entry of a forwarding table on a device of o.
func (e entry) fdb(o owner) FDBEntry {
	if e.master {
		return FDBEntry{MAC: e.mac, Port: o.endpoint}
	}
	return FDBEntry{MAC: e.mac, VTEP: e.dst}
}
