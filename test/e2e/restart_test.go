//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/test/e2e/lab"
)

// packetEvery is the pace of a stream; at it, an interruption of more than that shows as a lost packet.
const packetEvery = 10 * time.Millisecond

// A stream is a ping that runs while something happens.
type stream struct {
	done chan struct{}
	out  []byte
	err  error
}

// startStream pings for as long as given, at least, independently of the node's dockerd.
func startStream(t *testing.T, n *lab.Node, container, addr string, length time.Duration) *stream {
	t.Helper()
	cmd, err := n.InContainer(t.Context(), container, "busybox", "ping", "-W", "1",
		"-i", fmt.Sprint(packetEvery.Seconds()), "-c", fmt.Sprint(int(length/packetEvery)), addr)
	if err != nil {
		t.Fatal(err)
	}
	s := &stream{done: make(chan struct{})}
	go func() {
		s.out, s.err = cmd.CombinedOutput()
		close(s.done)
	}()
	time.Sleep(300 * time.Millisecond)
	return s
}

// lost fails the test if a packet was lost, or if the stream had ended before what it was meant to watch.
func (s *stream) mustLoseNothing(t *testing.T) {
	t.Helper()
	select {
	case <-s.done:
		t.Errorf("the stream ended too early to tell anything: %v\n%s", s.err, s.out)
		return
	default:
	}
	<-s.done
	text := strings.TrimSpace(string(s.out))
	summary := text[max(0, strings.Index(text, "---")):]
	if s.err != nil || !strings.Contains(summary, " 0% packet loss") {
		t.Errorf("packets were lost: %v\n%s", s.err, summary)
	}
	t.Log(summary)
}

func TestKilledDaemonLosesNoPacketAndNoLease(t *testing.T) {
	c := hosts(t)
	network := overlay(t, c.Nodes, "--subnet", "10.102.1.0/24")
	first, second := serve(t, c.Nodes[0], network), serve(t, c.Nodes[1], network)
	addr := address(t, c.Nodes[1], network, second, "IPAddress")
	stream := startStream(t, c.Nodes[0], first, addr, 12*time.Second)
	// The store's holder and a client of it: the store is away for a while, too.
	for _, n := range c.Nodes[:2] {
		if err := n.KillDaemon(); err != nil {
			t.Fatal(err)
		}
		if err := n.StartDaemon(t.Context(), c.daemonConfig(n)); err != nil {
			t.Fatal(err)
		}
	}
	stream.mustLoseNothing(t)
	rival := network + "-rival"
	atEnd(t, c.Nodes[2], "rm", "--force", rival)
	says(t, refused(t, c.Nodes[2], "run", "--name", rival, "--network", network, "--ip", addr, lab.Image, "true"), addr)
	third := serve(t, c.Nodes[2], network)
	if err := ping(t, c.Nodes[2], third, addr); err != nil {
		t.Errorf("a container started after the restarts: %v", err)
	}
}

// Docker asks again for the addresses of its live containers; they have to be granted to it.
func TestKilledDockerdLosesNoPacketAndNoLease(t *testing.T) {
	c := hosts(t)
	network := overlay(t, c.Nodes, "--subnet", "10.102.2.0/24")
	first, second := serve(t, c.Nodes[0], network), serve(t, c.Nodes[1], network)
	addr := address(t, c.Nodes[1], network, second, "IPAddress")
	stream := startStream(t, c.Nodes[0], first, addr, 15*time.Second)
	for _, n := range c.Nodes[:2] {
		if err := n.StopDocker(unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if err := n.StartDocker(t.Context(), dockerArgs()...); err != nil {
			t.Fatal(err)
		}
	}
	stream.mustLoseNothing(t)
	if got := address(t, c.Nodes[1], network, second, "IPAddress"); got != addr {
		t.Errorf("the container's address is %s after dockerd's restart, was %s", got, addr)
	}
	docker(t, c.Nodes[1], "restart", "--time", "0", second)
	again := address(t, c.Nodes[1], network, second, "IPAddress")
	if err := ping(t, c.Nodes[0], first, again); err != nil {
		t.Errorf("after a restart of the container: %v", err)
	}
}

// Without live-restore dockerd ends its containers when it comes back, and then tells of each that it is gone.
func TestKilledDockerdWithoutLiveRestoreLeaksNoLease(t *testing.T) {
	c := hosts(t)
	n := c.Nodes[2]
	network := overlay(t, c.Nodes[1:], "--subnet", "10.102.5.0/24")
	ctx := context.WithoutCancel(t.Context()) // dockerd is restarted at the test's end, too
	restart := func(args ...string) {
		t.Helper()
		if err := n.StopDocker(unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if err := n.StartDocker(ctx, args...); err != nil {
			t.Fatal(err)
		}
	}
	restart()
	t.Cleanup(func() { restart(dockerArgs()...) })
	second, third := serve(t, c.Nodes[1], network), serve(t, n, network)
	restart()
	docker(t, n, "start", third)
	if err := ping(t, c.Nodes[1], second, address(t, n, network, third, "IPAddress")); err != nil {
		t.Error(err)
	}
	eventually(t, 5*time.Second, func() error {
		if r := report(t, n, network); r.Subnets[0].Used != 2 || len(r.Endpoints) != 2 {
			return fmt.Errorf("%d leases, endpoints %+v", r.Subnets[0].Used, r.Endpoints)
		}
		return nil
	})
}

// Nothing of a host but its disk outlives a reboot. The first host is the one that holds the store.
func TestRebootedHostIsRebuiltFromTheStore(t *testing.T) {
	c := hosts(t)
	network := overlay(t, c.Nodes, "--subnet", "10.102.3.0/24")
	containers := make(map[*lab.Node]string)
	for _, n := range c.Nodes {
		containers[n] = serve(t, n, network)
	}
	for _, n := range []*lab.Node{c.Nodes[2], c.Nodes[0]} {
		if err := reboot(t.Context(), c, n); err != nil {
			t.Fatal(err)
		}
		docker(t, n, "start", containers[n])
		other := c.Nodes[1]
		for _, pair := range [][2]*lab.Node{{n, other}, {other, n}} {
			from, to := pair[0], pair[1]
			eventually(t, 10*time.Second, func() error {
				return ping(t, from, containers[from], address(t, to, network, containers[to], "IPAddress"))
			})
		}
	}
}

// reboot cuts a node's power and starts it anew, netdriver first as a service manager would.
func reboot(ctx context.Context, c *cluster, n *lab.Node) error {
	if err := n.Reboot(ctx); err != nil {
		return err
	}
	if err := n.StartDaemon(ctx, c.daemonConfig(n)); err != nil {
		return err
	}
	return n.StartDocker(ctx, dockerArgs()...)
}

// A pool of six addresses is soon empty if a container's end does not free its own. Docker may start and stop them
// side by side.
func TestContainersComeAndGoWithoutLeakingALease(t *testing.T) {
	nodes := hosts(t).Nodes
	network := overlay(t, nodes, "--subnet", "10.102.4.0/24", "--ip-range", "10.102.4.8/29")
	const rounds = 6
	errs := make(chan error)
	for _, n := range nodes {
		go func() { errs <- churn(t.Context(), n, network, rounds) }()
	}
	var all error
	for range nodes {
		all = errors.Join(all, <-errs)
	}
	if all != nil {
		t.Error(all)
	}
}

// churn starts and removes containers one after the other; every second one dies instead of being stopped.
func churn(ctx context.Context, n *lab.Node, network string, rounds int) error {
	for i := range rounds {
		name := fmt.Sprintf("%s-%s-%d", network, n.Name, i)
		if _, err := n.Docker(ctx, "run", "--detach", "--name", name, "--network", network, lab.Image,
			"sleep", "1000"); err != nil {
			return err
		}
		if i%2 == 1 {
			if _, err := n.Docker(ctx, "kill", name); err != nil {
				return err
			}
		}
		if _, err := n.Docker(ctx, "rm", "--force", name); err != nil {
			return err
		}
	}
	return nil
}
