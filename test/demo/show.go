package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/test/e2e/lab"
)

// A step is one part of the demo, with the line that announces it.
type step struct {
	name string
	do   func(context.Context) error
}

// A show prints what the demo does.
type show struct {
	out    io.Writer
	colour bool
}

// newShow prints to file, in colour when that is a terminal.
func newShow(file *os.File) *show {
	_, err := unix.IoctlGetTermios(int(file.Fd()), unix.TCGETS)
	return &show{out: file, colour: err == nil}
}

// run does the steps one after the other and stops at the first that fails, naming it.
func (s *show) run(ctx context.Context, steps []step) error {
	for i, step := range steps {
		begin := time.Now()
		fmt.Fprintln(s.out, s.paint("1", fmt.Sprintf("== %d/%d %s", i+1, len(steps), step.name)))
		if err := step.do(ctx); err != nil {
			if ctx.Err() != nil {
				err = errors.Join(context.Cause(ctx), err)
			}
			return fmt.Errorf("step %d, %q: %w", i+1, step.name, err)
		}
		fmt.Fprintf(s.out, "   %s\n", s.paint("2", time.Since(begin).Round(time.Millisecond).String()))
	}
	return nil
}

// command prints a command as it would be typed on a node.
func (s *show) command(n *lab.Node, args []string) {
	quoted := make([]string, len(args))
	for i, arg := range args {
		quoted[i] = quote(arg)
	}
	fmt.Fprintf(s.out, "   %s %s\n", s.paint("36", n.Name+" #"), strings.Join(quoted, " "))
}

// exec prints and runs a command on a node, and prints its output.
func (s *show) exec(ctx context.Context, n *lab.Node, args ...string) (string, error) {
	s.command(n, args)
	out, err := n.Exec(ctx, args...)
	s.output(out)
	return out, err
}

// output prints what a command said.
func (s *show) output(text string) {
	for line := range strings.Lines(text) {
		fmt.Fprintf(s.out, "      %s\n", strings.TrimRight(line, "\r\n"))
	}
}

// startDockers starts the dockerd of every node and says which Docker it is.
func (s *show) startDockers(ctx context.Context, l *lab.Lab) error {
	if err := l.StartDocker(ctx); err != nil {
		return err
	}
	for _, n := range l.Nodes {
		if _, err := s.exec(ctx, n, "docker", "info", "--format", "{{.Name}}: Docker {{.ServerVersion}}"); err != nil {
			return err
		}
	}
	return nil
}

// paint surrounds text with a colour of ECMA-48, on a terminal only.
func (s *show) paint(colour, text string) string {
	if !s.colour {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}

// quote makes an argument safe to copy into a shell.
func quote(arg string) string {
	if arg != "" && strings.IndexFunc(arg, special) < 0 {
		return arg
	}
	return "'" + strings.ReplaceAll(arg, "'", `'\''`) + "'"
}

func special(r rune) bool {
	return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("_-./:=,@%+", r))
}
