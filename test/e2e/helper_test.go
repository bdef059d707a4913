//go:build e2e

// Package e2e holds the tests of the whole product: real dockerds on several hosts, each with the netdriver
// program that `make build` made.
//
//	make e2e T=TestName
//
// Most tests use the hosts that TestMain starts, see main_test.go: names of networks and containers are taken from
// the test's name, and each test removes what it made. A test that needs hosts in a state of its own calls ownLab.
package e2e

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/netdriver/netdriver/test/e2e/lab"
)

// ownLab makes a lab for one test. When the test fails the logs stay, and their place is said.
func ownLab(t *testing.T, config lab.Config) *lab.Lab {
	t.Helper()
	l, err := lab.New(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	closeAtEnd(t, l)
	return l
}

// closeAtEnd removes a lab at the test's end.
func closeAtEnd(t *testing.T, l *lab.Lab) {
	t.Helper()
	t.Cleanup(func() {
		if t.Failed() {
			l.KeepLogs()
			t.Logf("logs: %s", l.Logs())
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
}

// docker runs the docker command on a node and returns its trimmed output; an error ends the test.
func docker(t *testing.T, n *lab.Node, args ...string) string {
	t.Helper()
	return run(t, n, append([]string{"docker"}, args...)...)
}

// run runs a command on a node and returns its trimmed output; an error ends the test.
func run(t *testing.T, n *lab.Node, args ...string) string {
	t.Helper()
	out, err := n.Exec(t.Context(), args...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// refused runs the docker command, which has to fail, and returns what it said.
func refused(t *testing.T, n *lab.Node, args ...string) string {
	t.Helper()
	out, err := n.Docker(t.Context(), args...)
	if err == nil {
		t.Fatalf("docker %s succeeded: %s", strings.Join(args, " "), out)
	}
	return err.Error()
}

// httpGet asks a web server for / from a node itself, not from a container. It needs nothing but bash.
func httpGet(t *testing.T, n *lab.Node, host string, port int) (string, error) {
	t.Helper()
	return httpGetPage(t, n, host, port, "/")
}

// httpGetPage is httpGet for any page.
func httpGetPage(t *testing.T, n *lab.Node, host string, port int, page string) (string, error) {
	t.Helper()
	const script = `exec 3<>"/dev/tcp/$0/$1" && printf 'GET %s HTTP/1.0\r\n\r\n' "$2" >&3 && timeout 5 cat <&3`
	out, err := n.Exec(t.Context(), "timeout", "10", "bash", "-c", script, host, strconv.Itoa(port), page)
	if err != nil {
		return "", err
	}
	_, body, _ := strings.Cut(out, "\r\n\r\n")
	return strings.TrimSpace(body), nil
}

// eventually tries until do succeeds; the last error ends the test after the limit. Trying takes at most a third of the
// time: what is waited for needs the CPUs, too.
func eventually(t *testing.T, limit time.Duration, do func() error) {
	t.Helper()
	end := time.Now().Add(limit)
	for {
		begin := time.Now()
		err := do()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("not within %s: %v", limit, err)
		}
		time.Sleep(min(max(50*time.Millisecond, 2*time.Since(begin)), 2*time.Second))
	}
}

// traces lists what on this machine belongs to the lab in dir: its files, control groups, mounts and processes.
// Every process of a lab has the directory in its environment, in its control group's name, or among the mounts
// that it sees.
func traces(t *testing.T, dir string) []string {
	t.Helper()
	var found []string
	for _, pattern := range []string{dir, "/sys/fs/cgroup/*/netdriver-lab-*-" + filepath.Base(dir)} {
		names, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, names...)
	}
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, process := range processes {
		var text []byte
		for _, file := range []string{"environ", "cgroup", "mountinfo"} {
			// A process may end at any moment.
			content, _ := os.ReadFile(filepath.Join(process, file))
			text = append(text, content...)
		}
		if bytes.Contains(text, []byte(filepath.Base(dir))) {
			found = append(found, process)
		}
	}
	return found
}
