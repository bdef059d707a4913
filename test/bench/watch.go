package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/test/e2e/lab"
	"github.com/netdriver/netdriver/vxlan"
)

// networksOf opens the namespace that a node's daemon keeps its networks in.
func networksOf(n *lab.Node) (netns.NsHandle, error) {
	ns, err := netns.GetFromPath(n.Path("/run/netdriver/netns"))
	if err != nil {
		return netns.None(), fmt.Errorf("open netdriver's network namespace on %s: %w", n.Name, err)
	}
	return ns, nil
}

// kernelOf opens a netlink socket in that namespace.
func kernelOf(n *lab.Node) (*netlink.Handle, error) {
	ns, err := networksOf(n)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	return netlink.NewHandleAt(ns)
}

// devicesMade says whether a node's kernel has that many veth ports.
func devicesMade(n *lab.Node, count int) error {
	kernel, err := kernelOf(n)
	if err != nil {
		return err
	}
	defer kernel.Close()
	links, err := kernel.LinkList()
	if err != nil {
		return err
	}
	var veths int
	for _, l := range links {
		if l.Type() == "veth" {
			veths++
		}
	}
	if veths != count {
		return fmt.Errorf("%s has %d veth devices, want %d", n.Name, veths, count)
	}
	return nil
}

// A watch notes when endpoints come into the forwarding database of each of several nodes. It hears the kernels' own
// notifications, so the daemons are not disturbed by being asked.
type watch struct {
	nodes int
	// ctx ends with close, or with the error that broke the watch as its cause.
	ctx    context.Context
	cancel context.CancelCauseFunc

	mu      sync.Mutex
	flights map[vxlan.MAC]*flight
}

// A flight is one endpoint on its way to all nodes.
type flight struct {
	// home is the endpoint's own node.
	home int
	at   map[int]bool
	last time.Time
	// everywhere is closed when the endpoint has come to the last node, at last.
	everywhere chan struct{}
}

// newWatch listens on all nodes until close.
func newWatch(ctx context.Context, nodes []*lab.Node) (*watch, error) {
	w := &watch{nodes: len(nodes), flights: map[vxlan.MAC]*flight{}}
	w.ctx, w.cancel = context.WithCancelCause(ctx)
	for i, n := range nodes {
		if err := w.subscribe(i, n); err != nil {
			w.close()
			return nil, fmt.Errorf("listen to the kernel of %s: %w", n.Name, err)
		}
	}
	return w, nil
}

func (w *watch) close() { w.cancel(nil) }

func (w *watch) subscribe(i int, n *lab.Node) error {
	ns, err := networksOf(n)
	if err != nil {
		return err
	}
	defer ns.Close()
	updates := make(chan netlink.NeighUpdate, 1024)
	err = netlink.NeighSubscribeWithOptions(updates, w.ctx.Done(), netlink.NeighSubscribeOptions{
		Namespace: &ns, ReceiveBufferSize: 8 << 20, ReceiveBufferForceSize: true,
		// After close, too, when it changes nothing any more.
		ErrorCallback: func(err error) { w.cancel(fmt.Errorf("listen to the kernel of %s: %w", n.Name, err)) },
	})
	if err != nil {
		return err
	}
	go func() {
		for u := range updates {
			w.note(i, u)
		}
	}()
	return nil
}

// expect begins to watch for an endpoint of one of the nodes.
func (w *watch) expect(mac vxlan.MAC, home int) *flight {
	f := &flight{home: home, at: map[int]bool{}, everywhere: make(chan struct{})}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.flights[mac] = f
	return f
}

// note counts an endpoint as arrived with the entry that traffic needs: on its own node the static one of the bridge's
// table, on the others the one with the VTEP in the VXLAN device's own.
func (w *watch) note(node int, u netlink.NeighUpdate) {
	now := time.Now()
	if u.Type != unix.RTM_NEWNEIGH || u.Family != unix.AF_BRIDGE || len(u.HardwareAddr) != len(vxlan.MAC{}) {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	f := w.flights[vxlan.MAC(u.HardwareAddr)]
	if f == nil || f.at[node] || (u.IP == nil) != (f.home == node) {
		return
	}
	f.at[node], f.last = true, now
	if len(f.at) == w.nodes {
		close(f.everywhere)
	}
}

// arrived waits until an endpoint has come to all nodes and returns when it came to the last.
func (w *watch) arrived(ctx context.Context, f *flight) (time.Time, error) {
	var why error
	select {
	case <-f.everywhere:
		return f.last, nil
	case <-w.ctx.Done():
		why = context.Cause(w.ctx)
	case <-ctx.Done():
		why = ctx.Err()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return time.Time{}, fmt.Errorf("it has come to %d of %d nodes: %w", len(f.at), w.nodes, why)
}
