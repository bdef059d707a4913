package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/dataplane"
	"github.com/netdriver/netdriver/vxlan"
)

// remoteEndpoints is the number of endpoints on other nodes; each takes three entries in the kernel.
const remoteEndpoints = 10_000

// programming compares two ways to tell a node's kernel of 10,000 remote endpoints: the data plane's, which checks and
// plans and sends the entries in batches, and one by one with the netlink library's functions.
func programming(ctx context.Context, b *bench) ([]Result, error) {
	round := func(program func(context.Context, *target) error) func() (float64, error) {
		return func() (float64, error) { return timeProgramming(ctx, b.dir, program) }
	}
	ours, theirs, err := inTurns(ctx, max(3, b.rounds/2), round(batched), round(oneByOne))
	if err != nil {
		return nil, err
	}
	r, err := ratioResult("10,000 remote endpoints programmed, time ÷ that of one by one", ours, theirs, "ms", .35)
	return []Result{r}, err
}

// A target is a node, made for one measurement, with an empty network, and what it is to have.
type target struct {
	plane *dataplane.Plane
	ours  netns.NsHandle
	want  dataplane.Network
}

// timeProgramming makes a fresh node and returns how long program took there, in milliseconds. Whatever the way, the
// kernel must have every entry afterwards.
func timeProgramming(
	ctx context.Context, dir string, program func(context.Context, *target) error,
) (ms float64, err error) {
	h, err := newHost()
	if err != nil {
		return 0, err
	}
	defer h.close()
	runDir, err := os.MkdirTemp(dir, "program-")
	if err != nil {
		return 0, err
	}
	vtep := netip.AddrFrom4([4]byte{172, 31, 0, 1})
	underlay := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "ul", MTU: underlayMTU}, PeerName: "far"}
	if err := errors.Join(h.links.LinkAdd(underlay), h.addressed("ul", vtep.String()+"/24")); err != nil {
		return 0, fmt.Errorf("make an underlay: %w", err)
	}
	plane, remove, err := openPlane(runDir, h)
	if err != nil {
		return 0, err
	}
	defer remove()
	t := &target{plane: plane, want: populated(vtep)}
	if _, err := plane.Apply(ctx, emptyNetwork(vtep, "ul")); err != nil {
		return 0, err
	}
	if t.ours, err = netns.GetFromPath(filepath.Join(runDir, "netns")); err != nil {
		return 0, err
	}
	defer t.ours.Close()
	start := time.Now()
	if err := program(ctx, t); err != nil {
		return 0, err
	}
	took := time.Since(start)
	got, err := plane.Read(ctx, t.want.VNI)
	if err == nil && (len(got.FDB) != len(t.want.FDB) || len(got.Neighbours) != len(t.want.Neighbours)) {
		err = fmt.Errorf("the kernel has %d FDB entries and %d neighbours, want %d and %d",
			len(got.FDB), len(got.Neighbours), len(t.want.FDB), len(t.want.Neighbours))
	}
	return float64(took.Nanoseconds()) / 1e6, err
}

// populated is the network with all remote endpoints, spread over 100 nodes.
func populated(vtep netip.Addr) dataplane.Network {
	n := emptyNetwork(vtep, "ul")
	for i := range remoteEndpoints {
		at := netip.AddrFrom4([4]byte{10, 8, byte(i >> 8), byte(i)})
		mac := vxlan.MACFor(at)
		n.FDB = append(n.FDB, dataplane.FDBEntry{MAC: mac},
			dataplane.FDBEntry{MAC: mac, VTEP: netip.AddrFrom4([4]byte{172, 31, 0, byte(2 + i%100)})})
		n.Neighbours = append(n.Neighbours, dataplane.Neighbour{Address: at, MAC: mac})
	}
	n.Sort()
	return n
}

func batched(ctx context.Context, t *target) error {
	_, err := t.plane.Apply(ctx, t.want)
	return err
}

// oneByOne is the obvious way: the package's functions, which open a socket each time.
func oneByOne(_ context.Context, t *target) error {
	return inside(t.ours, func() error {
		bridge, err := netlink.LinkByName(dataplane.BridgeName(t.want.VNI))
		if err != nil {
			return err
		}
		tunnel, err := netlink.LinkByName(dataplane.VXLANName(t.want.VNI))
		if err != nil {
			return err
		}
		for _, e := range t.want.FDB {
			entry := &netlink.Neigh{
				LinkIndex: tunnel.Attrs().Index, Family: unix.AF_BRIDGE, HardwareAddr: e.MAC.HardwareAddr(),
				Flags: netlink.NTF_MASTER, State: netlink.NUD_NOARP,
			}
			if e.VTEP.IsValid() {
				entry.IP, entry.Flags, entry.State = e.VTEP.AsSlice(), netlink.NTF_SELF, netlink.NUD_PERMANENT
			}
			if err := netlink.NeighSet(entry); err != nil {
				return fmt.Errorf("set FDB entry %s: %w", e.MAC, err)
			}
		}
		for _, n := range t.want.Neighbours {
			err := netlink.NeighSet(&netlink.Neigh{
				LinkIndex: bridge.Attrs().Index, Family: unix.AF_INET, HardwareAddr: n.MAC.HardwareAddr(),
				State: netlink.NUD_PERMANENT, IP: n.Address.AsSlice(),
			})
			if err != nil {
				return fmt.Errorf("set neighbour %s: %w", n.Address, err)
			}
		}
		return nil
	})
}
