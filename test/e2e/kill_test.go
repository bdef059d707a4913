//go:build e2e

package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// killRounds is how many times the daemon is killed, each time a little later in the life of a container.
const killRounds = 12

// The daemon is killed at another moment each time while a container starts and ends; Docker repeats the call that was
// cut. Whatever succeeded or failed: in the end no container can be without network, and nothing may be left over.
func TestADaemonKilledAtAnyMomentOfAContainersLifeLeavesNothing(t *testing.T) {
	c := hosts(t)
	n := c.Nodes[1]
	network := overlay(t, c.Nodes[:2], "--subnet", "10.106.1.0/24", "--ip-range", "10.106.1.8/29")
	first := serve(t, c.Nodes[0], network)
	for i := range killRounds {
		name := fmt.Sprintf("%s-%d", network, i)
		done := make(chan error, 1)
		go func() {
			_, err := n.Docker(t.Context(), "run", "--detach", "--name", name, "--network", network, "lab", "sleep", "1000")
			done <- err
		}()
		time.Sleep(time.Duration(i) * 40 * time.Millisecond)
		if err := n.KillDaemon(); err != nil {
			t.Fatal(err)
		}
		if err := n.StartDaemon(t.Context(), c.daemonConfig(n)); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Logf("round %d: docker run said: %v", i, err)
		} else if err := ping(t, c.Nodes[0], first, address(t, n, network, name, "IPAddress")); err != nil {
			t.Errorf("round %d: the container started and cannot be reached: %v", i, err)
		}
		go func() { _, err := n.Docker(t.Context(), "rm", "--force", name); done <- err }()
		time.Sleep(time.Duration(i) * 20 * time.Millisecond)
		if err := n.KillDaemon(); err != nil {
			t.Fatal(err)
		}
		if err := n.StartDaemon(t.Context(), c.daemonConfig(n)); err != nil {
			t.Fatal(err)
		}
		<-done
	}
	// The janitor doubts what is older than a minute and was missing twice, 30 s apart.
	eventually(t, 4*time.Minute, func() error {
		r := report(t, c.Nodes[0], network)
		ports := run(t, n, "nsenter", "--net=/run/netdriver/netns", "--", "ip", "-brief", "link", "show", "type", "veth")
		if len(r.Endpoints) != 1 || r.Subnets[0].Used != 1 {
			return fmt.Errorf("endpoints %+v, %d leases", r.Endpoints, r.Subnets[0].Used)
		}
		if strings.TrimSpace(ports) != "" {
			return fmt.Errorf("interfaces left: %s", ports)
		}
		return nil
	})
}
