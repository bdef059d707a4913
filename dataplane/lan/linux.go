//go:build linux

package lan

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/vxlan"
)

// routeProtocol marks the routes that are ours (struct rtmsg, rtm_protocol); /etc/iproute2/rt_protos lists the known ones.
const routeProtocol = 0x4e

// Linux is the Kernel of this machine.
type Linux struct {
	host netns.NsHandle
	h    *netlink.Handle

	closing sync.Once
}

// OpenLinux opens the sockets in the host's network namespace, the one this process was started in if path is empty.
func OpenLinux(path string) (*Linux, error) {
	if path == "" {
		path = "/proc/self/ns/net" // of the main thread, whichever thread asks
	}
	host, err := netns.GetFromPath(path)
	if err != nil {
		return nil, fmt.Errorf("open the host's network namespace %s: %w", path, err)
	}
	h, err := netlink.NewHandleAt(host, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open a netlink socket: %w", err), host.Close())
	}
	return &Linux{host: host, h: h}, nil
}

// Close implements Kernel.
func (l *Linux) Close() error {
	var err error
	l.closing.Do(func() {
		l.h.Close()
		err = l.host.Close()
	})
	return err
}

// within runs f on a thread in a network namespace. A thread that cannot be put back is given up.
func within(ns netns.NsHandle, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		home, err := netns.Get()
		if err == nil {
			if err = netns.Set(ns); err == nil {
				err = f()
			}
			if back := netns.Set(home); back == nil {
				runtime.UnlockOSThread()
			}
			err = errors.Join(err, home.Close())
		}
		done <- err
	}()
	return <-done
}

// nsfsMagic is what statfs says of a namespace's file (NSFS_MAGIC of linux/magic.h).
const nsfsMagic = 0x6e736673

// sandbox opens a container's network namespace; exists is false if there is none (any more): Docker's file is missing, or
// left without the namespace bound on it.
func sandbox(path string) (ns netns.NsHandle, exists bool, err error) {
	var st unix.Statfs_t
	err = unix.Statfs(path, &st)
	if errors.Is(err, unix.ENOENT) || err == nil && st.Type != nsfsMagic {
		return netns.None(), false, nil
	}
	if err != nil {
		return netns.None(), false, fmt.Errorf("look at sandbox %s: %w", path, err)
	}
	ns, err = netns.GetFromPath(path)
	if errors.Is(err, unix.ENOENT) {
		return netns.None(), false, nil
	}
	if err != nil {
		return netns.None(), false, fmt.Errorf("open sandbox %s: %w", path, err)
	}
	return ns, true, nil
}

// inSandbox calls f with a socket in a sandbox.
func inSandbox(path string, f func(netns.NsHandle, *netlink.Handle) error) (exists bool, err error) {
	ns, exists, err := sandbox(path)
	if err != nil || !exists {
		return exists, err
	}
	defer ns.Close()
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return true, fmt.Errorf("open a netlink socket in sandbox %s: %w", path, err)
	}
	defer h.Close() // else the socket would keep the namespace alive
	return true, f(ns, h)
}

// Changes implements Kernel.
func (l *Linux) Changes(ctx context.Context) (<-chan struct{}, error) {
	out := make(chan struct{}, 1)
	links, addrs, routes := make(chan netlink.LinkUpdate), make(chan netlink.AddrUpdate), make(chan netlink.RouteUpdate)
	failed := func(error) { tell(out) } // events were lost: look
	err := errors.Join(
		netlink.LinkSubscribeWithOptions(links, ctx.Done(), netlink.LinkSubscribeOptions{Namespace: &l.host, ErrorCallback: failed}),
		netlink.AddrSubscribeWithOptions(addrs, ctx.Done(), netlink.AddrSubscribeOptions{Namespace: &l.host, ErrorCallback: failed}),
		netlink.RouteSubscribeWithOptions(routes, ctx.Done(), netlink.RouteSubscribeOptions{Namespace: &l.host, ErrorCallback: failed}),
	)
	if err != nil {
		return nil, fmt.Errorf("subscribe to netlink events: %w", err)
	}
	go forward(ctx, links, out)
	go forward(ctx, addrs, out)
	go forward(ctx, routes, out)
	return out, nil
}

// forward tells of each event until they end.
func forward[T any](ctx context.Context, in <-chan T, out chan<- struct{}) {
	for {
		select {
		case _, ok := <-in:
			if !ok {
				return
			}
			tell(out)
		case <-ctx.Done():
			for range in { // the subscriber may be sending its last
			}
			return
		}
	}
}

func tell(out chan<- struct{}) {
	select {
	case out <- struct{}{}:
	default: // whoever reads will look at everything
	}
}

// Supports implements Kernel. The loopback can have neither kind on it, but only a kernel that knows the kind says so.
func (l *Linux) Supports(_ context.Context, kind Kind) error {
	const name = portPrefix + "probe"
	lo, err := l.h.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.ParentIndex = name, lo.Attrs().Index
	var link netlink.Link = &netlink.Macvlan{LinkAttrs: attrs, Mode: netlink.MACVLAN_MODE_BRIDGE}
	if kind == IPvlan {
		link = &netlink.IPVlan{LinkAttrs: attrs, Mode: netlink.IPVLAN_MODE_L2}
	}
	err = l.h.LinkAdd(link)
	if err == nil {
		return l.h.LinkDel(link)
	}
	if errors.Is(err, unix.EOPNOTSUPP) {
		return unsupported(string(kind))
	}
	return nil
}

// wireless says whether an interface is one of IEEE 802.11 (Documentation/ABI/testing/sysfs-class-net).
func wireless(name string) bool {
	for _, file := range []string{"phy80211", "wireless"} {
		if _, err := os.Stat(filepath.Join("/sys/class/net", name, file)); err == nil {
			return true
		}
	}
	return false
}

func macOf(l netlink.Link) (mac vxlan.MAC) {
	copy(mac[:], l.Attrs().HardwareAddr)
	return mac
}

var _ Kernel = (*Linux)(nil)
