//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/netdriver/netdriver/test/e2e/lab"
)

// sharedDir makes a directory that every node of the lab sees, as nodes see a file system that is mounted on all.
func sharedDir(t *testing.T, c *cluster) string {
	t.Helper()
	dir, err := os.MkdirTemp(c.Dir, "shared")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// newVolume makes a volume on the first node and removes it at the test's end.
func newVolume(t *testing.T, n *lab.Node, name string, options ...string) {
	t.Helper()
	args := []string{"docker", "volume", "create", "-d", "custom-volume"}
	for _, o := range options {
		args = append(args, "-o", o)
	}
	run(t, n, append(args, name)...)
	atEndRun(t, n, "netdriver", "volume", "rm", name)
}

// atEndRun runs a command at the test's end, whether it works or not.
func atEndRun(t *testing.T, n *lab.Node, args ...string) {
	t.Cleanup(func() { _, _ = n.Exec(context.WithoutCancel(t.Context()), args...) })
}

// inVolume runs a shell line in a container that has the volume at /data.
func inVolume(t *testing.T, n *lab.Node, volume, line string) string {
	t.Helper()
	return docker(t, n, "run", "--rm", "--network", "none", "-v", volume+":/data", lab.Image, "sh", "-c", line)
}

func TestVolumeMadeOnOneNodeHasItsDataOnEveryNode(t *testing.T) {
	c := hosts(t)
	dir := sharedDir(t, c)
	newVolume(t, c.Nodes[0], "everywhere", "type=local", "device="+dir)
	inVolume(t, c.Nodes[0], "everywhere", "echo kept >/data/f")
	for _, n := range c.Nodes[1:] {
		says(t, docker(t, n, "volume", "ls"), "custom-volume", "everywhere")
		if got := inVolume(t, n, "everywhere", "cat /data/f"); got != "kept" {
			t.Errorf("%s reads %q", n.Name, got)
		}
	}
	out := docker(t, c.Nodes[1], "volume", "inspect", "everywhere")
	says(t, out, `"Driver": "custom-volume"`, `"type": "local"`)
}

func TestVolumeStaysInItsContainerWhenTheDaemonIsKilled(t *testing.T) {
	c := hosts(t)
	n := c.Nodes[1]
	newVolume(t, n, "survivor")
	id := docker(t, n, "run", "--detach", "--network", "none", "-v", "survivor:/data", lab.Image, "sh", "-c",
		"while :; do date >>/data/log; sleep 0.1; done")
	atEndRun(t, n, "docker", "rm", "--force", id)
	if err := n.KillDaemon(); err != nil {
		t.Fatal(err)
	}
	lines := func() int { return strings.Count(docker(t, n, "exec", id, "cat", "/data/log"), "\n") }
	before := lines()
	if err := n.StartDaemon(t.Context(), c.daemonConfig(n)); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, func() error {
		if lines() <= before {
			return errors.New("the container does not write any more")
		}
		_, err := n.Exec(t.Context(), "netdriver", "volume", "inspect", "survivor")
		return err
	})
	says(t, run(t, n, "netdriver", "volume", "inspect", "survivor"), "1 user")
	docker(t, n, "rm", "--force", id)
	eventually(t, 10*time.Second, func() error {
		if out := run(t, n, "netdriver", "volume", "inspect", "survivor"); strings.Contains(out, "1 user") {
			return errors.New(out)
		}
		return nil
	})
	if got := inVolume(t, n, "survivor", "head -1 /data/log"); got == "" {
		t.Error("the data is gone")
	}
}

// A server that takes no packets at all must cost its own volume's user a deadline, and nobody else anything.
func TestVolumeOfADeadServerSlowsNobodyElse(t *testing.T) {
	c := hosts(t)
	n := c.Nodes[0]
	dead := netip.MustParseAddr("192.0.2.99") // TEST-NET-1
	run(t, n, "ip", "route", "add", "blackhole", dead.String())
	atEndRun(t, n, "ip", "route", "del", "blackhole", dead.String())
	newVolume(t, n, "dead", "type=nfs", "o=addr="+dead.String(), "device=:/share")
	newVolume(t, n, "alive")
	start := time.Now()
	err := refused(t, n, "run", "--rm", "--network", "none", "-v", "dead:/data", lab.Image, "true")
	if took := time.Since(start); took > 25*time.Second {
		t.Errorf("it took %s to learn that the server is dead", took)
	}
	says(t, err, "nfs server "+dead.String())
	for _, args := range [][]string{{"ps"}, {"volume", "ls"}, {"volume", "inspect", "dead"}} {
		start := time.Now()
		docker(t, n, args...)
		if took := time.Since(start); took > time.Second {
			t.Errorf("docker %v took %s", args, took)
		}
	}
	inVolume(t, n, "alive", "true")
}

func TestVolumeIsBackedUpFromOneContainerAndRestoredForAnother(t *testing.T) {
	c := hosts(t)
	n := c.Nodes[0]
	newVolume(t, n, "original")
	newVolume(t, n, "copy")
	inVolume(t, n, "original", "mkdir -m 2750 /data/d && echo content >/data/d/f && ln /data/d/f /data/hard && ln -s d/f /data/soft && chown 5:6 /data/d/f")
	file := filepath.Join(sharedDir(t, c), "backup.tar.zst")
	run(t, n, "netdriver", "volume", "backup", "original", "-o", file)
	says(t, run(t, n, "netdriver", "volume", "verify", file), "is whole")
	run(t, n, "netdriver", "volume", "restore", file, "copy")
	const list = "cd /data && find . | sort | while read f; do stat -c '%n %a %u:%g %h %s' $f; done && cat soft"
	if want, got := inVolume(t, n, "original", list), inVolume(t, n, "copy", list); want != got || !strings.HasSuffix(got, "content") {
		t.Errorf("original:\n%s\ncopy:\n%s", want, got)
	}
}

func TestVolumesByTheHundredAreMountedAtOnce(t *testing.T) {
	c := hosts(t)
	n := c.Nodes[2]
	const many = 100
	var mounts, names []string
	for i := range many {
		names = append(names, fmt.Sprintf("many%d", i))
		mounts = append(mounts, "-v", fmt.Sprintf("many%d:/data%d", i, i))
	}
	run(t, n, "sh", "-c", "for v in "+strings.Join(names, " ")+"; do docker volume create -d custom-volume $v >/dev/null || exit 1; done")
	atEndRun(t, n, append([]string{"docker", "volume", "rm"}, names...)...)
	start := time.Now()
	args := append([]string{"run", "--rm", "--network", "none"}, mounts...)
	out := docker(t, n, append(args, lab.Image, "sh", "-c", "grep -c ' /data' /proc/mounts")...)
	if out != fmt.Sprint(many) {
		t.Errorf("the container has %s volumes", out)
	}
	t.Log("took", time.Since(start))
}
