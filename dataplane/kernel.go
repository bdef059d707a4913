package dataplane

import (
	"context"
	"errors"
	"fmt"

	"github.com/netdriver/netdriver/dataplane/balance"
	"github.com/netdriver/netdriver/dataplane/guard"
	"github.com/netdriver/netdriver/vxlan"
)

// Kernel is what a Plane changes. Linux is the real one, Fake is one in memory that refuses what Linux would refuse.
type Kernel interface {
	// Read returns everything of ours, sorted by VNI. A Network is returned as far as it is there. A Port's MAC and
	// Adopt are zero, since the container's end is out of sight.
	Read(ctx context.Context) ([]Network, error)
	// ReadNetwork returns one network, or the zero Network if nothing of it is there.
	ReadNetwork(ctx context.Context, v vxlan.VNI) (Network, error)
	// Run performs the operations in order. One that fails does not stop those that do not depend on it: the errors are
	// joined and each is an *OpError. Removing what is gone is no error, nor is putting an entry that is there.
	Run(ctx context.Context, ops []Op) error
	// Events reports what changes on our devices, our own operations included, until ctx ends; then the channel is closed.
	Events(ctx context.Context) (<-chan Event, error)
	// Balances says why services cannot be balanced here; nil if they can. The error wraps balance.ErrUnsupported.
	Balances() error
	// Guards says why containers' ports cannot be guarded here; nil if they can. The error wraps guard.ErrUnsupported.
	Guards() error
	// Drops returns what the packet filter dropped at the ports of a network, by port.
	Drops(ctx context.Context, v vxlan.VNI) ([]guard.Drops, error)
	// Refusals tells of some of the frames that the packet filter drops, and at which port, until ctx ends.
	Refusals(ctx context.Context, f func(port string, r guard.Refusal)) error
	// Counts returns what was balanced in a network, by backend.
	Counts(ctx context.Context, v vxlan.VNI) ([]balance.Count, error)
	// Close gives up the sockets; the networks stay.
	Close() error
}

// Event is one change on a device of ours, or the news that changes were missed.
type Event struct {
	// Lost says that events were lost (the kernel's ENOBUFS): every network must be read again. All else is zero then.
	Lost bool
	VNI  vxlan.VNI
	// Deleted: what follows is gone, or no longer as we make such things (not static, not permanent).
	Deleted bool
	// Exactly one of these is set: Device is the name of a bridge, VXLAN device or port.
	Device    string
	FDB       FDBEntry
	Neighbour Neighbour
	// MTU, Up and Enslaved are the device's state unless it was Deleted. FlagsOnly: the event is about the bridge port's
	// flags alone, of which Enslaved says whether they are as we set them.
	MTU       int
	Up        bool
	Enslaved  bool
	FlagsOnly bool
	// Detached: the event is about the programs that balance alone, which are not on the port any more.
	Detached bool
	// Guard: somebody else has changed the packet filter's table, which all networks share: each must be read again. All
	// else is zero then.
	Guard bool
}

// OpError says which operation failed.
type OpError struct {
	Op  Op
	Err error
}

func (e *OpError) Error() string {
	if e.Op.Network == "" {
		return fmt.Sprintf("%s: %v", e.Op, e.Err)
	}
	return fmt.Sprintf("network %s: %s: %v", e.Op.Network, e.Op, e.Err)
}

func (e *OpError) Unwrap() error { return e.Err }

// ErrVNITaken is wrapped by the error of AddVXLAN if another VXLAN device on this host has the same VNI and UDP port.
var ErrVNITaken = errors.New("VNI is in use on this host")

// ErrNameTaken is wrapped by the error of an addition if a device with that name is there and is not the wanted one.
var ErrNameTaken = errors.New("device name is in use")

func vniTaken(o Op) error {
	return fmt.Errorf("%w: another VXLAN device (of Docker's own overlay driver, for example) has VNI %d on UDP port %d; "+
		"create the network with another VNI or port, or remove that device (find it with: ip -d link show type vxlan)",
		ErrVNITaken, o.VNI, o.UDPPort)
}

func nameTaken(o Op) error {
	if o.Verb == AddPort {
		return fmt.Errorf("%w: a device %s is there, made for another endpoint whose id begins with the same %d characters; "+
			"remove that container or start this one again", ErrNameTaken, o.Device, idInName)
	}
	return fmt.Errorf("%w: a device %s that is not this network's is in netdriver's namespace; remove it",
		ErrNameTaken, o.Device)
}

// failedDevices are the devices that could not be made in one Run, by name: what depends on them is left out, so that
// one cause is one error.
type failedDevices map[string]bool

func (f failedDevices) note(o Op) {
	if o.Verb <= AddPort {
		f[o.Device] = true
	}
}

func (f failedDevices) dependsOn(o Op) bool {
	needsBridge := o.Verb == SetMaster || o.Verb == SetFlags || o.Verb == PutFDB && !o.VTEP.IsValid()
	return o.Verb > AddPort && o.Verb != DelLink && (f[o.Device] || needsBridge && f[BridgeName(o.VNI)])
}
