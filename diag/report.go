// Package diag is what `netdriver inspect` knows: it compares what the store wants with what the kernel has and with
// what the other nodes say of themselves, and judges. It prints nothing.
package diag

import (
	"net/netip"
	"time"

	"github.com/netdriver/netdriver/vxlan"
)

// Schema names the version of the reports' JSON. A field is added within a version; one that changes its meaning or
// goes makes another version. docs/inspect.md describes it.
const Schema = "netdriver.inspect/v1"

// Verdict is the answer to "is it well?".
type Verdict string

// The verdicts.
const (
	Healthy  Verdict = "healthy"
	Degraded Verdict = "degraded" // it works, not everywhere or not for long
	Unknown  Verdict = "unknown"  // too little could be read to judge
	Failed   Verdict = "failed"   // it does not work on this node
)

// worse returns the verdict that weighs more.
func worse(a, b Verdict) Verdict {
	weight := map[Verdict]int{Healthy: 0, Degraded: 1, Unknown: 2, Failed: 3}
	if weight[b] > weight[a] {
		return b
	}
	return a
}

// Reason is one thing that is wrong, where, and what to do about it.
type Reason struct {
	Verdict Verdict `json:"verdict"`
	Cause   string  `json:"cause"`
	// Place is a node, a subnet, or a record's key.
	Place  string `json:"place"`
	Remedy string `json:"remedy"`
}

// NetworkReport is all that is known of one network, seen from one node.
type NetworkReport struct {
	Schema  string   `json:"schema"`
	Network string   `json:"network"`
	Verdict Verdict  `json:"verdict"`
	Reasons []Reason `json:"reasons"`
	// Node made the report; Member says whether it has the network.
	Node   string `json:"node"`
	Member bool   `json:"member"`
	// DockerNetworks are the Docker networks that stand for it, as far as their names are known.
	DockerNetworks []DockerNetwork `json:"dockerNetworks,omitempty"`
	Mode           string          `json:"mode"`
	VNI            vxlan.VNI       `json:"vni"`
	Port           uint16          `json:"port"`
	Internal       bool            `json:"internal"`
	Medium         Medium          `json:"medium,omitzero"`
	Subnets        []Subnet        `json:"subnets"`
	MTU            MTU             `json:"mtu"`
	// Encryption is nil for a network whose packets travel in clear.
	Encryption *Encryption `json:"encryption,omitempty"`
	Kernel     Kernel      `json:"kernel"`
	// Admission is nil if this node is no member.
	Admission *Admission `json:"admission,omitempty"`
	Revision  Revision   `json:"revision"`
	Peers     []Peer     `json:"peers"`
	// Endpoints by address; left out of the summary of all networks, which has EndpointCount only.
	Endpoints     []Endpoint `json:"endpoints,omitempty"`
	EndpointCount int        `json:"endpointCount"`
	// Services by name; left out of the summary of all networks, which has ServiceCount only.
	Services     []Service `json:"services,omitempty"`
	ServiceCount int       `json:"serviceCount"`
	// Isolation is nil if everybody reaches everybody.
	Isolation *Isolation `json:"isolation,omitempty"`
	// Unheard says why frames that are dropped at endpoints are counted on this node, and not told as events; empty if they
	// are.
	Unheard string `json:"unheard,omitempty"`
	// Host is what the quick ones of `netdriver check` find on this node, if it has the network. It does not count for Verdict:
	// it need not be about this network. Left out of the summary of all networks.
	Host []Finding `json:"host,omitempty"`
	Data Data      `json:"data"`
}

// Medium is how a network uses the hosts' own.
type Medium struct {
	// Parent and Submode are those of the option parent and macvlan_mode.
	Parent  string `json:"parent,omitempty"`
	Submode string `json:"submode,omitempty"`
	// HostAccess: each node has an address of its own in the network.
	HostAccess bool `json:"hostAccess,omitempty"`
}

// DockerNetwork is a Docker network by the name that its users know.
type DockerNetwork struct {
	Name string `json:"name"`
	ID   string `json:"id"`
	// Swarm: it is a swarm's, on all of its nodes. Else it is that of Nodes.
	Swarm bool     `json:"swarm"`
	Nodes []string `json:"nodes,omitempty"`
}

// Subnet is one pool of a network.
type Subnet struct {
	Subnet  netip.Prefix `json:"subnet"`
	Gateway netip.Addr   `json:"gateway,omitzero"`
	// Usable is how many addresses endpoints and reservations can have, at most 2^64−1. Used are endpoints' leases,
	// Reserved the gateway's and auxiliary ones; the summary of all networks counts both as Used.
	Usable   uint64 `json:"usable"`
	Used     uint64 `json:"used"`
	Reserved uint64 `json:"reserved"`
	// First and Last are the lowest and highest address leased to endpoints.
	First netip.Addr `json:"first,omitzero"`
	Last  netip.Addr `json:"last,omitzero"`
}

// MTU is the containers' MTU and where it comes from, all in bytes. Underlay and Overhead are this node's.
type MTU struct {
	MTU      int    `json:"mtu"`
	Underlay int    `json:"underlay"`
	Overhead int    `json:"overhead"`
	Derived  string `json:"derived"`
}

// Kernel says whether this node's kernel is as the records want it.
type Kernel struct {
	// Checked is false if it could not be compared, or the node is no member.
	Checked bool `json:"checked"`
	InSync  bool `json:"inSync"`
	// Differences are the commands that would make it so, the first 100; Differing counts all.
	Differences []string `json:"differences,omitempty"`
	Differing   int      `json:"differing"`
	// Drifts are the last repairs of what something else had changed, oldest first.
	Drifts []Drift `json:"drifts,omitempty"`
}

// Drift is one repair.
type Drift struct {
	Time    time.Time `json:"time"`
	Command string    `json:"command"`
	Seconds float64   `json:"seconds"`
	Error   string    `json:"error,omitempty"`
}

// Revision compares what this node has applied of a network with its last record, in revisions of the store.
type Revision struct {
	Applied int64 `json:"applied"`
	Wanted  int64 `json:"wanted"`
	// Store is the store's own revision; 0 if it could not be asked.
	Store int64 `json:"store"`
}

// The states of a peer or node.
const (
	StateLocal   = "local"   // the node that made the report
	StateOK      = "ok"      // its daemon is connected to the store and has applied all records
	StateBehind  = "behind"  // it is connected, and its kernel is not up to date
	StateDown    = "DOWN"    // its daemon is not connected to the store
	StateUnknown = "unknown" // the store could not be asked
)

// Peer is one node that has the network.
type Peer struct {
	Node    string     `json:"node"`
	Address netip.Addr `json:"address,omitzero"`
	State   string     `json:"state"`
	// Role is its role in a swarm: "leader", "manager", "worker", or "" if it has none, or is not connected.
	Role string `json:"role,omitempty"`
	// Applied is the revision up to which its kernel agrees with the network's records.
	Applied     int64     `json:"applied"`
	UnderlayMTU int       `json:"underlayMTU"`
	Endpoints   int       `json:"endpoints"`
	Problem     string    `json:"problem,omitempty"`
	LastStatus  time.Time `json:"lastStatus,omitzero"`
}

// Endpoint is one container's interface.
type Endpoint struct {
	ID string `json:"id"`
	// Container, and the Service and Task of a swarm that it runs for, are named by its node some moments after its start;
	// empty if nothing is known.
	Container   string `json:"container,omitempty"`
	ContainerID string `json:"containerID,omitempty"`
	Service     string `json:"service,omitempty"`
	Task        string `json:"task,omitempty"`

	Node string `json:"node"`
	// Host: it is the node's own, by host access, and no container's.
	Host      bool         `json:"host,omitempty"`
	Addresses []netip.Addr `json:"addresses"`
	MAC       vxlan.MAC    `json:"mac,omitzero"`
	Phase     string       `json:"phase"`
	Created   time.Time    `json:"created"`
	// Group is what the network's rules call it, Rate its own in bits per second.
	Group string `json:"group,omitempty"`
	Rate  uint64 `json:"rate,omitempty"`
	// Drops is nil on other nodes than its own.
	Drops *Drops `json:"drops,omitempty"`
	// SeenBy of Members nodes have it in their kernel; -1 if that could not be asked.
	SeenBy  int `json:"seenBy"`
	Members int `json:"members"`
}

// Service is a service of a swarm that has a place in the network.
type Service struct {
	ID   string `json:"id"`
	Name string `json:"name"`
	// Idle: it is scaled to 0.
	Idle bool `json:"idle,omitempty"`
	// VIPs are its virtual addresses; none in endpoint mode dnsrr.
	VIPs []netip.Addr `json:"vips,omitempty"`
	// Ready is how many of its Backends take new flows.
	Ready    int       `json:"ready"`
	Backends []Backend `json:"backends,omitempty"`
}

// Backend is one task of a service.
type Backend struct {
	// Task is Docker's id of it, Name its name, such as web.2.
	Task      string       `json:"task"`
	Name      string       `json:"name"`
	Addresses []netip.Addr `json:"addresses"`
	// State is "ready"; "draining", when open connections only go to it; or "no endpoint", when none has its address.
	State string `json:"state"`
	// Node and Endpoint are where it is; empty without an endpoint.
	Node     string `json:"node,omitempty"`
	Endpoint string `json:"endpoint,omitempty"`
	// Sent is what clients on the node that made the report have sent to it; nil if nothing is counted there.
	Sent *Sent `json:"sent,omitempty"`
}

// Sent is what went to a backend through its service's virtual address since it is balanced on this node: Flows begun,
// Packets, and Bytes with the Ethernet headers.
type Sent struct {
	Flows   uint64 `json:"flows"`
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// Data says where a report comes from.
type Data struct {
	// Source is "store", "mirror" (this node's copy of the records) or "kernel" (only the devices are known).
	Source string    `json:"source"`
	Taken  time.Time `json:"taken"`
}

// The sources of Data.
const (
	SourceStore  = "store"
	SourceMirror = "mirror"
	SourceKernel = "kernel"
)

// NetworksReport is a summary of every network in the cluster.
type NetworksReport struct {
	Schema   string          `json:"schema"`
	Networks []NetworkReport `json:"networks"`
	Data     Data            `json:"data"`
}

// NodesReport lists the cluster's nodes.
type NodesReport struct {
	Schema string `json:"schema"`
	Nodes  []Node `json:"nodes"`
	Data   Data   `json:"data"`
}

// Node is one host of the cluster.
type Node struct {
	Name        string     `json:"name"`
	ID          string     `json:"id"`
	VTEP        netip.Addr `json:"vtep"`
	UnderlayMTU int        `json:"underlayMTU"`
	Version     string     `json:"version"`
	State       string     `json:"state"`
	// Role is as in Peer, Docker the version of its engine.
	Role   string `json:"role,omitempty"`
	Docker string `json:"docker,omitempty"`
	// Unbalanced says why its kernel cannot balance virtual addresses; empty if it can, or is not connected.
	Unbalanced string    `json:"unbalanced,omitempty"`
	Started    time.Time `json:"started"`
	LastStatus time.Time `json:"lastStatus,omitzero"`
	// Networks is how many it is a member of.
	Networks int `json:"networks"`
	// Problems by network, as the node tells them.
	Problems map[string]string `json:"problems,omitempty"`
}

// Health is whether this daemon itself is well.
type Health struct {
	Schema  string    `json:"schema"`
	Node    string    `json:"node"`
	Version string    `json:"version"`
	Started time.Time `json:"started"`
	// Store is empty if the store answers, else why it does not.
	Store    string            `json:"store,omitempty"`
	Problems map[string]string `json:"problems,omitempty"`
}
