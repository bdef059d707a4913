//go:build e2e

package e2e

import (
	"cmp"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/netdriver/netdriver/test/e2e/lab"
)

// TestVirtualKernelTests runs kernel tests again in virtual nodes: one whose kernel has what this machine's may lack, and
// must have it (the variables say so), and one whose kernel lacks more. No Docker is needed, so the kernels' start is most
// of what it costs. NETDRIVER_TEST_RUN chooses tests, NETDRIVER_TEST_BENCH benchmarks.
func TestVirtualKernelTests(t *testing.T) {
	l := ownLab(t, lab.Config{Nodes: 2, Kernels: map[int]lab.Kernel{1: {}, 2: {Without: []string{"esp4", "nf_tables"}}}})
	full, poor := l.Nodes[0], l.Nodes[1]
	for _, c := range []struct {
		name     string
		node     *lab.Node
		pkg, env string
		run, has string // which tests, and what the output has to have
	}{
		{"ESP", full, "ipsec/xfrm", "NETDRIVER_TEST_ESP=1", os.Getenv("NETDRIVER_TEST_RUN"), "/linux"},
		{"keys", full, "internal/keying", "NETDRIVER_TEST_ESP=1", "TestRealKernels", "PASS: TestRealKernelsOverOtherUnderlays/IPv6_in_UDP/linux"},
		{"no ESP", poor, "ipsec/xfrm", "", "Lacks|WithoutESP", "PASS: TestAKernelSaysWhatItLacks"},
		{"old iptables", poor, "dataplane/firewall", "NETDRIVER_TEST_FILTER=iptables", "^TestOpen|^TestOnlyNodes.*/iptables",
			"PASS: TestOnlyNodesOfTheClusterReachOurNetworks/iptables"},
		{"no tables", poor, "dataplane/guard", "NETDRIVER_TEST_FILTER=iptables", "", "PASS: TestAKernelWithoutTablesSaysSoAtOnce"},
		{"LAN", full, "dataplane/lan", "NETDRIVER_TEST_LAN=1",
			"TestAVLAN|TestAnIPvlan|TestBothKernels|TestAnInterface|TestWhoHas|TestAParentThatCannot", "/linux"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
			defer cancel()
			out, err := c.node.Exec(ctx, "env", "TMPDIR=/tmp", cmp.Or(c.env, "A="), kernelTests(t, l, c.pkg), "-test.v", "-test.timeout", "8m",
				"-test.run", c.run, "-test.bench", cmp.Or(os.Getenv("NETDRIVER_TEST_BENCH"), "^$"), "-test.benchtime", "5x")
			t.Log(out)
			if err != nil {
				t.Error(err)
			}
			if !strings.Contains(out, c.has) {
				t.Errorf("the output has no %q", c.has)
			}
		})
	}
}

// kernelTests compiles the tests of a package into the lab's directory, which all nodes see.
func kernelTests(t *testing.T, l *lab.Lab, pkg string) string {
	t.Helper()
	program := filepath.Join(l.Dir, strings.ReplaceAll(pkg, "/", "-")+".test")
	build := exec.CommandContext(t.Context(), "go", "test", "-c", "-o", program, "../../"+pkg)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("compile the tests of %s: %v\n%s", pkg, err, out)
	}
	return program
}
