package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/dataplane"
	"github.com/netdriver/netdriver/vxlan"
)

const (
	underlayMTU = 1500
	// overlayMTU is what both layouts give their devices: 50 bytes less (RFC 7348 §5).
	overlayMTU = underlayMTU - 50
	// dockerVNI is in the range that Docker's overlay driver counts up from.
	dockerVNI = 4097
	ourVNI    = vxlan.FirstAutoVNI + 1
)

// A node is one of the two hosts with its one container.
type node struct {
	*host
	vtep      netip.Addr
	container *host
	// docker and ours are the container's addresses in the two overlays.
	docker, ours netip.Addr
	mac          vxlan.MAC
	// sandbox is the network's namespace in Docker's layout; plane and want are what makes ours.
	sandbox *host
	plane   *dataplane.Plane
	want    dataplane.Network
}

// An overlay is what differs between networks in clear and encrypted ones: the MTU in either layout, and our UDP port.
type overlay struct {
	dockerMTU, ourMTU int
	ourPort           uint16
}

func inClear() overlay { return overlay{overlayMTU, overlayMTU, vxlan.DefaultPort} }

// A testbed is two nodes with one underlay between them and one container each. Both layouts are there at the same
// time, over the same underlay, and each container has an interface in either, so that they can be measured in
// turns.
type testbed struct {
	overlay
	nodes [2]*node
	close []func()
}

// newTestbed makes everything; dir is for what the data plane keeps in files.
func newTestbed(ctx context.Context, dir string, o overlay) (*testbed, error) {
	b := &testbed{overlay: o}
	err := b.make(ctx, dir)
	if err != nil {
		b.remove()
		return nil, fmt.Errorf("make two nodes: %w", err)
	}
	return b, nil
}

func (b *testbed) remove() {
	for i := len(b.close) - 1; i >= 0; i-- {
		b.close[i]()
	}
}

func (b *testbed) make(ctx context.Context, dir string) error {
	for i := range b.nodes {
		n := &node{
			vtep: netip.AddrFrom4([4]byte{172, 31, 0, byte(i + 1)}),
			// Other addresses than the gateway's, which Docker's layout has on its bridge.
			docker: netip.AddrFrom4([4]byte{10, 9, 0, byte(i + 11)}),
			ours:   netip.AddrFrom4([4]byte{10, 8, 0, byte(i + 11)}),
			mac:    vxlan.MAC{2, 0x42, 10, 9, 0, byte(i + 11)},
		}
		b.nodes[i] = n
		for _, h := range []**host{&n.host, &n.container} {
			made, err := newHost()
			if err != nil {
				return err
			}
			*h = made
			b.close = append(b.close, made.close)
		}
	}
	if err := b.underlay(); err != nil {
		return fmt.Errorf("underlay: %w", err)
	}
	for i, n := range b.nodes {
		peer := b.nodes[1-i]
		if err := b.dockerLayout(n, peer); err != nil {
			return fmt.Errorf("layout of Docker: %w", err)
		}
		if err := b.ourLayout(ctx, filepath.Join(dir, fmt.Sprint(i)), n, peer); err != nil {
			return fmt.Errorf("netdriver's layout: %w", err)
		}
	}
	return nil
}

// underlay connects the nodes with a veth pair.
func (b *testbed) underlay() error {
	left, right := b.nodes[0], b.nodes[1]
	pair := &netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: "ul", MTU: underlayMTU},
		PeerName:      "ul",
		PeerNamespace: netlink.NsFd(int(right.ns)),
	}
	if err := left.links.LinkAdd(pair); err != nil {
		return err
	}
	return errors.Join(left.addressed("ul", left.vtep.String()+"/24"), right.addressed("ul", right.vtep.String()+"/24"))
}

// dockerLayout makes on n what Docker's overlay driver makes (moby daemon/libnetwork/drivers/overlay, ov_network.go
// and ov_utils.go): a namespace for the network with a bridge that has the gateway's address, a VXLAN device that
// learns and answers ARP, and static entries for the peer. br_netfilter is left on, as it is in every new namespace.
func (b *testbed) dockerLayout(n, peer *node) error {
	sandbox, err := newHost()
	if err != nil {
		return err
	}
	b.close = append(b.close, sandbox.close)
	n.sandbox = sandbox
	tunnel := &netlink.Vxlan{
		LinkAttrs: netlink.LinkAttrs{Name: "vxlan0", MTU: b.dockerMTU},
		VxlanId:   dockerVNI, Port: int(vxlan.DefaultPort), Learning: true, Proxy: true, L2miss: true, L3miss: true,
	}
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0", MTU: b.dockerMTU}}
	err = errors.Join(n.links.LinkAdd(tunnel), n.links.LinkSetNsFd(tunnel, int(sandbox.ns)),
		sandbox.links.LinkAdd(bridge), sandbox.addressed("br0", "10.9.0.1/24"))
	if err != nil {
		return err
	}
	moved, err := sandbox.links.LinkByName("vxlan0")
	if err != nil {
		return err
	}
	port := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: "veth0", MTU: b.dockerMTU, MasterIndex: bridge.Index, TxQLen: 0},
		PeerName:  "eth0", PeerHardwareAddr: n.mac.HardwareAddr(), PeerNamespace: netlink.NsFd(int(n.container.ns)),
	}
	return errors.Join(
		sandbox.links.LinkSetMaster(moved, bridge), sandbox.links.LinkSetUp(moved),
		sandbox.links.LinkAdd(port), sandbox.links.LinkSetUp(port),
		n.container.addressed("eth0", n.docker.String()+"/24"),
		n.dockerPeer(peer.docker, peer.mac, peer.vtep))
}

// dockerPeer tells Docker's layout on n of a container on another node.
func (n *node) dockerPeer(addr netip.Addr, mac vxlan.MAC, vtep netip.Addr) error {
	tunnel, err := n.sandbox.links.LinkByName("vxlan0")
	if err != nil {
		return err
	}
	index := tunnel.Attrs().Index
	return errors.Join(
		n.sandbox.links.NeighSet(&netlink.Neigh{
			LinkIndex: index, Family: unix.AF_INET, State: netlink.NUD_PERMANENT,
			IP: addr.AsSlice(), HardwareAddr: mac.HardwareAddr(),
		}),
		n.sandbox.links.NeighSet(&netlink.Neigh{
			LinkIndex: index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF, State: netlink.NUD_PERMANENT,
			IP: vtep.AsSlice(), HardwareAddr: mac.HardwareAddr(),
		}))
}

// ourLayout lets the data plane make its layout on n, then does libnetwork's part: it moves the container's end.
func (b *testbed) ourLayout(ctx context.Context, runDir string, n, peer *node) error {
	plane, remove, err := openPlane(runDir, n.host)
	if err != nil {
		return err
	}
	b.close = append(b.close, remove)
	endpoint := strings.Repeat("e", 12) + fmt.Sprint(n.vtep.As4()[3])
	want := emptyNetwork(n.vtep, "ul")
	want.Bridge.MTU, want.VXLAN.MTU, want.VXLAN.Port = b.ourMTU, b.ourMTU, b.ourPort
	want.Ports = []dataplane.Port{{Endpoint: endpoint, MAC: n.mac, MTU: b.ourMTU, Up: true, Enslaved: true}}
	want.FDB = []dataplane.FDBEntry{
		{VTEP: peer.vtep}, {MAC: peer.mac}, {MAC: peer.mac, VTEP: peer.vtep}, {MAC: n.mac, Port: endpoint},
	}
	want.Neighbours = []dataplane.Neighbour{{Address: n.ours, MAC: n.mac}, {Address: peer.ours, MAC: peer.mac}}
	want.Sort()
	n.plane, n.want = plane, want
	if _, err := plane.Apply(ctx, want); err != nil {
		return err
	}
	end, err := n.links.LinkByName(dataplane.ContainerEnd(endpoint))
	if err != nil {
		return fmt.Errorf("find the container's end: %w", err)
	}
	if err := n.links.LinkSetNsFd(end, int(n.container.ns)); err != nil {
		return fmt.Errorf("move the container's end: %w", err)
	}
	return n.container.addressed(end.Attrs().Name, n.ours.String()+"/24")
}

// openPlane opens the real data plane on a host; remove closes it and gives up its namespace.
func openPlane(runDir string, h *host) (plane *dataplane.Plane, remove func(), err error) {
	log := slog.New(slog.DiscardHandler)
	kernel, err := dataplane.OpenLinux(dataplane.LinuxConfig{RunDir: runDir, HostNetNS: h.path(), Log: log})
	if err != nil {
		return nil, nil, err
	}
	remove = func() {
		kernel.Close()
		// Failing to unmount leaves a namespace until this process, whose mounts are its own, has ended.
		_ = unix.Unmount(filepath.Join(runDir, "netns"), unix.MNT_DETACH)
	}
	return dataplane.NewPlane(kernel, log), remove, nil
}

// emptyNetwork is a network without endpoints.
func emptyNetwork(vtep netip.Addr, underlay string) dataplane.Network {
	return dataplane.Network{
		Name:   "bench",
		VNI:    ourVNI,
		Bridge: dataplane.Bridge{Present: true, MTU: overlayMTU, Up: true},
		VXLAN: dataplane.VXLAN{
			Present: true, Local: vtep, Underlay: underlay, Port: vxlan.DefaultPort, MTU: overlayMTU, Up: true, Enslaved: true,
		},
	}
}
