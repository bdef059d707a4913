package diag

import (
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/diag/host"
	"github.com/netdriver/netdriver/store"
	"github.com/netdriver/netdriver/vxlan"
)

// End is one endpoint of a path.
type End struct {
	ID        string       `json:"id"`
	Node      string       `json:"node"`
	VTEP      netip.Addr   `json:"vtep"`
	MAC       vxlan.MAC    `json:"mac,omitzero"`
	Addresses []netip.Addr `json:"addresses"`
	// Sandbox is the file of its container's network namespace, in networks that use the host's own.
	Sandbox string `json:"sandbox,omitempty"`
}

// Question is what a node is asked about a path: to look at its part of it, and meanwhile at marked frames. A node needs
// no record to answer it.
type Question struct {
	Token host.Token `json:"token"`
	// Network, with its parameters.
	Network string    `json:"network"`
	Mode    string    `json:"mode,omitempty"`
	VNI     vxlan.VNI `json:"vni"`
	Port    uint16    `json:"port"`
	MTU     int       `json:"mtu"`
	// Here are the endpoints on that node, There the others that they are to reach.
	Here  []End `json:"here"`
	There []End `json:"there"`
	// Send are the probes that the node sends, from endpoints of its own.
	Send []Flight `json:"send,omitempty"`
	// Millis is how long it looks after it has sent, in milliseconds.
	Millis int `json:"millis"`
}

// own says whether the network uses the hosts' own, rather than VXLAN in netdriver's namespace.
func (q Question) own() bool { return q.Mode != "" && q.Mode != store.ModeOverlay }

// Flight is a number of probes from one endpoint to another.
type Flight struct {
	From  End   `json:"from"`
	To    End   `json:"to"`
	First int   `json:"first"` // sequence number of the first one
	Sizes []int `json:"sizes"` // of the IP packets, one probe each
	// Stack are sizes, too, of probes that the sender's own kernel routes, filters and addresses, from number StackFirst.
	Stack      []int `json:"stack,omitempty"`
	StackFirst int   `json:"stackFirst,omitempty"`
}

// Spoken is what became of a probe that was given to a container's own kernel.
type Spoken struct {
	Endpoint string `json:"endpoint"`
	Sequence int    `json:"sequence"`
	Size     int    `json:"size"`
	// Errno is the kernel's refusal; 0 if it took the packet.
	Errno unix.Errno `json:"errno,omitempty"`
	// Limit is the MTU in bytes that somebody has given its route; 0 if nobody has.
	Limit int `json:"limit,omitempty"`
}

// Testimony is a node's answer.
type Testimony struct {
	Node string `json:"node"`
	// Devices are the places that it looked at.
	Devices []Device `json:"devices"`
	// Sightings are the marked frames that it saw.
	Sightings []host.Sighting `json:"sightings"`
	// Moved are the kernel's counters of dropped packets that moved meanwhile, Dropped the packet filters' rules.
	Moved   []host.Moved `json:"moved,omitempty"`
	Dropped []Dropped    `json:"dropped,omitempty"`
	// Faults are what is not as it has to be, by place.
	Faults []Fault `json:"faults,omitempty"`
	// Notes are what explains a silence without being wrong.
	Notes []Fault `json:"notes,omitempty"`
	// Spoken are the probes that containers' kernels were given.
	Spoken []Spoken `json:"spoken,omitempty"`
	// Closed are the chains of packet filters that drop what none of their rules accepts.
	Closed []Closed `json:"closed,omitempty"`
	// Now is the node's clock.
	Now time.Time `json:"now,omitzero"`
}

// The places of a path, in the order in which a frame passes them. Those of an endpoint have its id.
const (
	placeStack     = "stack" // a container's own kernel
	placeContainer = "container"
	placePort      = "port"
	placeBridge    = "bridge"
	placeVXLAN     = "vxlan"
	placeUnderlay  = "underlay"
)

// at is the place of an endpoint.
func at(place, endpoint string) string { return place + " " + endpoint }

// Device is a place with the device that it is.
type Device struct {
	Place string `json:"place"`
	Name  string `json:"name"`
	MTU   int    `json:"mtu"`
}

// Dropped is a rule that dropped something.
type Dropped struct {
	// Where is "host", "netdriver" (our namespace) or "container".
	Where   string `json:"where"`
	Rule    string `json:"rule"`
	Packets uint64 `json:"packets"`
}

// Closed is a chain that drops by default, or a rule for the network's port that drops and counts nothing.
type Closed struct {
	Where string `json:"where"` // as in Dropped
	// Hook is where it stands: ingress, prerouting, input, forward, output or postrouting.
	Hook string `json:"hook"`
	Rule string `json:"rule"`
}

// Fault is what is wrong at a place.
type Fault struct {
	Place  string `json:"place"`
	Cause  string `json:"cause"`
	Remedy string `json:"remedy"`
	// Harmless faults do not stop traffic by themselves.
	Harmless bool `json:"harmless,omitempty"`
}
