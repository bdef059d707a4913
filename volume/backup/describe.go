package backup

import (
	"archive/tar"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// describe gives an open file its metadata. The order matters: chown(2) clears set-user-ID bits and capabilities, and
// everything but utimensat(2) changes the times.
func (r *restorer) describe(fd int, h *tar.Header) error {
	if err := unix.Fchown(fd, h.Uid, h.Gid); err != nil {
		return fmt.Errorf("set the owner %d:%d: %w", h.Uid, h.Gid, err)
	}
	if err := unix.Fchmod(fd, uint32(h.Mode&0o7777)); err != nil {
		return fmt.Errorf("set the mode: %w", err)
	}
	set := func(name, value string) error { return unix.Fsetxattr(fd, name, []byte(value), 0) }
	if err := r.setXattrs(h, set); err != nil {
		return err
	}
	times := times(h)
	if err := unix.UtimesNanoAt(fd, "", times, unix.AT_EMPTY_PATH); err != nil {
		return fmt.Errorf("set the time: %w", err)
	}
	return nil
}

// describeAt gives its metadata to what cannot be opened: links, devices, pipes.
func (r *restorer) describeAt(dir int, name string, h *tar.Header) error {
	if err := unix.Fchownat(dir, name, h.Uid, h.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set the owner %d:%d: %w", h.Uid, h.Gid, err)
	}
	if h.Typeflag != tar.TypeSymlink { // a link has no mode
		if err := unix.Fchmodat(dir, name, uint32(h.Mode&0o7777), 0); err != nil {
			return fmt.Errorf("set the mode: %w", err)
		}
	}
	path := fmt.Sprintf("/proc/self/fd/%d/%s", dir, name)
	set := func(name, value string) error { return unix.Lsetxattr(path, name, []byte(value), 0) }
	if err := r.setXattrs(h, set); err != nil {
		return err
	}
	if err := unix.UtimesNanoAt(dir, name, times(h), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set the time: %w", err)
	}
	return nil
}

// times are those of utimensat(2): the access time becomes the moment of restoring, as it would by tar.
func times(h *tar.Header) []unix.Timespec {
	return []unix.Timespec{
		{Nsec: unix.UTIME_NOW},
		{Sec: h.ModTime.Unix(), Nsec: int64(h.ModTime.Nanosecond())},
	}
}

// setXattrs sets extended attributes. A file system that does not know a kind of them keeps the rest; that is told once.
func (r *restorer) setXattrs(h *tar.Header, set func(name, value string) error) error {
	for _, key := range slices.Sorted(maps.Keys(h.PAXRecords)) {
		name, ok := strings.CutPrefix(key, xattrPrefix)
		if !ok {
			continue
		}
		err := set(name, h.PAXRecords[key])
		if errors.Is(err, unix.ENOTSUP) {
			kind, _, _ := strings.Cut(name, ".")
			if _, told := r.unsuitable.LoadOrStore(kind, true); !told {
				r.Warn("the volume's file system does not keep extended attributes of kind " + kind)
			}
			continue
		}
		if err != nil {
			return fmt.Errorf("set the extended attribute %s: %w", name, err)
		}
	}
	return nil
}
