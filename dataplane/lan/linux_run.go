//go:build linux

package lan

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Run implements Kernel.
func (l *Linux) Run(ctx context.Context, ops []Op) error {
	var errs []error
	failed := failedDevices{}
	for _, op := range ops {
		if failed.dependsOn(op) {
			failed.note(op)
			continue
		}
		err := context.Cause(ctx)
		if err == nil {
			err = l.do(ctx, op)
		}
		if err != nil && !harmless(op, err) {
			failed.note(op)
			errs = append(errs, &OpError{op, err})
		}
	}
	return errors.Join(errs...)
}

// harmless says whether a removal failed because the thing is gone already, or an addition because it is there.
func harmless(op Op, err error) bool {
	var missing netlink.LinkNotFoundError
	gone := errors.As(err, &missing) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) ||
		errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EADDRNOTAVAIL)
	return removes(op) && gone || (op.Verb == AddAddress || op.Verb == AddRoute) && errors.Is(err, unix.EEXIST)
}

func (l *Linux) do(ctx context.Context, op Op) error {
	switch op.Verb {
	case AddVLAN:
		return l.addVLAN(op)
	case AddBridge:
		return l.addBridge(op)
	case AddPort:
		return l.explain(ctx, op, l.addPort(op))
	case PlacePort:
		return l.explain(ctx, op, l.placePort(op))
	case SetAnswers:
		return within(l.host, func() error { return os.WriteFile(answersFile(op.Device), []byte("1"), 0) })
	}
	if op.Sandbox != "" {
		_, err := inSandbox(op.Sandbox, func(_ netns.NsHandle, h *netlink.Handle) error {
			link, err := findPort(h, op.Endpoint)
			if err != nil || link == nil {
				return err
			}
			return h.LinkDel(link)
		})
		return err
	}
	link, err := l.h.LinkByName(op.Device)
	if err != nil {
		return err
	}
	return l.change(link, op)
}

// change does what needs a device that is there.
func (l *Linux) change(link netlink.Link, op Op) error {
	switch op.Verb {
	case SetMaster:
		master, err := l.h.LinkByName(op.Parent)
		if err != nil {
			return err
		}
		return l.h.LinkSetMaster(link, master)
	case SetMTU:
		return l.h.LinkSetMTU(link, op.MTU)
	case SetUp:
		return l.raise(link)
	case AddAddress, DelAddress:
		a := &netlink.Addr{IPNet: ipNet(op.Prefix)}
		if op.Verb == DelAddress {
			return l.h.AddrDel(link, a)
		}
		if op.Prefix.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD // it is leased, and was asked for
		}
		return l.h.AddrAdd(link, a)
	case AddRoute, DelRoute:
		r := &netlink.Route{
			LinkIndex: link.Attrs().Index, Dst: ipNet(op.Prefix), Protocol: routeProtocol, Scope: netlink.SCOPE_LINK,
		}
		if op.Verb == DelRoute {
			return l.h.RouteDel(r)
		}
		return l.h.RouteAdd(r)
	case DelLink:
		return l.h.LinkDel(link)
	}
	return fmt.Errorf("unknown operation %d", op.Verb)
}

// raise brings a device up; a VLAN's parent must be up before (net/8021q/vlan_dev.c vlan_dev_open). The host gives itself no
// IPv6 address there: what it should have is said, and what it sent from another address would be dropped as spoofed.
func (l *Linux) raise(link netlink.Link) error {
	err := within(l.host, func() error {
		for file, value := range map[string]string{"addr_gen_mode": "1", "accept_ra": "0"} { // IN6_ADDR_GEN_MODE_NONE
			err := os.WriteFile("/proc/sys/net/ipv6/conf/"+link.Attrs().Name+"/"+file, []byte(value), 0)
			if err != nil && !errors.Is(err, os.ErrNotExist) { // no IPv6 in this kernel, or not with this MTU
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	err = l.h.LinkSetUp(link)
	if v, ok := link.(*netlink.Vlan); ok && errors.Is(err, unix.ENETDOWN) {
		return fmt.Errorf("the interface of VLAN %d is down; bring it up (ip link set … up): %w", v.VlanId, ErrDown)
	}
	return err
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// addVLAN makes a VLAN interface. It has its usual name only with its alias: one that a killed daemon left in between is
// known by its name, since nobody else has such.
func (l *Linux) addVLAN(op Op) error {
	parent, err := l.h.LinkByName(op.Parent)
	if err != nil {
		return fmt.Errorf("find parent %s: %w", op.Parent, err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.ParentIndex = fmt.Sprintf("%s%x.%d", vlanPrefix, parent.Attrs().Index&0xffff, op.ID), parent.Attrs().Index
	link := &netlink.Vlan{LinkAttrs: attrs, VlanId: op.ID, VlanProtocol: netlink.VLAN_PROTOCOL_8021Q}
	err = l.h.LinkAdd(link)
	if errors.Is(err, unix.EOPNOTSUPP) {
		if _, look := os.Stat("/proc/net/vlan/config"); look != nil {
			return unsupported("vlan")
		}
		return fmt.Errorf("%s cannot have VLANs: %w", op.Parent, err)
	}
	if err != nil {
		return err
	}
	err = l.h.LinkSetAlias(link, vlanAlias)
	if err == nil && link.Name != op.Device {
		err = l.h.LinkSetName(link, op.Device)
	}
	if err != nil {
		return errors.Join(err, l.h.LinkDel(link))
	}
	return nil
}

func (l *Linux) addBridge(op Op) error {
	snooping := false
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = op.Device, op.MTU
	link := &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping}
	if err := l.h.LinkAdd(link); err != nil {
		return err
	}
	if err := l.h.LinkSetAlias(link, bridgeAlias(op.Network)); err != nil {
		return errors.Join(err, l.h.LinkDel(link))
	}
	return nil
}

// device is the link that an AddPort or PlacePort makes.
func (l *Linux) device(op Op) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = op.Device, op.MTU
	if op.Kind == Veth {
		attrs.Name = pairName(op.Endpoint)
		return &netlink.Veth{LinkAttrs: attrs, PeerName: op.Device, PeerHardwareAddr: op.MAC[:], PeerMTU: uint32(op.MTU)}, nil
	}
	parent, err := l.h.LinkByName(op.Parent)
	if err != nil {
		return nil, fmt.Errorf("find parent %s: %w", op.Parent, err)
	}
	attrs.ParentIndex = parent.Attrs().Index
	if op.Kind == IPvlan {
		return &netlink.IPVlan{LinkAttrs: attrs, Mode: netlink.IPVLAN_MODE_L2}, nil
	}
	attrs.HardwareAddr = op.MAC[:]
	for mode, name := range macvlanModes() {
		if name == op.Mode {
			return &netlink.Macvlan{LinkAttrs: attrs, Mode: mode}, nil
		}
	}
	return nil, fmt.Errorf("unknown macvlan mode %q", op.Mode)
}

// addPort makes an endpoint's interface on the host.
func (l *Linux) addPort(op Op) error {
	link, err := l.device(op)
	if err != nil {
		return err
	}
	if err := l.add(link); err != nil {
		return err
	}
	err = l.h.LinkSetAlias(link, portAlias(op.Endpoint, op.Network))
	if op.Kind == Veth && err == nil {
		err = l.aliasEnd(op)
	}
	if err != nil {
		return errors.Join(err, l.h.LinkDel(link))
	}
	return nil
}

// aliasEnd marks the container's end of a pair, by which it is found in the container.
func (l *Linux) aliasEnd(op Op) error {
	end, err := l.h.LinkByName(op.Device)
	if err != nil {
		return err
	}
	return l.h.LinkSetAlias(end, portAlias(op.Endpoint, op.Network))
}

// add adds a device, in place of one that was left without an alias by a daemon that was killed while making it.
func (l *Linux) add(link netlink.Link) error {
	err := l.h.LinkAdd(link)
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	left, look := l.h.LinkByName(link.Attrs().Name)
	if look != nil {
		return err
	}
	if left.Attrs().Alias != "" || left.Type() != link.Type() {
		return fmt.Errorf("device %s is %w by something else; remove it", link.Attrs().Name, ErrTaken)
	}
	return errors.Join(l.h.LinkDel(left), l.h.LinkAdd(link))
}

// placePort makes an endpoint's interface in the container, as libnetwork had left it there.
func (l *Linux) placePort(op Op) error {
	_, err := inSandbox(op.Sandbox, func(ns netns.NsHandle, h *netlink.Handle) error {
		link, err := l.device(op)
		if err != nil {
			return err
		}
		if v, ok := link.(*netlink.Veth); ok {
			v.PeerNamespace = netlink.NsFd(ns)
		} else {
			link.Attrs().Namespace = netlink.NsFd(ns)
		}
		if err := l.h.LinkAdd(link); err != nil {
			return err
		}
		if op.Kind == Veth {
			if err := l.h.LinkSetAlias(link, portAlias(op.Endpoint, op.Network)); err != nil {
				return errors.Join(err, l.h.LinkDel(link))
			}
		}
		inside, err := h.LinkByName(op.Device)
		if err != nil {
			return fmt.Errorf("find the interface in the container: %w", err)
		}
		if err := furnish(ns, h, inside, op); err != nil {
			return errors.Join(err, h.LinkDel(inside))
		}
		return nil
	})
	return err
}

// furnish gives an interface in a container its name, addresses and routes.
func furnish(ns netns.NsHandle, h *netlink.Handle, link netlink.Link, op Op) error {
	if err := h.LinkSetAlias(link, portAlias(op.Endpoint, op.Network)); err != nil {
		return err
	}
	for n := 0; ; n++ {
		name := fmt.Sprintf("eth%d", n)
		if _, err := h.LinkByName(name); err == nil {
			continue
		}
		if err := h.LinkSetName(link, name); err != nil {
			return fmt.Errorf("name it %s: %w", name, err)
		}
		if err := enableIPv6(ns, name, op); err != nil {
			return fmt.Errorf("switch IPv6 on: %w", err)
		}
		break
	}
	for _, text := range strings.Fields(op.Addresses) {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return err
		}
		if err := h.AddrAdd(link, &netlink.Addr{IPNet: ipNet(p), Flags: noDAD(p)}); err != nil {
			return fmt.Errorf("add address %s: %w", p, err)
		}
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring it up: %w", err)
	}
	for _, text := range strings.Fields(op.Gateways) {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return err
		}
		// Another network of the container may have the default route.
		err = h.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: a.AsSlice()})
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add default route via %s: %w", a, err)
		}
	}
	return nil
}

// enableIPv6 switches IPv6 on where an address of it is wanted: Docker switches it off in the whole sandbox, and on for each
// interface that has one (moby libnetwork/osl, setIPv6).
func enableIPv6(ns netns.NsHandle, name string, op Op) error {
	if !strings.Contains(op.Addresses, ":") {
		return nil
	}
	return within(ns, func() error { return os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/disable_ipv6", []byte("0"), 0) })
}

func noDAD(p netip.Prefix) int {
	if p.Addr().Is6() {
		return unix.IFA_F_NODAD
	}
	return 0
}

// explain tells the user what to do about an error that has a known cause.
func (l *Linux) explain(ctx context.Context, op Op, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EOPNOTSUPP):
		return unsupported(string(op.Kind))
	case errors.Is(err, unix.EBUSY), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EEXIST) && op.Kind != Veth:
		host, look := l.Interfaces(ctx)
		if look != nil {
			return errors.Join(err, look)
		}
		return busy(host, op, err)
	}
	return err
}
