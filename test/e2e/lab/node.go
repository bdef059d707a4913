package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// ifaFlagNoDAD is IFA_F_NODAD of linux/if_addr.h: the address is usable at once.
const ifaFlagNoDAD = unix.IFA_F_NODAD

// bootScript is what a node's init does: the set-up that has to happen inside, then nothing but reaping orphans (bash
// reaps every child) until its standard input, held by the lab's maker, ends. A sysfs mounted in a network namespace
// shows that namespace's devices, but covers the control groups, which are put back. Docker needs the mounts shared,
// and forwarding switched on as on any Docker host. There is no name server at the node's own address, which therefore
// refuses at once: the machine's own cannot be reached, and each of Docker's look-ups of its registry would take 20 s.
const bootScript = `set -e
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/docker/plugins /run/lock /run/cgroup
mount --rbind /sys/fs/cgroup /run/cgroup
mount -t sysfs sysfs /sys
mount --rbind /run/cgroup /sys/fs/cgroup
umount -l /run/cgroup
rmdir /run/cgroup
mount --make-rshared /
hostname "$0"
ip link set lo up
echo 1 >/proc/sys/net/ipv4/ip_forward
echo "nameserver $1" >"$HOME/resolv.conf"
! [ -e /etc/resolv.conf ] || mount --bind "$HOME/resolv.conf" /etc/resolv.conf
if [ "$2" = virtual ]; then echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6; fi
echo ready
read -r _`

// A Node is one pretended host.
type Node struct {
	// Name is also its host name: n1, n2, …
	Name string
	// Addr is its address on the underlay, on eth0.
	Addr netip.Addr
	// Dir holds what outlives a reboot: dockerd's data root and the daemon's data directory.
	Dir string

	lab     *Lab
	init    *process
	docker  *process
	daemon  *process
	systemd *process

	kernel     *Kernel  // of a virtual node
	machine    *process // that kernel, running
	containerd *process
}

func (l *Lab) node(name string, addr netip.Addr) *Node {
	return &Node{Name: name, Addr: addr, Dir: filepath.Join(l.Dir, name), lab: l}
}

// boot makes the node's namespaces and waits until its init has set them up.
func (n *Node) boot(ctx context.Context) error {
	if err := os.MkdirAll(n.Dir, 0o755); err != nil {
		return fmt.Errorf("boot node %s: %w", n.Name, err)
	}
	cmd := exec.Command("unshare", "--mount", "--net", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc",
		"--propagation", "private", "bash", "-c", bootScript, n.Name, n.Addr.String(), n.kind())
	cmd.Env = n.env()
	// Never written to: its end, when this process ends or in halt, is what ends the node.
	if _, err := cmd.StdinPipe(); err != nil {
		return fmt.Errorf("boot node %s: %w", n.Name, err)
	}
	before, err := os.ReadFile(n.log("init"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("boot node %s: %w", n.Name, err)
	}
	boots := bytes.Count(before, []byte("ready\n"))
	init, err := start(cmd, n.log("init"))
	if err != nil {
		return fmt.Errorf("boot node %s: %w", n.Name, err)
	}
	n.init = init
	ready := func(context.Context) error {
		text, err := os.ReadFile(init.log)
		if err == nil && bytes.Count(text, []byte("ready\n")) == boots {
			err = errors.New("its init is not ready")
		}
		return err
	}
	if err := init.waitFor(ctx, 10*time.Second, ready); err != nil {
		return fmt.Errorf("boot node %s: %w", n.Name, err)
	}
	return nil
}

// halt is the power switch: it ends every process of the node at once, and waits until they are gone. The kernel
// kills whatever is in a PID namespace when its init ends.
func (n *Node) halt() error {
	if n.init == nil {
		return nil
	}
	if err := abortFUSE(n.pid()); err != nil {
		return fmt.Errorf("halt node %s: %w", n.Name, err)
	}
	if err := n.init.stop(unix.SIGKILL, 20*time.Second); err != nil {
		return fmt.Errorf("halt node %s: %w", n.Name, err)
	}
	for _, p := range []*process{n.docker, n.daemon, n.systemd, n.machine, n.containerd} {
		if p != nil {
			<-p.done
		}
	}
	n.init, n.docker, n.daemon, n.systemd, n.machine, n.containerd = nil, nil, nil, nil, nil, nil
	return nil
}

// PowerOff cuts the node's power. All that a real host would lose is lost: processes, /run, network devices and
// namespaces; dockerd's and the daemon's data directories stay.
func (n *Node) PowerOff() error { return n.halt() }

// PowerOn boots a node again whose power was cut, with the same address. Neither dockerd nor the daemon is started
// again.
func (n *Node) PowerOn(ctx context.Context) error {
	if err := n.lab.unplug(n); err != nil {
		return fmt.Errorf("boot node %s again: remove its old port: %w", n.Name, err)
	}
	if err := n.boot(ctx); err != nil {
		return err
	}
	if err := n.lab.record(); err != nil {
		return fmt.Errorf("boot node %s again: %w", n.Name, err)
	}
	if err := n.lab.plug(n); err != nil {
		return fmt.Errorf("boot node %s again: %w", n.Name, err)
	}
	return n.bootKernel(ctx)
}

// Reboot is PowerOff and PowerOn.
func (n *Node) Reboot(ctx context.Context) error {
	if err := n.PowerOff(); err != nil {
		return err
	}
	return n.PowerOn(ctx)
}

// Command prepares a command in the node's namespaces, beside its systemd if it has one; as with exec.CommandContext,
// the end of ctx kills it.
func (n *Node) Command(ctx context.Context, args ...string) *exec.Cmd {
	if n.systemd == nil {
		return n.command(ctx, args...)
	}
	// systemd is the child of the process that made namespaces for it.
	ns := filepath.Join("/proc", strconv.Itoa(n.systemd.pid), "ns")
	namespaces := []string{"--mount=" + filepath.Join(ns, "mnt"), "--pid=" + filepath.Join(ns, "pid_for_children")}
	return n.enter(ctx, namespaces, args)
}

// command prepares a command where the node's dockerd runs.
func (n *Node) command(ctx context.Context, args ...string) *exec.Cmd {
	if n.virtual() {
		args = n.across(args)
	}
	return n.outer(ctx, args...)
}

// outer prepares a command in the node's own namespaces, which of a virtual node are not the ones that its processes
// see.
func (n *Node) outer(ctx context.Context, args ...string) *exec.Cmd {
	return n.enter(ctx, []string{"--mount", "--pid"}, args)
}

// enter prepares a command in the node's network and given other namespaces. The child of nsenter dies with nsenter,
// which has no other way to pass a SIGKILL on.
func (n *Node) enter(ctx context.Context, namespaces, args []string) *exec.Cmd {
	enter := slices.Concat([]string{"--target", strconv.Itoa(n.pid()), "--net", "--uts"}, namespaces,
		[]string{"--", "setpriv", "--pdeathsig", "KILL", "--"}, args)
	cmd := exec.CommandContext(ctx, "nsenter", enter...)
	cmd.Env = n.env()
	cmd.WaitDelay = time.Second
	return cmd
}

// Exec runs a command in the node and returns its standard output. An error names the node and the command and
// carries the standard error, and the output too.
func (n *Node) Exec(ctx context.Context, args ...string) (string, error) {
	cmd := n.Command(ctx, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		said := strings.TrimSpace(strings.TrimSpace(stdout.String()) + "\n" + strings.TrimSpace(stderr.String()))
		return stdout.String(), fmt.Errorf("on %s: %s: %w\n%s", n.Name, strings.Join(args, " "), err, said)
	}
	return stdout.String(), nil
}

// env is the environment of all commands in the node. Nothing of the caller's is passed on, so no DOCKER_HOST,
// context or client configuration of the user's leads a command out of the lab. Debian's docker comes before a
// newer client.
func (n *Node) env() []string { return []string{"PATH=" + n.path(), "HOME=" + n.Dir, "LC_ALL=C"} }

func (n *Node) path() string {
	path := "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin"
	if n.lab.config.Binary != "" {
		path = filepath.Dir(n.lab.config.Binary) + ":" + path
	}
	return path
}

// log is the file that takes the output of one of the node's processes.
func (n *Node) log(process string) string {
	return filepath.Join(n.lab.Logs(), n.Name+"-"+process+".log")
}

// netlink opens a netlink socket in the node's network namespace; only the socket moves there, not the thread.
func (n *Node) netlink() (*netlink.Handle, error) {
	ns, err := netns.GetFromPid(n.pid())
	if err != nil {
		return nil, fmt.Errorf("open the network namespace of %s: %w", n.Name, err)
	}
	defer ns.Close()
	return netlink.NewHandleAt(ns)
}

// kind is the node's kind, as its bootScript calls it.
func (n *Node) kind() string {
	if n.virtual() {
		return "virtual"
	}
	return "namespace"
}

// Path is where a file of a namespace node, such as /run/docker.sock, is found from outside the node. What is in the
// memory of a virtual node's kernel has no such place.
func (n *Node) Path(inside string) string {
	return filepath.Join("/proc", strconv.Itoa(n.pid()), "root", inside)
}

// pid is the node's init; of a node that does not run it is one that no process has, so that commands fail.
func (n *Node) pid() int {
	if n.init == nil {
		return 0
	}
	return n.init.pid
}

// start starts a long-running process in the node.
func (n *Node) start(name string, env []string, args ...string) (*process, error) {
	cmd := n.command(context.Background(), args...)
	cmd.Env = slices.Concat(cmd.Env, env)
	p, err := start(cmd, n.log(name))
	if err == nil {
		p.relay = n.virtual()
	}
	return p, err
}
