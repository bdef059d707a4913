package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	api "github.com/docker/go-plugins-helpers/volume"

	"github.com/netdriver/netdriver/volume"
	"github.com/netdriver/netdriver/volume/backup"
)

// docker makes one of Docker's volume calls.
func (d *daemon) docker(method string, request any) (string, error) {
	d.t.Helper()
	body, err := json.Marshal(request)
	if err != nil {
		return "", err
	}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(d.dir, "plugins", volume.Socket))
	}
	c := http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
	res, err := c.Post("http://plugin/VolumeDriver."+method, "application/json", bytes.NewReader(body))
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", method, text)
	}
	return string(text), err
}

func (d *daemon) mustDocker(method string, request any) string {
	d.t.Helper()
	out, err := d.docker(method, request)
	if err != nil {
		d.t.Fatal(err)
	}
	return out
}

// verb runs `netdriver volume …` where the daemon is, as on a host.
func (d *daemon) verb(args ...string) (code int, out, errs string) {
	d.t.Helper()
	self, err := os.Executable()
	if err != nil {
		d.t.Fatal(err)
	}
	namespace := fmt.Sprintf("--mount=/proc/%d/ns/mnt", d.cmd.Process.Pid)
	cmd := exec.Command("nsenter", append([]string{namespace, self, "volume"}, args...)...)
	cmd.Args = append(cmd.Args, "--run-dir", filepath.Join(d.dir, "run"))
	cmd.Env = append(os.Environ(), asDaemon)
	var o, e bytes.Buffer
	cmd.Stdout, cmd.Stderr = &o, &e
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		d.t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), o.String(), e.String()
}

// sees returns a path as the daemon sees it: it has a mount namespace of its own.
func (d *daemon) sees(path string) string {
	return filepath.Join("/proc", fmt.Sprint(d.cmd.Process.Pid), "root", path)
}

func TestAContainersVolumeOutlivesItsKilledDaemon(t *testing.T) {
	dir := newDir(t)
	d := startDaemon(t, dir)
	d.eventually("volume plugin", func() error { _, err := d.docker("List", nil); return err })
	d.mustDocker("Create", api.CreateRequest{Name: "data"})
	out := d.mustDocker("Mount", api.MountRequest{Name: "data", ID: "container1"})
	var m api.MountResponse
	if err := json.Unmarshal([]byte(out), &m); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(d.sees(m.Mountpoint), "f"), []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, out, _ := d.verb("ls"); !strings.Contains(out, "data") || !strings.Contains(out, "HEALTHY") {
		t.Errorf("ls: %s", out)
	}
	if err := d.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = d.cmd.Wait()

	again := startDaemon(t, dir)
	again.eventually("volume plugin", func() error { _, err := again.docker("List", nil); return err })
	// Its mount namespace has died with the first daemon, which a host's does not: the volume is mounted anew.
	again.mustDocker("Mount", api.MountRequest{Name: "data", ID: "container2"})
	text, err := os.ReadFile(filepath.Join(again.sees(m.Mountpoint), "f"))
	if err != nil || string(text) != "kept" {
		t.Errorf("data %q, error %v", text, err)
	}
	if _, out, _ := again.verb("inspect", "data", "--format", "json"); !strings.Contains(out, `"container1"`) ||
		!strings.Contains(out, `"container2"`) {
		t.Errorf("the killed daemon's user is forgotten: %s", out)
	}
	for _, id := range []string{"container1", "container2"} {
		again.mustDocker("Unmount", api.UnmountRequest{Name: "data", ID: id})
	}
	if _, err := os.Stat(again.sees(m.Mountpoint)); err == nil {
		t.Error("it is still mounted after its last user")
	}
	again.stop()
}

func TestTheVerbsCheckUpdateAndRemoveAVolume(t *testing.T) {
	d := startDaemon(t, newDir(t))
	d.eventually("volume plugin", func() error { _, err := d.docker("List", nil); return err })
	missing := filepath.Join(d.dir, "missing")
	d.mustDocker("Create", api.CreateRequest{Name: "data", Options: map[string]string{"type": "local", "device": missing}})
	if code, _, errs := d.verb("check", "data"); code == 0 || !strings.Contains(errs, "there is no directory "+missing) {
		t.Errorf("check: status %d, errors %q", code, errs)
	}
	if err := os.Mkdir(missing, 0o755); err != nil {
		t.Fatal(err)
	}
	if code, out, errs := d.verb("check", "data"); code != 0 || !strings.Contains(out, "device="+missing) {
		t.Errorf("check: status %d, output %q, errors %q", code, out, errs)
	}
	if code, _, errs := d.verb("abort", "data"); code == 0 || !strings.Contains(errs, "abort volume data: it is not mounted on this node") {
		t.Errorf("abort: status %d, errors %q", code, errs)
	}
	if code, _, errs := d.verb("update", "data", "-o", "wrong=1"); code == 0 || !strings.Contains(errs, "the options are type, device") {
		t.Errorf("update: status %d, errors %q", code, errs)
	}
	if code, out, errs := d.verb("update", "data", "-o", "o=ro"); code != 0 || !strings.Contains(out, "o=ro") {
		t.Errorf("update: status %d, output %q, errors %q", code, out, errs)
	}
	if err := os.WriteFile(filepath.Join(missing, "f"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, errs := d.verb("rm", "data", "--purge"); code == 0 || !strings.Contains(errs, "read-only") {
		t.Errorf("purge of a read-only volume: status %d, errors %q", code, errs)
	}
	d.verb("update", "data", "--unset", "o")
	// From elsewhere the mount point is an empty directory: nothing may be taken for its content.
	if code, _, errs := execute(t, nil, "volume", "rm", "data", "--purge", "--run-dir", filepath.Join(d.dir, "run")); code == 0 ||
		!strings.Contains(errs, "does not see the daemon's mounts") {
		t.Errorf("purge from another mount namespace: status %d, errors %q", code, errs)
	}
	for _, keep := range []bool{true, false} {
		args := []string{"rm", "data"}
		if !keep {
			d.mustDocker("Create", api.CreateRequest{Name: "data", Options: map[string]string{"type": "local", "device": missing}})
			args = append(args, "--purge")
		}
		if code, _, errs := d.verb(args...); code != 0 {
			t.Errorf("%v: %s", args, errs)
		}
		if _, err := os.Stat(filepath.Join(missing, "f")); (err == nil) != keep {
			t.Errorf("%v: the data's state is %v", args, err)
		}
	}
	if _, out, _ := d.verb("ls"); !strings.Contains(out, "no volume yet") {
		t.Errorf("ls: %s", out)
	}
}

func TestAVolumeIsBackedUpVerifiedAndRestoredIntoANewOne(t *testing.T) {
	d := startDaemon(t, newDir(t))
	d.eventually("volume plugin", func() error { _, err := d.docker("List", nil); return err })
	from, to, backups := filepath.Join(d.dir, "from"), filepath.Join(d.dir, "to"), filepath.Join(d.dir, "backups")
	for _, dir := range []string{from, to, backups} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, dir := range map[string]string{"data": from, "copy": to} {
		d.mustDocker("Create", api.CreateRequest{Name: name, Options: map[string]string{"type": "local", "device": dir}})
	}
	if err := os.WriteFile(filepath.Join(from, "f"), []byte("content"), 0o640); err != nil {
		t.Fatal(err)
	}
	if code, _, errs := d.verb("backup", "data", "-o", backups); code != 0 || !strings.Contains(errs, "2 entries, 7 B in "+backups) {
		t.Fatalf("backup: status %d, errors %q", code, errs)
	}
	files, err := filepath.Glob(filepath.Join(backups, "*"))
	if err != nil || len(files) != 1 || !strings.HasSuffix(files[0], backup.Suffix) {
		t.Fatalf("backups %v, error %v", files, err)
	}
	if code, out, errs := execute(t, nil, "volume", "verify", files[0]); code != 0 || !strings.Contains(out, "is whole: volume data") {
		t.Errorf("verify: status %d, output %q, errors %q", code, out, errs)
	}
	if code, _, errs := d.verb("restore", files[0], "data"); code == 0 || !strings.Contains(errs, "not empty") {
		t.Errorf("restore over data: status %d, errors %q", code, errs)
	}
	if code, _, errs := d.verb("restore", files[0], "copy"); code != 0 {
		t.Errorf("restore: status %d, errors %q", code, errs)
	}
	if text, err := os.ReadFile(filepath.Join(to, "f")); err != nil || string(text) != "content" {
		t.Errorf("restored %q, error %v", text, err)
	}
	if code, out, errs := d.verb("backup", "data"); code != 0 || !strings.HasPrefix(out, "\x28\xb5\x2f\xfd") {
		t.Errorf("backup to the output: status %d, %d bytes, errors %q", code, len(out), errs)
	}
	if _, out, _ := d.verb("ls"); strings.Contains(out, "HEALTHY") {
		t.Errorf("a verb has kept a volume mounted:\n%s", out)
	}
}

func TestProgressHasRateAndTimeLeft(t *testing.T) {
	for want, got := range map[string]string{
		"data [############            ]  50 %  1 GB  100 MB/s  7 entries  10 s left": progressLine("data", 1e9, 2e9, 7, 10*time.Second),
		"- 1.5 kB  1.5 kB/s": progressLine("-", 1500, 0, 0, time.Second),
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestBackupsIntoAVolumeBuildOnEachOtherAndOldOnesGo(t *testing.T) {
	d := startDaemon(t, newDir(t))
	d.eventually("volume plugin", func() error { _, err := d.docker("List", nil); return err })
	dirs := map[string]string{}
	for _, name := range []string{"data", "archive", "copy"} {
		dirs[name] = filepath.Join(d.dir, "of-"+name)
		if err := os.Mkdir(dirs[name], 0o755); err != nil {
			t.Fatal(err)
		}
		d.mustDocker("Create", api.CreateRequest{Name: name, Options: map[string]string{"type": "local", "device": dirs[name]}})
	}
	file := filepath.Join(dirs["data"], "f")
	long := time.Now().Add(-time.Hour)
	if err := errors.Join(os.WriteFile(file, []byte("content"), 0o640), os.Chtimes(file, long, long)); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2100 * time.Millisecond) // what changed a moment before a backup is read again
	for i, want := range []string{"2 entries, 7 B in data-", "(1 files, 7 B, unchanged)", "removed data-"} {
		args := []string{"backup", "data", "-o", "volume:archive"}
		if i == 2 {
			args = append(args, "--full", "--keep", "1")
		}
		if code, _, errs := d.verb(args...); code != 0 || !strings.Contains(errs, want) {
			t.Fatalf("backup %d: status %d, errors %q, want %q", i, code, errs, want)
		}
	}
	files, err := filepath.Glob(filepath.Join(dirs["archive"], "data-*"+backup.Suffix))
	if err != nil || len(files) != 1 {
		t.Fatalf("archives %v, error %v", files, err)
	}
	archive := "volume:archive/" + filepath.Base(files[0])
	if code, out, errs := d.verb("verify", archive); code != 0 || !strings.Contains(out, "is whole") {
		t.Errorf("verify: status %d, output %q, errors %q", code, out, errs)
	}
	if code, _, errs := d.verb("restore", archive, "copy"); code != 0 {
		t.Errorf("restore: status %d, errors %q", code, errs)
	}
	if _, out, _ := d.verb("inspect", "data"); !strings.Contains(out, "ago: 2 entries, 7 B in ") {
		t.Errorf("inspect does not show the last backup:\n%s", out)
	}
	if code, _, errs := d.verb("backup", "data", "-o", filepath.Join(d.dir, "f.tar.zst"), "--keep", "1"); code == 0 || !strings.Contains(errs, "directory") {
		t.Errorf("--keep for a file: status %d, errors %q", code, errs)
	}
	if code, _, errs := d.verb("backup", "data", "-o", "volume:nosuch"); code == 0 || !strings.Contains(errs, "no such volume") {
		t.Errorf("into a volume that is not there: status %d, errors %q", code, errs)
	}
}

func TestAVolumeIsBackedUpBySchedule(t *testing.T) {
	d := startDaemon(t, newDir(t))
	d.eventually("volume plugin", func() error { _, err := d.docker("List", nil); return err })
	d.mustDocker("Create", api.CreateRequest{Name: "archive"})
	d.mustDocker("Create", api.CreateRequest{Name: "data", Options: map[string]string{"backup": "daily", "backup-to": "archive"}})
	d.eventually("a backup", func() error {
		_, out, errs := d.verb("inspect", "data")
		if !strings.Contains(out, "ago: 1 entry, 0 B in ") {
			return fmt.Errorf("%s%s", out, errs)
		}
		return nil
	})
}
