//go:build e2e

package e2e

import (
	"context"
	"strings"
	"testing"
)

// The documents speak of eth1 in 192.0.2.0/24; the lab's LAN is that of eth0.
func TestEveryCommandInTheDocumentsOfTheHostsOwnNetworksWorks(t *testing.T) {
	c := hosts(t)
	r := &reader{t: t, c: c, hosts: c.Nodes[:2]}
	lab := strings.NewReplacer("192.0.2.", "10.99.0.", "parent=eth1", "parent=eth0")
	for file, names := range map[string]string{
		"docs/macvlan.md": "web lan", "docs/bridge.md": "shop apps", "docs/host-access.md": "probe agent ops",
	} {
		t.Cleanup(func() {
			for _, n := range r.hosts {
				n.Exec(context.Background(), "sh", "-c", "docker rm --force "+names+"; docker network rm "+names)
			}
		})
		lines := commands(t, file)
		if len(lines) < 3 {
			t.Errorf("%s has %d commands: it is not read as it is written", file, len(lines))
		}
		if r.hosts = c.Nodes[:2]; file == "docs/bridge.md" {
			r.hosts = c.Nodes[:1]
		}
		for _, line := range lines {
			t.Log(file, line)
			r.follow(lab.Replace(line))
		}
	}
}
