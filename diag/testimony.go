package diag

import (
	"net/netip"

	"github.com/netdriver/netdriver/diag/host"
	"github.com/netdriver/netdriver/vxlan"
)

// End is one endpoint of a path.
type End struct {
	ID        string       `json:"id"`
	Node      string       `json:"node"`
	VTEP      netip.Addr   `json:"vtep"`
	MAC       vxlan.MAC    `json:"mac,omitzero"`
	Addresses []netip.Addr `json:"addresses"`
}

// Question is what a node is asked about a path: to look at its part of it, and meanwhile at marked frames. A node needs
// no record to answer it.
type Question struct {
	Token host.Token `json:"token"`
	// Network, with its parameters.
	Network string    `json:"network"`
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

// Flight is a number of probes from one endpoint to another.
type Flight struct {
	From  End   `json:"from"`
	To    End   `json:"to"`
	First int   `json:"first"` // sequence number of the first one
	Sizes []int `json:"sizes"` // of the IP packets, one probe each
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
}

// The places of a path, in the order in which a frame passes them. Those of an endpoint have its id.
const (
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

// Fault is what is wrong at a place.
type Fault struct {
	Place  string `json:"place"`
	Cause  string `json:"cause"`
	Remedy string `json:"remedy"`
	// Harmless faults do not stop traffic by themselves.
	Harmless bool `json:"harmless,omitempty"`
}
