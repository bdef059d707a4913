//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/test/e2e/lab"
)

// installHost makes a lab of one host with dockerd and systemd and without netdriver. The arguments are dockerd's.
func installHost(t *testing.T, args ...string) (*lab.Lab, *lab.Node) {
	t.Helper()
	l := ownLab(t, lab.Config{Nodes: 1})
	if err := l.Nodes[0].StartSystemd(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := l.StartDocker(t.Context(), args...); err != nil {
		t.Fatal(err)
	}
	// Docker makes this one by itself as soon as a container needs it, and keeps it: it is not netdriver's.
	docker(t, l.Nodes[0], "network", "create", "--opt", "com.docker.network.bridge.name=docker_gwbridge",
		"--opt", "com.docker.network.bridge.enable_icc=false", "docker_gwbridge")
	return l, l.Nodes[0]
}

// remains lists all that an installation could leave on a host.
func remains(t *testing.T, n *lab.Node) []string {
	t.Helper()
	return strings.Split(run(t, n, "bash", "-c", `
ip -all netns
ip -brief link | awk '{ print "link", $1 }'
nft --stateless list ruleset | grep -v '^#' | sort # a restarted dockerd writes its rules in another order
ip xfrm state; ip xfrm policy
find /sys/fs/bpf
awk '{ print "mount", $5 }' /proc/self/mountinfo
find /etc /usr/local /var/lib/netdriver /run/netdriver /run/docker/plugins 2>/dev/null
docker plugin ls --no-trunc
docker network ls --format '{{.Name}} {{.Driver}}'
systemctl list-units --all --plain --no-legend 'netdriver*'
true`), "\n")
}

// newer makes a program that does the same and is another file: what follows an ELF file's sections is not loaded.
func newer(t *testing.T, l *lab.Lab) string {
	t.Helper()
	program, err := os.ReadFile(binary(t))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(l.Dir, "newer", "netdriver")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, append(program, "newer"...), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestAHostIsAsItWasAfterInstallationUseAndRemoval(t *testing.T) {
	l, h := installHost(t, dockerArgs()...)
	before := remains(t, h)
	says(t, run(t, h, binary(t), "install", "--dry-run"), "systemctl start netdriver.service")
	if diff := cmp.Diff(before, remains(t, h)); diff != "" {
		t.Errorf("a dry run changed the host (-before +after):\n%s", diff)
	}
	says(t, run(t, h, binary(t), "install", "--underlay", "eth0"), "systemctl start netdriver.service")
	says(t, run(t, h, binary(t), "install"), "nothing to do")
	says(t, run(t, h, "netdriver", "nodes"), h.Addr.String())

	const network = "plain"
	docker(t, h, createArgs(network, "--subnet", "10.120.1.0/24")...)
	first, second := serve(t, h, network), network+"-second"
	docker(t, h, "run", "--detach", "--name", second, "--network", network, lab.Image, "sleep", "1000")
	stream := startStream(t, h, first, address(t, h, network, second, "IPAddress"), 8*time.Second)
	says(t, run(t, h, newer(t, l), "install"), "systemctl restart netdriver.service")
	stream.mustLoseNothing(t)
	if got := run(t, h, "sh", "-c", "tail -c 5 /proc/$(systemctl show --value -p MainPID netdriver)/exe"); got != "newer" {
		t.Errorf("the service runs a program that ends in %q", got)
	}

	if out, err := h.Exec(t.Context(), "netdriver", "uninstall", "--purge"); err == nil {
		t.Errorf("uninstalled under running containers: %s", out)
	} else {
		says(t, err.Error(), first+" in "+network, "--force")
	}
	docker(t, h, "rm", "--force", first, second)
	says(t, run(t, h, "netdriver", "uninstall", "--purge"), "docker network rm "+network, "remove from the kernel")
	if diff := cmp.Diff(before, remains(t, h)); diff != "" {
		t.Errorf("something is left (-before +after):\n%s", diff)
	}
}

// A killed daemon comes back by itself, and so does one that its host's boot could not start yet.
func TestTheServiceComesBack(t *testing.T) {
	_, h := installHost(t)
	run(t, h, binary(t), "install")
	pid := run(t, h, "systemctl", "show", "--value", "--property=MainPID", "netdriver")
	run(t, h, "systemctl", "kill", "--signal=KILL", "netdriver")
	eventually(t, 15*time.Second, func() error { _, err := h.Exec(t.Context(), "netdriver", "nodes"); return err })
	if again := run(t, h, "systemctl", "show", "--value", "--property=MainPID", "netdriver"); again == pid {
		t.Error("it was not killed")
	}
	run(t, h, "netdriver", "uninstall", "--purge")
}

// swarmHost makes a lab of one host that is a swarm of its own, with the managed plugin and a network, and returns what
// was on the host before the installation, too.
func swarmHost(t *testing.T, network string) (l *lab.Lab, h *lab.Node, before []string) {
	t.Helper()
	l, h = installHost(t) // a swarm does without live-restore
	before = remains(t, h)
	says(t, run(t, h, binary(t), "install", "--swarm", "--underlay", "eth0"), "docker plugin enable")
	says(t, run(t, h, binary(t), "install", "--swarm"), "nothing to do")
	docker(t, h, "swarm", "init", "--advertise-addr", h.Addr.String())
	docker(t, h, "network", "create", "-d", "custom-overlay:latest", "--ipam-driver", "custom-overlay:latest",
		"--attachable", "--subnet", "10.121.1.0/24", network)
	return l, h, before
}

// start starts a container in a network, and returns what `docker run` says. It may be called beside the test.
func start(t *testing.T, n *lab.Node, network, name string) error {
	_, err := n.Docker(t.Context(), "run", "--detach", "--name", name, "--network", network, lab.Image, "sleep", "1000")
	return err
}

func TestCallsOfASwarmWaitForADaemonThatIsAway(t *testing.T) {
	const network = "swarm-wait"
	_, h, _ := swarmHost(t, network)
	const away = 10 * time.Second
	run(t, h, "systemctl", "stop", "netdriver")
	begin, done := time.Now(), make(chan error, 1)
	go func() { done <- start(t, h, network, "waiting") }()
	select {
	case err := <-done:
		t.Errorf("a container started without a daemon: %v", err)
	case <-time.After(away):
	}
	run(t, h, "systemctl", "start", "netdriver")
	if err := <-done; err != nil || time.Since(begin) < away {
		t.Errorf("after %s: %v", time.Since(begin), err)
	}

	// At each moment of a start, which takes some 500 ms.
	for i := range 6 {
		name := "killed-" + strconv.Itoa(i)
		go func() { done <- start(t, h, network, name) }()
		time.Sleep(time.Duration(i) * 80 * time.Millisecond)
		run(t, h, "systemctl", "kill", "--signal=KILL", "netdriver")
		if err := <-done; err != nil {
			t.Errorf("daemon killed %d ms after `docker run`: %v", i*80, err)
		}
		if err := ping(t, h, name, address(t, h, network, "waiting", "IPAddress")); err != nil {
			t.Errorf("the container is not connected: %v", err)
		}
	}
	docker(t, h, "rm", "--force", "killed-1", "waiting")
}

func TestASwarmHostIsAsItWasAfterUpgradeUseAndRemoval(t *testing.T) {
	const network = "swarm-use"
	l, h, before := swarmHost(t, network)
	for _, name := range []string{"first", "second"} {
		if err := start(t, h, network, name); err != nil {
			t.Fatal(err)
		}
	}
	addr := address(t, h, network, "second", "IPAddress")
	stream := startStream(t, h, "first", addr, 8*time.Second)
	plugin := docker(t, h, "plugin", "inspect", "--format", "{{.ID}}", "custom-overlay")
	says(t, run(t, h, newer(t, l), "install", "--swarm"), "systemctl restart netdriver.service")
	stream.mustLoseNothing(t)
	if now := docker(t, h, "plugin", "inspect", "--format", "{{.ID}}", "custom-overlay"); now != plugin {
		t.Error("the upgrade replaced the plugin, though its protocol is the same")
	}

	if err := h.StopDocker(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := h.StartDocker(t.Context()); err != nil {
		t.Fatal(err)
	}
	docker(t, h, "start", "first", "second")
	if err := ping(t, h, "first", address(t, h, network, "second", "IPAddress")); err != nil {
		t.Errorf("after dockerd's restart: %v", err)
	}

	if out, err := h.Exec(t.Context(), "netdriver", "uninstall", "--purge"); err == nil {
		t.Errorf("uninstalled under running containers: %s", out)
	}
	docker(t, h, "rm", "--force", "first", "second")
	docker(t, h, "network", "rm", network)
	docker(t, h, "swarm", "leave", "--force")
	says(t, run(t, h, "netdriver", "uninstall", "--purge"), "docker plugin rm")
	eventually(t, 10*time.Second, func() error { // Docker takes its own networks of the swarm down after its answer
		if diff := cmp.Diff(before, remains(t, h)); diff != "" {
			return fmt.Errorf("something is left (-before +after):\n%s", diff)
		}
		return nil
	})
}

// Docker starts plugins at boot, before there is anything in /run.
func TestPluginAndDaemonComeBackAfterARebootInAnyOrder(t *testing.T) {
	l, h := installHost(t)
	run(t, h, binary(t), "install", "--swarm", "--underlay", "eth0")
	if err := h.Reboot(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := l.StartDocker(t.Context()); err != nil {
		t.Fatal(err)
	}
	if enabled := docker(t, h, "plugin", "inspect", "--format", "{{.Enabled}}", "custom-overlay"); enabled != "true" {
		t.Errorf("the plugin is enabled: %s", enabled)
	}
	if err := h.StartSystemd(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, 15*time.Second, func() error { _, err := h.Exec(t.Context(), "netdriver", "nodes"); return err })
	docker(t, h, "swarm", "init", "--advertise-addr", h.Addr.String())
	docker(t, h, "network", "create", "-d", "custom-overlay:latest", "--ipam-driver", "custom-overlay:latest", "after")
}
