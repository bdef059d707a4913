//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/test/e2e/lab"
)

// A fileServer is a real server of volumes. It runs in the namespace of the lab's switch, at an address of its own, so that
// each can be cut off alone; its files are in the lab's directory.
type fileServer struct {
	t    *testing.T
	lab  *lab.Lab
	addr string
	dir  string
	// daemons are its processes, in the order in which they start.
	daemons []*serverProcess
}

// serverProcess is one process of a server, in the foreground of a shell that has noted its number.
type serverProcess struct {
	name string
	args []string
	cmd  *exec.Cmd
}

// newFileServer gives a server its address, 10.99.0.host, and a directory.
func newFileServer(t *testing.T, l *lab.Lab, name string, host int) *fileServer {
	t.Helper()
	s := &fileServer{t: t, lab: l, addr: fmt.Sprintf("10.99.0.%d", host), dir: filepath.Join(l.Dir, "server-"+name)}
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	run(t, l.Outside, "ip", "address", "add", s.addr+"/24", "dev", "br0")
	t.Cleanup(func() {
		s.connect()
		s.stop()
		_, _ = l.Outside.Exec(context.Background(), "ip", "address", "del", s.addr+"/24", "dev", "br0")
	})
	return s
}

func (s *fileServer) path(name string) string { return filepath.Join(s.dir, name) }

// file writes a file of the server's.
func (s *fileServer) file(name, text string) string {
	s.t.Helper()
	if err := os.WriteFile(s.path(name), []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return s.path(name)
}

// mkdir makes directories of the server's.
func (s *fileServer) mkdir(names ...string) {
	s.t.Helper()
	for _, name := range names {
		if err := os.MkdirAll(s.path(name), 0o755); err != nil {
			s.t.Fatal(err)
		}
	}
}

// run runs a command beside the server.
func (s *fileServer) run(args ...string) string {
	s.t.Helper()
	return run(s.t, s.lab.Outside, args...)
}

// serve starts a process that stays in the foreground.
func (s *fileServer) serve(name string, args ...string) {
	s.t.Helper()
	p := &serverProcess{name: name, args: args}
	s.daemons = append(s.daemons, p)
	s.launch(p)
}

func (s *fileServer) launch(p *serverProcess) {
	s.t.Helper()
	os.Remove(s.pidFile(p))
	script := `echo $$ >"$0.new" && mv "$0.new" "$0" && exec "$@"`
	p.cmd = s.lab.Outside.Command(context.Background(), append([]string{"sh", "-c", script, s.pidFile(p)}, p.args...)...)
	log, err := os.OpenFile(filepath.Join(s.lab.Logs(), filepath.Base(s.dir)+"-"+p.name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	defer log.Close()
	p.cmd.Stdout, p.cmd.Stderr = log, log
	if err := p.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	eventually(s.t, 10*time.Second, func() error {
		_, err := os.Stat(s.pidFile(p))
		return err
	})
}

func (s *fileServer) pidFile(p *serverProcess) string { return s.path(p.name + ".pid") }

// pidFiles have the numbers of the server's processes, in its namespace; those that glusterd has started for volumes are
// deeper.
func (s *fileServer) pidFiles() []string {
	var out []string
	for _, pattern := range []string{"*.pid", "run/vols/*/*.pid"} {
		files, err := filepath.Glob(s.path(pattern))
		if err != nil {
			s.t.Fatal(err)
		}
		out = append(out, files...)
	}
	return out
}

func (s *fileServer) pids() []string {
	var out []string
	for _, file := range s.pidFiles() {
		text, _ := os.ReadFile(file) // it may have ended
		out = append(out, strings.Fields(string(text))...)
	}
	return out
}

func (s *fileServer) signal(signal string) {
	args := append([]string{"kill", "-" + signal}, s.pids()...)
	_, _ = s.lab.Outside.Exec(context.Background(), args...)
}

// freeze stops the server without ending its connections.
func (s *fileServer) freeze() { s.signal("STOP") }

// thaw lets it go on. nsenter has stopped itself with its child, and does not see that go on.
func (s *fileServer) thaw() {
	s.signal("CONT")
	for _, p := range s.daemons {
		_ = p.cmd.Process.Signal(unix.SIGCONT)
	}
}

// stop kills the server.
func (s *fileServer) stop() {
	s.signal("KILL")
	s.thaw()
	for _, p := range s.daemons {
		_ = p.cmd.Wait()
	}
	for _, file := range s.pidFiles() {
		os.Remove(file)
	}
}

// kill kills some of the server's processes.
func (s *fileServer) kill(names ...string) {
	s.t.Helper()
	for _, p := range s.daemons {
		if slices.Contains(names, p.name) {
			s.run("sh", "-c", `kill -KILL $(cat "$0")`, s.pidFile(p))
			_ = p.cmd.Wait()
			os.Remove(s.pidFile(p))
		}
	}
}

// start starts what was stopped or killed.
func (s *fileServer) start() {
	s.t.Helper()
	for _, p := range s.daemons {
		if _, err := os.Stat(s.pidFile(p)); err != nil {
			s.launch(p)
		}
	}
}

// cut drops all packets to and from the server; connect ends that.
func (s *fileServer) cut() {
	s.t.Helper()
	s.run("nft", "add table inet cut-"+s.addr+
		"; add chain inet cut-"+s.addr+" in { type filter hook input priority 0; }"+
		"; add chain inet cut-"+s.addr+" out { type filter hook output priority 0; }"+
		"; add rule inet cut-"+s.addr+" in ip daddr "+s.addr+" iifname br0 drop"+
		"; add rule inet cut-"+s.addr+" out ip saddr "+s.addr+" oifname br0 drop")
}

func (s *fileServer) connect() {
	_, _ = s.lab.Outside.Exec(context.Background(), "nft", "delete table inet cut-"+s.addr)
}

// answers waits until a command beside the server works.
func (s *fileServer) answers(args ...string) {
	s.t.Helper()
	eventually(s.t, 60*time.Second, func() error {
		ctx, cancel := context.WithTimeout(s.t.Context(), 20*time.Second)
		defer cancel()
		_, err := s.lab.Outside.Exec(ctx, args...)
		return err
	})
}

// listens waits until the server takes connections.
func (s *fileServer) listens(port int) {
	s.t.Helper()
	s.answers("bash", "-c", `exec 3<>"/dev/tcp/$0/$1"`, s.addr, fmt.Sprint(port))
}
