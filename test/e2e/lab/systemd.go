package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// systemdLimit is how long systemd may take to have started its few units.
const systemdLimit = 20 * time.Second

// prepareScript covers the directories that are written to. Of the units, only the few that an ordinary service hangs
// on are there, empty.
const prepareScript = `set -e
for dir in etc usr/local var/lib; do
  upper=$0/$(echo $dir | tr / -)
  mkdir -p $upper.upper $upper.work
  mount -t overlay -o lowerdir=/$dir,upperdir=$upper.upper,workdir=$upper.work overlay /$dir
done
rm -f /etc/resolv.conf # a mount on it is not in the overlay
cp $HOME/resolv.conf /etc
cd /etc/systemd
! [ -e $0/prepared ] || exit 0 # the node was rebooted
rm -rf system
mkdir -p system/netdriver.service.d
cd system
for target in sysinit basic shutdown multi-user network-online umount local-fs; do
  printf '[Unit]\nDefaultDependencies=no\n' >$target.target
done
printf '[Unit]\nDefaultDependencies=no\nRequires=sysinit.target basic.target\nWants=multi-user.target\n' >default.target
printf '[Service]\nStandardError=append:%s\n' "$1" >netdriver.service.d/log.conf
echo "$2" >/etc/hostname # which systemd sets
touch $0/prepared
`

// joinScript puts the shell into a control group of every hierarchy: $0 is its path below their roots. A child of the
// shell makes its own groups below that, and the lab removes them all.
const joinScript = `set -e
roots=/sys/fs/cgroup
[ -e /sys/fs/cgroup/cgroup.controllers ] || roots=$(echo /sys/fs/cgroup/*)
for root in $roots; do
  group=$root
  for part in $(echo "$0" | tr / ' '); do
    mkdir -p "$group/$part"
    for file in cpuset.cpus cpuset.mems; do # a new group of version 1 has none, and takes no process then
      if [ -e "$group/$file" ] && [ -e "$group/$part/$file" ]; then cat "$group/$file" >"$group/$part/$file"; fi
    done
    group=$group/$part
  done
  echo $$ >"$group/cgroup.procs"
done
`

// systemdScript starts systemd, which is to see the shell's control groups as the topmost ones.
const systemdScript = joinScript + `
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
touch $1/console
mount --bind $1/console /dev/console
export container=lab SYSTEMD_UNIT_PATH=/etc/systemd/system SYSTEMD_GENERATOR_PATH=/nonexistent
exec /lib/systemd/systemd --log-target=console --show-status=no --unit=default.target' "$0" "$1"
`

// StartSystemd makes the node an ordinary host in which a systemd looks after services: from here on commands run
// beside it, in its PID namespace (it wants to know its callers' process ids) and its mount namespace. What is written
// to /etc, /usr/local and /var/lib goes to overlays, so that the machine's own stay as they are, and outlives a reboot like
// Node.Dir. The log of a netdriver.service is where StartDaemon would have it.
func (n *Node) StartSystemd(ctx context.Context) error {
	dir := filepath.Join(n.Dir, "systemd")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if _, err := n.Exec(ctx, "bash", "-c", prepareScript, dir, n.log("netdriver"), n.Name); err != nil {
		return fmt.Errorf("prepare node %s for systemd: %w", n.Name, err)
	}
	// Below the lab's own group, so that the lab removes all that systemd makes.
	group := n.lab.cgroup + "/" + n.Name + "-systemd"
	p, err := n.start("systemd", nil, "bash", "-c", systemdScript, group, dir)
	if err != nil {
		return fmt.Errorf("start systemd on %s: %w", n.Name, err)
	}
	n.systemd = p
	err = p.waitFor(ctx, systemdLimit, func(ctx context.Context) error {
		out, err := n.Exec(ctx, "systemctl", "is-system-running")
		if out = strings.TrimSpace(out); out != "running" {
			err = errors.Join(err, fmt.Errorf("systemd is %q", out))
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("start systemd on %s: %w", n.Name, err)
	}
	return nil
}
