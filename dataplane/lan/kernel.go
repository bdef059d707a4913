package lan

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/vxlan"
)

// Kernel is what a Plane changes. Linux is the real one, Fake is one in memory that refuses what Linux would refuse.
type Kernel interface {
	// Interfaces lists the host's.
	Interfaces(ctx context.Context) ([]Interface, error)
	// Read returns what is there of the wanted network. Ports and bridges are recognised by their alias, the VLAN
	// interface and the seat by the wanted device's name.
	Read(ctx context.Context, want Network) (Network, error)
	// Present returns everything of ours that is on the host, by network; what has none is in the one without name.
	Present(ctx context.Context) ([]Network, error)
	// Run performs the operations in order. One that fails does not stop those that do not depend on it: the errors are
	// joined and each is an *OpError. Removing what is gone is no error, nor is adding an address or route that is there.
	Run(ctx context.Context, ops []Op) error
	// Changes tells that something about the host's interfaces has changed, until ctx ends.
	Changes(ctx context.Context) (<-chan struct{}, error)
	// Probe asks on an interface who has an address (RFC 5227, RFC 4862). found is false if nobody answers in time.
	Probe(ctx context.Context, device string, a netip.Addr) (holder vxlan.MAC, found bool, err error)
	// Announce tells everybody in the LAN, from the sandbox that has it, which MAC has an address. It returns
	// ErrNotThere as long as the sandbox has no such interface that is up.
	Announce(ctx context.Context, p Port) error
	// Supports says whether the kernel can make such a device.
	Supports(ctx context.Context, kind Kind) error
	// Close gives up the sockets; what was made stays.
	Close() error
}

// Interface is one of the host's.
type Interface struct {
	Name string
	MTU  int
	// Up: it is switched on (IFF_UP). Running: it has a carrier.
	Up, Running bool
	Loopback    bool
	Wireless    bool
	// Ethernet: its frames have MAC addresses.
	Ethernet bool
	// Kind is the kernel's, "" for hardware.
	Kind string
	// Master is the bridge or bond that it is a port of.
	Master string
	// Children are the devices on it, by kind: macvlan and ipvlan exclude each other.
	Children []string
	Addrs    []netip.Prefix
	// Ours: netdriver made it (a VLAN).
	Ours bool
	// VLANParent and VLANID are those of a VLAN interface.
	VLANParent string
	VLANID     int
}

// ErrNotThere says that a container's interface is not in its sandbox, or not up yet.
var ErrNotThere = errors.New("not in its sandbox")

// ErrUnsupported says that the kernel has no such kind of device.
var ErrUnsupported = errors.New("not supported by this kernel")

// ErrTaken says that something else has the device or its name.
var ErrTaken = errors.New("in use")

// unsupported explains a kind that the kernel lacks.
func unsupported(kind string) error {
	option := map[string]string{"ipvlan": "CONFIG_IPVLAN", "macvlan": "CONFIG_MACVLAN", "vlan": "CONFIG_VLAN_8021Q, module 8021q"}
	remedy := "use another kernel"
	switch kind {
	case "ipvlan":
		remedy = "use mode=macvlan"
	case "vlan":
		remedy = "make the VLAN elsewhere, as on the switch, and give an interface that is in it as parent"
	}
	return fmt.Errorf("%s is %w (%s); load its module, or %s", kind, ErrUnsupported, option[kind], remedy)
}

// busy explains why a parent cannot take another device (EBUSY, EEXIST or EINVAL).
func busy(host []Interface, op Op, err error) error {
	i := slices.IndexFunc(host, func(i Interface) bool { return i.Name == op.Parent })
	if i < 0 {
		return fmt.Errorf("parent %s is missing: %w", op.Parent, err)
	}
	parent := host[i]
	switch others := slices.DeleteFunc(slices.Clone(parent.Children), func(k string) bool { return k == string(op.Kind) }); {
	case parent.Master != "":
		return enslaved(parent)
	case len(others) > 0:
		return fmt.Errorf("parent %s is %w by %s, which excludes %s; use mode=%s, or remove the %s devices on it",
			op.Parent, ErrTaken, strings.Join(others, ", "), op.Kind, others[0], others[0])
	case op.Mode == Passthru || op.Kind == Macvlan && len(parent.Children) > 0:
		return fmt.Errorf("parent %s is %w by another macvlan device: with macvlan_mode=passthru there can be only one: %w",
			op.Parent, ErrTaken, err)
	}
	if errors.Is(err, unix.EBUSY) { // by devices that containers have: those are out of sight
		return fmt.Errorf("parent %s is %w: macvlan, ipvlan, bridges and bonds exclude each other on one interface, and containers "+
			"have devices of another kind on it; use their mode, or another parent: %w", op.Parent, ErrTaken, err)
	}
	return fmt.Errorf("parent %s: %w", op.Parent, err)
}

func enslaved(i Interface) error {
	return fmt.Errorf("interface %s is %w: it is a port of %s; use parent=%s", i.Name, ErrTaken, i.Master, i.Master)
}

// failedDevices are the devices that could not be made in one Run, with the reason: what depends on them is left out.
type failedDevices map[string]bool

func (f failedDevices) note(o Op) {
	if o.Verb <= PlacePort {
		f[o.Device] = true
		if o.Kind == Veth {
			f[pairName(o.Endpoint)] = true
		}
	}
}

func (f failedDevices) dependsOn(o Op) bool {
	return o.Verb != DelLink && (f[o.Parent] || o.Verb > PlacePort && f[o.Device])
}

func removes(o Op) bool { return o.Verb >= DelRoute }
