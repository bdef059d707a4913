//go:build e2e

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	membership "github.com/netdriver/netdriver/internal/cluster"
	"github.com/netdriver/netdriver/test/e2e/lab"
)

// loners makes nodes that run netdriver, each with a store of its own, and no dockerd.
func loners(t *testing.T, nodes int) []*lab.Node {
	t.Helper()
	l := ownLab(t, lab.Config{Nodes: nodes, Binary: binary(t)})
	for _, n := range l.Nodes {
		if err := n.StartDaemon(t.Context(), lab.DaemonConfig{Args: []string{"--log-level", "debug"}}); err != nil {
			t.Fatal(err)
		}
	}
	return l.Nodes
}

// status is `netdriver cluster status`; its exit status is a judgement and no error here.
func status(t *testing.T, n *lab.Node) (membership.Report, error) {
	t.Helper()
	out, err := n.Exec(t.Context(), "netdriver", "cluster", "status", "-o", "json")
	var r membership.Report
	if out == "" {
		return r, err
	}
	return r, json.Unmarshal([]byte(out), &r)
}

// members waits until that many members of the store answer and no other is left.
func members(t *testing.T, n *lab.Node, want int) membership.Report {
	t.Helper()
	var r membership.Report
	eventually(t, 60*time.Second, func() (err error) {
		if r, err = status(t, n); err != nil {
			return err
		}
		well := 0
		for _, m := range r.Members {
			if m.State == "leader" || m.State == "follower" {
				well++
			}
		}
		if well != want || len(r.Members) != want {
			return fmt.Errorf("members %+v", r.Members)
		}
		return nil
	})
	return r
}

// backup writes the store's records, which proves that it can be read whole.
func backup(t *testing.T, n *lab.Node) string {
	t.Helper()
	return run(t, n, "netdriver", "cluster", "backup", "-")
}

func TestAClusterGrowsLosesAMemberAndReplacesIt(t *testing.T) {
	nodes := loners(t, 5)
	first := nodes[0]
	says(t, run(t, first, "netdriver", "cluster", "init"), "cluster token")
	token := run(t, first, "netdriver", "cluster", "token", "--ttl", "1h")
	says(t, run(t, nodes[1], "netdriver", "cluster", "join", token), "has joined")
	if r := members(t, first, 1); len(r.Clients) != 1 {
		t.Errorf("two nodes: %+v; two members would be worse than one", r)
	}
	for _, n := range nodes[2:] {
		run(t, n, "netdriver", "cluster", "join", token)
	}
	r := members(t, nodes[4], 3)
	if r.Losses != 1 {
		t.Errorf("three members can lose %d", r.Losses)
	}
	eventually(t, 20*time.Second, func() error {
		if out := run(t, nodes[4], "netdriver", "nodes"); strings.Count(out, "ok")+strings.Count(out, "local") < 5 {
			return errors.New(out)
		}
		return nil
	})

	// The first node, which made all this, is lost. What is left goes on, and another node takes its place.
	if err := first.PowerOff(); err != nil {
		t.Fatal(err)
	}
	left := nodes[1:]
	eventually(t, 20*time.Second, func() error { _, err := left[3].Exec(t.Context(), "netdriver", "cluster", "backup", "-"); return err })
	refusal := fmt.Sprint(lastError(left[3].Exec(t.Context(), "netdriver", "cluster", "remove", "n9")))
	says(t, refusal, "no node n9")
	eventually(t, 40*time.Second, func() error {
		_, err := left[3].Exec(t.Context(), "netdriver", "cluster", "remove", first.Name)
		return err
	})
	r = members(t, left[3], 3)
	for _, m := range r.Members {
		if m.Node == first.Name {
			t.Errorf("the lost node is still a member: %+v", r.Members)
		}
	}

	// A token needs a member, which has the authority's key; a new one has it, too.
	var member *lab.Node
	for _, n := range left {
		if slices.ContainsFunc(r.Members, func(m membership.MemberInfo) bool { return m.Node == n.Name }) {
			member = n
		}
	}
	// It may have become one just now, and begin anew with its store.
	var fresh string
	eventually(t, 20*time.Second, func() (err error) {
		fresh, err = member.Exec(t.Context(), "netdriver", "cluster", "token")
		return err
	})

	// The lost node returns: its certificate is refused. It joins anew, like any other.
	if err := first.PowerOn(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := first.StartDaemon(t.Context(), lab.DaemonConfig{}); err == nil {
		t.Error("a removed member's store is open")
	}
	if err := first.KillDaemon(); err != nil {
		t.Fatal(err)
	}
	run(t, first, "rm", "-rf", filepath.Join(first.Dir, "netdriver"))
	if err := first.StartDaemon(t.Context(), lab.DaemonConfig{}); err != nil {
		t.Fatal(err)
	}
	run(t, first, "netdriver", "cluster", "join", strings.TrimSpace(fresh))
	if r, err := status(t, first); err != nil || len(r.Clients) != 2 {
		t.Errorf("after it joined again: %+v, %v", r, err)
	}
	run(t, member, "netdriver", "cluster", "members", "5")
	if r := members(t, first, 5); r.Losses != 2 {
		t.Errorf("five members can lose %d", r.Losses)
	}

	// A member leaves; four would be no better than three, and a fifth node is not there.
	run(t, first, "netdriver", "cluster", "leave")
	says(t, run(t, first, "netdriver", "nodes"), first.Name)
	eventually(t, 30*time.Second, func() error {
		r, err := status(t, left[0])
		if err == nil && len(r.Members) != 4 {
			err = fmt.Errorf("members %+v", r.Members)
		}
		return err
	})
	backup(t, left[0])
}

func TestWhoMayNotJoinIsToldWhy(t *testing.T) {
	nodes := loners(t, 3)
	first, second := nodes[0], nodes[1]
	join := func(token string, args ...string) string {
		t.Helper()
		out, err := second.Exec(t.Context(), append([]string{"netdriver", "cluster", "join", token}, args...)...)
		if err == nil {
			t.Fatalf("joined with token %q: %s", token, out)
		}
		return err.Error()
	}
	says(t, fmt.Sprint(lastError(first.Exec(t.Context(), "netdriver", "cluster", "token"))), "netdriver cluster init")
	run(t, first, "netdriver", "cluster", "init")
	run(t, nodes[2], "netdriver", "cluster", "init")
	says(t, fmt.Sprint(lastError(first.Exec(t.Context(), "netdriver", "cluster", "init"))), "in a cluster already")
	good := run(t, first, "netdriver", "cluster", "token")

	says(t, join("rubbish"), "netdriver1-")
	says(t, join(good[:len(good)-9]), "whole line")
	expired := run(t, first, "netdriver", "cluster", "token", "--ttl", "1s")
	time.Sleep(1100 * time.Millisecond)
	says(t, join(expired), "expired")

	// Where the token points to, another cluster answers: its members are not trusted.
	other, err := membership.ParseToken(run(t, nodes[2], "netdriver", "cluster", "token"))
	if err != nil {
		t.Fatal(err)
	}
	mixed, err := membership.ParseToken(good)
	if err != nil {
		t.Fatal(err)
	}
	mixed.Endpoints = other.Endpoints
	says(t, join(mixed.String()), "no member of the token's cluster")

	says(t, run(t, first, "netdriver", "cluster", "token", "--revoke"), "2 tokens revoked")
	says(t, join(good), "no such token")
	// The control: the same node joins with a good one.
	run(t, second, "netdriver", "cluster", "join", run(t, first, "netdriver", "cluster", "token"))
	says(t, join(good), "in a cluster already")
	if r := members(t, second, 1); r.Role != membership.RoleClient {
		t.Errorf("role %s", r.Role)
	}
	says(t, fmt.Sprint(lastError(second.Exec(t.Context(), "netdriver", "cluster", "token"))), "only members")
	says(t, fmt.Sprint(lastError(first.Exec(t.Context(), "netdriver", "cluster", "leave"))), "last member")
}

func TestABackupIsRestoredIntoAnotherCluster(t *testing.T) {
	nodes := loners(t, 2)
	file := filepath.Join(nodes[0].Dir, "backup")
	run(t, nodes[0], "netdriver", "cluster", "init")
	run(t, nodes[0], "netdriver", "cluster", "backup", file)
	cut := filepath.Join(nodes[0].Dir, "cut")
	run(t, nodes[0], "sh", "-c", `head -n -1 "$0" >"$1"`, file, cut)
	says(t, fmt.Sprint(lastError(nodes[1].Exec(t.Context(), "netdriver", "cluster", "restore", cut))), "its end is missing")
	says(t, run(t, nodes[1], "netdriver", "cluster", "restore", file), "records restored")
	says(t, run(t, nodes[1], "netdriver", "nodes"), nodes[0].Name, nodes[1].Name)
}
