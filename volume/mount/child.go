package mount

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// Child is the whole program of a child process: it reads Tasks, one a line, performs each, writes its Result, and returns
// the exit status. Its standard input stays open as long as the parent lives. At its end the child kills its own process
// group, so that nothing of a killed daemon's goes on behind the back of the next one; when it is idle, it just ends.
func Child(in io.Reader, out io.Writer) int {
	tasks := make(chan Task)
	var busy atomic.Bool
	var failed error
	go func() {
		defer close(tasks)
		decoder := json.NewDecoder(in)
		for {
			var t Task
			if failed = decoder.Decode(&t); failed != nil {
				break
			}
			busy.Store(true)
			tasks <- t
		}
		if busy.Load() {
			_ = unix.Kill(0, unix.SIGKILL)
		}
	}()
	encoder := json.NewEncoder(out)
	for t := range tasks {
		r := perform(t)
		busy.Store(false)
		if err := encoder.Encode(r); err != nil {
			return 1
		}
	}
	if !errors.Is(failed, io.EOF) {
		fmt.Fprintln(os.Stderr, "volume-child is started by netdriver itself, with tasks on its standard input:", failed)
		return 2
	}
	return 0
}

func perform(t Task) Result {
	switch t.Do {
	case DoMount:
		return mountPlan(t.Plan, t.Target)
	case DoUnmount:
		return result(unmount(t.Target, unix.UMOUNT_NOFOLLOW))
	case DoDetach:
		return result(unmount(t.Target, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH))
	case DoProbe:
		return result(probe(t.Target))
	case DoAbort:
		return result(abort(t.Device))
	}
	return result(failed("", string(t.Do), errors.New("unknown task")))
}

func result(f *Failure) Result {
	if f == nil {
		return Result{Done: true}
	}
	return Result{Failures: []Failure{*f}}
}

// mountPlan makes attempts until one succeeds. With a failure nothing is left mounted at the target.
func mountPlan(p Plan, target string) Result {
	var r Result
	if err := os.MkdirAll(target, 0o700); err != nil {
		return result(failed("", "make the mount point", err))
	}
	for i, a := range p.Attempts {
		f := try(p, a, target)
		if f == nil {
			r.Done, r.Attempt = true, i
			return r
		}
		r.Failures = append(r.Failures, *f)
		if !slices.Contains(p.Next, f.Errno) {
			break
		}
	}
	return r
}

// try makes one attempt and proves it.
func try(p Plan, a Attempt, target string) *Failure {
	at := target
	if p.Subdir != "" {
		at = stage(target)
		if err := os.MkdirAll(at, 0o700); err != nil {
			return failed(a.Label, "make the mount point", err)
		}
		defer os.Remove(at)
		defer unmount(at, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
	}
	if f := one(p, a, at); f != nil {
		return f
	}
	if p.Subdir != "" {
		if f := lay(p, a, at, target); f != nil {
			return f
		}
	}
	f := prove(a, target)
	if f != nil {
		unmount(target, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
	}
	return f
}

// stage is where a whole file system is mounted for the moment in which a directory of it is made.
func stage(target string) string {
	return filepath.Join(filepath.Dir(target), ".stage-"+filepath.Base(target))
}

func one(p Plan, a Attempt, at string) *Failure {
	switch {
	case a.Bind:
		return bind(p, a, at)
	case len(a.Command) > 0:
		return command(a, at)
	}
	data := a.Data
	if a.SecretFile != "" {
		secret, err := os.ReadFile(a.SecretFile)
		if err != nil {
			return failed(a.Label, "read the secret", err)
		}
		data = strings.TrimPrefix(data+",secret="+strings.TrimSpace(string(secret)), ",")
	}
	if err := unix.Mount(a.Source, at, a.FSType, a.Flags, data); err != nil {
		return failed(a.Label, "mount", err)
	}
	return nil
}

// bind binds a directory. Flags of a bind take effect only with a second call (man 2 mount, "Remounting").
func bind(p Plan, a Attempt, at string) *Failure {
	if a.Make {
		if err := makeDir(p, a.Source); err != nil {
			return failed(a.Label, "make the directory", err)
		}
	}
	if err := unix.Mount(a.Source, at, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return failed(a.Label, "bind "+a.Source, err)
	}
	if a.Flags == 0 {
		return nil
	}
	if err := unix.Mount("", at, "", unix.MS_BIND|unix.MS_REMOUNT|a.Flags, ""); err != nil {
		unmount(at, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
		return failed(a.Label, "bind "+a.Source, err)
	}
	return nil
}

// makeDir makes a directory of this node if it is missing; one that exists keeps its owner and mode.
func makeDir(p Plan, dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return err
	}
	err := os.Mkdir(dir, 0o700)
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(os.Chown(dir, p.UID, p.GID), unix.Chmod(dir, uint32(p.Mode)))
}

// command runs a program that mounts and ends, leaving a daemon behind in a session of its own.
func command(a Attempt, at string) *Failure {
	args := slices.Clone(a.Command[1:])
	for i := range args {
		args[i] = strings.ReplaceAll(args[i], Placeholder, at)
	}
	var said bytes.Buffer
	cmd := exec.Command(a.Command[0], args...)
	// The daemon keeps what it inherits: a pipe would never end, and a file of ours would keep the parent waiting.
	log, err := os.CreateTemp("", "netdriver-mount")
	if err != nil {
		return failed(a.Label, a.Command[0], err)
	}
	defer os.Remove(log.Name())
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	err = cmd.Run()
	if err == nil {
		return nil
	}
	if _, seekErr := log.Seek(0, io.SeekStart); seekErr == nil {
		_, _ = io.Copy(&said, io.LimitReader(log, maxSaid))
	}
	f := failed(a.Label, filepath.Base(a.Command[0]), err)
	if text := strings.TrimSpace(said.String()); text != "" {
		f.Text = text
	}
	return f
}

// maxSaid is how much of a program's complaint is repeated, in bytes.
const maxSaid = 2000

// lay makes the directory below a staged file system and moves it to the target: a clone of its mount, so that the stage
// can go (man 2 open_tree, move_mount; Linux 5.2). Links in the file system cannot lead out of it: os.Root follows none
// that does.
func lay(p Plan, a Attempt, staged, target string) *Failure {
	root, err := os.OpenRoot(staged)
	if err != nil {
		return failed(a.Label, "open the volume", err)
	}
	defer root.Close()
	if err := makeBelow(p, root); err != nil {
		return failed(a.Label, "make subdir "+p.Subdir, err)
	}
	dir, err := root.Open(p.Subdir)
	if err != nil {
		return failed(a.Label, "open subdir "+p.Subdir, err)
	}
	defer dir.Close()
	tree, err := unix.OpenTree(int(dir.Fd()), "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return failed(a.Label, "take subdir "+p.Subdir, err)
	}
	defer unix.Close(tree)
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return failed(a.Label, "mount subdir "+p.Subdir, err)
	}
	return nil
}

// makeBelow makes the missing directories on the way to the subdirectory, each with the wanted mode and owner.
func makeBelow(p Plan, root *os.Root) error {
	path := ""
	for part := range strings.SplitSeq(p.Subdir, "/") {
		path = filepath.Join(path, part)
		err := root.Mkdir(path, 0o700)
		if errors.Is(err, os.ErrExist) {
			continue
		}
		if _, missing := root.Stat(path); err != nil && missing == nil {
			continue // a read-only file system says so even of what is there
		}
		if err != nil {
			return err
		}
		dir, err := root.Open(path)
		if err != nil {
			return err
		}
		fd := int(dir.Fd())
		err = errors.Join(unix.Fchown(fd, p.UID, p.GID), unix.Fchmod(fd, uint32(p.Mode)), dir.Close())
		if err != nil {
			return err
		}
	}
	return nil
}

// prove makes sure that the volume is what a container will find at the target, and that its server answers. A program
// may say that it has mounted and be wrong (glusterfs, for a directory that is not there); a write would then go to this
// node's own disk.
func prove(a Attempt, target string) *Failure {
	mounts, err := mountsBelow(target)
	if err != nil {
		return failed(a.Label, "read the table of mounts", err)
	}
	if _, ok := mounts[target]; !ok {
		return failed(a.Label, "mount", errors.New("it was reported as done, but nothing is mounted"))
	}
	f := probe(target)
	if f != nil {
		f.Label = a.Label
	}
	return f
}

// probe asks the server. A directory that another client has deleted is a mount of CephFS's like any other, but for its
// number of links.
func probe(target string) *Failure {
	var fs unix.Statfs_t
	if err := unix.Statfs(target, &fs); err != nil {
		return failed("", "statfs", err)
	}
	var st unix.Stat_t
	if err := unix.Stat(target, &st); err != nil {
		return failed("", "stat", err)
	}
	if st.Nlink == 0 {
		return failed("", "stat", unix.ESTALE)
	}
	return nil
}

// unmount takes away everything that is mounted at the target, however often, and then the mount point if it is empty.
func unmount(target string, flags int) *Failure {
	for range maxStack {
		switch err := unix.Unmount(target, flags); {
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT): // no mount point (any more)
			_ = unix.Rmdir(target)
			return nil
		case err != nil:
			return failed("", "umount", err)
		}
	}
	return failed("", "umount", fmt.Errorf("more than %d mounts above each other", maxStack))
}

// maxStack bounds how many mounts at one target are taken away.
const maxStack = 64

// abort ends a FUSE connection (Documentation/filesystems/fuse.rst, "Aborting a filesystem connection").
func abort(minor int) *Failure {
	path := fmt.Sprintf("%s/%d/abort", fuseConnections, minor)
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		if err := unix.Mount("fusectl", fuseConnections, "fusectl", 0, ""); err != nil && !errors.Is(err, syscall.EBUSY) {
			return failed("", "mount fusectl", err)
		}
	}
	if err := os.WriteFile(path, []byte("1"), 0o200); err != nil && !errors.Is(err, os.ErrNotExist) {
		return failed("", "abort the FUSE connection", err)
	}
	return nil
}

const fuseConnections = "/sys/fs/fuse/connections"
