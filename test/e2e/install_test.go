//go:build e2e

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/netdriver/netdriver/test/e2e/lab"
)

// installHost makes a lab of one host with dockerd and systemd and without netdriver.
func installHost(t *testing.T) (*lab.Lab, *lab.Node) {
	t.Helper()
	l := ownLab(t, lab.Config{Nodes: 1})
	if err := l.Nodes[0].StartSystemd(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := l.StartDocker(t.Context(), dockerArgs()...); err != nil {
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
nft --stateless list ruleset | grep -v '^#'
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
	l, h := installHost(t)
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
	if got, want := run(t, h, "sh", "-c", "tail -c 5 /proc/$(systemctl show --value -p MainPID netdriver)/exe"), "newer"; got != want {
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
