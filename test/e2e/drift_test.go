//go:build e2e

package e2e

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/netdriver/netdriver/test/e2e/lab"
)

// guardTable runs nft in netdriver's namespace of a node, where the packet filter between containers is.
func guardTable(t *testing.T, n *lab.Node, args ...string) string {
	t.Helper()
	return run(t, n, append([]string{"nsenter", "--net=/run/netdriver/netns", "nft"}, args...)...)
}

// told waits until the node's events have one with all the words.
func told(t *testing.T, n *lab.Node, words ...string) {
	t.Helper()
	eventually(t, 5*time.Second, func() error {
		out, err := n.Exec(t.Context(), "netdriver", "events")
		if err != nil {
			return err
		}
		for line := range strings.Lines(out) {
			all := true
			for _, w := range words {
				all = all && strings.Contains(line, w)
			}
			if all {
				return nil
			}
		}
		return fmt.Errorf("no event with %q in\n%s", words, out)
	})
}

// What somebody takes away is back within a second, and is an event: a rule and an element of the packet filter between
// containers, a container's macvlan interface, and one of a bridge network.
func TestWhatSomebodyTakesAwayIsBackWithinASecondAndIsAnEvent(t *testing.T) {
	n := hosts(t).Nodes[1]
	rules := overlay(t, []*lab.Node{n}, "--subnet", "10.100.50.0/24", "--opt", "allow=web>db:80/tcp")
	db := grouped(t, n, rules, "db", "group=db")
	lan, one := "lan-"+rules, "one-"+rules
	docker(t, n, createArgs(lan, "--subnet", lanSubnet, "--ip-range", "10.99.0.192/27", "--opt", "mode=macvlan", "--opt", "parent=eth0")...)
	docker(t, n, createArgs(one, "--subnet", "10.100.51.0/24", "--opt", "mode=bridge")...)
	for _, name := range []string{lan, one} {
		atEnd(t, n, "network", "rm", name)
		docker(t, n, "run", "--detach", "--name", name, "--network", name, lab.Image, "sleep", "1000")
		atEnd(t, n, "rm", "--force", name)
	}
	time.Sleep(3 * time.Second) // where Docker has put an interface is recorded within 2 s; then it can be put back there
	has := func(container string) string {
		out, _ := inside(t, n, container, "cat", "/proc/net/dev")
		return out
	}
	table := func() string { return guardTable(t, n, "-a", "list", "table", "bridge", "netdriver") }
	owner := guardTable(t, n, "list", "set", "bridge", "netdriver", "own4")
	element := regexp.MustCompile(`"ndp\w+" \. [0-9a-f:]+ \. ` + regexp.QuoteMeta(address(t, n, rules, db, "IPAddress"))).FindString(owner)
	chain := regexp.MustCompile(`to-[0-9a-f]+-db`).FindString(table())
	if element == "" || chain == "" {
		t.Fatalf("the table has another form than this test knows:\n%s", table())
	}
	for _, harm := range []struct {
		what    string
		network string
		do      func()
		there   func() bool
	}{
		{"an element", rules, func() { guardTable(t, n, "delete", "element", "bridge", "netdriver", "own4", "{ "+element+" }") },
			func() bool { return strings.Contains(table(), element) }},
		{"rules", rules, func() { guardTable(t, n, "flush", "chain", "bridge", "netdriver", chain) },
			func() bool {
				return strings.Contains(guardTable(t, n, "list", "chain", "bridge", "netdriver", chain), "comment")
			}},
		{"a macvlan device", lan, func() { _, _ = inside(t, n, lan, "ip", "link", "del", "eth0") },
			func() bool { return strings.Contains(has(lan), "eth0") }},
		{"a pair", one, func() { _, _ = inside(t, n, one, "ip", "link", "del", "eth0") },
			func() bool { return strings.Contains(has(one), "eth0") }},
	} {
		if !harm.there() {
			t.Fatalf("control: %s is not there before it is taken away:\n%s", harm.what, table())
		}
		harm.do()
		begin := time.Now()
		eventually(t, time.Second, func() error {
			if !harm.there() {
				return fmt.Errorf("%s is still missing", harm.what)
			}
			return nil
		})
		t.Logf("%s was back after %s", harm.what, time.Since(begin))
		told(t, n, "repaired", harm.network)
	}
	refused(t, n, createArgs("bad-"+rules, "--subnet", "10.100.52.0/24", "--opt", "allow=web=db")...)
	told(t, n, "refused", "NetworkDriver.CreateNetwork", "FROM>TO")
}
