//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/test/e2e/lab"
)

// Two hosts are needed again and again while developing, so making them must stay quick. The best of three tries
// counts: the machine may be busy with something else.
func TestTwoDockerHostsAnswerWithinFiveSeconds(t *testing.T) {
	const limit = 5 * time.Second
	best := time.Hour
	for range 3 {
		begin := time.Now()
		l := ownLab(t, lab.Config{Nodes: 2})
		if err := l.StartDocker(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, n := range l.Nodes {
			docker(t, n, "info")
		}
		best = min(best, time.Since(begin))
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if best <= limit {
			break
		}
	}
	t.Logf("two Docker hosts in %s", best)
	if best > limit {
		t.Errorf("two Docker hosts took %s, want at most %s", best, limit)
	}
}

func TestLabNodesReachEachOtherAndTheOutside(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		l := ownLab(t, lab.Config{Nodes: 2, IPv6: v6, MTU: 9000})
		for _, addr := range []string{l.Nodes[1].Addr.String(), l.Outside.Addr.String()} {
			run(t, l.Nodes[0], "busybox", "ping", "-c", "1", "-W", "2", "-s", "8900", addr)
		}
	}
}

func TestDockerBridgeNetworkWorksInTheLab(t *testing.T) {
	l := ownLab(t, lab.Config{Nodes: 1})
	if err := l.StartDocker(t.Context()); err != nil {
		t.Fatal(err)
	}
	n := l.Nodes[0]
	docker(t, n, "run", "--detach", "--name", "web", "--publish", "8080:80", lab.Image,
		"sh", "-c", "echo hello >/www/index.html; exec httpd -f -p 80 -h /www")
	if got := docker(t, n, "port", "web", "80"); !strings.Contains(got, "0.0.0.0:8080") {
		t.Errorf("docker port = %q, want 0.0.0.0:8080", got)
	}
	// From the outside, through Docker's NAT; and from a container to the outside.
	eventually(t, 5*time.Second, func() error {
		got, err := httpGet(t, l.Outside, n.Addr.String(), 8080)
		if err == nil && got != "hello" {
			err = fmt.Errorf("got %q, want hello", got)
		}
		return err
	})
	docker(t, n, "exec", "web", "ping", "-c", "1", "-W", "2", l.Outside.Addr.String())
}

// Whatever ran in a lab, after Close the machine has neither a process, a mount, a control group nor a file of it.
func TestCloseLeavesNothing(t *testing.T) {
	l := ownLab(t, lab.Config{Nodes: 2})
	if err := l.StartDocker(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, n := range l.Nodes {
		docker(t, n, "run", "--detach", lab.Image, "sleep", "1000")
	}
	// Per node init, dockerd, containerd, a shim and the container's process.
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

// A run that is killed cannot clean up. The kernel ends its nodes, the next run removes the files.
func TestKilledRunLeavesNothingAfterReap(t *testing.T) {
	parent := t.TempDir()
	dir := filepath.Join(parent, "killed-lab")
	other := exec.Command(os.Args[0], "-test.run", "^TestLabForAnotherProcess$")
	other.Env = append(os.Environ(), anotherProcess+"="+dir)
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, 60*time.Second, func() error {
		_, err := os.Stat(filepath.Join(parent, "running"))
		return err
	})
	if err := lab.Reap(dir); err == nil {
		t.Error("Reap of a lab whose maker runs succeeded")
	}
	if during := traces(t, dir); len(during) < 5 {
		t.Fatalf("a running lab shows only %q: this test cannot see what stays", during)
	}
	other.Process.Signal(unix.SIGKILL)
	other.Wait()
	if err := lab.Reap(dir); err != nil {
		t.Fatal(err)
	}
	if after := traces(t, dir); len(after) > 0 {
		t.Errorf("after Reap there is still %q", after)
	}
}

// anotherProcess is the environment variable that makes a second copy of this test program keep a lab in the
// directory it names.
const anotherProcess = "NETDRIVER_LAB_DIR"

// TestLabForAnotherProcess is the second program of TestKilledRunLeavesNothingAfterReap; alone it checks that an
// unusable directory is refused.
func TestLabForAnotherProcess(t *testing.T) {
	dir := os.Getenv(anotherProcess)
	if dir == "" {
		if l, err := lab.New(t.Context(), lab.Config{Dir: "/run/lab"}); err == nil {
			l.Close()
			t.Error("a lab below /run was made; its nodes cannot see it")
		}
		return
	}
	l, err := lab.New(t.Context(), lab.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.StartDocker(t.Context()); err != nil {
		t.Fatal(err)
	}
	docker(t, l.Nodes[0], "run", "--detach", lab.Image, "sleep", "1000")
	if err := os.WriteFile(filepath.Join(filepath.Dir(dir), "running"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	<-t.Context().Done()
}

func TestRebootLosesProcessesAndKeepsImages(t *testing.T) {
	l := ownLab(t, lab.Config{Nodes: 2})
	if err := l.StartDocker(t.Context()); err != nil {
		t.Fatal(err)
	}
	n := l.Nodes[0]
	docker(t, n, "run", "--detach", "--name", "web", lab.Image, "sleep", "1000")
	run(t, n, "touch", "/run/mark")
	if err := n.Reboot(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := n.StartDocker(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(n.Path("/run/mark")); !os.IsNotExist(err) {
		t.Errorf("/run outlived a reboot (%v)", err)
	}
	if got := docker(t, n, "ps", "-a", "--format", "{{.Names}} {{.State}}"); got != "web exited" {
		t.Errorf("after the reboot docker ps says %q, want web exited", got)
	}
	docker(t, n, "start", "web")
	run(t, l.Nodes[1], "busybox", "ping", "-c", "1", "-W", "2", n.Addr.String())
}
