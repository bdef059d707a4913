//go:build e2e

package e2e

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/netdriver/netdriver/test/e2e/lab"
)

// A service's task moves to another node, and its volume with it. Docker has never been asked for the plugin before: Swarm
// must find it on the nodes all the same.
func TestVolumeOfAServiceMovesWithItsTask(t *testing.T) {
	s := newSwarm(t, managedDriver, lab.Config{Nodes: 2})
	dir := sharedDir(t, s.cluster)
	serviceMoves(t, s.Nodes, "my-volume", "volume-driver=custom-volume", "volume-opt=type=local", "volume-opt=device="+dir)
	says(t, run(t, s.Nodes[1], "netdriver", "volume", "inspect", "my-volume"), "device="+dir, "on node n2")
}

// serviceMoves: a service's task writes to a volume on the first node and goes on with its data on the second; then another
// service, which names the volume and nothing else, reads it on the first. More is added to the first one's mount.
func serviceMoves(t *testing.T, nodes []*lab.Node, volume string, more ...string) {
	t.Helper()
	n1, n2 := nodes[0], nodes[1]
	mount := "type=volume,source=" + volume + ",target=/data"
	service := func(name, restart, mount, script string) {
		t.Helper()
		atEndRun(t, n1, "docker", "service", "rm", name)
		eventually(t, n1.Patience(time.Minute), func() error { // a swarm of busy managers may answer too late
			_, err := n1.Docker(t.Context(), "service", "create", "--detach", "--no-resolve-image", "--name", name,
				"--constraint", "node.hostname==n1", "--restart-condition", restart, "--mount", mount, lab.Image, "sh", "-c", script)
			if _, missing := n1.Docker(t.Context(), "service", "inspect", name); err != nil && missing == nil {
				return nil
			}
			return err
		})
	}
	wrote := func(n *lab.Node, count int) {
		t.Helper()
		eventually(t, n.Patience(tasksLimit), func() error {
			out, err := n.Exec(t.Context(), "sh", "-c", "docker exec $(docker ps --quiet --filter name=writer) cat /data/log")
			if err != nil || strings.Count(out, "\n") != count {
				return errors.New("the task on " + n.Name + " has not written: " + docker(t, n1, "service", "ps", "--no-trunc", "writer"))
			}
			return nil
		})
	}
	service("writer", "any", strings.Join(append([]string{mount}, more...), ","), "hostname >>/data/log; sleep 10000")
	wrote(n1, 1)
	eventually(t, n1.Patience(time.Minute), func() error {
		_, err := n1.Docker(t.Context(), "service", "update", "--detach",
			"--constraint-rm", "node.hostname==n1", "--constraint-add", "node.hostname==n2", "writer")
		return err
	})
	wrote(n2, 2)
	service("reader", "none", mount, "wc -l </data/log; sleep 10000")
	eventually(t, n1.Patience(tasksLimit), func() error {
		if out, err := n1.Docker(t.Context(), "service", "logs", "reader"); err != nil || !strings.HasSuffix(strings.TrimSpace(out), " 2") {
			return errors.New("the other service does not read it: " + out + docker(t, n1, "service", "ps", "--no-trunc", "reader"))
		}
		return nil
	})
}
