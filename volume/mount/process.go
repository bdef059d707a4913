package mount

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Processes performs tasks in child processes. One that has done its task well is kept for the next: starting a process
// takes longer than most tasks.
type Processes struct {
	command []string
	running atomic.Int64
	// idle are children that wait for a task.
	idle chan *child
}

// idleChildren is how many children wait for a task at most, and idleFor how long each.
const (
	idleChildren = 4
	idleFor      = time.Minute
)

// child is a process that performs one task after the other.
type child struct {
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *bufio.Reader
	said *tail
	// ended is closed when the process has disappeared.
	ended chan struct{}
	// expire ends it if nobody needs it.
	expire *time.Timer
}

// NewProcesses returns a Mounter whose children are started by a command line that ends in Child.
func NewProcesses(command ...string) *Processes {
	return &Processes{command: command, idle: make(chan *child, idleChildren)}
}

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
	c, err := p.take()
	if err != nil {
		return Result{}, fmt.Errorf("%s %s: start a child: %w", t.Do, t.Target, err)
	}
	type answer struct {
		line []byte
		err  error
	}
	answers := make(chan answer, 1)
	go func() {
		_, err := c.in.Write(append(task, '\n'))
		var line []byte
		if err == nil {
			line, err = c.out.ReadBytes('\n')
		}
		answers <- answer{line, err}
	}()
	select {
	case a := <-answers:
		if a.err != nil {
			c.kill()
			return Result{}, fmt.Errorf("%s %s: child: %w: %s", t.Do, t.Target, a.err, c.said)
		}
		p.keep(c)
		return readResult(t, a.line)
	case <-ctx.Done():
		c.kill()
		return Result{}, fmt.Errorf("%s %s: %w (%w)", t.Do, t.Target, ErrDeadline, ctx.Err())
	}
}

// take returns a child that waits for a task, or a new one.
func (p *Processes) take() (*child, error) {
	for {
		select {
		case c := <-p.idle:
			if c.expire.Stop() {
				return c, nil
			}
		default:
			return p.start()
		}
	}
}

// keep has a child wait for the next task, or ends it if enough do.
func (p *Processes) keep(c *child) {
	c.expire = time.AfterFunc(idleFor, func() { c.in.Close() })
	select {
	case p.idle <- c:
	default:
		c.expire.Stop()
		c.in.Close()
	}
}

func (p *Processes) start() (*child, error) {
	c := &child{cmd: exec.Command(p.command[0], p.command[1:]...), said: &tail{}, ended: make(chan struct{})}
	c.cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	c.cmd.Stderr = c.said
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	c.out = bufio.NewReader(out)
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	p.running.Add(1)
	go func() {
		_ = c.cmd.Wait() // its answers were read before it ends
		p.running.Add(-1)
		close(c.ended)
	}()
	return c, nil
}

// kill ends a child with everything that it has started, as far as the kernel lets it.
func (c *child) kill() {
	_ = unix.Kill(-c.cmd.Process.Pid, unix.SIGKILL)
	select {
	case <-c.ended:
	case <-time.After(killed):
	}
	c.in.Close()
}

// tail keeps the end of what a child says on its error stream.
type tail struct {
	mu   sync.Mutex
	text []byte
}

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, b...)
	t.text = t.text[max(0, len(t.text)-maxSaid):]
	return len(b), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.text)
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

// decisive returns the failure that tells most: of an attempt that got further than mount(2), else the first that is about
// more than a version that the server lacks.
func (r Result) decisive() error {
	if len(r.Failures) == 0 {
		return errors.New("the child did nothing and gave no reason")
	}
	for _, f := range r.Failures {
		if f.Step != "mount" {
			return f
		}
	}
	for _, f := range r.Failures {
		if f.Errno != unix.EPROTONOSUPPORT && f.Errno != unix.EINVAL {
			return f
		}
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
