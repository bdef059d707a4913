//go:build linux

package dataplane

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/internal/netlink"
	"github.com/netdriver/netdriver/vxlan"
)

// batchSize is the size, in bytes, from which on collected messages are sent: about 500 endpoints with three entries
// each. The kernel takes them in one system call, and a kill cannot come between two messages of one.
const batchSize = 96 << 10

// Run implements Kernel.
func (l *Linux) Run(ctx context.Context, ops []Op) error {
	r := run{l: l, index: map[string]int32{}, failed: failedDevices{}}
	for _, op := range ops {
		if err := context.Cause(ctx); err != nil {
			r.fail(op, fmt.Errorf("not begun: %w", err))
			break
		}
		r.add(op)
		if len(r.out) >= batchSize {
			r.flush()
		}
	}
	r.flush()
	r.flushGuards()
	r.announce()
	return errors.Join(r.errs...)
}

// run is one call of Run: messages that wait for being sent, with the operation of each.
type run struct {
	l      *Linux
	out    []byte
	ops    []Op // ops[i] is the operation of message i in out; its sequence number is set by flush
	starts []int
	index  map[string]int32 // devices of our namespace by name
	failed failedDevices
	errs   []error
	// guards are changes of the packet filter, sent after the messages.
	guards []Op
	// news are announcements, sent when all else is in the kernel.
	news []Op
}

func (r *run) fail(op Op, err error) {
	if r.failed.dependsOn(op) {
		return
	}
	r.failed.note(op)
	r.errs = append(r.errs, &OpError{op, err})
}

// add collects the messages of one operation.
func (r *run) add(op Op) {
	if r.failed.dependsOn(op) {
		return
	}
	var err error
	switch op.Verb {
	case AddBridge, AddVXLAN, AddPort:
		err = r.addLink(op)
	case SetMTU:
		if err = r.fits(op); err == nil {
			err = r.setLink(op, func(m *netlink.Message) { m.U32(unix.IFLA_MTU, uint32(op.MTU)) })
		}
	case SetFlags:
		err = r.setLink(op, func(m *netlink.Message) { portFlags(m, op.Endpoint == "") })
	case SetMaster:
		var bridge int32
		if bridge, err = r.find(op, BridgeName(op.VNI)); err == nil {
			err = r.setLink(op, func(m *netlink.Message) { m.U32(unix.IFLA_MASTER, uint32(bridge)) })
		}
	case SetUp, DelLink:
		err = r.upOrGone(op)
	case Announce:
		r.news = append(r.news, op)
	case PutBackend, PutVIP, Attach, DelVIP, DelBackend, Detach:
		err = r.balance(op)
	case SetRate, DelRate:
		err = r.rate(op)
	case MakeGuard, PutGuard, DelGuard:
		err = r.guard(op)
	default:
		err = r.addEntry(op)
	}
	if err != nil && !harmless(op, err) {
		r.fail(op, err)
	}
}

func removes(op Op) bool { return op.Verb >= DelFDB }

// message starts a message for op at the end of out; done ends it.
func (r *run) message(op Op, kind, flags uint16) *netlink.Message {
	r.ops = append(r.ops, op)
	r.starts = append(r.starts, len(r.out))
	return netlink.AppendMessage(r.out, kind, flags, 0)
}

func (r *run) done(m *netlink.Message) { r.out = m.Finish(r.starts[len(r.starts)-1]) }

// setLink collects a change of a device that is there.
func (r *run) setLink(op Op, fill func(*netlink.Message)) error {
	device, err := r.find(op, op.Device)
	if err != nil {
		return err
	}
	m := r.message(op, unix.RTM_NEWLINK, 0)
	putLink(m, unix.AF_UNSPEC, device, 0, 0)
	fill(m)
	r.done(m)
	return nil
}

// upOrGone collects what needs no attribute: bringing a device up, or removing it.
func (r *run) upOrGone(op Op) error {
	device, err := r.find(op, op.Device)
	if err != nil {
		return err
	}
	kind, flags := uint16(unix.RTM_NEWLINK), uint32(unix.IFF_UP)
	if op.Verb == DelLink {
		kind, flags = unix.RTM_DELLINK, 0
		delete(r.index, op.Device)
		r.l.balancing.mu.Lock()
		r.l.forgetPort(op.VNI, op.Device)
		r.l.balancing.mu.Unlock()
	}
	m := r.message(op, kind, 0)
	putLink(m, unix.AF_UNSPEC, device, flags, flags)
	r.done(m)
	return nil
}

// portFlags sets a bridge port's flags: nothing is learned; on the VXLAN device the bridge answers ARP and ND itself.
func portFlags(m *netlink.Message, suppress bool) {
	m.Nest(unix.IFLA_LINKINFO, func() {
		m.Text(unix.IFLA_INFO_SLAVE_KIND, "bridge")
		m.Nest(unix.IFLA_INFO_SLAVE_DATA, func() {
			m.Attr(unix.IFLA_BRPORT_LEARNING, 0)
			if suppress {
				m.Attr(unix.IFLA_BRPORT_NEIGH_SUPPRESS, 1)
			}
		})
	})
}

// addLink collects the two messages that make a device: the kernel ignores an alias in the first
// (rtnl_create_link of net/core/rtnetlink.c), and they are sent together, so no device is ever left without one.
// We choose the device's index: if it cannot be made, all that follows misses its aim, and never meets a device of
// somebody else that has the name.
func (r *run) addLink(op Op) error {
	var underlay foundLink
	if op.Verb == AddVXLAN {
		var err error
		if underlay, err = r.l.fits(op); err != nil {
			return err
		}
	}
	r.index[op.Device] = r.l.nextIndex.Add(1)
	m := r.message(op, unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	putLink(m, unix.AF_UNSPEC, r.index[op.Device], 0, 0)
	m.Text(unix.IFLA_IFNAME, op.Device)
	m.U32(unix.IFLA_MTU, uint32(op.MTU))
	switch op.Verb {
	case AddBridge:
		mac := bridgeMAC(op.VNI)
		m.Attr(unix.IFLA_ADDRESS, mac[:]...)
		linkInfo(m, "bridge", func() { bridgeData(m) })
	case AddVXLAN:
		m.U32(unix.IFLA_LINK_NETNSID, uint32(r.l.hostID)) // the socket and the underlay are in the host's namespace
		linkInfo(m, "vxlan", func() { vxlanData(m, op, underlay.index) })
	case AddPort:
		linkInfo(m, "veth", func() { m.Nest(vethInfoPeer, func() { r.l.peer(m, op) }) })
	}
	r.done(m)
	return r.setLink(op, func(m *netlink.Message) { m.Text(unix.IFLA_IFALIAS, op.alias()) })
}

func bridgeData(m *netlink.Message) {
	m.Attr(unix.IFLA_BR_MCAST_SNOOPING, 0)
	// Else the kernel keeps every static entry twice, for VLAN 1 too (net/bridge/br_fdb.c br_fdb_add).
	m.Attr(unix.IFLA_BR_VLAN_DEFAULT_PVID, 0, 0)
}

// vethInfoPeer is VETH_INFO_PEER of linux/veth.h.
const vethInfoPeer = 1

func linkInfo(m *netlink.Message, kind string, data func()) {
	m.Nest(unix.IFLA_LINKINFO, func() {
		m.Text(unix.IFLA_INFO_KIND, kind)
		m.Nest(unix.IFLA_INFO_DATA, data)
	})
}

// vxlanData leaves the checksum settings as the kernel has them: none on IPv4, where the inner packet has its own
// (RFC 7348 §5), and checked in both directions on IPv6, where a zero one needs both ends' consent (RFC 6935 §5).
func vxlanData(m *netlink.Message, op Op, underlay int32) {
	m.U32(unix.IFLA_VXLAN_ID, uint32(op.VNI))
	m.U32(unix.IFLA_VXLAN_LINK, uint32(underlay))
	kind := uint16(unix.IFLA_VXLAN_LOCAL)
	if op.Local.Is6() {
		kind = unix.IFLA_VXLAN_LOCAL6
	}
	m.Attr(kind, op.Local.AsSlice()...)
	m.Attr(unix.IFLA_VXLAN_PORT, binary.BigEndian.AppendUint16(nil, op.UDPPort)...)
	m.Attr(unix.IFLA_VXLAN_LEARNING, 0)
}

// peer describes the container's end. It cannot be brought up here (veth_open fails as long as the pair is incomplete).
func (l *Linux) peer(m *netlink.Message, op Op) {
	putLink(m, unix.AF_UNSPEC, 0, 0, 0)
	m.Text(unix.IFLA_IFNAME, ContainerEnd(op.Endpoint))
	m.U32(unix.IFLA_MTU, uint32(op.MTU))
	m.Attr(unix.IFLA_ADDRESS, op.MAC[:]...)
	m.U32(unix.IFLA_NET_NS_FD, uint32(l.host))
}

// addEntry collects the message for a forwarding or neighbour entry.
func (r *run) addEntry(op Op) error {
	device, err := r.find(op, op.Device)
	if err != nil {
		return err
	}
	kind, flags := uint16(unix.RTM_NEWNEIGH), uint16(unix.NLM_F_CREATE|unix.NLM_F_REPLACE)
	if removes(op) {
		kind, flags = unix.RTM_DELNEIGH, 0
	}
	family, state, place := uint8(unix.AF_BRIDGE), uint16(unix.NUD_PERMANENT), uint8(unix.NTF_SELF)
	to := op.VTEP
	switch {
	case op.Verb == PutNeighbour || op.Verb == DelNeighbour:
		family, place, to = unix.AF_INET, 0, op.Address
		if to.Is6() {
			family = unix.AF_INET6
		}
	case !op.VTEP.IsValid():
		state, place = unix.NUD_NOARP, unix.NTF_MASTER
	case op.MAC.IsZero() && !removes(op):
		flags = unix.NLM_F_CREATE | unix.NLM_F_APPEND // the flood list has several destinations
	}
	m := r.message(op, kind, flags)
	putNeigh(m, family, device, state, place)
	if to.IsValid() {
		m.Attr(unix.NDA_DST, to.AsSlice()...)
	}
	if op.Verb != DelNeighbour {
		m.Attr(unix.NDA_LLADDR, op.MAC[:]...)
	}
	r.done(m)
	return nil
}

// find returns the index of a device of ours: one that this Run makes, or one that is there and has the right alias.
func (r *run) find(op Op, device string) (int32, error) {
	if i, known := r.index[device]; known {
		return i, nil
	}
	l, err := linkNamed(r.l.in, device)
	if err != nil {
		return 0, fmt.Errorf("find device %s: %w", device, err)
	}
	if o, ours := ownerOf(device, l.alias); !ours || o.vni != op.VNI {
		return 0, fmt.Errorf("%w: device %s in netdriver's namespace is not of VNI %d; remove it",
			ErrNameTaken, device, op.VNI)
	}
	r.index[device] = l.index
	return l.index, nil
}

// flush sends what was collected and notes the errors. Only the last message asks for an acknowledgement; the kernel
// reports errors of the others anyway.
func (r *run) flush() {
	if len(r.ops) == 0 {
		return
	}
	last := len(r.ops) - 1
	failures := make([]error, len(r.ops))
	var base uint32
	err := r.l.in.Exchange(func(first uint32) ([]byte, uint32) {
		base = first
		for i, start := range r.starts {
			binary.NativeEndian.PutUint32(r.out[start+8:], first+uint32(i))
		}
		flags := r.out[r.starts[last]+6:]
		binary.NativeEndian.PutUint16(flags, binary.NativeEndian.Uint16(flags)|unix.NLM_F_ACK)
		return r.out, first + uint32(last)
	}, func(a netlink.Reply) {
		if i := int(a.Seq - base); a.Kind == unix.NLMSG_ERROR && i >= 0 && i <= last {
			failures[i] = a.Err()
		}
	})
	if err != nil {
		r.errs = append(r.errs, fmt.Errorf("%d operations beginning with %s: %w", len(r.ops), r.ops[0], err))
	}
	ops := r.ops
	r.ops, r.starts, r.out = nil, nil, r.out[:0]
	for i, op := range ops {
		// The second message of an addition fails along with the first, which has the reason.
		if i > 0 && failures[i] != nil && ops[i-1] == op && r.failed[op.Device] {
			continue
		}
		if failures[i] != nil && !harmless(op, failures[i]) {
			r.fail(op, r.l.explain(op, failures[i]))
		}
	}
}

// harmless says whether a removal failed because the thing is gone already.
func harmless(op Op, err error) bool {
	return removes(op) && (errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV))
}

// explain tells the user what to do about an error that has a known cause.
func (l *Linux) explain(op Op, err error) error {
	switch {
	case errors.Is(err, unix.EEXIST) && op.Verb <= AddPort:
		if _, lookup := linkNamed(l.in, op.Device); lookup == nil {
			return nameTaken(op)
		}
		if op.Verb == AddVXLAN {
			return vniTaken(op)
		}
		return fmt.Errorf("%w: a device %s is in the host's namespace; remove it", ErrNameTaken, ContainerEnd(op.Endpoint))
	case errors.Is(err, unix.EADDRINUSE):
		return fmt.Errorf("another program has the network's UDP port on this host; stop it, or create the network with "+
			"another port: %w", err)
	}
	return err
}

// fits refuses a VXLAN device's MTU that the underlay cannot carry: the kernel would accept or silently lower it.
func (l *Linux) fits(op Op) (foundLink, error) {
	u, err := linkNamed(l.hostLinks, op.Underlay)
	if err != nil {
		return foundLink{}, fmt.Errorf("find underlay device %s in the host's namespace: %w", op.Underlay, err)
	}
	return u, vxlan.CheckMTU(op.MTU, u.mtu, op.Local, false)
}

func (r *run) fits(op Op) error {
	if op.Underlay == "" {
		return nil
	}
	_, err := r.l.fits(op)
	return err
}

// foundLink is what must be known of a device by its name or index.
type foundLink struct {
	index int32
	name  string
	alias string
	mtu   int
}

func linkNamed(s *netlink.Socket, name string) (foundLink, error) {
	return linkAt(s, 0, func(m *netlink.Message) { m.Text(unix.IFLA_IFNAME, name) })
}

func linkAt(s *netlink.Socket, index int32, more func(*netlink.Message)) (l foundLink, err error) {
	err = s.Query(unix.RTM_GETLINK, 0, func(m *netlink.Message) {
		putLink(m, unix.AF_UNSPEC, index, 0, 0)
		more(m)
		m.U32(unix.IFLA_EXT_MASK, rtextSkipStats)
	}, func(body []byte) {
		d := parseLink(body)
		l = foundLink{d.index, d.name, d.alias, d.mtu}
	})
	return l, err
}

// rtextSkipStats is RTEXT_FILTER_SKIP_STATS of linux/rtnetlink.h: answers without counters are half as long.
const rtextSkipStats = 1 << 3

func addr(b []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(b) // the zero Addr if it has no valid length
	return a
}
