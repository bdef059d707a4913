// Package host reads what this host's kernel says of itself, and watches marked frames go through its devices. It changes
// nothing, and what it opens goes with the process.
package host

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	nl "github.com/netdriver/netdriver/internal/netlink"
	"github.com/netdriver/netdriver/vxlan"
)

// Space is one network namespace, open for looking.
type Space struct {
	fd    int
	links *netlink.Handle
}

// Open opens the namespace whose file is path; empty is that of this process.
func Open(path string) (*Space, error) {
	fd, err := nl.Namespace(path)
	if err != nil {
		return nil, err
	}
	h, err := netlink.NewHandleAt(netns.NsHandle(fd), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("look into the network namespace %s: %w", path, err), unix.Close(fd))
	}
	return &Space{fd, h}, nil
}

// Descriptor is the namespace's file descriptor, valid until Close.
func (s *Space) Descriptor() int { return s.fd }

// Close gives the namespace up.
func (s *Space) Close() error {
	if s == nil {
		return nil
	}
	s.links.Close()
	return unix.Close(s.fd)
}

// Link is one network device.
type Link struct {
	Index, Master, MTU int
	Name, Kind, Alias  string
	MAC                vxlan.MAC
	// Up: somebody wants it up; Carrier: it has somebody at its other end.
	Up, Carrier bool
	// Mute: it asks for and answers no neighbour's address (NOARP).
	Mute bool
	// Of a VXLAN device.
	VNI   vxlan.VNI
	Port  uint16
	Local netip.Addr
	// Underlay is the index of the device below a VXLAN device or macvlan.
	Underlay int
	// Space is the number of the namespace that has the other end; -1 if it is this one.
	Space int
	// Counters since the device was made: packets, and bytes of all received and sent.
	Received, Sent, Dropped  uint64
	ReceivedBytes, SentBytes uint64
}

// Links returns all devices.
func (s *Space) Links() ([]Link, error) {
	const tries = 5 // a list during which something changed may lack devices that are there
	all, err := s.links.LinkList()
	for i := 1; i < tries && errors.Is(err, netlink.ErrDumpInterrupted); i++ {
		all, err = s.links.LinkList()
	}
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list the network devices: %w", err)
	}
	out := make([]Link, len(all))
	for i, l := range all {
		out[i] = linkOf(l)
	}
	return out, nil
}

// Link returns the device with that name; false if there is none.
func (s *Space) Link(name string) (Link, bool) {
	l, err := s.links.LinkByName(name)
	if err != nil {
		return Link{}, false
	}
	return linkOf(l), true
}

func linkOf(l netlink.Link) Link {
	a := l.Attrs()
	out := Link{
		Index: a.Index, Master: a.MasterIndex, MTU: a.MTU, Name: a.Name, Kind: l.Type(), Alias: a.Alias,
		Up: a.RawFlags&unix.IFF_UP != 0, Carrier: a.RawFlags&unix.IFF_LOWER_UP != 0, Space: a.NetNsID, Underlay: a.ParentIndex,
		Mute: a.RawFlags&unix.IFF_NOARP != 0,
	}
	copy(out.MAC[:], a.HardwareAddr)
	if st := a.Statistics; st != nil {
		out.Received, out.Sent = st.RxPackets, st.TxPackets
		out.ReceivedBytes, out.SentBytes = st.RxBytes, st.TxBytes
		out.Dropped = st.RxDropped + st.TxDropped + st.RxErrors + st.TxErrors
	}
	if v, ok := l.(*netlink.Vxlan); ok {
		out.VNI, out.Port, out.Underlay = vxlan.VNI(v.VxlanId), uint16(v.Port), v.VtepDevIndex
		if local, ok := netip.AddrFromSlice(v.SrcAddr); ok {
			out.Local = local.Unmap()
		}
	}
	return out
}

// Addresses returns a device's.
func (s *Space) Addresses(index int) ([]netip.Prefix, error) {
	list, err := s.links.AddrList(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: index}}, unix.AF_UNSPEC)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	var out []netip.Prefix
	for _, a := range list {
		if ip, ok := netip.AddrFromSlice(a.IP); ok {
			bits, _ := a.Mask.Size()
			out = append(out, netip.PrefixFrom(ip.Unmap(), bits))
		}
	}
	return out, nil
}

// Neighbour is what a device knows of an address.
type Neighbour struct {
	MAC   vxlan.MAC
	State string
}

// Neighbour returns a device's entry for an address; false if there is none that is of use.
func (s *Space) Neighbour(index int, a netip.Addr) (Neighbour, bool) {
	list, err := s.links.NeighList(index, family(a))
	if err != nil {
		return Neighbour{}, false
	}
	const useful = unix.NUD_PERMANENT | unix.NUD_NOARP | unix.NUD_REACHABLE | unix.NUD_STALE | unix.NUD_DELAY | unix.NUD_PROBE
	for _, n := range list {
		if ip, ok := netip.AddrFromSlice(n.IP); ok && ip.Unmap() == a && n.State&useful != 0 {
			out := Neighbour{State: "dynamic"}
			if n.State&unix.NUD_PERMANENT != 0 {
				out.State = "permanent"
			}
			copy(out.MAC[:], n.HardwareAddr)
			return out, true
		}
	}
	return Neighbour{}, false
}

func family(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// Route is how a packet to an address would leave.
type Route struct {
	Device  int
	Gateway netip.Addr
	Source  netip.Addr
	MTU     int
}

// Route asks the kernel for the way to an address.
func (s *Space) Route(to netip.Addr) (Route, error) {
	list, err := s.links.RouteGet(to.AsSlice())
	if err != nil || len(list) == 0 {
		return Route{}, fmt.Errorf("no route to %s: %w", to, err)
	}
	r := Route{Device: list[0].LinkIndex, MTU: list[0].MTU}
	r.Gateway, _ = netip.AddrFromSlice(list[0].Gw)
	r.Source, _ = netip.AddrFromSlice(list[0].Src)
	r.Gateway, r.Source = r.Gateway.Unmap(), r.Source.Unmap()
	return r, nil
}

// Configured returns the MTU in bytes that the routing tables set for the way to an address; 0 if none. What the kernel has
// learnt of the path from others is not counted: it forgets that by itself (man 7 ip, mtu_expires).
func (s *Space) Configured(to netip.Addr) int {
	list, err := s.links.RouteList(nil, family(to))
	if err != nil {
		return 0
	}
	best, mtu := -1, 0
	for _, r := range list {
		bits := 0
		if r.Dst != nil {
			ip, _ := netip.AddrFromSlice(r.Dst.IP)
			bits, _ = r.Dst.Mask.Size()
			if !netip.PrefixFrom(ip.Unmap(), bits).Contains(to) {
				continue
			}
		}
		if bits > best {
			best, mtu = bits, r.MTU
		}
	}
	return mtu
}

// Setting reads one of the namespace's settings, such as net/ipv4/ip_forward; empty if the kernel has none of that name.
func (s *Space) Setting(name string) string {
	var value string
	_ = nl.In(s.fd, func() error { // a setting that cannot be read is none
		text, err := os.ReadFile(filepath.Join("/proc/sys", name))
		value = strings.TrimSpace(string(text))
		return err
	})
	return value
}

// Container is the namespace at the other end of a veth, with its device there.
type Container struct {
	*Space
	Device    Link
	Addresses []netip.Prefix
}

// ErrNoContainer says that no process and no file has the namespace that a device's other end is in.
var ErrNoContainer = errors.New("the namespace of its other end was not found")

// Peer finds the namespace and device at the other end of a veth that is in s. The caller closes it.
func (s *Space) Peer(port Link) (Container, error) {
	for _, path := range namespaces() {
		other, err := Open(path)
		if err != nil {
			continue // its process has ended
		}
		id, err := s.links.GetNetNsIdByFd(other.fd)
		if err != nil || id != port.Space || id < 0 {
			other.Close()
			continue
		}
		l, err := other.links.LinkByIndex(port.Underlay) // of a veth that is the other end's
		if err != nil {
			other.Close()
			continue
		}
		c := Container{Space: other, Device: linkOf(l)}
		c.Addresses, err = other.Addresses(c.Device.Index)
		return c, err
	}
	return Container{}, ErrNoContainer
}

// namespaces returns one file of each network namespace, Docker's first.
func namespaces() []string {
	files, _ := filepath.Glob("/run/docker/netns/*") // the pattern is no mistake
	processes, _ := filepath.Glob("/proc/[0-9]*/ns/net")
	seen := map[uint64]bool{}
	var out []string
	for _, f := range append(files, processes...) {
		var st unix.Stat_t
		if unix.Stat(f, &st) == nil && !seen[st.Ino] {
			seen[st.Ino] = true
			out = append(out, f)
		}
	}
	return out
}

// Forwarding returns where frames for a MAC go: the VTEPs in the table of the VXLAN device with that index, and the index of
// the bridge port in the bridge's table, 0 if none has it.
func (s *Space) Forwarding(mac vxlan.MAC, device int) (vteps []netip.Addr, port int) {
	list, err := s.links.NeighList(0, unix.AF_BRIDGE)
	if err != nil {
		return nil, 0
	}
	for _, n := range list {
		switch to, ok := netip.AddrFromSlice(n.IP); {
		case string(n.HardwareAddr) != string(mac[:]) || n.Vlan != 0:
		case ok && n.LinkIndex == device && n.Flags&unix.NTF_SELF != 0:
			vteps = append(vteps, to.Unmap())
		case n.MasterIndex != 0 && n.Flags&unix.NTF_SELF == 0:
			port = n.LinkIndex
		}
	}
	return vteps, port
}
