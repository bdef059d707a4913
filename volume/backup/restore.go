package backup

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

const (
	// stage is where a restore gathers everything; it gets the other name in one step once it is whole and checked.
	stage, staged = ".netdriver-restore", ".netdriver-restored"
	// pieceSize is how much of a file is handed to a writer at a time, in bytes.
	pieceSize = 256 << 10
	// writers write files side by side, each at most piecesAhead behind the archive.
	writers, piecesAhead = 4, 4
	// jobsAhead is how many files may wait for a writer.
	jobsAhead = 16
)

// ErrNotEmpty says that a volume has something in it.
var ErrNotEmpty = errors.New("the volume is not empty")

// Target is the volume that is written.
type Target struct {
	// Dir is the volume's directory.
	Dir *os.File
	// Bases are the archives on which an incremental one builds; without it only full ones can be restored.
	Bases Bases
	// Warn is told what could not be kept; Progress what was written. Both may be nil, and are called by several goroutines
	// at a time.
	Warn     func(string)
	Progress func(Progress)
}

// Restore writes an archive into an empty volume. Everything is gathered in a directory of its own and appears in its place
// at the end: an archive that is damaged, or a restore that is interrupted, leaves the volume as it was. One that was
// interrupted while things were put in their place is finished by the next, whatever its archive.
func Restore(ctx context.Context, in io.Reader, to Target) (Summary, error) {
	if to.Warn == nil {
		to.Warn = func(string) {}
	}
	if to.Progress == nil {
		to.Progress = func(Progress) {}
	}
	root := int(to.Dir.Fd())
	if err := settle(root); err != nil {
		return Summary{}, fmt.Errorf("restore: %w", err)
	}
	if err := checkEmpty(root); err != nil {
		return Summary{}, fmt.Errorf("restore: %w", err)
	}
	s, err := gather(ctx, in, to, root)
	if err == nil {
		err = place(root)
	}
	if err != nil {
		return Summary{}, fmt.Errorf("restore: %w", errors.Join(err, removeTree(root, stage)))
	}
	return s, nil
}

// restorer is a sink that writes.
type restorer struct {
	Target
	// outer is the whole restore's context, ctx that of one archive's writers.
	outer, ctx context.Context
	root       int // the stage
	jobs       chan *job
	// order has the jobs in the archive's order, for the manifest.
	order chan *job
	free  sync.Pool
	// parent is the directory that was used last, open.
	parent     string
	parentFD   int
	dirs       []*tar.Header
	dirNames   []string
	links      [][2]string
	wait       func() error
	written    atomic.Int64
	entries    atomic.Int64
	manifest   *manifest
	unsuitable sync.Map // namespaces of extended attributes that the volume's file system does not know
}

// gather writes everything below the stage.
func gather(ctx context.Context, in io.Reader, to Target, root int) (s Summary, err error) {
	if err := unix.Mkdirat(root, stage, 0o700); err != nil {
		return s, fmt.Errorf("make the directory %s: %w", stage, err)
	}
	fd, err := openBeneath(root, stage, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return s, err
	}
	defer unix.Close(fd)
	r := &restorer{
		Target: to, root: fd, outer: ctx, parentFD: -1,
		free: sync.Pool{New: func() any { b := make([]byte, pieceSize); return &b }},
	}
	s, err = read(ctx, in, to.Bases, r)
	// A writer's error ends everything, and is why the archive was not read further.
	if waitErr := r.end(); waitErr != nil && ctx.Err() == nil && (err == nil || errors.Is(err, context.Canceled)) {
		err = waitErr
	}
	if err == nil {
		err = r.finish()
	}
	if r.parentFD >= 0 {
		unix.Close(r.parentFD)
	}
	return s, err
}

// begin starts the writers for one archive.
func (r *restorer) begin() (err error) {
	if err := r.end(); err != nil {
		return err
	}
	if r.manifest, err = newManifest(); err != nil {
		return err
	}
	r.jobs, r.order = make(chan *job, jobsAhead), make(chan *job, jobsAhead)
	g, ctx := errgroup.WithContext(r.outer)
	r.ctx = ctx
	for range writers {
		g.Go(r.write)
	}
	g.Go(r.collect)
	r.wait = sync.OnceValue(func() error {
		close(r.jobs)
		close(r.order)
		return g.Wait()
	})
	return nil
}

// end waits for the writers of the last archive.
func (r *restorer) end() error {
	if r.manifest == nil {
		return nil
	}
	err := r.wait()
	r.manifest.close()
	r.manifest = nil
	return err
}

// sums waits for all files of an archive.
func (r *restorer) sums() (*manifest, error) { return r.manifest, r.wait() }

// finish makes hard links and gives directories their metadata, which writing into them would have changed.
func (r *restorer) finish() error {
	for _, l := range r.links {
		if err := r.link(l[0], l[1]); err != nil {
			return fmt.Errorf("%s: link to %s: %w", l[0], l[1], err)
		}
	}
	for i := len(r.dirs) - 1; i >= 0; i-- {
		fd, err := openBeneath(r.root, r.dirNames[i], unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			return fmt.Errorf("%s: %w", r.dirNames[i], err)
		}
		err = r.describe(fd, r.dirs[i])
		unix.Close(fd)
		if err != nil {
			return fmt.Errorf("%s: %w", r.dirNames[i], err)
		}
	}
	return nil
}

// in returns the open directory of a path, and the path's last name. Neighbours in the archive share directories.
func (r *restorer) in(name string) (int, string, error) {
	dir := path.Dir(name)
	if r.parentFD < 0 || dir != r.parent {
		fd, err := openBeneath(r.root, dir, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			return -1, "", err
		}
		if r.parentFD >= 0 {
			unix.Close(r.parentFD)
		}
		r.parent, r.parentFD = dir, fd
	}
	return r.parentFD, path.Base(name), nil
}

// other makes what is no regular file.
func (r *restorer) other(h *tar.Header, name string) error {
	r.note(0)
	if h.Typeflag == tar.TypeLink {
		r.links = append(r.links, [2]string{name, h.Linkname})
		return nil
	}
	if h.Typeflag == tar.TypeDir {
		r.dirs, r.dirNames = append(r.dirs, h), append(r.dirNames, name)
		if name == "." {
			return nil
		}
	}
	dir, base, err := r.in(name)
	if err != nil {
		return err
	}
	device := int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor)))
	switch h.Typeflag {
	case tar.TypeDir:
		return unix.Mkdirat(dir, base, 0o700)
	case tar.TypeSymlink:
		err = unix.Symlinkat(h.Linkname, dir, base)
	case tar.TypeChar:
		err = unix.Mknodat(dir, base, unix.S_IFCHR|0o600, device)
	case tar.TypeBlock:
		err = unix.Mknodat(dir, base, unix.S_IFBLK|0o600, device)
	case tar.TypeFifo:
		err = unix.Mknodat(dir, base, unix.S_IFIFO|0o600, 0)
	}
	if err != nil {
		return err
	}
	return r.describeAt(dir, base, h)
}

func (r *restorer) link(name, first string) error {
	from, err := openBeneath(r.root, path.Dir(first), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(from)
	to, base, err := r.in(name)
	if err != nil {
		return err
	}
	err = unix.Linkat(from, path.Base(first), to, base, 0)
	if errors.Is(err, unix.ENOENT) {
		r.Warn(name + " is left out: it was another name of " + first + ", which disappeared while the backup was made")
		return nil
	}
	return err
}

func (r *restorer) note(bytes int64) {
	r.Progress(Progress{r.entries.Add(1), r.written.Add(bytes)})
}
