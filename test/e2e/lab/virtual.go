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

	"github.com/netdriver/netdriver/test/e2e/lab/guest"
)

// A Kernel says what a virtual node's kernel is given. Its zero value suits all that dockerd and netdriver need.
type Kernel struct {
	// Memory in MiB; 0 means DefaultMemory.
	Memory int
	// CPU is what QEMU is to emulate, empty: DefaultCPU. Without AES instructions it is "max,aes=off".
	CPU string
	// Modules are loaded at boot besides those that every node needs, for example nfsd or fuse. Most others the
	// kernel loads by itself when they are used.
	Modules []string
	// Without are modules that cannot be loaded, for a node that lacks something, for example esp4. Without nf_tables
	// the node's iptables is the old one.
	Without []string
}

// DefaultMemory is a virtual node's memory in MiB when Kernel leaves it open. The machine gives it pages as they are
// used.
const DefaultMemory = 1024

// DefaultCPU has all that QEMU can emulate, but for the fifth level of page tables, which only costs time.
const DefaultCPU = "max,la57=off"

// diskSize is the size of a virtual node's disk, in bytes. It is a sparse file, too.
const diskSize = 4 << 30

// kernelLimit is how long a virtual node may take to boot, with two others booting at its side.
const kernelLimit = 120 * time.Second

// emulator runs a virtual node: QEMU, which translates the code of the kernel and its processes (TCG). It needs no
// support by the machine's CPU or kernel.
const emulator = "qemu-system-x86_64"

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

// buildAgent builds the program that virtual nodes run, and what their kernels start from, if there are any.
func (l *Lab) buildAgent(ctx context.Context) error {
	if !slices.ContainsFunc(l.Nodes, (*Node).virtual) {
		return nil
	}
	build := exec.CommandContext(ctx, "go", "build", "-o", l.agent(), agentPackage)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", agentPackage, err, out)
	}
	return l.packRoot(ctx)
}

func (l *Lab) agent() string { return filepath.Join(l.Dir, "agent") }

// virtual says whether the node has a kernel of its own. Its namespaces are then no more than the kernel's hull.
func (n *Node) virtual() bool { return n.kernel != nil }

// bootKernel starts the kernel of a node that is plugged, if it has one, and waits until it takes commands.
func (n *Node) bootKernel(ctx context.Context) error {
	if !n.virtual() {
		return nil
	}
	if err := n.layCables(ctx); err != nil {
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
	command, err := n.kernelCommand()
	if err != nil {
		return fmt.Errorf("boot node %s: %w", n.Name, err)
	}
	machine, err := start(n.outer(context.Background(), command...), n.log("kernel"))
	if err != nil {
		return fmt.Errorf("boot node %s: %w (Debian package qemu-system-x86)", n.Name, err)
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

// kernelCommand is the command line of the node's emulator. One CPU: a second one that waits for the first takes the
// machine's time from it. no_timer_check: on a busy machine the emulated timer is late, which the kernel would take for broken.
func (n *Node) kernelCommand() ([]string, error) {
	version, err := kernelVersion()
	if err != nil {
		return nil, err
	}
	number := n.Addr.AsSlice()[len(n.Addr.AsSlice())-1]
	share := "local,security_model=none,multidevs=remap,"
	return []string{
		emulator, "-accel", "tcg", "-cpu", cmp.Or(n.kernel.CPU, DefaultCPU),
		"-m", fmt.Sprint(cmp.Or(n.kernel.Memory, DefaultMemory)),
		"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio",
		"-kernel", "/boot/vmlinuz-" + version, "-initrd", n.lab.packedRoot(),
		"-append", fmt.Sprintf("console=ttyS0 quiet panic=-1 mitigations=off no_timer_check %s=%s", guest.SettingsVariable, n.settingsFile()),
		"-fsdev", share + "id=machine,readonly=on,path=/",
		"-device", "virtio-9p-pci,fsdev=machine,mount_tag=" + guest.MachineTag,
		"-fsdev", share + "id=lab,path=" + n.lab.Dir,
		"-device", "virtio-9p-pci,fsdev=lab,mount_tag=" + guest.SharedTag,
		"-drive", "if=virtio,format=raw,cache=unsafe,file=" + n.disk(),
		"-netdev", "tap,id=underlay,script=no,downscript=no,ifname=" + underlayTap,
		"-device", fmt.Sprintf("virtio-net-pci,netdev=underlay,romfile=,mac=02:99:00:00:00:%02x", number),
		"-netdev", "tap,id=manage,script=no,downscript=no,ifname=" + manageTap,
		"-device", fmt.Sprintf("virtio-net-pci,netdev=manage,romfile=,mac=02:98:00:00:00:%02x", number),
	}, nil
}

// settings is what the node's first process is told.
func (n *Node) settings() guest.Settings {
	_, inside := manage()
	return guest.Settings{
		Name:    n.Name,
		Address: netip.PrefixFrom(n.Addr, n.lab.bits()),
		MTU:     n.lab.config.MTU,
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

// The interfaces of a hull at whose other end is its kernel.
const (
	underlayTap = "tap0"
	manageTap   = "tap1"
)

// cableScript makes them. What the kernel sends and gets on the underlay passes a bridge to the hull's eth0; the hull
// itself keeps quiet there.
const cableScript = `set -e
for tap in "$0" "$1"; do ip tuntap add dev "$tap" mode tap vnet_hdr; done
ip link add hull type bridge mcast_snooping 0
for link in "$0" eth0; do ip link set "$link" mtu "$2" master hull up; done
ip link set hull up
ip address add "$3" dev "$1"
ip link set "$1" up`

// layCables connects the kernel to the underlay, and to the hull, from where it takes commands.
func (n *Node) layCables(ctx context.Context) error {
	outside, _ := manage()
	cmd := n.outer(ctx, "sh", "-c", cableScript, underlayTap, manageTap, fmt.Sprint(n.lab.config.MTU), outside.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
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

// Dial connects to a unix socket in the node.
func (n *Node) Dial(ctx context.Context, path string) (net.Conn, error) {
	if !n.virtual() {
		return new(net.Dialer).DialContext(ctx, "unix", n.Path(path))
	}
	_, inside := manage()
	return dialThrough(n.outer(ctx, n.lab.agent(), "dial", inside.Addr().String(), path))
}
