// Package mount keeps this node's mounts of volumes. What may block on a server, which is nearly every system call on
// its files, is done by a child process with a deadline, so that a dead server costs nobody more than that; what is
// used by whom is kept in a journal and reconciled with the kernel's table of mounts after a crash.
package mount

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"
)

// Verb is what a child does.
type Verb string

// The verbs of a task.
const (
	DoMount   Verb = "mount"
	DoUnmount Verb = "unmount"
	// DoDetach takes the mount out of the file tree at once, whoever uses it (MNT_DETACH of umount(2)).
	DoDetach Verb = "detach"
	// DoProbe asks the server behind the mount by statfs(2): stat(2) is answered from caches.
	DoProbe Verb = "probe"
	// DoAbort ends the kernel's connection to a FUSE daemon: a process that waits for a frozen one ignores SIGKILL.
	DoAbort Verb = "abort"
)

// Task is what a child is told to do, as JSON on its standard input.
type Task struct {
	Do Verb `json:"do"`
	// Target is the mount point; it is made for DoMount.
	Target string `json:"target"`
	Plan
	// Device is the minor number of the FUSE connection that DoAbort ends.
	Device int `json:"device,omitempty"`
}

// Plan is how a volume gets mounted: attempts in order, until one succeeds.
type Plan struct {
	Attempts []Attempt `json:"attempts,omitempty"`
	// Next are the errors after which the next attempt is made.
	Next []syscall.Errno `json:"next,omitempty"`
	// Subdir is the directory inside that is mounted, made when missing; empty for the whole.
	Subdir string `json:"subdir,omitempty"`
	// Mode, UID and GID are given to the directories that are made, or with Make to Source of a bind.
	Mode fs.FileMode `json:"mode,omitempty"`
	UID  int         `json:"uid,omitempty"`
	GID  int         `json:"gid,omitempty"`
}

// Attempt is one way to mount: by mount(2), by a program, or by binding a directory of this node.
type Attempt struct {
	// Label names it for people, such as "NFS 4.2".
	Label  string  `json:"label"`
	Source string  `json:"source,omitempty"`
	FSType string  `json:"fstype,omitempty"`
	Flags  uintptr `json:"flags,omitempty"`
	Data   string  `json:"data,omitempty"`
	// SecretFile holds a secret that is appended to Data as secret=: read by the child, kept nowhere.
	SecretFile string `json:"secretFile,omitempty"`
	// Command is a program that mounts; Placeholder among its arguments stands for the mount point.
	Command []string `json:"command,omitempty"`
	// Bind: Source is a directory of this node; Make: it is made when missing.
	Bind bool `json:"bind,omitempty"`
	Make bool `json:"make,omitempty"`
}

// Placeholder stands for the mount point among the arguments of a command.
const Placeholder = "{target}"

// Result is what a child did, as JSON on its standard output.
type Result struct {
	Done bool `json:"done"`
	// Attempt is the index of the one that succeeded; Failures are those of the attempts before it.
	Attempt  int       `json:"attempt"`
	Failures []Failure `json:"failures,omitempty"`
}

// Failure is an error of a step. It is an error itself; Unwrap gives the system's, if there is one.
type Failure struct {
	Label string        `json:"label,omitempty"`
	Step  string        `json:"step"`
	Errno syscall.Errno `json:"errno,omitempty"`
	Text  string        `json:"text"`
}

func (f Failure) Error() string {
	if f.Label == "" {
		return fmt.Sprintf("%s: %s", f.Step, f.Text)
	}
	return fmt.Sprintf("%s (%s): %s", f.Step, f.Label, f.Text)
}

func (f Failure) Unwrap() error {
	if f.Errno == 0 {
		return nil
	}
	return f.Errno
}

// failed makes a Failure of an error.
func failed(label, step string, err error) *Failure {
	f := &Failure{Label: label, Step: step, Text: err.Error()}
	errors.As(err, &f.Errno)
	return f
}

var (
	// ErrDeadline says that a child had to be given up: the server, or the FUSE daemon, does not answer.
	ErrDeadline = errors.New("no answer within the deadline")
	// ErrStale says that the server does not know the mounted directory any more, or that the FUSE daemon has died.
	ErrStale = errors.New("the mount is stale")
	// ErrOpen says that a server was not asked at all, since it did not answer a moment ago.
	ErrOpen = errors.New("the server is not asked again yet")
)

// Mounter does what may block and knows the kernel's mounts.
type Mounter interface {
	// Do performs a task. The error wraps ErrDeadline if ctx ended first, or is the Failure that decided.
	Do(ctx context.Context, t Task) (Result, error)
	// Mounts returns what is mounted directly at or below dir, by mount point, the topmost of each. It asks no server.
	Mounts(dir string) (map[string]Mounted, error)
}

// Mounted is one line of the kernel's table of mounts.
type Mounted struct {
	Source, FSType string
	// Options are those of the file system, as it negotiated them.
	Options string
	// Minor is the device's minor number: that of the FUSE connection, for a FUSE file system.
	Minor int
}

// FUSE says whether a daemon on this node answers for the file system.
func (m Mounted) FUSE() bool { return len(m.FSType) > 5 && m.FSType[:5] == "fuse." }
