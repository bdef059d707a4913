//go:build e2e

package e2e

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/netdriver/netdriver/test/e2e/lab"
)

// operator does on hosts with systemd what the documents about installation tell one to do. A comment behind a command
// says where; without one it is done on the first host.
type operator struct {
	t     *testing.T
	c     *cluster
	hosts []*lab.Node
	// left are hosts that have left the swarm and have no netdriver any more.
	left []*lab.Node
}

// where returns the hosts of a command, and the command without its comment.
func (o *operator) where(line string) ([]*lab.Node, string) {
	command, comment, _ := strings.Cut(line, "  #")
	hosts := o.hosts[:1]
	switch strings.TrimSpace(comment) {
	case "on every host":
		hosts = o.hosts
	case "on the others":
		hosts = o.hosts[1:]
	case "on the second host":
		hosts = o.hosts[1:2]
	}
	return slices.DeleteFunc(slices.Clone(hosts), func(n *lab.Node) bool { return slices.Contains(o.left, n) }),
		strings.TrimSpace(command)
}

// follow runs one line of a document.
func (o *operator) follow(line string) {
	o.t.Helper()
	hosts, command := o.where(line)
	for _, n := range hosts {
		o.do(n, command)
	}
	if strings.HasPrefix(command, "netdriver uninstall --purge") {
		o.left = append(o.left, hosts...)
	}
}

// do runs a command on one host. Addresses, files and images are the lab's.
func (o *operator) do(n *lab.Node, command string) {
	o.t.Helper()
	image := lab.Image
	if !strings.HasPrefix(command, "docker service update") {
		image += " sleep 1000"
	}
	cert := o.c.certificates[n.Addr]
	replace := []string{
		"IMAGE", image, "192.0.2.1", o.hosts[0].Addr.String(), "stack.yml", filepath.Join(o.c.Dir, "stack.yml"),
		"ca.pem", cert.CA, "n1-key.pem", cert.Key, "n2-key.pem", cert.Key, "n1.pem", cert.Cert, "n2.pem", cert.Cert,
	}
	if strings.Contains(command, "TOKEN") {
		replace = append(replace, "TOKEN", docker(o.t, o.hosts[0], "swarm", "join-token", "--quiet", "worker"))
	}
	args := strings.Fields(strings.NewReplacer(replace...).Replace(command))
	if args[0] == "netdriver" && args[1] == "install" {
		args[0] = binary(o.t) // as a user who has just fetched it
	}
	if strings.HasPrefix(command, "docker service create") { // sleep ignores the signal to stop
		args = slices.Insert(args, 3, "--stop-grace-period", "1s")
	}
	// What waits for others: the swarm for its tasks to end, inspect for the newest records, a node for its leave.
	waits := strings.HasPrefix(command, "docker network rm") || strings.HasPrefix(command, "netdriver inspect") ||
		strings.HasPrefix(command, "netdriver uninstall") || strings.HasPrefix(command, "docker node rm")
	begin := time.Now()
	if waits {
		eventually(o.t, time.Minute, func() error { _, err := n.Exec(o.t.Context(), args...); return err })
	} else {
		run(o.t, n, args...)
	}
	o.t.Log(n.Name, command, time.Since(begin).Round(time.Millisecond))
}

// lines returns the command lines of a document with their comments, in order.
func lines(t *testing.T, file string) (out []string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("../..", file))
	if err != nil {
		t.Fatal(err)
	}
	for i, block := range strings.Split(string(text), "```") {
		for line := range strings.Lines(block) {
			word, _, _ := strings.Cut(line, " ")
			if i%2 == 1 && (word == "docker" || word == "netdriver") {
				out = append(out, strings.TrimSpace(line))
			}
		}
	}
	return out
}

// stack writes the stack file that a document shows.
func (o *operator) stack(file string) {
	o.t.Helper()
	text, err := os.ReadFile(filepath.Join("../..", file))
	if err != nil {
		o.t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "```yaml\n")
	yaml, _, found := strings.Cut(rest, "```")
	if !found {
		o.t.Fatalf("%s shows no stack file", file)
	}
	yaml = strings.ReplaceAll(yaml, "IMAGE", lab.Image+"\n    command: sleep 1000")
	if err := os.WriteFile(filepath.Join(o.c.Dir, "stack.yml"), []byte(yaml), 0o644); err != nil {
		o.t.Fatal(err)
	}
}

func newOperator(t *testing.T, nodes int) *operator {
	t.Helper()
	c := &cluster{Lab: ownLab(t, lab.Config{Nodes: nodes, Binary: binary(t)})}
	if err := c.certify(); err != nil {
		t.Fatal(err)
	}
	for _, n := range c.Nodes {
		if err := n.StartSystemd(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.StartDocker(t.Context()); err != nil {
		t.Fatal(err)
	}
	return &operator{t: t, c: c, hosts: c.Nodes}
}

func TestEveryCommandInTheInstallationGuideWorks(t *testing.T) {
	o := newOperator(t, 2)
	for _, line := range lines(t, "docs/install.md") {
		o.follow(line)
	}
	if got := docker(t, o.hosts[0], "network", "ls", "--quiet", "--filter", "driver=custom-overlay"); got != "" {
		t.Errorf("networks %s are left", got)
	}
}

func TestEveryCommandInTheSwarmGuideWorks(t *testing.T) {
	o := newOperator(t, 3)
	for _, line := range lines(t, "docs/install.md") {
		if strings.HasPrefix(line, "netdriver install") && strings.Contains(line, ".pem") {
			o.follow(line)
		}
	}
	o.stack("docs/swarm.md")
	for _, line := range lines(t, "docs/swarm.md") {
		o.follow(line)
	}
}
