package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/test/e2e/lab/guest"
)

// pollEvery is how often a condition that cannot be waited for is looked at; looking takes at most a third of the time.
const pollEvery = 20 * time.Millisecond

// A process is a long-running program in a node. It is the child of unshare or nsenter: they have to fork to get
// into a PID namespace, so the process that counts is not the one that was started.
type process struct {
	pid    int  // in this process's PID namespace
	relay  bool // it passes signals on to the process in a virtual node that it stands for
	log    string
	parent *exec.Cmd
	done   chan struct{} // closed once it has ended; err may be read then
	err    error
}

// start starts a program behind nsenter or unshare with its output appended to a log. It gets a session of its
// own, so that a terminal's Ctrl-C reaches the lab's maker only, who then ends things in order.
func start(cmd *exec.Cmd, log string) (*process, error) {
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{log: log, parent: cmd, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	err = p.waitFor(context.Background(), 10*time.Second, func(context.Context) error {
		p.pid, err = onlyChild(cmd.Process.Pid)
		return err
	})
	if err != nil {
		cmd.Process.Kill()
		<-p.done
		return nil, err
	}
	return p, nil
}

// onlyChild is the one child of a process with a single thread (proc(5), /proc/pid/task/tid/children).
func onlyChild(pid int) (int, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return 0, err
	}
	children := strings.Fields(string(text))
	if len(children) != 1 {
		return 0, fmt.Errorf("process %d has %d children, want 1", pid, len(children))
	}
	return strconv.Atoi(children[0])
}

// waitFor waits until ready succeeds, the process ends, or the time is over; an error names the log and quotes its
// end.
func (p *process) waitFor(ctx context.Context, limit time.Duration, ready func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		begin := time.Now()
		err := ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-time.After(max(pollEvery, 2*time.Since(begin))):
			continue
		case <-p.done:
			err = fmt.Errorf("it ended: %v", p.err)
		case <-ctx.Done():
			err = fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
		return fmt.Errorf("%w (log %s)%s", err, p.log, tail(p.log))
	}
}

// stop sends a signal and waits until the process is gone; after the limit it is killed, which is an error too.
func (p *process) stop(signal syscall.Signal, limit time.Duration) error {
	if p.ended() {
		return nil
	}
	sent := signal
	if p.relay {
		sent = guest.Signal(signal)
	}
	if err := unix.Kill(p.pid, sent); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("send %s to process %d: %w", unix.SignalName(signal), p.pid, err)
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(limit):
	}
	unix.Kill(p.pid, unix.SIGKILL)
	<-p.done
	return fmt.Errorf("process %d was still there %s after %s and was killed (log %s)%s",
		p.pid, limit, unix.SignalName(signal), p.log, tail(p.log))
}

func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// tail quotes the last lines of a log, for an error message.
func tail(log string) string {
	const lines = 12
	text, err := os.ReadFile(log)
	if err != nil {
		return ""
	}
	all := strings.Split(strings.TrimSpace(string(text)), "\n")
	return "\n  | " + strings.Join(all[max(0, len(all)-lines):], "\n  | ")
}
