package lan

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// The modes of macvlan.
const (
	Passthru   = "passthru"
	BridgeMode = "bridge"
)

// Submodes are what macvlan_mode can be (man ip-link).
func Submodes() []string { return []string{BridgeMode, "private", "vepa", Passthru} }

// ErrParent is wrapped by every error about a parent that cannot be used.
var ErrParent = errors.New("parent cannot be used")

// ErrDown is wrapped by the error about a parent that is there and down: what is on it stays, and works when it is up.
var ErrDown = errors.New("parent is down")

// Parent is what a network's parent is on this host.
type Parent struct {
	// Device is the interface that containers' are made on.
	Device string
	// VLAN is what has to be made for it; zero if the host has it. MTU is the device's.
	VLAN VLAN
	MTU  int
	// Down: the interface is switched off, or has no carrier.
	Down bool
}

// maxVLAN is the highest VLAN id (IEEE 802.1Q: 4095 is reserved).
const maxVLAN = 4094

// CheckSpec says whether a parent could be found by spec: an interface's name or a subnet, perhaps followed by a VLAN.
func CheckSpec(spec string) error {
	if spec == "" || len(spec) > 64 || strings.ContainsAny(spec, " \t\n,=") {
		return fmt.Errorf("parent %q: want an interface such as eth1, with a VLAN eth1.10, or a subnet such as 192.0.2.0/24", spec)
	}
	if strings.Contains(spec, "/") {
		subnet, _, err := cutSubnet(spec)
		if err != nil {
			return err
		}
		if subnet != subnet.Masked() {
			return fmt.Errorf("parent %s has host bits set; want %s", spec, subnet.Masked())
		}
	}
	return nil
}

// cutSubnet splits 192.0.2.0/24.10 into the subnet and the VLAN.
func cutSubnet(spec string) (netip.Prefix, int, error) {
	slash := strings.IndexByte(spec, '/')
	bits, vlan, tagged := strings.Cut(spec[slash+1:], ".")
	p, err := netip.ParsePrefix(spec[:slash] + "/" + bits)
	if err != nil {
		return p, 0, fmt.Errorf("parent %q: want an interface or a subnet such as 192.0.2.0/24: %w", spec, err)
	}
	id := 0
	if tagged {
		id, err = parseVLAN(vlan)
	}
	return p, id, err
}

func parseVLAN(s string) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || n > maxVLAN {
		return 0, fmt.Errorf("VLAN %q: want 1..%d", s, maxVLAN)
	}
	return n, nil
}

// Resolve finds the parent on this host. names is the node's own list, from its configuration: it comes first. The error
// wraps ErrParent and says what the host has instead.
func Resolve(spec string, names map[string]string, host []Interface) (Parent, error) {
	p, err := resolve(spec, names, host)
	if err != nil {
		return Parent{}, fmt.Errorf("%w: %w", ErrParent, err)
	}
	return p, nil
}

func resolve(spec string, names map[string]string, host []Interface) (Parent, error) {
	if to, ok := names[spec]; ok {
		spec, names = to, nil
	}
	if strings.Contains(spec, "/") {
		subnet, id, err := cutSubnet(spec)
		if err != nil {
			return Parent{}, err
		}
		i, err := inSubnet(subnet, host)
		if err != nil {
			return Parent{}, err
		}
		return on(i, id, host)
	}
	if i, ok := find(host, spec); ok && !i.Ours {
		return on(i, 0, host)
	}
	dot := strings.LastIndexByte(spec, '.')
	if dot < 0 {
		return Parent{}, missing(spec, host)
	}
	base, vlan := spec[:dot], spec[dot+1:]
	id, err := parseVLAN(vlan)
	if err != nil {
		return Parent{}, fmt.Errorf("%s: %w; %s", spec, err, list(host))
	}
	if to, ok := names[base]; ok {
		base = to
	}
	i, ok := find(host, base)
	if !ok {
		return Parent{}, missing(base, host)
	}
	return on(i, id, host)
}

func find(host []Interface, name string) (Interface, bool) {
	n := slices.IndexFunc(host, func(i Interface) bool { return i.Name == name })
	if n < 0 {
		return Interface{}, false
	}
	return host[n], true
}

// on is interface i, or VLAN id of it.
func on(i Interface, id int, host []Interface) (Parent, error) {
	if err := usable(i); err != nil {
		return Parent{}, err
	}
	p := Parent{Device: i.Name, MTU: i.MTU, Down: !i.Up || !i.Running}
	if id == 0 {
		return p, nil
	}
	for _, v := range host { // somebody else's interface of that VLAN will do, whatever its name
		if v.VLANParent == i.Name && v.VLANID == id && !v.Ours {
			return on(v, 0, host)
		}
	}
	p.Device = vlanName(i.Name, id)
	p.VLAN = VLAN{Device: p.Device, Parent: i.Name, ID: id, Up: true}
	if v, ok := find(host, p.Device); ok && !v.Ours {
		return p, fmt.Errorf("interface %s is %w: it is there and not VLAN %d of %s; remove or rename it",
			p.Device, ErrTaken, id, i.Name)
	}
	return p, nil
}

// usable refuses interfaces that containers cannot share.
func usable(i Interface) error {
	switch {
	case i.Loopback:
		return fmt.Errorf("%s is the loopback; give the interface that is in the LAN", i.Name)
	case i.Wireless:
		return fmt.Errorf("%s is wireless: an access point takes frames of one MAC address only from each station "+
			"(IEEE 802.11); use a wired interface, or mode=bridge", i.Name)
	case !i.Ethernet:
		return fmt.Errorf("%s is no Ethernet interface; use one, or mode=bridge", i.Name)
	case i.Master != "":
		return enslaved(i)
	}
	return nil
}

// inSubnet finds the one interface with an address in a subnet. One whose address is of a larger subnet that has all of it
// will do, too.
func inSubnet(subnet netip.Prefix, host []Interface) (Interface, error) {
	var found []Interface
	for _, i := range host {
		in := func(a netip.Prefix) bool {
			return subnet.Contains(a.Addr()) || a.Bits() <= subnet.Bits() && a.Contains(subnet.Addr())
		}
		if i.Kind != string(Macvlan) && i.Kind != string(IPvlan) && slices.ContainsFunc(i.Addrs, in) {
			found = append(found, i)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return Interface{}, fmt.Errorf("no interface has an address in %s; give the interface's name, or list it for this "+
			"node (setting parents); %s", subnet, list(host))
	}
	return Interface{}, fmt.Errorf("%s and %s have addresses in %s; give the name of one of them",
		found[0].Name, found[1].Name, subnet)
}

func missing(name string, host []Interface) error {
	return fmt.Errorf("no interface %s on this host; if it is called otherwise here, list it (setting parents) or give the "+
		"LAN's subnet as parent; %s", name, list(host))
}

// list says what could be a parent.
func list(host []Interface) string {
	var out []string
	for _, i := range host {
		if usable(i) != nil || i.Kind == string(Macvlan) || i.Kind == string(IPvlan) || i.Kind == string(Veth) && len(i.Addrs) == 0 {
			continue
		}
		s := i.Name
		if len(i.Addrs) > 0 {
			s += " " + words(i.Addrs)
		}
		out = append(out, s)
	}
	if len(out) == 0 {
		return "this host has no interface that could be one"
	}
	return "this host has " + strings.Join(out, ", ")
}
