//go:build linux

// Package nettest makes network namespaces for kernel tests, in which nothing outside of them can be harmed.
package nettest

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// Namespace makes a network namespace with lo up, which goes with the test, and returns the file that it is bound on.
func Namespace(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ns")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("unshare", "--net="+path, "ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		t.Fatalf("make a network namespace: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", path, err)
		}
	})
	return path
}

// Try runs a shell command in a namespace and returns all it says.
func Try(ns, command string) (string, error) {
	out, err := exec.Command("nsenter", "--net="+ns, "sh", "-c", command).CombinedOutput()
	return string(out), err
}

// Sh is Try for a command that must succeed.
func Sh(t testing.TB, ns, command string) string {
	t.Helper()
	out, err := Try(ns, command)
	if err != nil {
		t.Fatalf("%s: %v\n%s", command, err, out)
	}
	return out
}
