//go:build e2e

package e2e

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/netdriver/netdriver/test/e2e/lab"
)

// founder does on hosts what the page about clusters tells one to do.
type founder struct {
	t     *testing.T
	hosts []*lab.Node
}

// where returns the hosts of a command, and the command without its comment.
func (f *founder) where(line string) ([]*lab.Node, string) {
	command, comment, _ := strings.Cut(line, "  #")
	hosts := f.hosts[:1]
	switch strings.TrimSpace(comment) {
	case "on the others":
		hosts = f.hosts[1:]
	case "on the last host":
		hosts = f.hosts[len(f.hosts)-1:]
	}
	return hosts, strings.TrimSpace(command)
}

// follow runs one line of the page. Tokens and files are the lab's.
func (f *founder) follow(line string) {
	f.t.Helper()
	hosts, command := f.where(line)
	if strings.HasPrefix(command, "netdriver cluster remove") { // the page is about a host that is lost
		members(f.t, f.hosts[0], 3)
		if err := f.hosts[2].KillDaemon(); err != nil {
			f.t.Fatal(err)
		}
	}
	for _, n := range hosts {
		args := strings.Fields(command)
		for i, arg := range args {
			switch arg {
			case "TOKEN":
				args[i] = run(f.t, f.hosts[0], "netdriver", "cluster", "token")
			case "netdriver.backup":
				args[i] = filepath.Join(f.hosts[0].Dir, arg)
			}
		}
		// A lost host counts as alive for 15 s, and members want to be connected for 5 s before the next change.
		eventually(f.t, 40*time.Second, func() error { _, err := n.Exec(f.t.Context(), args...); return err })
	}
	f.t.Log(command)
}

func TestEveryCommandInTheClusterGuideWorks(t *testing.T) {
	f := &founder{t: t, hosts: loners(t, 4)}
	ran := 0
	for _, line := range lines(t, "docs/cluster.md") {
		f.follow(line)
		if strings.HasPrefix(line, "netdriver cluster remove") {
			for _, m := range members(t, f.hosts[0], 3).Members {
				if m.Node == f.hosts[2].Name {
					t.Errorf("the lost host is still a member")
				}
			}
		}
		ran++
	}
	if ran < 10 {
		t.Errorf("%d commands were run: the page is not read as it is written", ran)
	}
}
