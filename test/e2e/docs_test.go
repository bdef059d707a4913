//go:build e2e

package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/netdriver/netdriver/test/e2e/lab"
)

// commands returns the command lines in a document's code blocks, in order.
func commands(t *testing.T, file string) []string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("../..", file))
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for i, block := range strings.Split(string(text), "```") {
		if i%2 == 0 {
			continue
		}
		for _, line := range strings.Split(block, "\n") {
			line, _, _ = strings.Cut(line, "  #")
			if word, _, _ := strings.Cut(line, " "); word == "docker" || word == "netdriver" || word == "make" || word == "nsenter" || word == "tshark" {
				out = append(out, strings.TrimSpace(line))
			}
		}
	}
	return out
}

// reader does on two hosts what documents tell a reader to do.
type reader struct {
	t     *testing.T
	c     *cluster
	hosts []*lab.Node
	// daemons is how many hosts run netdriver.
	daemons int
}

// follow runs one line. Networks are made on both hosts, as the documents say; the rest is done on the first.
func (r *reader) follow(line string) {
	r.t.Helper()
	args := strings.Fields(strings.ReplaceAll(line, "IMAGE", lab.Image+" sleep 1000"))
	switch {
	case strings.HasPrefix(line, "make "):
		if out, err := exec.CommandContext(r.t.Context(), "make", "-C", "../..", "-n", args[1]).CombinedOutput(); err != nil {
			r.t.Errorf("%s: %v\n%s", line, err, out)
		}
	case line == "netdriver install":
		r.startDaemons()
	case strings.HasPrefix(line, "netdriver cluster join"):
		run(r.t, r.hosts[1], "netdriver", "cluster", "join", run(r.t, r.hosts[0], "netdriver", "cluster", "token"))
	case strings.HasPrefix(line, "docker network create"):
		for _, n := range r.hosts {
			run(r.t, n, args...)
		}
	case strings.HasPrefix(line, "netdriver inspect"):
		eventually(r.t, 5*time.Second, func() error { _, err := r.hosts[0].Exec(r.t.Context(), args...); return err })
	default:
		run(r.t, r.hosts[0], args...)
	}
}

// startDaemons is what `netdriver install` does here, where nothing looks after services: docs/install.md has its own test.
func (r *reader) startDaemons() {
	r.t.Helper()
	for _, n := range r.hosts {
		if err := n.StartDaemon(r.t.Context(), lab.DaemonConfig{}); err != nil {
			r.t.Fatal(err)
		}
		r.daemons++
	}
}

// clean removes what an earlier document has made.
func (r *reader) clean() {
	for _, n := range r.hosts {
		run(r.t, n, "sh", "-c", "docker rm --force $(docker ps --all --quiet) 2>/dev/null; docker network rm my-net 2>/dev/null; true")
	}
}

// The documents are followed in the order in which a new user reads them.
func TestEveryCommandInTheDocumentsWorks(t *testing.T) {
	c := &cluster{Lab: ownLab(t, lab.Config{Nodes: 2, Binary: binary(t)})}
	if err := c.StartDocker(t.Context(), dockerArgs()...); err != nil {
		t.Fatal(err)
	}
	r := &reader{t: t, c: c, hosts: c.Nodes}
	ran := 0
	for _, file := range []string{
		"README.md", "docs/networks.md", "docs/operations.md", "docs/inspect.md", "docs/isolation.md", "docs/volumes.md", "docs/volumes-nfs.md",
		"docs/volumes-efs.md", "docs/volumes-glusterfs.md", "docs/volumes-cephfs.md", "docs/volumes-local.md", "docs/troubleshooting.md",
		"docs/capture.md", "docs/json.md", "CONTRIBUTING.md",
	} {
		lines := commands(t, file)
		if strings.Contains(strings.Join(lines, "\n"), "docker network create") {
			r.clean()
		}
		for _, line := range lines {
			t.Log(file, line)
			r.follow(line)
			ran++
		}
	}
	if ran < 10 || r.daemons != 2 {
		t.Errorf("%d commands and %d daemons were run: the documents are not read as they are written", ran, r.daemons)
	}
}

// binary is the path of what `make build` made.
func binary(t *testing.T) string {
	t.Helper()
	path, err := filepath.Abs("../../bin/netdriver")
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func TestEveryMakeTargetInTheDocumentsExists(t *testing.T) {
	help, err := exec.CommandContext(t.Context(), "make", "-C", "../..", "--no-print-directory", "help").Output()
	if err != nil {
		t.Fatal(err)
	}
	target := regexp.MustCompile("`make ([a-z0-9]+)")
	seen := 0
	for _, file := range []string{"README.md", "CONTRIBUTING.md", "docs/benchmarks.md", "docs/operations.md"} {
		text, err := os.ReadFile(filepath.Join("../..", file))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range target.FindAllStringSubmatch(string(text), -1) {
			if seen++; !strings.Contains(string(help), "make "+m[1]) {
				t.Errorf("%s speaks of make %s, which `make help` does not list:\n%s", file, m[1], help)
			}
		}
	}
	if seen < 5 {
		t.Errorf("%d targets found: the documents are not read as they are written", seen)
	}
}

func TestTheDemosEndWell(t *testing.T) {
	for target, want := range map[string][]string{
		"demo":       {"netdriver inspect my-net", "HEALTHY", "hello from"},
		"demo-swarm": {"netdriver install --swarm", "HEALTHY", "hello from", " 0 failed", "docker plugin rm"},
	} {
		t.Run(target, func(t *testing.T) {
			start := time.Now()
			out, err := exec.CommandContext(t.Context(), "make", "-C", "../..", "--no-print-directory", target).CombinedOutput()
			lines := strings.Split(strings.TrimSpace(string(out)), "\n")
			if err != nil || lines[len(lines)-1] != "demo: ok" {
				t.Fatalf("%v\n%s", err, out)
			}
			says(t, string(out), want...)
			t.Log("took", time.Since(start)) // a figure, not a condition: the machine may be busy
		})
	}
}
