//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/netdriver/netdriver/test/e2e/lab"
)

// A systemdHost is a namespace node in which a systemd of its own looks after services, as on an ordinary host. What
// an installation writes goes to overlays, so that the machine's own directories stay as they are.
type systemdHost struct {
	*lab.Node
	// leader is the process, as the node sees it, in whose namespaces systemd runs: systemctl has to be in the same PID
	// namespace, since systemd wants to know its callers' process ids.
	leader string
}

// prepareScript covers the directories that are written to. Of the units, only the few that an ordinary service hangs
// on are there, empty.
const prepareScript = `set -e
for dir in etc usr/local var/lib; do
  upper=$0/$(echo $dir | tr / -)
  mkdir -p $upper.upper $upper.work
  mount -t overlay -o lowerdir=/$dir,upperdir=$upper.upper,workdir=$upper.work overlay /$dir
done
cd /etc/systemd
rm -rf system
mkdir -p system/netdriver.service.d
cd system
for target in sysinit basic shutdown multi-user network-online umount local-fs; do
  printf '[Unit]\nDefaultDependencies=no\n' >$target.target
done
printf '[Unit]\nDefaultDependencies=no\nRequires=sysinit.target basic.target\nWants=multi-user.target\n' >default.target
printf '[Service]\nStandardError=append:%s\n' "$1" >netdriver.service.d/log.conf
`

// systemdScript starts systemd in control groups below the lab's, which a control group namespace makes the topmost
// ones that it sees: $1 is their path.
const systemdScript = `set -e
echo $$ >$0/leader
roots=/sys/fs/cgroup
[ -e /sys/fs/cgroup/cgroup.controllers ] || roots=$(echo /sys/fs/cgroup/*)
for root in $roots; do
  group=$root
  for part in $(echo "$1" | tr / ' '); do
    for file in cpuset.cpus cpuset.mems; do # a new group of version 1 has none, and takes no process then
      ! [ -e "$group/$file" ] || value=$(cat "$group/$file")
      mkdir -p "$group/$part"
      ! [ -n "$value" ] || ! [ -e "$group/$part/$file" ] || echo "$value" >"$group/$part/$file"
      value=
    done
    group=$group/$part
  done
  echo $$ >"$group/cgroup.procs"
done
exec unshare --cgroup --pid --fork --kill-child --mount --propagation unchanged bash -c '
set -e
mount --make-rprivate /sys/fs/cgroup
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
  mount -t cgroup2 cgroup2 /sys/fs/cgroup
else
  umount -l /sys/fs/cgroup
  mount -t tmpfs tmpfs /sys/fs/cgroup
  mkdir /sys/fs/cgroup/systemd
  mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd
fi
mount --make-private /proc
mount -t proc proc /proc
mount --make-rprivate /dev
touch $0/console
mount --bind $0/console /dev/console
export container=lab SYSTEMD_UNIT_PATH=/etc/systemd/system SYSTEMD_GENERATOR_PATH=/nonexistent
exec /lib/systemd/systemd --log-target=console --show-status=no --unit=default.target' $0
`

// startSystemd boots a systemd in node n, until the node is halted.
func startSystemd(t *testing.T, l *lab.Lab, n *lab.Node) *systemdHost {
	t.Helper()
	dir := filepath.Join(n.Dir, "systemd")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	run(t, n, "bash", "-c", prepareScript, dir, filepath.Join(l.Logs(), n.Name+"-netdriver.log"))
	log, err := os.Create(filepath.Join(l.Logs(), n.Name+"-systemd.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	// The lab removes all groups below this one, whose name it makes in the same way.
	group := fmt.Sprintf("netdriver-lab-%d-%s/%s-systemd", os.Getpid(), filepath.Base(l.Dir), n.Name)
	cmd := n.Command(context.Background(), "bash", "-c", systemdScript, dir, group)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	h := &systemdHost{Node: n}
	eventually(t, 20*time.Second, func() error {
		select {
		case err := <-ended:
			ended <- err
			return fmt.Errorf("systemd has ended: %v", err)
		default:
		}
		leader, err := os.ReadFile(filepath.Join(dir, "leader"))
		if err != nil {
			return err
		}
		h.leader = strings.TrimSpace(string(leader))
		out, err := h.Exec(t.Context(), "systemctl", "is-system-running")
		if strings.TrimSpace(out) != "running" {
			return errors.Join(err, fmt.Errorf("systemd is %q", out))
		}
		return nil
	})
	return h
}

// Exec runs a command beside systemd, as a user's shell would.
func (h *systemdHost) Exec(ctx context.Context, args ...string) (string, error) {
	enter := []string{"nsenter", "--mount=/proc/" + h.leader + "/ns/mnt", "--pid=/proc/" + h.leader + "/ns/pid_for_children", "--"}
	return h.Node.Exec(ctx, append(enter, args...)...)
}

// run runs a command beside systemd and returns its trimmed output; an error ends the test.
func (h *systemdHost) run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := h.Exec(t.Context(), args...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}
