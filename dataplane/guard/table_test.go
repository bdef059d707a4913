//go:build linux

package guard

import (
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/internal/netlink"
)

// A kernel that lacks something says so at once: the daemon waits for it when it starts.
func TestAKernelWithoutTablesSaysSoAtOnce(t *testing.T) {
	ns, err := netlink.Namespace("")
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(ns)
	opened := make(chan error, 1)
	go func() {
		table, err := Open(ns)
		if err == nil {
			err = table.Close()
		}
		opened <- err
	}()
	select {
	case err := <-opened:
		lacks := os.Getenv("NETDRIVER_TEST_FILTER") == "iptables"
		if err != nil && !errors.Is(err, ErrUnsupported) || lacks && err == nil {
			t.Errorf("got %v, a kernel without nf_tables: %t", err, lacks)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("it waits for ever")
	}
}
