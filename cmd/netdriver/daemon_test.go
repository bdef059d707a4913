package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/diag"
	"github.com/netdriver/netdriver/internal/control"
)

// asDaemon in the environment makes the test binary the program itself, so that it can run in namespaces of its own.
const asDaemon = "TEST_BINARY_IS_THE_PROGRAM=1"

func TestMain(m *testing.M) {
	if os.Getenv("TEST_BINARY_IS_THE_PROGRAM") == "" {
		os.Exit(m.Run())
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "loopback:", err)
		os.Exit(1)
	}
	main()
}

// daemon is a `netdriver run` in a network and a mount namespace of its own.
type daemon struct {
	t   *testing.T
	dir string
	cmd *exec.Cmd
	log bytes.Buffer
}

// newDir makes a directory whose path is short enough for sockets (man 7 unix: 107 bytes).
func newDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "nd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func startDaemon(t *testing.T, dir string, args ...string) *daemon {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	d := &daemon{t: t, dir: dir}
	d.cmd = exec.Command(self, append([]string{
		"run", "--node", "node1", "--data-dir", filepath.Join(dir, "data"), "--run-dir", filepath.Join(dir, "run"),
		"--socket-dir", filepath.Join(dir, "plugins"), "--docker-host", "",
	}, args...)...)
	d.cmd.Env = append(os.Environ(), asDaemon)
	d.cmd.Stderr = &d.log
	d.cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET, Unshareflags: unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL,
	}
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if d.cmd.ProcessState == nil {
			_ = d.cmd.Process.Kill()
			_ = d.cmd.Wait()
		}
		if t.Failed() {
			t.Logf("log of the daemon:\n%s", d.log.String())
		}
	})
	return d
}

// eventually waits until f succeeds.
func (d *daemon) eventually(what string, f func() error) {
	d.t.Helper()
	var err error
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if err = f(); err == nil {
			return
		}
	}
	d.t.Fatalf("%s: %v", what, err)
}

// stop ends the daemon as an administrator would, and fails the test unless it ends well.
func (d *daemon) stop() {
	d.t.Helper()
	if err := d.cmd.Process.Signal(unix.SIGTERM); err != nil {
		d.t.Fatal(err)
	}
	if err := d.cmd.Wait(); err != nil {
		d.t.Errorf("after SIGTERM: %v", err)
	}
}

func (d *daemon) client() *control.Client {
	return control.NewClient(control.SocketPath(filepath.Join(d.dir, "run")))
}

// activate makes Docker's first call.
func (d *daemon) activate() error {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(d.dir, "plugins", pluginSocket))
	}
	c := http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
	res, err := c.Post("http://plugin/Plugin.Activate", "application/json", nil)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	var a struct{ Implements []string }
	if err := json.Unmarshal(b, &a); err != nil || strings.Join(a.Implements, " ") != "NetworkDriver IpamDriver" {
		return fmt.Errorf("answer %s, error %v", b, err)
	}
	return nil
}

func (d *daemon) node() (diag.Node, error) {
	r, err := d.client().Nodes(d.t.Context())
	if err == nil && len(r.Nodes) != 1 {
		err = fmt.Errorf("%d nodes", len(r.Nodes))
	}
	if err != nil {
		return diag.Node{}, err
	}
	return r.Nodes[0], nil
}

func TestADaemonWithoutSettingsServesDockerAndInspect(t *testing.T) {
	d := startDaemon(t, newDir(t))
	d.eventually("plugin socket", d.activate)
	var first diag.Node
	d.eventually("the node is registered", func() (err error) { first, err = d.node(); return err })
	if first.Name != "node1" || first.State != diag.StateLocal || first.VTEP.String() != "127.0.0.1" {
		t.Errorf("node %+v", first)
	}
	code, out, errs := execute(t, nil, "inspect", "--run-dir", filepath.Join(d.dir, "run"))
	if code != 0 || !strings.Contains(out, "no network yet") {
		t.Errorf("inspect: status %d, output %q, errors %q", code, out, errs)
	}
	d.stop()
	sockets := []string{filepath.Join(d.dir, "plugins", pluginSocket), control.SocketPath(filepath.Join(d.dir, "run"))}
	for _, path := range sockets {
		if _, err := os.Stat(path); err == nil {
			t.Errorf("%s is left behind", path)
		}
	}
	again := startDaemon(t, d.dir)
	again.eventually("the node is registered again", func() error {
		n, err := again.node()
		if err == nil && n.ID != first.ID {
			t.Errorf("the identity is %s after a restart, it was %s", n.ID, first.ID)
		}
		return err
	})
	again.stop()
}

func TestADaemonServesWhileItsStoreIsAway(t *testing.T) {
	d := startDaemon(t, newDir(t), "--store", "http://127.0.0.1:1")
	d.eventually("plugin socket", d.activate)
	d.eventually("local socket", func() error {
		h, err := d.client().Health(t.Context())
		if err == nil && h.Store == "" {
			err = fmt.Errorf("health %+v does not say that the store is away", h)
		}
		return err
	})
	code, _, errs := execute(t, nil, "inspect", "my-net", "--run-dir", filepath.Join(d.dir, "run"))
	if code != 3 || !strings.Contains(errs, "cannot be r") {
		t.Errorf("inspect: status %d, errors %q; want 3, since it cannot be known", code, errs)
	}
	d.stop()
}

func TestASecondDaemonWithTheSameDirectoriesEndsAtOnce(t *testing.T) {
	d := startDaemon(t, newDir(t))
	d.eventually("plugin socket", d.activate)
	second := startDaemon(t, d.dir)
	first := fmt.Sprint("process ", d.cmd.Process.Pid)
	if err := second.cmd.Wait(); err == nil || !strings.Contains(second.log.String(), first) {
		t.Errorf("error %v, log %s; want one that names %s", err, second.log.String(), first)
	}
	if err := d.activate(); err != nil {
		t.Errorf("the first one after that: %v", err)
	}
	d.stop()
}

func TestAFailedPartEndsTheDaemonWithItsName(t *testing.T) {
	broken := fmt.Errorf("no more")
	ended := false
	err := runAll(t.Context(), []part{
		{"good", func(ctx context.Context) error { <-ctx.Done(); ended = true; return ctx.Err() }},
		{"bad", func(context.Context) error { return broken }},
	})
	if err == nil || err.Error() != "bad: no more" || !ended {
		t.Errorf("error %v, the other part ended %v", err, ended)
	}
}

// The embedded store's path of its sockets is the longest: a run directory that is too long must be told as such.
func TestARunDirectoryThatIsTooLongForSocketsIsToldAtStart(t *testing.T) {
	dir := filepath.Join(newDir(t), strings.Repeat("x", 100))
	d := startDaemon(t, dir)
	if err := d.cmd.Wait(); err == nil || !strings.Contains(d.log.String(), "shorter") {
		t.Errorf("error %v, log %s; want the remedy", err, d.log.String())
	}
}
