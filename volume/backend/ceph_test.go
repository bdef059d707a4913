package backend

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/volume/mount"
	"github.com/netdriver/netdriver/volume/option"
)

func TestWhatCephSaysHasItsCauseAndRemedy(t *testing.T) {
	spec, err := option.Parse(map[string]string{"type": "cephfs", "device": ":/data", "o": "mon_addr=10.0.0.1,name=web,secretfile=/k"})
	if err != nil {
		t.Fatal(err)
	}
	s := &session{spec: spec, server: netip.MustParseAddr("10.0.0.1")}
	fuse := func(text string) mount.Failure { return mount.Failure{Step: "ceph-fuse", Text: text} }
	for want, f := range map[string]mount.Failure{
		"has no /data":                        fuse("ceph-fuse[12]: ceph mount failed with (2) No such file or directory"),
		"may not use /data, or its key":       fuse("ceph-fuse[12]: ceph mount failed with (13) Permission denied"),
		"no metadata server serves":           fuse("ceph-fuse[12]: ceph mount failed with (110) Connection timed out"),
		"but no metadata server is up, or cl": {Step: "mount", Errno: unix.EHOSTUNREACH, Text: "no route to host"},
		"ceph auth get client.web":            {Step: "mount", Errno: unix.EACCES, Text: "permission denied"},
		"root_squash":                         {Step: "make subdir x", Errno: unix.EACCES, Text: "permission denied"},
		"neither the kernel's CephFS client":  {Step: "mount", Errno: unix.ENODEV, Text: "no such device"},
	} {
		if got := s.explain(f, s.explainCeph).Error(); !strings.Contains(got, want) {
			t.Errorf("%v: %q lacks %q", f, got, want)
		}
	}
}

// A monitor that is frozen takes connections as long as its kernel does.
func TestASilentMonitorOrGlusterdIsFoundOutBeforeTheMount(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	greeting := make(chan string, 1)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			_, _ = conn.Write([]byte(<-greeting))
		}
	}()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	options := map[string]string{"type": "cephfs", "device": ":/", "o": "mon_addr=127.0.0.1:" + port}
	h := Host{Logs: t.TempDir()}
	greeting <- ""
	if _, err := prepare(t, h, options); err == nil || !strings.Contains(err.Error(), "it does not answer") {
		t.Errorf("a silent one: %v", err)
	}
	greeting <- "ceph v027 and more"
	if _, err := prepare(t, h, options); err != nil {
		t.Errorf("one that greets: %v", err)
	}
}
