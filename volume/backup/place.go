package backup

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// names returns what is in a directory.
func names(dir int, path string) ([]string, error) {
	fd, err := openBeneath(dir, path, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	d := os.NewFile(uintptr(fd), path)
	defer d.Close()
	return d.Readdirnames(-1)
}

// checkEmpty refuses a volume that has something in it.
func checkEmpty(root int) error {
	have, err := names(root, ".")
	if err != nil {
		return err
	}
	for _, name := range have {
		if !skip(".", name) {
			return fmt.Errorf("%w: it has %q: restore into a new one, or empty it first", ErrNotEmpty, name)
		}
	}
	return nil
}

// settle finishes what an interrupted restore has left: one that was whole is put in its place, another removed.
func settle(root int) error {
	if err := unpack(root); err != nil {
		return err
	}
	return removeTree(root, stage)
}

// place makes what was gathered the volume's content. The one step that counts is the rename: from then on the restore will
// be finished, by whomever.
func place(root int) error {
	fd, err := openBeneath(root, stage, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	err = unix.Syncfs(fd) // what is renamed is on disk
	unix.Close(fd)
	if err != nil {
		return fmt.Errorf("write to disk: %w", err)
	}
	if err := rename(root, stage, root, staged); err != nil {
		return fmt.Errorf("put the volume's content in its place: %w", err)
	}
	return unpack(root)
}

// unpack moves everything from the staged directory to the volume's own, which gets its metadata last.
func unpack(root int) error {
	fd, err := openBeneath(root, staged, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	have, err := names(fd, ".")
	if err != nil {
		return err
	}
	var st unix.Stat_t // before the moves change its time
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	xattrs, err := readXattrs(fd)
	if err != nil {
		return err
	}
	for _, name := range have {
		if err := rename(fd, name, root, name); err != nil {
			return fmt.Errorf("put %s in its place: %w", name, err)
		}
	}
	errs := []error{unix.Fchown(root, int(st.Uid), int(st.Gid)), unix.Fchmod(root, st.Mode&0o7777)}
	for _, x := range xattrs {
		errs = append(errs, unix.Fsetxattr(root, x.name, []byte(x.value), 0))
	}
	errs = append(errs, unix.Unlinkat(root, staged, unix.AT_REMOVEDIR))
	now := unix.Timespec{Nsec: unix.UTIME_OMIT}
	errs = append(errs, unix.UtimesNanoAt(root, "", []unix.Timespec{now, st.Mtim}, unix.AT_EMPTY_PATH))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("give the volume its metadata: %w", err)
	}
	return nil
}

// rename renames and replaces nothing, where the file system can promise that: NFS and FUSE cannot.
func rename(fromDir int, from string, toDir int, to string) error {
	err := unix.Renameat2(fromDir, from, toDir, to, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		return unix.Renameat(fromDir, from, toDir, to)
	}
	return err
}

// removeTree removes a directory of ours with everything in it.
func removeTree(root int, name string) error {
	r, err := os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", root))
	if err != nil {
		return err
	}
	defer r.Close()
	return r.RemoveAll(name)
}
