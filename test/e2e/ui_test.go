//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/netdriver/netdriver/test/e2e/browser"
	"github.com/netdriver/netdriver/test/e2e/lab"
)

// pageCommands are the commands of docs/ui.md, by whether the daemon refuses them.
func pageCommands(t *testing.T) (serves, refused []string) {
	t.Helper()
	for _, line := range lines(t, "docs/ui.md") {
		command, comment, _ := strings.Cut(line, "  #")
		args := strings.Fields(command)
		if strings.Contains(comment, "refused") {
			refused = args
		} else {
			serves = args
		}
	}
	if len(serves) != 4 || len(refused) != 4 {
		t.Fatalf("commands %v and %v: the page is not read as it is written", serves, refused)
	}
	return serves, refused
}

// restart starts a node's daemon anew with more arguments, and as it was when the test ends.
func (c *cluster) restart(t *testing.T, n *lab.Node, args ...string) {
	t.Helper()
	again := func(ctx context.Context, args ...string) error {
		if n.DaemonPID() != 0 {
			if err := n.StopDaemon(); err != nil {
				return err
			}
		}
		config := c.daemonConfig(n)
		config.Args = append(config.Args, args...)
		return n.StartDaemon(ctx, config)
	}
	if err := again(t.Context(), args...); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := again(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
}

// askPage asks the page of a node for a path by a name, and returns the status line and the rest.
func askPage(t *testing.T, n *lab.Node, method, host, path string) (status, answer string) {
	t.Helper()
	const script = `exec 3<>/dev/tcp/127.0.0.1/9473 && printf '%s %s HTTP/1.0\r\nHost: %s\r\n\r\n' "$0" "$1" "$2" >&3 && timeout 25 cat <&3`
	out := run(t, n, "timeout", "30", "bash", "-c", script, method, path, host)
	status, answer, _ = strings.Cut(out, "\r\n")
	return status, answer
}

func TestThePageOfANodeShowsRealContainersAndWhatIsWrong(t *testing.T) {
	c := hosts(t)
	n, other := c.Nodes[1], c.Nodes[2]
	serves, refusal := pageCommands(t)
	if out, err := n.Exec(t.Context(), refusal...); err == nil || !strings.Contains(err.Error(), "ui-cert") || !strings.Contains(err.Error(), "127.0.0.1") {
		t.Errorf("%v: %s, error %v; want one with the remedy", refusal, out, err)
	}
	c.restart(t, n, serves[2:]...)
	network := overlay(t, c.Nodes, "--subnet", "10.104.9.0/24")
	mine, theirs := serve(t, n, network), serve(t, other, network)
	eventually(t, 20*time.Second, func() error {
		status, answer := askPage(t, n, "GET", "localhost", "/v1/networks/"+network)
		if !strings.Contains(status, "200") || !strings.Contains(answer, mine) || !strings.Contains(answer, theirs) || !strings.Contains(answer, `"verdict":"healthy"`) {
			return fmt.Errorf("%s: %s", status, answer)
		}
		return nil
	})
	for _, x := range []struct{ method, host, path, want string }{
		{"GET", "127.0.0.1:9473", "/", "200"},
		{"GET", "evil.example", "/", "421"},
		{"GET", "evil.example", "/v1/networks", "421"},
		{"POST", "127.0.0.1:9473", "/v1/repair/" + network, "405"},
		{"GET", "127.0.0.1:9473", "/v1/trace?from=a&to=b", "404"},
	} {
		if status, _ := askPage(t, n, x.method, x.host, x.path); !strings.Contains(status, x.want) {
			t.Errorf("%s %s as %s: %s, want %s", x.method, x.path, x.host, status, x.want)
		}
	}
	tab := browser.Start(t, n.Command).Open(t, "http://127.0.0.1:9473/#/network/"+network, browser.Look{Width: 1440, Height: 900})
	tab.Shows("#details", "Nothing is wrong", mine, theirs, "Endpoints (2)", "netdriver inspect "+network)
	addr := address(t, other, network, theirs, "IPAddress")
	if err := ping(t, n, mine, addr); err != nil {
		t.Fatal(err)
	}
	tab.Until(`[...document.querySelectorAll('#details [role=cell]')].some((c) => /bit\/s/.test(c.textContent))`)

	tab.Click(fmt.Sprintf(`#details a[data-key="node/%s"]`, other.Name)) // its daemon tells its rates
	tab.Shows("#details", other.Name, "Networks (1)", "peak")
	tab.Until(`[...document.querySelectorAll('#details [role=cell]')].some((c) => /bit\/s/.test(c.textContent))`)
	tab.Click(fmt.Sprintf(`#details a[data-key="%s"]`, network))
	tab.Shows("#details", "Endpoints (1 of 2)")

	if err := other.KillDaemon(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if other.DaemonPID() == 0 {
			if err := other.StartDaemon(context.WithoutCancel(t.Context()), c.daemonConfig(other)); err != nil {
				t.Error(err)
			}
		}
	})
	tab.Shows("#details", "degraded", other.Name+" is not connected to the store", "start its host or its netdriver run")
	tab.Shows("#verdict", "degraded")
	tab.Picture("lab")
	said := fmt.Sprint(lastError(n.Exec(t.Context(), "netdriver", "inspect", network)))
	says(t, said, "DEGRADED", other.Name+" is not connected to the store")
	tab.Click(fmt.Sprintf(`#details a[data-key="node/%s"]`, other.Name))
	tab.Click(`#details button[data-key="check"]`)
	tab.Shows("#details", "things looked at", "No rates", "ask the daemon of "+other.Name)
	if err := other.StartDaemon(t.Context(), c.daemonConfig(other)); err != nil {
		t.Fatal(err)
	}
	tab.Shows("#verdict", "healthy")
}
