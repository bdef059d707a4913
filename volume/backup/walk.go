package backup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// Meta is the directory in an archive, and never in a volume, that has the checksums.
const Meta = ".netdriver-backup"

// skip says whether a name at the top of a volume is no part of its data.
func skip(dir, name string) bool {
	return dir == "." && (name == Meta || name == stage || name == staged || name == "lost+found")
}

// walker goes through a volume, directories before what is in them, names in order.
type walker struct {
	root int
	// first has the path of each file with several names that was met.
	first map[fileID]string
	// emit takes each entry.
	emit func(*entry) error
	// warn takes what is left out.
	warn func(string)
}

type fileID struct{ dev, ino uint64 }

// walk goes through a directory, which is the volume's for ".".
func (w *walker) walk(ctx context.Context, dir string) error {
	fd, err := openBeneath(w.root, dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return w.gone(dir, err)
	}
	d := os.NewFile(uintptr(fd), dir)
	defer d.Close()
	e := &entry{path: dir}
	if err := unix.Fstat(fd, &e.stat); err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	if e.xattrs, err = readXattrs(fd); err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	if err := w.emit(e); err != nil {
		return err
	}
	names, err := d.Readdirnames(-1)
	if err != nil {
		return w.gone(dir, fmt.Errorf("read the directory: %w", err))
	}
	slices.Sort(names)
	for _, name := range names {
		if skip(dir, name) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := w.child(ctx, fd, dir, name); err != nil {
			return err
		}
	}
	return nil
}

// gone makes what has disappeared meanwhile a warning: somebody is at work in the volume.
func (w *walker) gone(name string, err error) error {
	if errors.Is(err, unix.ENOENT) && name != "." {
		w.warn(name + " disappeared while it was read")
		return nil
	}
	return fmt.Errorf("%s: %w", name, err)
}

func (w *walker) child(ctx context.Context, fd int, dir, name string) error {
	e := &entry{path: name}
	if dir != "." {
		e.path = dir + "/" + name
	}
	if err := unix.Fstatat(fd, name, &e.stat, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return w.gone(e.path, err)
	}
	kind := e.stat.Mode & unix.S_IFMT
	switch {
	case kind == unix.S_IFDIR:
		return w.walk(ctx, e.path)
	case kind == unix.S_IFSOCK:
		w.warn(e.path + " is a socket and left out: its server makes it anew")
		return nil
	case e.stat.Nlink > 1 && w.again(e):
		return w.emit(e)
	case kind == unix.S_IFREG:
		return w.emit(e)
	}
	var err error
	if kind == unix.S_IFLNK {
		if e.link, err = readlink(fd, name); err != nil {
			return w.gone(e.path, err)
		}
	}
	if e.xattrs, err = linkXattrs(fd, name); err != nil {
		return w.gone(e.path, err)
	}
	return w.emit(e)
}

// again makes an entry a hard link if its file was met before, and remembers it otherwise.
func (w *walker) again(e *entry) bool {
	id := fileID{e.stat.Dev, e.stat.Ino}
	first, met := w.first[id]
	if !met {
		w.first[id] = e.path
		return false
	}
	e.link, e.hard = first, true
	return true
}

func readlink(dir int, name string) (string, error) {
	buf, err := grow(make([]byte, unix.PathMax), func(b []byte) (int, error) { return unix.Readlinkat(dir, name, b) })
	return string(buf), err
}

// Measure counts what a backup would read, without opening a file.
func Measure(ctx context.Context, dir *os.File) (Progress, error) {
	var p Progress
	w := walker{root: int(dir.Fd()), first: map[fileID]string{}, warn: func(string) {}, emit: func(e *entry) error {
		p.Entries++
		if e.regular() {
			p.Bytes += e.stat.Size
		}
		return nil
	}}
	return p, w.walk(ctx, ".")
}
