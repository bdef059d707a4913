package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// dirPrefix starts the name of every directory that the lab chooses itself, and so of its control groups.
const dirPrefix = "netdriver-lab-"

// recordFile is where a lab keeps what Reap needs.
const recordFile = "lab.json"

// roomInMemory is what /dev/shm must have free, in bytes, to be used: a node's images and logs need some 20 MB.
const roomInMemory = 1 << 30

// reapLimit is how long the end of a killed process may take.
const reapLimit = time.Minute

// A record is what a lab leaves on disk for the case that its maker is killed.
type record struct {
	// Cgroup is the lab's control group below each controller's root.
	Cgroup string `json:"cgroup"`
	// Maker is the process that made the lab, Inits are the nodes' first processes.
	Maker identity   `json:"maker"`
	Inits []identity `json:"inits"`
}

// An identity names a process for as long as the machine runs: process ids are used again, with another start time.
type identity struct {
	PID int `json:"pid"`
	// Start is field 22 of proc(5)'s stat: clock ticks since boot.
	Start uint64 `json:"start"`
}

// record writes down the lab's processes.
func (l *Lab) record() error {
	maker, err := identify(os.Getpid())
	if err != nil {
		return err
	}
	r := record{Cgroup: l.cgroup, Maker: maker}
	for _, n := range append([]*Node{l.Outside}, l.Nodes...) {
		init, err := identify(n.pid())
		if err != nil {
			return err
		}
		r.Inits = append(r.Inits, init)
	}
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(l.Dir, recordFile), text, 0o600)
}

// Reap ends and removes what is left of the lab in dir, whose maker was killed. A lab whose maker lives is an error.
func Reap(dir string) error {
	text, err := os.ReadFile(filepath.Join(dir, recordFile))
	if err != nil {
		return fmt.Errorf("reap lab %s: %w", dir, err)
	}
	var r record
	if err := json.Unmarshal(text, &r); err != nil {
		return fmt.Errorf("reap lab %s: %w", dir, err)
	}
	if r.Maker.alive() {
		return fmt.Errorf("reap lab %s: its maker, process %d, is still running", dir, r.Maker.PID)
	}
	for _, init := range r.Inits {
		if err := init.end(); err != nil {
			return fmt.Errorf("reap lab %s: %w", dir, err)
		}
	}
	if err := errors.Join(removeCgroups(r.Cgroup), removePluginGroups(dir), os.RemoveAll(dir)); err != nil {
		return fmt.Errorf("reap lab %s: %w", dir, err)
	}
	return nil
}

// ReapAll reaps every lab in the default places whose maker is gone, and returns their directories.
func ReapAll() ([]string, error) {
	var reaped []string
	var errs []error
	for _, parent := range []string{"/dev/shm", os.TempDir()} {
		records, err := filepath.Glob(filepath.Join(parent, dirPrefix+"*", recordFile))
		errs = append(errs, err)
		for _, file := range records {
			dir := filepath.Dir(file)
			var r record
			text, err := os.ReadFile(file)
			if err != nil || json.Unmarshal(text, &r) != nil || r.Maker.alive() {
				continue
			}
			errs = append(errs, Reap(dir))
			reaped = append(reaped, dir)
		}
	}
	return reaped, errors.Join(errs...)
}

// identify reads a process's start time. The command name, in parentheses, may itself hold blanks and parentheses.
func identify(pid int) (identity, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return identity{}, err
	}
	rest := string(text[strings.LastIndexByte(string(text), ')')+1:])
	fields := strings.Fields(rest)
	if len(fields) < 20 {
		return identity{}, fmt.Errorf("/proc/%d/stat has %d fields after the name", pid, len(fields))
	}
	start, err := strconv.ParseUint(fields[22-3], 10, 64)
	return identity{PID: pid, Start: start}, err
}

func (i identity) alive() bool {
	now, err := identify(i.PID)
	return err == nil && now == i
}

// end kills the process, unless it has ended, and waits until it is gone. The init of a PID namespace goes last of
// its namespace.
func (i identity) end() error {
	if i.alive() {
		if err := abortFUSE(i.PID); err != nil {
			return err
		}
	}
	for range reapLimit / pollEvery {
		if !i.alive() {
			return nil
		}
		if err := unix.Kill(i.PID, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("kill process %d: %w", i.PID, err)
		}
		time.Sleep(pollEvery)
		if err := i.resume(); err != nil {
			return err
		}
	}
	return fmt.Errorf("process %d is still there %s after SIGKILL", i.PID, reapLimit)
}

// resume lets those go on that have put processes into the namespaces of this one: nsenter stops when its child is stopped, and a PID
// namespace is there until somebody has waited for each child that came from outside of it.
func (i identity) resume() error {
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return err
	}
	begin := fmt.Sprintf("nsenter\x00--target\x00%d\x00", i.PID)
	for _, name := range lines {
		text, err := os.ReadFile(name)
		if err != nil || !strings.HasPrefix(string(text), begin) {
			continue // or it has ended
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		if err != nil {
			return err
		}
		if err := unix.Kill(pid, unix.SIGCONT); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("resume process %d: %w", pid, err)
		}
	}
	return nil
}

// removeCgroups removes the lab's control groups: of every controller where they are mounted one by one (version
// 1), or the one of version 2. A group goes only when it is empty, deepest first.
func removeCgroups(name string) error {
	if !strings.HasPrefix(name, dirPrefix) || !filepath.IsLocal(name) {
		return fmt.Errorf("remove control group %q: not a name of the lab's", name)
	}
	roots, err := filepath.Glob("/sys/fs/cgroup/*/" + name)
	if err != nil {
		return err
	}
	var dirs []string
	for _, root := range append(roots, "/sys/fs/cgroup/"+name) {
		err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err == nil && entry.IsDir() {
				dirs = append(dirs, path)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	var errs []error
	for i := len(dirs) - 1; i >= 0; i-- {
		if err := os.Remove(dirs[i]); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// removePluginGroups removes the control groups of managed plugins that ran in the lab in dir: where hierarchies of both
// versions are mounted, runc puts them at the root of the one of version 2, by their ids alone.
func removePluginGroups(dir string) error {
	plugins, err := filepath.Glob(filepath.Join(dir, "*", "docker", "plugins", "????????*", "rootfs"))
	if err != nil {
		return err
	}
	var errs []error
	for _, rootfs := range plugins {
		err := os.Remove(filepath.Join("/sys/fs/cgroup/unified", filepath.Base(filepath.Dir(rootfs))))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// tempParent is where labs are made: in memory, where overlay2 works and image layers cost no disk writes, if it
// has room.
func tempParent() string {
	var stat unix.Statfs_t
	if err := unix.Statfs("/dev/shm", &stat); err == nil && stat.Bavail*uint64(stat.Bsize) > roomInMemory {
		return "/dev/shm"
	}
	return os.TempDir()
}
