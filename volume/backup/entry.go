package backup

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// entry is one thing in a volume.
type entry struct {
	// path is relative to the volume, "." for the volume itself.
	path string
	stat unix.Stat_t
	// link is a symbolic link's target, or the path of the first name of a file with several.
	link   string
	xattrs []xattr
	// hard: this is another name of the file at link.
	hard bool
	// from is the number of the archive that has the content already, 0 if none does.
	from int
}

type xattr struct{ name, value string }

// name is the entry's name in the archive.
func (e *entry) name() string {
	if e.path == "." {
		return "./"
	}
	if e.stat.Mode&unix.S_IFMT == unix.S_IFDIR {
		return e.path + "/"
	}
	return e.path
}

// regular says whether the entry has data of its own.
func (e *entry) regular() bool { return !e.hard && e.stat.Mode&unix.S_IFMT == unix.S_IFREG }

func (e *entry) flag() byte {
	if e.hard {
		return typeHardLink
	}
	switch e.stat.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return typeDir
	case unix.S_IFLNK:
		return typeSymlink
	case unix.S_IFCHR:
		return typeChar
	case unix.S_IFBLK:
		return typeBlock
	case unix.S_IFIFO:
		return typeFIFO
	}
	return typeFile
}

// beneath are the rules by which paths in a volume are opened: whoever writes to the volume meanwhile can put links into
// it, which must not lead out (man 2 openat2; Linux 5.6).
const beneath = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS

// openBeneath opens a path in the volume whose directory is root.
func openBeneath(root int, path string, flags uint64, mode uint64) (int, error) {
	for {
		fd, err := unix.Openat2(root, path, &unix.OpenHow{
			Flags: flags | unix.O_CLOEXEC | unix.O_NOFOLLOW, Mode: mode, Resolve: beneath,
		})
		// EAGAIN: a rename raced with the walk along the path.
		if !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) {
			return fd, err
		}
	}
}

// readXattrs returns the extended attributes of an open file, ACLs and capabilities among them.
func readXattrs(fd int) ([]xattr, error) {
	return xattrsOf(
		func(buf []byte) (int, error) { return unix.Flistxattr(fd, buf) },
		func(name string, buf []byte) (int, error) { return unix.Fgetxattr(fd, name, buf) },
	)
}

// linkXattrs returns those of what cannot be opened, such as a symbolic link, through the directory that has it.
func linkXattrs(dir int, name string) ([]xattr, error) {
	path := fmt.Sprintf("/proc/self/fd/%d/%s", dir, name)
	return xattrsOf(
		func(buf []byte) (int, error) { return unix.Llistxattr(path, buf) },
		func(name string, buf []byte) (int, error) { return unix.Lgetxattr(path, name, buf) },
	)
}

func xattrsOf(list func([]byte) (int, error), get func(string, []byte) (int, error)) ([]xattr, error) {
	names, err := grow(nil, list) // most files have none, and need no buffer
	if errors.Is(err, unix.ENOTSUP) || len(names) == 0 && err == nil {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list extended attributes: %w", err)
	}
	var out []xattr
	for name := range strings.SplitSeq(strings.TrimSuffix(string(names), "\x00"), "\x00") {
		value, err := grow(nil, func(buf []byte) (int, error) { return get(name, buf) })
		if errors.Is(err, unix.ENODATA) { // removed meanwhile, or of another file system's own
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read extended attribute %s: %w", name, err)
		}
		out = append(out, xattr{name, string(value)})
	}
	return out, nil
}

// grow calls a function that fills a buffer, with a larger one if need be.
func grow(buf []byte, fill func([]byte) (int, error)) ([]byte, error) {
	for {
		if len(buf) == 0 {
			n, err := fill(nil)
			if err != nil || n == 0 {
				return nil, err
			}
			buf = make([]byte, n)
		}
		n, err := fill(buf)
		if errors.Is(err, unix.ERANGE) {
			buf = nil
			continue
		}
		if err != nil {
			return nil, err
		}
		return buf[:n], nil
	}
}

// findSegments returns the pieces of a file that have data, nil if it has no holes.
func findSegments(fd int, st *unix.Stat_t) ([]segment, error) {
	if st.Blocks*block >= st.Size {
		return nil, nil
	}
	out := []segment{}
	for at := int64(0); at < st.Size; {
		data, err := unix.Seek(fd, at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // only a hole is left
		}
		if err != nil {
			return nil, fmt.Errorf("look for data: %w", err)
		}
		hole, err := unix.Seek(fd, data, unix.SEEK_HOLE)
		if err != nil {
			return nil, fmt.Errorf("look for holes: %w", err)
		}
		hole = min(hole, st.Size)
		if hole > data {
			out = append(out, segment{data, hole - data})
		}
		at = max(hole, data+1)
	}
	if len(out) == 1 && out[0] == (segment{0, st.Size}) {
		return nil, nil // compressed by the file system, say
	}
	return out, nil
}
