package lab

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// abortFUSE ends the connections of all FUSE file systems that a process sees, on which others may wait for ever: a process
// that waits for a FUSE daemon ignores SIGKILL, and one that has inherited the daemon's file keeps the connection
// (Documentation/filesystems/fuse.rst, "Aborting a filesystem connection"). It is done before a node's processes are killed.
func abortFUSE(pid int) error {
	minors, err := fuseMounts(pid)
	if len(minors) == 0 || err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "netdriver-fusectl")
	if err != nil {
		return err
	}
	defer os.Remove(dir)
	if err := unix.Mount("fusectl", dir, "fusectl", 0, ""); err != nil {
		return fmt.Errorf("mount fusectl: %w", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	var errs []error
	for minor := range minors {
		err := os.WriteFile(filepath.Join(dir, minor, "abort"), []byte("1"), 0o200)
		if !errors.Is(err, os.ErrNotExist) { // it has ended
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// fuseMounts returns the minor device numbers, which are the connections' names, of FUSE mounts but the machine's own.
func fuseMounts(pid int) (map[string]bool, error) {
	theirs, err := fuseMinors(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.EINVAL) { // it has ended
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	own, err := fuseMinors("/proc/self/mountinfo")
	for minor := range own {
		delete(theirs, minor)
	}
	return theirs, err
}

func fuseMinors(mountinfo string) (map[string]bool, error) {
	file, err := os.Open(mountinfo)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	out := map[string]bool{}
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		mount, kind, ok := strings.Cut(lines.Text(), " - ")
		fields := strings.Fields(mount)
		if !ok || len(fields) < 3 || !strings.HasPrefix(kind, "fuse.") {
			continue
		}
		if _, minor, ok := strings.Cut(fields[2], ":"); ok {
			out[minor] = true
		}
	}
	return out, lines.Err()
}
