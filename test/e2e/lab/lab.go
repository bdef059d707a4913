// Package lab builds real Docker hosts on one machine, for the end-to-end tests, the demo and the benchmarks.
//
// A node is a set of namespaces (mount, network, UTS, PID) with a tmpfs on /run and its own dockerd, so commands
// run in it see the default paths: /run/docker.sock, /run/docker/plugins, /run/netdriver. The nodes' eth0 hang on
// one bridge in a namespace of the lab's own, [Lab.Outside], which also stands for the rest of the world.
//
// A virtual node ([Config.Virtual]) has a kernel of its own, Debian's, which an emulator runs in such namespaces. It
// has what the machine's kernel may lack (ESP, IPVS, NFS, VLANs) and is slow: each instruction of its processes takes
// about ten of the machine's. Tests treat both alike.
//
// Each node's first process is the init of its PID namespace and waits for the end of a pipe that the lab's maker
// holds. So whatever way the maker ends, the kernel ends every process of the node with it, and the node's mounts
// and devices vanish with the last of them; nothing is ever looked up by name.
package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
)

// DefaultMTU is the underlay's MTU when Config leaves it open: Ethernet's.
const DefaultMTU = 1500

// Config says what lab to make. Its zero value is one node on an IPv4 underlay.
type Config struct {
	// Nodes is the number of nodes; 0 means 1, and 200 is the most the addresses have room for.
	Nodes int
	// Dir is an absolute directory for everything the lab writes; it is made, and removed by Close. Empty means a new
	// one in memory where /dev/shm has room, else in the temporary directory.
	Dir string
	// IPv6 gives the nodes fd99::N/64 instead of 10.99.0.N/24.
	IPv6 bool
	// MTU of the underlay in bytes; 0 means DefaultMTU.
	MTU int
	// Binary is the netdriver program; the demo and the tests build it first. Empty: the lab has no netdriver.
	Binary string
	// Virtual makes all nodes virtual ones, with kernels of their own as Kernel says.
	Virtual bool
	Kernel  Kernel
	// Kernels are those of single nodes, by number from 1. These nodes are virtual even if the others are not.
	Kernels map[int]Kernel
}

// A Lab is a running set of nodes. Its methods may be called from several goroutines, those of one node may not.
type Lab struct {
	// Dir holds all the lab's files; Dir/logs the logs of every dockerd and netdriver.
	Dir string
	// Nodes are n1, n2, …
	Nodes []*Node
	// Outside is the namespace of the switch: 10.99.0.254 or fd99::fe, every node's default gateway.
	Outside *Node

	config Config
	cgroup string // the parent cgroup of every container of the lab, below each controller's root
	keep   bool
}

// New makes the namespaces and the underlay of a lab; dockerds are started by Lab.StartDocker. On an error nothing is
// left. The caller must be root.
func New(ctx context.Context, config Config) (*Lab, error) {
	config.Nodes = max(config.Nodes, 1)
	if config.MTU == 0 {
		config.MTU = DefaultMTU
	}
	if config.Nodes > 200 {
		return nil, fmt.Errorf("make a lab of %d nodes: 200 is the most", config.Nodes)
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("make a lab: namespaces and dockerd need root")
	}
	dir, err := makeDir(config.Dir)
	if err != nil {
		return nil, fmt.Errorf("make the lab's directory: %w", err)
	}
	cgroup := fmt.Sprintf("%s%d-%s", dirPrefix, os.Getpid(), filepath.Base(dir))
	l := &Lab{Dir: dir, config: config, cgroup: cgroup}
	if err := l.up(ctx); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// up starts the namespaces side by side and connects them.
func (l *Lab) up(ctx context.Context) error {
	l.Outside = l.node("outside", l.addr(254))
	for i := range l.config.Nodes {
		n := l.node(fmt.Sprintf("n%d", i+1), l.addr(i+1))
		n.kernel = l.config.kernel(i + 1)
		l.Nodes = append(l.Nodes, n)
	}
	if err := l.buildAgent(ctx); err != nil {
		return err
	}
	var group errgroup.Group
	for _, n := range append([]*Node{l.Outside}, l.Nodes...) {
		group.Go(func() error { return n.boot(ctx) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if err := l.record(); err != nil {
		return fmt.Errorf("record the lab's processes: %w", err)
	}
	if err := l.makeSwitch(); err != nil {
		return fmt.Errorf("make the lab's switch: %w", err)
	}
	for _, n := range l.Nodes {
		if err := l.plug(n); err != nil {
			return fmt.Errorf("connect node %s to the lab's switch: %w", n.Name, err)
		}
	}
	return l.each(func(n *Node) error { return n.bootKernel(ctx) })
}

// addr is the underlay address with host part i.
func (l *Lab) addr(i int) netip.Addr {
	if l.config.IPv6 {
		return netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x99, 15: byte(i)})
	}
	return netip.AddrFrom4([4]byte{10, 99, 0, byte(i)})
}

// StartDocker starts every node's dockerd, side by side, and gives each the image [Image]. The arguments are added to
// each dockerd's own.
func (l *Lab) StartDocker(ctx context.Context, args ...string) error {
	image, err := l.writeImage()
	if err != nil {
		return fmt.Errorf("make the lab's image: %w", err)
	}
	return l.each(func(n *Node) error {
		if err := n.StartDocker(ctx, args...); err != nil {
			return err
		}
		return n.importImage(ctx, image)
	})
}

// each runs do for all nodes side by side and returns the first error.
func (l *Lab) each(do func(*Node) error) error {
	var group errgroup.Group
	for _, n := range l.Nodes {
		group.Go(func() error { return do(n) })
	}
	return group.Wait()
}

// KeepLogs makes Close leave Dir/logs, for somebody to find out what went wrong.
func (l *Lab) KeepLogs() { l.keep = true }

// Logs is the directory of the logs.
func (l *Lab) Logs() string { return filepath.Join(l.Dir, "logs") }

// Tails quotes the ends of all logs, for whoever can see a test's output but not its files.
func (l *Lab) Tails() string {
	names, err := filepath.Glob(filepath.Join(l.Logs(), "*.log"))
	if err != nil {
		return err.Error()
	}
	var text strings.Builder
	for _, name := range names {
		fmt.Fprintf(&text, "%s:%s\n", name, tail(name))
	}
	return text.String()
}

// Close ends all that runs in the lab and removes all it made: processes, namespaces with their mounts and devices,
// control groups, files (but for the logs after KeepLogs). A second Close does nothing.
func (l *Lab) Close() error {
	var errs []error
	for _, n := range append([]*Node{l.Outside}, l.Nodes...) {
		if n != nil {
			errs = append(errs, n.halt())
		}
	}
	errs = append(errs, removeCgroups(l.cgroup), removePluginGroups(l.Dir))
	if !l.keep {
		return errors.Join(append(errs, os.RemoveAll(l.Dir))...)
	}
	entries, err := os.ReadDir(l.Dir)
	errs = append(errs, err)
	for _, entry := range entries {
		if entry.Name() != filepath.Base(l.Logs()) {
			errs = append(errs, os.RemoveAll(filepath.Join(l.Dir, entry.Name())))
		}
	}
	return errors.Join(errs...)
}

// makeSwitch makes the bridge of the underlay. Multicast snooping is off because the bridge has no querier; whatever
// is sent beyond the lab is refused at once rather than lost, so that nothing waits for a time-out.
func (l *Lab) makeSwitch() error {
	handle, err := l.Outside.netlink()
	if err != nil {
		return err
	}
	defer handle.Close()
	snooping := false
	bridge := &netlink.Bridge{
		LinkAttrs:         netlink.LinkAttrs{Name: "br0", MTU: l.config.MTU},
		MulticastSnooping: &snooping,
	}
	if err := handle.LinkAdd(bridge); err != nil {
		return fmt.Errorf("add bridge br0: %w", err)
	}
	if err := l.configure(handle, "br0", l.Outside.Addr); err != nil {
		return err
	}
	_, err = l.Outside.Exec(context.Background(), "ip", l.family(), "route", "add", "unreachable", "default")
	return err
}

// plug gives node n its eth0, joined to the switch, with an address and a default route through the switch.
func (l *Lab) plug(n *Node) error {
	outside, err := l.Outside.netlink()
	if err != nil {
		return err
	}
	defer outside.Close()
	bridge, err := outside.LinkByName("br0")
	if err != nil {
		return err
	}
	attrs := netlink.LinkAttrs{Name: n.Name, MTU: l.config.MTU, MasterIndex: bridge.Attrs().Index}
	port := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsPid(n.pid())}
	if err := outside.LinkAdd(port); err != nil {
		return fmt.Errorf("add veth %s: %w", n.Name, err)
	}
	if err := outside.LinkSetUp(port); err != nil {
		return fmt.Errorf("set %s up: %w", n.Name, err)
	}
	if n.virtual() {
		return nil // its kernel has the address
	}
	inside, err := n.netlink()
	if err != nil {
		return err
	}
	defer inside.Close()
	if err := l.configure(inside, "eth0", n.Addr); err != nil {
		return err
	}
	if err := inside.RouteAdd(&netlink.Route{Gw: l.Outside.Addr.AsSlice()}); err != nil {
		return fmt.Errorf("add the default route: %w", err)
	}
	return nil
}

// unplug removes node n's port from the switch. The kernel would do it too once the node's namespace is gone, but
// later.
func (l *Lab) unplug(n *Node) error {
	handle, err := l.Outside.netlink()
	if err != nil {
		return err
	}
	defer handle.Close()
	link, err := handle.LinkByName(n.Name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err != nil {
		return err
	}
	return handle.LinkDel(link)
}

// configure gives a link its address, at once usable (no duplicate address detection), and sets it up.
func (l *Lab) configure(handle *netlink.Handle, name string, addr netip.Addr) error {
	link, err := handle.LinkByName(name)
	if err != nil {
		return err
	}
	parsed, err := netlink.ParseAddr(netip.PrefixFrom(addr, l.bits()).String())
	if err != nil {
		return err
	}
	if l.config.IPv6 {
		parsed.Flags = ifaFlagNoDAD
	}
	if err := handle.AddrAdd(link, parsed); err != nil {
		return fmt.Errorf("add address %s to %s: %w", addr, name, err)
	}
	if err := handle.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	return nil
}

// bits is the length of the underlay's prefix.
func (l *Lab) bits() int {
	if l.config.IPv6 {
		return 64
	}
	return 24
}

// family is the underlay's address family as an option of ip(8).
func (l *Lab) family() string {
	if l.config.IPv6 {
		return "-6"
	}
	return "-4"
}

// makeDir makes the lab's directory, with logs in it. It must not be below /run, which the nodes cover with a tmpfs.
func makeDir(dir string) (string, error) {
	if dir == "" {
		made, err := os.MkdirTemp(tempParent(), dirPrefix)
		if err != nil {
			return "", err
		}
		dir = made
	}
	if !filepath.IsAbs(dir) || strings.HasPrefix(dir, "/run/") || strings.HasPrefix(dir, "/var/run/") {
		return "", fmt.Errorf("%s: want an absolute path that is not below /run", dir)
	}
	return dir, os.MkdirAll(filepath.Join(dir, "logs"), 0o755)
}
