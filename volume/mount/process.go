package mount

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Processes performs tasks in child processes.
type Processes struct {
	command []string
	running atomic.Int64
}

// NewProcesses returns a Mounter whose children are started by a command line that ends in Child.
func NewProcesses(command ...string) *Processes { return &Processes{command: command} }

var _ Mounter = (*Processes)(nil)

// killed is what a killed child may take to disappear before nobody waits for it any more. One that waits for NFS dies at
// once; one that waits for a frozen FUSE daemon does not until its connection is aborted.
const killed = 100 * time.Millisecond

// Running returns how many children have not disappeared; also of the killed ones, the kernel keeps some until their
// server answers.
func (p *Processes) Running() int64 { return p.running.Load() }

// Do implements Mounter.
func (p *Processes) Do(ctx context.Context, t Task) (Result, error) {
	task, err := json.Marshal(t)
	if err != nil {
		return Result{}, fmt.Errorf("encode a task: %w", err)
	}
	cmd := exec.Command(p.command[0], p.command[1:]...)
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	in, err := cmd.StdinPipe()
	if err != nil {
		return Result{}, fmt.Errorf("start a child: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return Result{}, fmt.Errorf("start a child: %w", err)
	}
	p.running.Add(1)
	done := make(chan error, 1)
	go func() {
		_, writeErr := in.Write(task)
		waitErr := cmd.Wait() // closes in
		p.running.Add(-1)
		done <- errors.Join(waitErr, writeErr)
	}()
	select {
	case err = <-done:
	case <-ctx.Done():
		_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
		select {
		case <-done:
		case <-time.After(killed):
		}
		return Result{}, fmt.Errorf("%s %s: %w (%w)", t.Do, t.Target, ErrDeadline, ctx.Err())
	}
	if err != nil {
		return Result{}, fmt.Errorf("%s %s: child: %w: %.500s", t.Do, t.Target, err, said.String())
	}
	return readResult(t, out.Bytes())
}

// readResult reads a child's answer; the failure that decided is the error.
func readResult(t Task, text []byte) (Result, error) {
	var r Result
	if err := json.Unmarshal(text, &r); err != nil {
		return Result{}, fmt.Errorf("%s %s: the child's answer: %w", t.Do, t.Target, err)
	}
	if r.Done {
		return r, nil
	}
	return r, r.decisive()
}

// decisive returns the failure that tells most: the first that is about more than a version that the server lacks.
func (r Result) decisive() error {
	for _, f := range r.Failures {
		if f.Errno != unix.EPROTONOSUPPORT && f.Errno != unix.EINVAL {
			return f
		}
	}
	if len(r.Failures) == 0 {
		return errors.New("the child did nothing and gave no reason")
	}
	return r.Failures[0]
}

// Mounts implements Mounter.
func (p *Processes) Mounts(dir string) (map[string]Mounted, error) { return mountsBelow(dir) }

func mountsBelow(dir string) (map[string]Mounted, error) {
	// A mount's later line covers the earlier one at the same place.
	infos, err := mountinfo.GetMounts(func(i *mountinfo.Info) (skip, stop bool) {
		return i.Mountpoint != dir && !strings.HasPrefix(i.Mountpoint, filepath.Clean(dir)+"/"), false
	})
	if err != nil {
		return nil, fmt.Errorf("read the table of mounts: %w", err)
	}
	out := make(map[string]Mounted, len(infos))
	for _, i := range infos {
		out[i.Mountpoint] = Mounted{Source: i.Source, FSType: i.FSType, Options: i.VFSOptions, Minor: i.Minor}
	}
	return out, nil
}
