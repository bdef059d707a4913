package backend

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/volume/mount"
)

// glusterPort is glusterd's registered port.
const glusterPort = "24007"

// glusterProgram and glusterVersion are the ONC RPC program by which clients ask glusterd for a volume (GlusterFS,
// rpc/rpc-lib/src/protocol-common.h: GLUSTER_HNDSK_PROGRAM).
const glusterProgram, glusterVersion = 14398633, 2

// prepareGluster asks a glusterd for something before the client is started, since that waits long for one that does not
// answer: a frozen one takes connections as long as its kernel does.
func (s *session) prepareGluster(ctx context.Context) (mount.Plan, error) {
	program, err := exec.LookPath("glusterfs")
	if err != nil {
		return mount.Plan{}, err
	}
	conn, err := s.connect(ctx, s.spec.Servers, glusterPort)
	if err != nil {
		return mount.Plan{}, err
	}
	_, _, err = nullCall(ctx, conn, glusterProgram, glusterVersion)
	conn.Close()
	if errors.Is(err, context.DeadlineExceeded) { // any other answer is one: it may want TLS, or lack the procedure
		return mount.Plan{}, fmt.Errorf("ask %s for the volume: %w", conn.RemoteAddr(), err)
	}
	if err := os.MkdirAll(s.host.Logs, 0o700); err != nil {
		return mount.Plan{}, err
	}
	command := []string{program, "--process-name=fuse", "--volfile-id=/" + s.spec.Volume, "--log-file=" + s.glusterLog()}
	// The one that answered first; the client goes on to the others when it dies.
	command = append(command, "--volfile-server="+s.server.String())
	for _, server := range s.spec.Servers {
		command = append(command, "--volfile-server="+server)
	}
	if s.spec.Setting("log-level") == "" {
		command = append(command, "--log-level=WARNING")
	}
	for _, setting := range s.spec.Settings {
		command = append(command, "--"+setting.String())
	}
	if s.spec.ReadOnly() {
		command = append(command, "--read-only")
	}
	a := mount.Attempt{Label: "GlusterFS", Command: append(command, mount.Placeholder)}
	return mount.Plan{Attempts: []mount.Attempt{a}}, nil
}

// glusterLog is where the client writes why it failed: it says nothing on its output.
func (s *session) glusterLog() string { return filepath.Join(s.host.Logs, "glusterfs-"+s.name+".log") }

// glusterNotConnected is how glusterfs ends when no server talks to it: with ENOTCONN as its status.
const glusterNotConnected = "exit status 107"

func (s *session) explainGluster(err error) (cause, remedy string) {
	if errors.Is(err, exec.ErrNotFound) {
		return "this node has no GlusterFS client", "install it: on Debian the package glusterfs-client"
	}
	if errors.Is(err, mount.ErrStale) && errors.Is(err, unix.ENOTCONN) {
		return fmt.Sprintf("its client process on this node has died, or the volume %s was stopped on the server", s.spec.Volume),
			"stop the containers that use it, then start them again; if that does not help, look at `gluster volume info " + s.spec.Volume +
				"` on the server"
	}
	f := mount.Failure{}
	if errors.As(err, &f) && f.Step == "glusterfs" && strings.HasSuffix(f.Text, glusterNotConnected) {
		return "its glusterd does not answer the client", "start glusterd there, and look at " + s.glusterLog() + " here"
	}
	// A client of a stopped volume has mounted and is not connected to anything.
	if errors.As(err, &f) && (f.Step == "mount" || f.Step == "glusterfs" || f.Step == "statfs" && f.Errno == unix.ENOTCONN) {
		return fmt.Sprintf("the server has no started volume %s for this node", s.spec.Volume),
			"look at `gluster volume info " + s.spec.Volume + "` on the server, and at " + s.glusterLog() + " here"
	}
	return "", ""
}
