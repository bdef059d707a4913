//go:build linux

package netlink

import (
	"cmp"
	"errors"
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// Namespace opens the network namespace whose file is path; empty is this process's own, of its main thread, whichever
// thread asks.
func Namespace(path string) (int, error) {
	path = cmp.Or(path, "/proc/self/ns/net")
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open the network namespace %s: %w", path, err)
	}
	return fd, nil
}

// OnThread runs f on a thread that is its own meanwhile, in the network namespace that it was in and is put back into.
// A thread that cannot be put back is given up.
func OnThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("open this thread's network namespace: %w", err)
			return
		}
		err = f()
		if back := unix.Setns(home, unix.CLONE_NEWNET); back == nil {
			runtime.UnlockOSThread()
		}
		done <- errors.Join(err, unix.Close(home))
	}()
	return <-done
}

// In runs f on a thread in the network namespace ns. Only sockets and settings are opened so; the sockets stay
// bound to ns for whoever uses them.
func In(ns int, f func() error) error {
	return OnThread(func() error {
		if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter a network namespace: %w", err)
		}
		return f()
	})
}
