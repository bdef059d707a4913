package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"time"

	"github.com/netdriver/netdriver/vxlan"
)

// Schema is the latest version of the records that this program writes. A record of a later version is refused, so that
// an old daemon never acts on what it does not understand.
//
//	1  all records
//	2  networks that are encrypted: a daemon that knows only 1 would carry them in clear
const Schema = 2

// ErrRecord is wrapped by every error about a record that cannot be read or written.
var ErrRecord = errors.New("bad record")

// Node is one host of the cluster, written by its daemon at start.
type Node struct {
	Name string `json:"name"`
	// ID is a random identity kept in the data directory: two hosts with one name are told apart by it.
	ID string `json:"id"`
	// VTEP is the address that the node's VXLAN packets come from and go to.
	VTEP netip.Addr `json:"vtep"`
	// UnderlayMTU is the MTU of the interface that has VTEP, in bytes.
	UnderlayMTU int `json:"underlayMTU"`
	// Encap is the UDP port of the node's ESP-in-UDP (RFC 3948); 0 means that it speaks plain ESP.
	Encap uint16 `json:"encap,omitempty"`
	// Key is the public half, in PKIX's DER, with which the node signs where no cluster's authority vouches for it.
	Key     []byte    `json:"key,omitempty"`
	Version string    `json:"version"`
	Started time.Time `json:"started"`
}

// Status is what a node says of itself, a few times per second at most while something changes.
type Status struct {
	// Applied is, for each network the node is a member of, the store's revision up to which its kernel agrees with that
	// network's records.
	Applied map[string]int64 `json:"applied,omitempty"`
	// Problems are the networks that could not be made as wanted, with the error.
	Problems map[string]string `json:"problems,omitempty"`
	Updated  time.Time         `json:"updated"`
}

// Network is one cluster network. Its first creator fixes everything but Members.
type Network struct {
	Name string `json:"name"`
	// Mode is the kind of network: ModeOverlay, or one that uses a host's own network.
	Mode string `json:"mode"`
	// VNI and Port, the UDP port of the network's VXLAN packets, are those of an overlay; zero in other modes.
	VNI  vxlan.VNI `json:"vni"`
	Port uint16    `json:"port"`
	// MTU of the containers' interfaces, in bytes.
	MTU      int            `json:"mtu"`
	Subnets  []netip.Prefix `json:"subnets"`
	Internal bool           `json:"internal,omitempty"`
	// Encrypted: the network's packets travel between nodes as ESP, or not at all.
	Encrypted bool `json:"encrypted,omitempty"`
	// Cipher is the only one allowed, as package ipsec names it; empty leaves the choice to each pair of nodes.
	Cipher string `json:"cipher,omitempty"`
	// Rekey is how long its nodes use a key.
	Rekey time.Duration `json:"rekey,omitempty"`
	// LAN is how the network uses the hosts' own; zero for an overlay or a bridge.
	LAN LAN `json:"lan,omitzero"`
	// HostAccess: each member node has an address of its own in the network.
	HostAccess bool      `json:"hostAccess,omitempty"`
	Creator    string    `json:"creator"`
	Created    time.Time `json:"created"`
	Isolation
	// Swarm is Docker's id of the swarm network that this one was allocated for, empty if it is none. Such a network stays
	// when no node has a task in it: it goes when the swarm frees it and its last member has left.
	Swarm string `json:"swarm,omitempty"`
	// SwarmName is the name that Docker has for the swarm network, once a node has found out.
	SwarmName string `json:"swarmName,omitempty"`
	// SwarmCluster is Docker's id of the swarm that has it, once a manager has found out: only that swarm's managers can
	// tell that the network is gone.
	SwarmCluster string `json:"swarmCluster,omitempty"`
	// ForeignIPAM: the swarm's own IPAM driver gives the addresses, so nobody asks for them or releases them here.
	ForeignIPAM bool `json:"foreignIPAM,omitempty"`
	// Members are the Docker networks that stand for this one, on any node. The network goes with its last member.
	Members []Member `json:"members"`
}

// Member is one Docker network that stands for a cluster network on one node.
type Member struct {
	Node string `json:"node"`
	// DockerID is libnetwork's NetworkID: it differs per host on plain engines.
	DockerID string `json:"dockerID"`
	// Name is what users of that node call it, once the node has found out; a swarm network's is Network.SwarmName.
	Name  string    `json:"name,omitempty"`
	Since time.Time `json:"since"`
}

// Pool is one subnet that addresses are leased from, cluster-wide.
type Pool struct {
	Subnet  netip.Prefix `json:"subnet"`
	Gateway netip.Addr   `json:"gateway,omitzero"`
	// Network is the cluster network that the pool belongs to or was asked for by name; empty until CreateNetwork
	// names it, since Docker asks for the pool first.
	Network string `json:"network,omitempty"`
	// Claims are nodes that asked for the pool and have not created their network yet. A pool without network and
	// claims is removed.
	Claims  []Claim   `json:"claims,omitempty"`
	Creator string    `json:"creator"`
	Created time.Time `json:"created"`
}

// Claim is a node's wish to use a pool, from RequestPool until CreateNetwork or ReleasePool; or a swarm's, until
// AllocateNetwork, through the manager Node.
type Claim struct {
	Node  string    `json:"node"`
	Swarm bool      `json:"swarm,omitempty"`
	Since time.Time `json:"since"`
}

// The kinds of lease.
const (
	LeaseGateway  = "gateway"  // reserved with the pool, shared by all nodes, goes with the pool
	LeaseAux      = "aux"      // --aux-address: kept from containers, goes with the pool
	LeaseEndpoint = "endpoint" // a container's
	LeaseNode     = "node"     // the node's own, in a network with host access; Endpoint is Node.HostEndpoint
)

// Lease is one address in use: who holds it, for what, since when.
type Lease struct {
	Address netip.Addr `json:"address"`
	Kind    string     `json:"kind"`
	// Swarm: a swarm's managers asked for the address, for a task or a service's VIP. The lease lasts until both they and
	// Node have released it, in either order.
	Swarm bool `json:"swarm,omitempty"`
	// Node is where the address is used; empty if only the swarm has it.
	Node string `json:"node,omitempty"`
	// Endpoint is empty from RequestAddress until CreateEndpoint.
	Endpoint string `json:"endpoint,omitempty"`
	// MAC is what Docker announced with the request, zero if nothing.
	MAC     vxlan.MAC `json:"mac,omitzero"`
	Created time.Time `json:"created"`
}

// Vacate returns the lease without its node; kept is false if that leaves nobody who has it.
func (l Lease) Vacate() (rest Lease, kept bool) {
	l.Node, l.Endpoint, l.MAC = "", "", vxlan.MAC{}
	return l, l.Swarm
}

// The phases of an endpoint.
const (
	// PhaseCreated: CreateEndpoint done, or left again. The node makes the interface if it is missing.
	PhaseCreated = "created"
	// PhaseJoined: Docker has the interface and moves it into the container. A missing interface is not made anew:
	// only Docker can put one into a container.
	PhaseJoined = "joined"
)

// Endpoint is one container's interface in a network.
type Endpoint struct {
	ID      string `json:"id"`
	Network string `json:"network"`
	Node    string `json:"node"`
	// DockerID is the Docker network through which the endpoint was made.
	DockerID string       `json:"dockerID"`
	IPv4     netip.Prefix `json:"ipv4,omitzero"`
	IPv6     netip.Prefix `json:"ipv6,omitzero"`
	MAC      vxlan.MAC    `json:"mac"`
	Phase    string       `json:"phase"`
	// Group is what the rules of the network call it; empty is none.
	Group string `json:"group,omitempty"`
	// Limit is its own, in the place of the network's.
	Limit
	// Host: it is the node's own place in a network with host access, not a container's.
	Host bool `json:"host,omitempty"`
	// Sandbox is the file of the container's network namespace, as Docker names it with Join; kept for networks whose
	// interfaces leave nothing on the host.
	Sandbox string    `json:"sandbox,omitempty"`
	Created time.Time `json:"created"`
}

// Addrs returns the endpoint's addresses, IPv4 first.
func (e Endpoint) Addrs() []netip.Addr {
	var as []netip.Addr
	for _, p := range []netip.Prefix{e.IPv4, e.IPv6} {
		if p.IsValid() {
			as = append(as, p.Addr())
		}
	}
	return as
}

// Service is what one swarm service has in one network, published by the managers: Docker gives it a virtual address
// there and programs nothing that answers to it.
type Service struct {
	// ID is Docker's id of the service, Name what users call it.
	ID      string `json:"id"`
	Name    string `json:"name"`
	Network string `json:"network"`
	// Idle: nobody wants a task of it now.
	Idle bool `json:"idle,omitempty"`
	// VIPs are the service's virtual addresses in the network, at most one per family, IPv4 first; none in endpoint mode
	// dnsrr.
	VIPs []netip.Addr `json:"vips,omitempty"`
	// Backends are the tasks that Swarm wants to run and says are running, and those that it is shutting down; sorted by
	// Task.
	Backends []Backend `json:"backends,omitempty"`
}

// Backend is one task of a service in one network. Its node and MAC are those of the endpoint that has the address.
type Backend struct {
	// Task is Docker's id of the task, Name what users call it, such as web.2.
	Task      string       `json:"task"`
	Name      string       `json:"name"`
	Addresses []netip.Addr `json:"addresses"`
	// Draining: the task is on its way out. Open connections go on to it, new ones do not.
	Draining bool `json:"draining,omitempty"`
}

// Record is one of the types that the store holds.
type Record interface {
	Node | Status | Network | Pool | Lease | Endpoint | Name | Service | Engine | Volume | VolumeUses |
		VolumeBackup | Protection | Conflict
}

// envelope gives every record its version.
type envelope struct {
	V      int             `json:"v"`
	Record json.RawMessage `json:"r"`
}

// Encode returns the bytes that the store keeps for r.
func Encode[R Record](r R) []byte {
	b, err := json.Marshal(struct {
		V      int `json:"v"`
		Record R   `json:"r"`
	}{version(r), r})
	if err != nil {
		panic(fmt.Sprintf("encode %T: %v", r, err)) // only plain fields: cannot happen
	}
	return b
}

// version is the first version that has all of what a record says: older programs can read the others as long as possible.
func version(r any) int {
	if n, ok := r.(Network); ok && (n.Encrypted || n.Mode != ModeOverlay) {
		return 2
	}
	return 1
}

// Decode reads a record and checks it. The error wraps ErrRecord and names the key.
func Decode[R Record](kv KV) (R, error) {
	var r R
	var e envelope
	if err := json.Unmarshal(kv.Value, &e); err != nil {
		return r, fmt.Errorf("%w %s: %v", ErrRecord, kv.Key, err)
	}
	if e.V < 1 || e.V > Schema {
		return r, fmt.Errorf("%w %s: version %d, this program knows 1 to %d; upgrade netdriver on this node",
			ErrRecord, kv.Key, e.V, Schema)
	}
	d := json.NewDecoder(bytes.NewReader(e.Record))
	if err := d.Decode(&r); err != nil {
		return r, fmt.Errorf("%w %s: %v", ErrRecord, kv.Key, err)
	}
	if err := check(any(r)); err != nil {
		return r, fmt.Errorf("%w %s: %v", ErrRecord, kv.Key, err)
	}
	return r, nil
}

var name = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}$`)

// CheckName says whether s can name a network, a node or a cluster.
func CheckName(what, s string) error {
	if !name.MatchString(s) {
		return fmt.Errorf("%s name %q: want 1 to 63 letters, digits, '_', '.' or '-', beginning with a letter or digit",
			what, s)
	}
	return nil
}

var id = regexp.MustCompile(`^[a-zA-Z0-9]{1,64}$`)

// CheckID says whether s can be an id of Docker: 1 to 64 letters or digits.
func CheckID(what, s string) error {
	if !id.MatchString(s) {
		return fmt.Errorf("%s id %q: want 1 to 64 letters or digits", what, s)
	}
	return nil
}

// check refuses a record that would make a reader misbehave.
func check(r any) error {
	switch r := r.(type) {
	case Node:
		return errors.Join(CheckName("node", r.Name), checkAddr("VTEP", r.VTEP))
	case Network:
		return r.check()
	case Pool:
		if !r.Subnet.IsValid() || r.Subnet != r.Subnet.Masked() {
			return fmt.Errorf("subnet %s is not a network address with a prefix length", r.Subnet)
		}
	case Lease:
		return checkAddr("lease", r.Address)
	case Conflict:
		return checkAddr("conflict", r.Address)
	case Endpoint:
		return r.check()
	case Name:
		return r.check()
	case Service:
		return r.check()
	case Engine:
		return CheckName("node", r.Node)
	case Volume:
		return CheckVolumeName(r.Name)
	case VolumeBackup:
		return errors.Join(CheckVolumeName(r.Volume), CheckName("node", r.Node))
	case VolumeUses:
		return CheckName("node", r.Node)
	case Protection:
		return CheckName("node", r.Node)
	}
	return nil
}

func (n Network) check() error {
	errs := []error{CheckName("network", n.Name), n.checkMode()}
	if n.Encrypted != (n.Rekey > 0) || n.Cipher != "" && !n.Encrypted {
		errs = append(errs, fmt.Errorf("encrypted %t with cipher %q and a new key every %s", n.Encrypted, n.Cipher, n.Rekey))
	}
	if n.MTU < vxlan.MinMTU4 {
		errs = append(errs, fmt.Errorf("MTU %d is below %d", n.MTU, vxlan.MinMTU4))
	}
	for _, p := range n.Subnets {
		if !p.IsValid() {
			errs = append(errs, errors.New("invalid subnet"))
		}
	}
	return errors.Join(errs...)
}

func (e Endpoint) check() error {
	errs := []error{CheckID("endpoint", e.ID), CheckName("node", e.Node)}
	if e.MAC.IsZero() {
		errs = append(errs, errors.New("no MAC address"))
	}
	if len(e.Addrs()) == 0 {
		errs = append(errs, errors.New("no address"))
	}
	return errors.Join(errs...)
}

func (s Service) check() error {
	errs := []error{CheckID("service", s.ID)}
	for _, v := range s.VIPs {
		errs = append(errs, checkAddr("VIP", v))
	}
	for _, b := range s.Backends {
		errs = append(errs, CheckID("task", b.Task))
		for _, a := range b.Addresses {
			errs = append(errs, checkAddr("task "+b.Task, a))
		}
	}
	return errors.Join(errs...)
}

func checkAddr(what string, a netip.Addr) error {
	if !a.IsValid() {
		return fmt.Errorf("%s without address", what)
	}
	return nil
}
