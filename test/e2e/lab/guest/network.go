package guest

import (
	"fmt"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// configureNetwork names the node's two interfaces and gives them their addresses, at once usable. The second one is
// not part of the underlay: it has no route but to its one neighbour.
func configureNetwork(s Settings) error {
	if s.Address.Addr().Is6() {
		if err := loadModules([]string{"ipv6"}); err != nil {
			return err
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	if err := configureLink("eth0", "eth0", s.MTU, s.Address); err != nil {
		return err
	}
	if err := configureLink("eth1", "mgmt0", ethernetMTU, s.Manage); err != nil {
		return err
	}
	if err := netlink.RouteAdd(&netlink.Route{Gw: s.Gateway.AsSlice()}); err != nil {
		return fmt.Errorf("add the default route: %w", err)
	}
	return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1\n"), 0o644)
}

// ethernetMTU is in bytes (IEEE 802.3).
const ethernetMTU = 1500

// configureLink renames an interface, gives it its MTU and address and sets it up.
func configureLink(old, name string, mtu int, address netip.Prefix) error {
	link, err := netlink.LinkByName(old)
	if err != nil {
		return fmt.Errorf("%s: %w", old, err)
	}
	if err := netlink.LinkSetMTU(link, mtu); err != nil {
		return fmt.Errorf("give %s an MTU of %d: %w", old, mtu, err)
	}
	if err := netlink.LinkSetName(link, name); err != nil {
		return fmt.Errorf("rename %s to %s: %w", old, name, err)
	}
	addr, err := netlink.ParseAddr(address.String())
	if err != nil {
		return err
	}
	if address.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD
	}
	if err := netlink.AddrAdd(link, addr); err != nil {
		return fmt.Errorf("add address %s to %s: %w", address, name, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	return nil
}
