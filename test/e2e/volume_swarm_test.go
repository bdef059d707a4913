//go:build e2e

package e2e

import (
	"errors"
	"strings"
	"testing"

	"github.com/netdriver/netdriver/test/e2e/lab"
)

// A service's task moves to another node, and its volume with it. Docker has never been asked for the plugin before: Swarm
// must find it on the nodes all the same.
func TestVolumeOfAServiceMovesWithItsTask(t *testing.T) {
	s := newSwarm(t, managedDriver, lab.Config{Nodes: 2})
	dir := sharedDir(t, s.cluster)
	n1, n2 := s.Nodes[0], s.Nodes[1]
	run(t, n1, "docker", "service", "create", "--detach", "--name", "writer", "--constraint", "node.hostname==n1", "--restart-condition", "any",
		"--mount", "type=volume,source=my-volume,volume-driver=custom-volume,target=/data,volume-opt=type=local,volume-opt=device="+dir,
		lab.Image, "sh", "-c", "hostname >>/data/log; sleep 10000")
	atEndRun(t, n1, "docker", "service", "rm", "writer")
	lines := func(n *lab.Node) string {
		out, err := n.Exec(t.Context(), "sh", "-c", "docker exec $(docker ps --quiet --filter name=writer) cat /data/log")
		if err != nil {
			return ""
		}
		return out
	}
	wrote := func(n *lab.Node, count int) func() error {
		return func() error {
			if got := strings.Count(lines(n), "\n"); got != count {
				return errors.New("the task on " + n.Name + " has not written: " + docker(t, n1, "service", "ps", "--no-trunc", "writer"))
			}
			return nil
		}
	}
	eventually(t, tasksLimit, wrote(n1, 1))
	run(t, n1, "docker", "service", "update", "--detach", "--constraint-rm", "node.hostname==n1", "--constraint-add", "node.hostname==n2", "writer")
	eventually(t, tasksLimit, wrote(n2, 2))
	says(t, run(t, n2, "netdriver", "volume", "inspect", "my-volume"), "device="+dir, "on node n2")
	// It is there for a service that names neither driver nor options.
	run(t, n1, "docker", "service", "create", "--detach", "--name", "reader", "--constraint", "node.hostname==n1", "--restart-condition", "none",
		"--mount", "type=volume,source=my-volume,target=/data", lab.Image, "sh", "-c", "wc -l </data/log; sleep 10000")
	atEndRun(t, n1, "docker", "service", "rm", "reader")
	eventually(t, tasksLimit, func() error {
		if out, err := n1.Docker(t.Context(), "service", "logs", "reader"); err != nil || !strings.HasSuffix(strings.TrimSpace(out), " 2") {
			return errors.New("the other service does not read it: " + out + docker(t, n1, "service", "ps", "--no-trunc", "reader"))
		}
		return nil
	})
}
