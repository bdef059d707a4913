package lab

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/netdriver/netdriver/test/e2e/lab/guest"
)

// A Kernel says what a virtual node's kernel is given. Its zero value suits all that dockerd and netdriver need.
type Kernel struct {
	// Memory in MiB; 0 means DefaultMemory.
	Memory int
	// Modules are loaded at boot besides those that every node needs, for example nfsd or fuse. Most others the
	// kernel loads by itself when they are used.
	Modules []string
	// Without are modules that cannot be loaded, for a node that lacks something, for example esp4.
	Without []string
}

// DefaultMemory is a virtual node's memory in MiB when Kernel leaves it open. The machine gives it pages as they are
// used.
const DefaultMemory = 1024

// diskSize is the size of a virtual node's disk, in bytes. It is a sparse file, too.
const diskSize = 4 << 30

// kernelLimit is how long a virtual node may take to boot, with two others booting at its side.
const kernelLimit = 120 * time.Second

// kernelProgram is user-mode Linux: a kernel that is an ordinary program.
const kernelProgram = "linux.uml"

// agentPackage is the program that a virtual node runs as its first process.
const agentPackage = "github.com/netdriver/netdriver/test/e2e/lab/agent"

// manage is the link between a virtual node and the namespaces around it. It is a link of their own, so all nodes
// have the same addresses on it.
func manage() (outside, inside netip.Prefix) {
	return netip.MustParsePrefix("10.98.0.1/30"), netip.MustParsePrefix("10.98.0.2/30")
}

// defaultModules are those that every node needs at once, by the part that would miss them: Docker's packet filter, its
// bridges, netdriver's. Each one that the kernel had to ask for later would cost a modprobe of its own.
func defaultModules() []string {
	return []string{
		"iptable_nat", "iptable_filter", "iptable_mangle", "ip6table_filter", "ip6table_nat", "xt_conntrack",
		"xt_addrtype", "xt_MASQUERADE", "xt_mark", "xt_nat", "xt_tcpudp", "nf_conntrack_netlink",
		"ipv6", "br_netfilter", "veth", "bridge", "vxlan", "dummy",
		"nf_tables", "sch_ingress", "cls_bpf", "xfrm_user",
	}
}

// kernel is what node n's kernel is given; nil: it is a namespace node.
func (c Config) kernel(number int) *Kernel {
	if k, ok := c.Kernels[number]; ok {
		return &k
	}
	if c.Virtual {
		return &c.Kernel
	}
	return nil
}

// buildAgent builds the program that virtual nodes run, if there are any.
func (l *Lab) buildAgent(ctx context.Context) error {
	if !slices.ContainsFunc(l.Nodes, (*Node).virtual) {
		return nil
	}
	build := exec.CommandContext(ctx, "go", "build", "-o", l.agent(), agentPackage)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", agentPackage, err, out)
	}
	return nil
}

func (l *Lab) agent() string { return filepath.Join(l.Dir, "agent") }

// virtual says whether the node has a kernel of its own. Its namespaces are then no more than the kernel's hull.
func (n *Node) virtual() bool { return n.kernel != nil }

// bootKernel starts the kernel of a node that is plugged, if it has one, and waits until it takes commands. The
// kernel reads and writes the frames at the hull's two interfaces, so the hull itself has to keep quiet there.
func (n *Node) bootKernel(ctx context.Context) error {
	if !n.virtual() {
		return nil
	}
	if err := n.layCable(); err != nil {
		return fmt.Errorf("boot node %s: connect its kernel: %w", n.Name, err)
	}
	if err := n.formatDisk(ctx); err != nil {
		return fmt.Errorf("boot node %s: make its disk: %w", n.Name, err)
	}
	if err := n.settings().Write(n.settingsFile()); err != nil {
		return fmt.Errorf("boot node %s: %w", n.Name, err)
	}
	if err := os.RemoveAll(n.readyFile()); err != nil {
		return fmt.Errorf("boot node %s: %w", n.Name, err)
	}
	cmd := n.outer(context.Background(), n.kernelCommand()...)
	cmd.Env = append(cmd.Env, "TMPDIR="+n.Dir) // for the file that is its memory
	machine, err := start(cmd, n.log("kernel"))
	if err != nil {
		return fmt.Errorf("boot node %s: %w (Debian package user-mode-linux)", n.Name, err)
	}
	n.machine = machine
	ready := func(context.Context) error {
		_, err := os.Stat(n.readyFile())
		return err
	}
	if err := machine.waitFor(ctx, kernelLimit, ready); err != nil {
		return fmt.Errorf("boot node %s: %w", n.Name, err)
	}
	return nil
}

// kernelCommand is the command line of the node's kernel.
func (n *Node) kernelCommand() []string {
	// Without gro=1 a TCP segment that the machine's kernel leaves to be cut up is lost, again and again.
	const transport = "transport=raw,depth=128,gro=1"
	number := n.Addr.AsSlice()[len(n.Addr.AsSlice())-1]
	return []string{
		kernelProgram, fmt.Sprintf("mem=%dM", cmp.Or(n.kernel.Memory, DefaultMemory)),
		"umid=" + n.Name, "uml_dir=" + n.Dir + "/uml/",
		"root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", "ubda=" + n.disk(),
		"init=" + n.lab.agent(), guest.SettingsVariable + "=" + n.settingsFile(),
		// An interface takes an MTU beyond Ethernet's from here only.
		fmt.Sprintf("vec0:%s,ifname=eth0,mtu=%d,mac=02:99:00:00:00:%02x", transport, n.lab.config.MTU, number),
		fmt.Sprintf("vec1:%s,ifname=mgmt1,mac=02:98:00:00:00:%02x", transport, number),
		"devtmpfs.mount=0",   // it would hide the lab in /dev/shm
		"pty.legacy_count=0", // 512 devices, seconds to make
		"con=null", "con0=null,fd:1", "ssl=null", "quiet",
	}
}

// settings is what the node's first process is told.
func (n *Node) settings() guest.Settings {
	_, inside := manage()
	return guest.Settings{
		Name:    n.Name,
		Address: netip.PrefixFrom(n.Addr, n.lab.bits()),
		Gateway: n.lab.Outside.Addr,
		Manage:  inside,
		Path:    n.path(),
		Shared:  n.lab.Dir,
		Kept:    []string{filepath.Join(n.Dir, "docker"), filepath.Join(n.Dir, "netdriver")},
		Modules: append(defaultModules(), n.kernel.Modules...),
		Without: n.kernel.Without,
		Ready:   n.readyFile(),
	}
}

func (n *Node) settingsFile() string { return filepath.Join(n.Dir, "settings.json") }
func (n *Node) readyFile() string    { return filepath.Join(n.Dir, "ready") }
func (n *Node) disk() string         { return filepath.Join(n.Dir, "disk.ext4") }

// formatDisk makes the node's disk at its first boot.
func (n *Node) formatDisk(ctx context.Context) error {
	if _, err := os.Stat(n.disk()); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	file, err := os.Create(n.disk())
	if err != nil {
		return err
	}
	if err := errors.Join(file.Truncate(diskSize), file.Close()); err != nil {
		return err
	}
	format := exec.CommandContext(ctx, "mkfs.ext4", "-q", "-E", "lazy_itable_init=1,lazy_journal_init=1", n.disk())
	out, err := format.CombinedOutput()
	if err != nil {
		return fmt.Errorf("mkfs.ext4: %w: %s", err, out)
	}
	return nil
}

// layCable makes the link over which the node takes commands.
func (n *Node) layCable() error {
	handle, err := n.netlink()
	if err != nil {
		return err
	}
	defer handle.Close()
	cable := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "mgmt0"}, PeerName: "mgmt1"}
	if err := handle.LinkAdd(cable); err != nil {
		return fmt.Errorf("add veth mgmt0: %w", err)
	}
	outside, _ := manage()
	addr, err := netlink.ParseAddr(outside.String())
	if err != nil {
		return err
	}
	if err := handle.AddrAdd(cable, addr); err != nil {
		return err
	}
	for _, name := range []string{"mgmt0", "mgmt1", "eth0"} {
		link, err := handle.LinkByName(name)
		if err != nil {
			return err
		}
		if err := handle.LinkSetUp(link); err != nil {
			return fmt.Errorf("set %s up: %w", name, err)
		}
	}
	return nil
}

// across turns a command for a virtual node into one for the hull. The docker command itself runs in the hull: in
// the node its start alone takes seconds.
func (n *Node) across(args []string) []string {
	_, inside := manage()
	if args[0] == "docker" {
		engine := netip.AddrPortFrom(inside.Addr(), guest.EnginePort)
		return append([]string{"docker", "--host", "tcp://" + engine.String()}, args[1:]...)
	}
	return append([]string{n.lab.agent(), "run", inside.Addr().String()}, args...)
}

// dial connects to a unix socket in the node.
func (n *Node) dial(ctx context.Context, path string) (net.Conn, error) {
	if !n.virtual() {
		return new(net.Dialer).DialContext(ctx, "unix", n.Path(path))
	}
	_, inside := manage()
	return dialThrough(n.outer(ctx, n.lab.agent(), "dial", inside.Addr().String(), path))
}
