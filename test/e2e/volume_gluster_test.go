//go:build e2e

package e2e

import (
	"strings"
	"testing"

	"github.com/netdriver/netdriver/test/e2e/lab"
)

// newGluster starts a glusterd with a volume of one brick.
func newGluster(t *testing.T, l *lab.Lab, host int) *fileServer {
	t.Helper()
	s := newFileServer(t, l, "gluster", host)
	s.mkdir("brick", "work", "log", "run")
	config := s.file("glusterd.vol", `volume management
    type mgmt/glusterd
    option working-directory `+s.path("work")+`
    option run-directory `+s.path("run")+`
    option transport-type socket
    option transport.socket.bind-address `+s.addr+`
    option transport.socket.listen-port 24007
    option transport.address-family inet
end-volume
`)
	// glusterd wants this one whatever its configuration says; of the switch's namespace it is a file system in memory.
	s.run("mkdir", "-p", "/run/gluster")
	s.run("mount", "--bind", s.path("log"), "/var/log/glusterfs")
	s.serve("glusterd", "glusterd", "--no-daemon", "-f", config, "-l", s.path("log/glusterd.log"), "-L", "WARNING")
	s.answers(s.gluster("volume", "list")...)
	s.run(s.gluster("volume", "create", "gv0", s.addr+":"+s.path("brick"), "force")...)
	s.run(s.gluster("volume", "start", "gv0")...)
	return s
}

func (s *fileServer) gluster(args ...string) []string {
	return append([]string{"gluster", "--mode=script", "--log-file=" + s.path("log/cli.log")}, args...)
}

func TestVolumesOnGlusterFS(t *testing.T) {
	c := hosts(t)
	s := newGluster(t, c.Lab, 240)
	options := func(volume string, o ...string) []string {
		out := []string{"type=glusterfs", "volume=" + volume, "servers=" + s.addr}
		if len(o) > 0 {
			out = append(out, "o="+strings.Join(o, ","))
		}
		return out
	}
	for _, volume := range []string{"private", "squashed"} {
		s.mkdir("brick-" + volume)
		s.run(s.gluster("volume", "create", volume, s.addr+":"+s.path("brick-"+volume), "force")...)
	}
	s.run(s.gluster("volume", "set", "private", "auth.reject", "*")...)
	s.run(s.gluster("volume", "set", "squashed", "server.root-squash", "on")...)
	for _, volume := range []string{"private", "squashed"} {
		s.run(s.gluster("volume", "start", volume)...)
	}
	// What the client itself waits for a server that is silent, before it tells its users.
	s.run(s.gluster("volume", "set", "gv0", "network.ping-timeout", "15")...)
	k := &volumeKind{
		fileServer: s, name: "gluster", client: "glusterfs",
		options: func(o ...string) []string { return options("gv0", o...) },
		missing: options("nosuch"), sayMissing: "no started volume",
		forbidden: options("private"), sayForbidden: "gluster volume info private",
		squashed:     options("squashed"),
		withdraw:     func() { s.run(s.gluster("volume", "stop", "gv0")...) },
		offer:        func() { s.run(s.gluster("volume", "start", "gv0")...) },
		sayWithdrawn: "no started volume",
		ready:        func() { s.answers(s.gluster("volume", "list")...) },
	}
	k.scenario(t, dockerHosts(c.Nodes[:2]))
}
