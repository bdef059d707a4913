//go:build e2e

package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/netdriver/netdriver/test/e2e/lab"
)

// TestVirtualKernelTests runs kernel tests again in a virtual node, whose kernel has what this machine's may lack. There
// they must not go without it: see the variable. No Docker is needed, so the kernel's start is most of what it costs.
func TestVirtualKernelTests(t *testing.T) {
	l := ownLab(t, lab.Config{Kernels: map[int]lab.Kernel{1: {}}})
	for _, c := range []struct{ name, pkg, env, run string }{
		{"ESP", "ipsec/xfrm", "NETDRIVER_TEST_ESP=1", kernelTests()},
		{"keys", "internal/keying", "NETDRIVER_TEST_ESP=1", "TestRealKernels"},
	} {
		t.Run(c.name, func(t *testing.T) {
			program := filepath.Join(l.Dir, strings.ReplaceAll(c.pkg, "/", "-")+".test")
			build := exec.CommandContext(t.Context(), "go", "test", "-c", "-o", program, "../../"+c.pkg)
			build.Env = append(os.Environ(), "CGO_ENABLED=0")
			if out, err := build.CombinedOutput(); err != nil {
				t.Fatalf("compile the tests of %s: %v\n%s", c.pkg, err, out)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
			defer cancel()
			out, err := l.Nodes[0].Exec(ctx, "env", c.env, "TMPDIR=/tmp", program, "-test.v", "-test.run", c.run,
				"-test.bench", kernelBenchmarks(), "-test.benchtime", "5x")
			t.Log(out)
			if err != nil {
				t.Error(err)
			}
			if !strings.Contains(out, "/linux") {
				t.Error("no test ran with the kernel")
			}
		})
	}
}

// kernelTests chooses some of the tests in a virtual node, by NETDRIVER_TEST_RUN: all, if that is not set.
func kernelTests() string { return os.Getenv("NETDRIVER_TEST_RUN") }

// kernelBenchmarks are run, too, with NETDRIVER_TEST_BENCH.
func kernelBenchmarks() string {
	if b := os.Getenv("NETDRIVER_TEST_BENCH"); b != "" {
		return b
	}
	return "^$"
}
