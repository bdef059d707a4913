//go:build e2e && virtual

package e2e

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/netdriver/netdriver/test/e2e/lab"
)

// One lab for all that virtual nodes promise, since their start is what takes time: n1 and n2 have kernels of their
// own, n1's lacks ESP, n3 is a namespace node.
func TestVirtualNodesAreHostsLikeAnyOtherWithKernelsOfTheirOwn(t *testing.T) {
	begin := time.Now()
	kernels := map[int]lab.Kernel{1: {Without: []string{"esp4"}}, 2: {Memory: 768}}
	l := ownLab(t, lab.Config{Nodes: 3, MTU: 1600, Kernels: kernels})
	t.Logf("two kernels booted in %s", time.Since(begin))
	n1, n2, n3 := l.Nodes[0], l.Nodes[1], l.Nodes[2]

	t.Run("kernels", func(t *testing.T) {
		for n, own := range map[*lab.Node]bool{n1: true, n2: true, n3: false} {
			if release := run(t, n, "uname", "-r", "-n"); strings.HasPrefix(release, n.Name+" 6.1.") != own {
				t.Errorf("%s: uname says %q, a kernel of its own: %t", n.Name, release, own)
			}
		}
		if _, err := n1.Exec(t.Context(), "modprobe", "esp4"); err == nil {
			t.Error("n1 has ESP, which it was to be without")
		}
		run(t, n2, "modprobe", "esp4")
	})

	t.Run("underlay", func(t *testing.T) {
		for _, from := range l.Nodes {
			for _, to := range append([]*lab.Node{l.Outside}, l.Nodes...) {
				run(t, from, "busybox", "ping", "-c", "1", "-W", "5", "-s", "1572", to.Addr.String())
			}
		}
	})

	// Segments larger than the MTU cross between kernels that cut them up late; see bootKernel.
	t.Run("bulk", func(t *testing.T) {
		for _, from := range []*lab.Node{n1, n3} {
			serve := n2.Command(t.Context(), "busybox", "nc", "-l", "-p", "9000", "-e", "wc", "-c")
			if err := serve.Start(); err != nil {
				t.Fatal(err)
			}
			eventually(t, 20*time.Second, func() error {
				const script = `head -c 20000000 /dev/zero | timeout 60 busybox nc "$0" 9000`
				got, err := from.Exec(t.Context(), "bash", "-c", script, n2.Addr.String())
				if err == nil && strings.TrimSpace(got) != "20000000" {
					err = fmt.Errorf("%s of 20000000 bytes arrived from %s", got, from.Name)
				}
				return err
			})
			serve.Process.Kill()
			serve.Wait()
		}
	})

	t.Run("docker", func(t *testing.T) {
		begin := time.Now()
		if err := l.StartDocker(t.Context()); err != nil {
			t.Fatal(err)
		}
		t.Logf("dockerd on all nodes in %s", time.Since(begin))
		begin = time.Now()
		docker(t, n1, "run", "--detach", "--name", "web", "--publish", "8080:80", lab.Image,
			"sh", "-c", "echo hello >/www/index.html; exec httpd -f -p 80 -h /www")
		t.Logf("a container in %s", time.Since(begin))
		eventually(t, 20*time.Second, func() error {
			got, err := httpGet(t, n3, n1.Addr.String(), 8080)
			if err == nil && got != "hello" {
				err = fmt.Errorf("got %q, want hello", got)
			}
			return err
		})
	})

	t.Run("reboot", func(t *testing.T) {
		kept := filepath.Join(n1.Dir, "netdriver", "kept")
		run(t, n1, "sh", "-c", `echo before >"$0"; sync; touch /run/mark`, kept)
		if err := n1.Reboot(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := n1.Exec(t.Context(), "test", "-e", "/run/mark"); err == nil {
			t.Error("/run outlived a reboot")
		}
		if got := run(t, n1, "cat", kept); got != "before" {
			t.Errorf("after the reboot the daemon's data directory has %q, want before", got)
		}
	})

	// Two hulls with a kernel each, and the namespace node with its dockerd and containerd.
	if during := traces(t, l.Dir); len(during) < 10 {
		t.Fatalf("a running lab shows only %q: this test cannot see what stays", during)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if after := traces(t, l.Dir); len(after) > 0 {
		t.Errorf("after Close there is still %q", after)
	}
}

// The daemon and its networks do not care which kind of host they are on: here the second one is a virtual node.
func TestANetworkSpansNamespaceAndVirtualNodes(t *testing.T) {
	c := ownCluster(t, lab.Config{Nodes: 2, Kernels: map[int]lab.Kernel{2: {}}})
	network := networkName(t)
	for i, n := range c.Nodes {
		docker(t, n, createArgs(network, "--subnet", "10.140.1.0/24")...)
		docker(t, n, "run", "--detach", "--name", fmt.Sprintf("c%d", i+1), "--network", network,
			"--ip", fmt.Sprintf("10.140.1.%d", 11+i), lab.Image, "sleep", "10000")
	}
	for i, n := range c.Nodes {
		docker(t, n, "exec", fmt.Sprintf("c%d", i+1), "ping", "-c", "2", "-W", "5", fmt.Sprintf("10.140.1.%d", 12-i))
	}
}
