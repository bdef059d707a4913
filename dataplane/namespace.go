//go:build linux

package dataplane

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/internal/netlink"
)

// nsfsMagic is what statfs says of a namespace's file (NSFS_MAGIC of linux/magic.h).
const nsfsMagic = 0x6e736673

// openNamespace returns the network namespace that is bound on path, and makes it if there is none.
func openNamespace(path string, log *slog.Logger) (int, error) {
	if fd, err := openBound(path); err == nil {
		return fd, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return -1, fmt.Errorf("make the run directory: %w", err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o400)
	if err != nil {
		return -1, fmt.Errorf("make the file for our network namespace: %w", err)
	}
	f.Close() // opened for its creation only
	err = netlink.OnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace: %w", err)
		}
		if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind our network namespace on %s: %w", path, err)
		}
		return nil
	})
	if err != nil {
		return -1, err
	}
	log.Info("made a network namespace", "path", path)
	return openBound(path)
}

// NamespaceIn is where the run directory has our network namespace bound.
func NamespaceIn(runDir string) string { return filepath.Join(runDir, "netns") }

// Exists says whether the run directory has our network namespace. If not, the host has booted since a daemon ran here, and
// nothing of what it made is left.
func Exists(runDir string) bool {
	fd, err := openBound(NamespaceIn(runDir))
	if err != nil {
		return false
	}
	unix.Close(fd)
	return true
}

// openBound opens path if a namespace is bound on it; a plain file is what a reboot leaves.
func openBound(path string) (int, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return -1, fmt.Errorf("look at %s: %w", path, err)
	}
	if st.Type != nsfsMagic {
		return -1, fmt.Errorf("%s is not a namespace", path)
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open our network namespace %s: %w", path, err)
	}
	return fd, nil
}

// different refuses two descriptors of one namespace: our devices must never be made among the host's.
func different(ours, host int) error {
	var x, y unix.Stat_t
	if err := errors.Join(unix.Fstat(ours, &x), unix.Fstat(host, &y)); err != nil {
		return err
	}
	if x.Dev == y.Dev && x.Ino == y.Ino {
		return errors.New("it is the host's own; unmount and remove that file and start again")
	}
	return nil
}

// settings sets up the calling thread's namespace: nothing is forwarded in it and no device in it has an address.
// IPv6 itself must stay on: the kernel refuses IPv6 neighbours, which neighbour suppression answers from, on a device
// where it is off (net/ipv6/ndisc.c).
func settings() error {
	const net = "/proc/sys/net/"
	for _, s := range []struct{ file, value string }{
		{"ipv4/ip_forward", "0"},
		{"ipv6/conf/all/forwarding", "0"},
		{"ipv6/conf/default/forwarding", "0"},
		{"ipv6/conf/all/disable_ipv6", "0"},
		{"ipv6/conf/default/disable_ipv6", "0"},
		{"ipv6/conf/default/addr_gen_mode", "1"}, // IN6_ADDR_GEN_MODE_NONE: no link-local address on new devices
		{"ipv6/conf/default/accept_ra", "0"},     // a container's router advertisement gives no address or route
		{"ipv6/conf/default/autoconf", "0"},
		// br_netfilter, if loaded, would send bridged frames through iptables: a new namespace starts with it on.
		{"bridge/bridge-nf-call-iptables", "0"},
		{"bridge/bridge-nf-call-ip6tables", "0"},
		{"bridge/bridge-nf-call-arptables", "0"},
	} {
		err := os.WriteFile(net+s.file, []byte(s.value), 0)
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // no IPv6 or no br_netfilter in this kernel
			return fmt.Errorf("set %s to %s: %w", s.file, s.value, err)
		}
	}
	return nil
}
