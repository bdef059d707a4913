package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"
)

// Suffix is what the files in a directory of backups are called.
const Suffix = ".tar.zst"

// stamp is the time in a file's name, in the form of ISO 8601 without characters that a shell knows.
const stamp = "20060102T150405Z"

// stamped is the end of such a name, after the volume's.
var stamped = regexp.MustCompile(`^-[0-9]{8}T[0-9]{6}Z` + regexp.QuoteMeta(Suffix) + `$`)

// unfinished is what a file is called that has not got its name yet (renameio, TempFile).
var unfinished = regexp.MustCompile(`^\..+-[0-9]{8}T[0-9]{6}Z` + regexp.QuoteMeta(Suffix) + `[0-9]+$`)

// maxBases is on how many archives one may build. The next backup is a full one then: with each more, one more file has to be
// whole for a restore.
const maxBases = 30

// ErrBusy says that somebody else makes a backup into the directory.
var ErrBusy = errors.New("another backup into this directory is running")

// Directory is a directory of backups. While it is open, nobody else can make one there.
type Directory struct {
	path string
	lock *os.File
}

// OpenDirectory opens a directory for making backups.
func OpenDirectory(path string) (*Directory, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = ErrBusy
	}
	d := &Directory{path, f}
	switch {
	case errors.Is(err, unix.ENOTSUP), errors.Is(err, unix.ENOSYS): // a file system without locks
		return d, nil
	case err == nil:
		err = d.sweep()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("directory %s: %w", path, err), f.Close())
	}
	return d, nil
}

// sweep removes what backups that were killed have left. Nobody else is at work, as long as the lock is held.
func (d *Directory) sweep() error {
	files, err := os.ReadDir(d.path)
	if err != nil {
		return err
	}
	for _, f := range files {
		if unfinished.MatchString(f.Name()) {
			if err := os.Remove(filepath.Join(d.path, f.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// Close lets others in.
func (d *Directory) Close() error { return d.lock.Close() }

// Create makes a backup that builds on the volume's last one, unless full. It appears under its name once it is whole.
func (d *Directory) Create(ctx context.Context, src Source, full bool) (path string, s Summary, err error) {
	if src.Now == nil {
		src.Now = time.Now
	}
	if !full {
		if src.Base, err = d.base(src); err != nil {
			return "", s, err
		}
	}
	if src.Base != nil {
		defer src.Base.Close()
	}
	path, err = d.free(src.Name, src.Now())
	if err != nil {
		return "", s, err
	}
	f, err := renameio.NewPendingFile(path, renameio.WithTempDir(d.path), renameio.WithPermissions(0o600))
	if err != nil {
		return "", s, fmt.Errorf("back up %s: %w", src.Name, err)
	}
	defer func() { err = errors.Join(err, f.Cleanup()) }()
	if s, err = Create(ctx, src, f); err != nil {
		return "", s, err
	}
	if err := f.CloseAtomicallyReplace(); err != nil {
		return "", s, fmt.Errorf("keep %s: %w", path, err)
	}
	return path, s, nil
}

// free returns a name that no file has.
func (d *Directory) free(volume string, now time.Time) (string, error) {
	for {
		path := filepath.Join(d.path, volume+"-"+now.UTC().Format(stamp)+Suffix)
		_, err := os.Lstat(path)
		if errors.Is(err, os.ErrNotExist) {
			return path, nil
		}
		if err != nil {
			return "", err
		}
		now = now.Add(time.Second)
	}
}

// list returns a volume's archives, the newest first.
func (d *Directory) list(volume string) ([]string, error) {
	files, err := os.ReadDir(d.path)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, f := range files {
		if rest, ok := strings.CutPrefix(f.Name(), volume); ok && stamped.MatchString(rest) {
			out = append(out, f.Name())
		}
	}
	slices.Reverse(out)
	return out, nil
}

// base returns the archive on which the next can build, nil if there is none. One that cannot be read is warned of.
func (d *Directory) base(src Source) (*Base, error) {
	names, err := d.list(src.Name)
	if err != nil || len(names) == 0 {
		return nil, err
	}
	b, err := OpenBase(filepath.Join(d.path, names[0]))
	if err == nil && len(b.Summary.Bases) < maxBases {
		if err = d.complete(b); err == nil {
			return b, nil
		}
	}
	if b != nil {
		err = errors.Join(err, b.Close())
	}
	if err != nil && src.Warn != nil {
		src.Warn(fmt.Sprintf("a full backup is made, since the last one cannot be built on: %v", err))
	}
	return nil, nil
}

// complete is an error if an archive on which another builds is missing.
func (d *Directory) complete(b *Base) error {
	for _, r := range b.Summary.Bases {
		if _, err := os.Stat(filepath.Join(d.path, r.File)); err != nil {
			return err
		}
	}
	return nil
}

// Retain removes all but a volume's last backups, and those on which they build. It returns what it has removed. Nothing is
// removed if one that is to stay cannot be read.
func (d *Directory) Retain(volume string, keep int) ([]string, error) {
	names, err := d.list(volume)
	if err != nil || len(names) <= keep {
		return nil, err
	}
	needed := map[string]bool{}
	for _, name := range names[:keep] {
		b, err := OpenBase(filepath.Join(d.path, name))
		if err != nil {
			return nil, fmt.Errorf("nothing is removed, since what is needed is not known: %w", err)
		}
		for _, r := range b.Summary.Bases {
			needed[r.File] = true
		}
		if err := b.Close(); err != nil {
			return nil, err
		}
	}
	var removed []string
	for _, name := range names[keep:] { // the newest first: what stays has all that it builds on
		if needed[name] {
			continue
		}
		if err := os.Remove(filepath.Join(d.path, name)); err != nil {
			return removed, err
		}
		removed = append(removed, name)
	}
	return removed, nil
}

// Beside opens archives in the directory of a file, on which it may build.
func Beside(path string) Bases {
	return func(name string) (io.ReadCloser, error) { return os.Open(filepath.Join(filepath.Dir(path), name)) }
}
