package mount

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// inNamespace in the environment says that the tests already have a mount namespace of their own.
const inNamespace = "TEST_HAS_A_MOUNT_NAMESPACE"

// TestMain makes the test binary the child program as well, and runs the tests in a mount namespace of their own.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "volume-child" {
		os.Exit(Child(os.Stdin, os.Stdout))
	}
	if os.Getenv(inNamespace) != "" {
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inNamespace+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &unix.SysProcAttr{Unshareflags: unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func processes() *Processes { return NewProcesses("/proc/self/exe", "volume-child") }

// do performs a task that has to succeed.
func do(t *testing.T, task Task) Result {
	t.Helper()
	r, err := processes().Do(t.Context(), task)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestABindIsMountedProvedAndTakenAway(t *testing.T) {
	dir := t.TempDir()
	target := filepath.Join(dir, "mounts", "v")
	source := filepath.Join(dir, "data", "v")
	plan := Plan{Attempts: []Attempt{{Bind: true, Make: true, Source: source}}, Mode: 0o2750, UID: 7, GID: 8}
	do(t, Task{Do: DoMount, Target: target, Plan: plan})
	if err := os.WriteFile(filepath.Join(target, "f"), nil, 0o600); err != nil {
		t.Error(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(source, &st); err != nil || st.Mode&0o7777 != 0o2750 || st.Uid != 7 || st.Gid != 8 {
		t.Errorf("mode %o, owner %d:%d, error %v", st.Mode, st.Uid, st.Gid, err)
	}
	mounts, err := mountsBelow(filepath.Join(dir, "mounts"))
	if _, ok := mounts[target]; !ok || err != nil {
		t.Errorf("mounts %v, error %v", mounts, err)
	}
	do(t, Task{Do: DoProbe, Target: target})
	do(t, Task{Do: DoUnmount, Target: target})
	if _, err := os.Stat(target); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the mount point is left: %v", err)
	}
	if _, err := os.Stat(filepath.Join(source, "f")); err != nil {
		t.Error(err)
	}
}

func TestAReadOnlyBindCannotBeWritten(t *testing.T) {
	dir := t.TempDir()
	target := filepath.Join(dir, "m")
	do(t, Task{Do: DoMount, Target: target, Plan: Plan{Attempts: []Attempt{{Bind: true, Source: dir, Flags: unix.MS_RDONLY}}}})
	defer do(t, Task{Do: DoUnmount, Target: target})
	if err := os.WriteFile(filepath.Join(target, "f"), nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("error %v, want EROFS", err)
	}
}

// tmpfs is a plan that mounts memory.
func tmpfs(data string) Plan {
	return Plan{Attempts: []Attempt{{Label: "memory", Source: "tmpfs", FSType: "tmpfs", Data: data}}}
}

func TestASubdirectoryIsMadeAndOnlyItIsMounted(t *testing.T) {
	dir := t.TempDir()
	target := filepath.Join(dir, "v")
	plan := Plan{
		Attempts: []Attempt{{Bind: true, Source: filepath.Join(dir, "server"), Make: true}},
		Subdir:   "a/b", Mode: 0o770, UID: 3, GID: 4,
	}
	for range 2 { // the second time it exists
		do(t, Task{Do: DoMount, Target: target, Plan: plan})
		var st unix.Stat_t
		if err := unix.Stat(target, &st); err != nil || st.Mode&0o7777 != 0o770 || st.Uid != 3 || st.Gid != 4 {
			t.Errorf("mode %o, owner %d:%d, error %v", st.Mode, st.Uid, st.Gid, err)
		}
		if err := os.WriteFile(filepath.Join(target, "f"), nil, 0o600); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(filepath.Join(dir, "server/a/b/f")); err != nil {
			t.Error(err)
		}
		mounts, err := mountsBelow(dir)
		if err != nil || len(mounts) != 1 {
			t.Errorf("mounts %v, error %v; want the one of the volume", mounts, err)
		}
		do(t, Task{Do: DoUnmount, Target: target})
	}
}

func TestALinkOnTheServerCannotLeadASubdirectoryOutOfIt(t *testing.T) {
	dir := t.TempDir()
	server := filepath.Join(dir, "server")
	if err := errors.Join(os.Mkdir(server, 0o755), os.Symlink("/etc", filepath.Join(server, "out"))); err != nil {
		t.Fatal(err)
	}
	for _, subdir := range []string{"out", "out/new"} {
		target := filepath.Join(dir, "v")
		_, err := processes().Do(t.Context(), Task{Do: DoMount, Target: target, Plan: Plan{
			Attempts: []Attempt{{Bind: true, Source: server}}, Subdir: subdir, Mode: 0o755,
		}})
		if err == nil || !strings.Contains(err.Error(), "subdir "+subdir) {
			t.Errorf("%s: error %v", subdir, err)
		}
	}
	if mounts, err := mountsBelow(dir); err != nil || len(mounts) != 0 {
		t.Errorf("left: %v, error %v", mounts, err)
	}
}

func TestTheNextAttemptIsMadeAfterTheErrorsNamedAndNoOther(t *testing.T) {
	plan := Plan{
		Attempts: []Attempt{{Label: "bad", FSType: "tmpfs", Data: "wrong=1"}, {Label: "good", FSType: "tmpfs"}},
		Next:     []unix.Errno{unix.EINVAL},
	}
	target := filepath.Join(t.TempDir(), "v")
	r := do(t, Task{Do: DoMount, Target: target, Plan: plan})
	do(t, Task{Do: DoUnmount, Target: target})
	if r.Attempt != 1 || len(r.Failures) != 1 || r.Failures[0].Label != "bad" || !errors.Is(r.Failures[0], unix.EINVAL) {
		t.Errorf("result %+v", r)
	}
	plan.Next = nil
	if _, err := processes().Do(t.Context(), Task{Do: DoMount, Target: target, Plan: plan}); !errors.Is(err, unix.EINVAL) {
		t.Errorf("error %v, want EINVAL", err)
	}
}

func TestAProgramThatOnlyClaimsToHaveMountedIsNotBelieved(t *testing.T) {
	target := filepath.Join(t.TempDir(), "v")
	_, err := processes().Do(t.Context(), Task{Do: DoMount, Target: target, Plan: Plan{
		Attempts: []Attempt{{Label: "liar", Command: []string{"true", Placeholder}}},
	}})
	if err == nil || !strings.Contains(err.Error(), "nothing is mounted") {
		t.Errorf("error %v", err)
	}
	_, err = processes().Do(t.Context(), Task{Do: DoMount, Target: target, Plan: Plan{
		Attempts: []Attempt{{Command: []string{"sh", "-c", "echo it is {target} >&2; exit 3"}}},
	}})
	if err == nil || !strings.Contains(err.Error(), "it is "+target) {
		t.Errorf("error %v, want the program's words", err)
	}
}

func TestASecretIsReadFromItsFileByTheChildOnly(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "secret")
	if err := os.WriteFile(file, []byte("QWERTY\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	// tmpfs takes no secret: the kernel's refusal proves that it was given one.
	plan := tmpfs("size=1m")
	do(t, Task{Do: DoMount, Target: filepath.Join(dir, "v"), Plan: plan})
	do(t, Task{Do: DoUnmount, Target: filepath.Join(dir, "v")})
	plan.Attempts[0].SecretFile = file
	_, err := processes().Do(t.Context(), Task{Do: DoMount, Target: filepath.Join(dir, "v"), Plan: plan})
	if !errors.Is(err, unix.EINVAL) || strings.Contains(err.Error(), "QWERTY") {
		t.Errorf("error %v", err)
	}
	plan.Attempts[0].SecretFile = file + "x"
	if _, err := processes().Do(t.Context(), Task{Do: DoMount, Target: filepath.Join(dir, "v"), Plan: plan}); err == nil ||
		!strings.Contains(err.Error(), "read the secret") {
		t.Errorf("error %v", err)
	}
}

// frozen is a FUSE file system whose daemon answers its first request only, as one that is stopped does.
func frozen(t *testing.T, target string) {
	t.Helper()
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	data := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fd)
	if err := errors.Join(os.MkdirAll(target, 0o700), unix.Mount("frozen", target, "fuse.frozen", 0, data)); err != nil {
		t.Fatal(err)
	}
	go func() {
		buf := make([]byte, 1<<20)
		if _, err := unix.Read(fd, buf); err != nil { // FUSE_INIT
			return
		}
		answer := make([]byte, 16+64) // fuse_out_header, fuse_init_out (linux/fuse.h)
		binary.NativeEndian.PutUint32(answer, uint32(len(answer)))
		copy(answer[8:16], buf[8:16]) // unique
		binary.NativeEndian.PutUint32(answer[16:], 7)
		binary.NativeEndian.PutUint32(answer[20:], 31)
		binary.NativeEndian.PutUint32(answer[36:], 1<<16) // max_write
		_, _ = unix.Write(fd, answer)
		for { // what is read and not answered cannot be interrupted any more
			if _, err := unix.Read(fd, buf); err != nil {
				return
			}
		}
	}()
}

func TestAFrozenFUSEDaemonIsGivenUpInTimeAndAborted(t *testing.T) {
	target := filepath.Join(t.TempDir(), "v")
	frozen(t, target)
	p := processes()
	// A child that has started already: on a busy machine another would be given up before it asks.
	if _, err := p.Do(t.Context(), Task{Do: DoProbe, Target: t.TempDir()}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	start := time.Now()
	_, err := p.Do(ctx, Task{Do: DoProbe, Target: target})
	if took := time.Since(start); !errors.Is(err, ErrDeadline) || took > time.Second {
		t.Errorf("error %v after %s", err, took)
	}
	if p.Running() != 1 {
		t.Errorf("%d children run; the killed one should be kept by the kernel", p.Running())
	}
	mounts, err := mountsBelow(target)
	if err != nil {
		t.Fatal(err)
	}
	do(t, Task{Do: DoAbort, Target: target, Device: mounts[target].Minor})
	for end := time.Now().Add(5 * time.Second); p.Running() > 0 && time.Now().Before(end); time.Sleep(time.Millisecond) {
	}
	if p.Running() != 0 {
		t.Error("the child waits although the connection has ended")
	}
	if _, err := p.Do(t.Context(), Task{Do: DoProbe, Target: target}); !errors.Is(err, unix.ENOTCONN) {
		t.Errorf("probe after the abort: %v, want ENOTCONN", err)
	}
	do(t, Task{Do: DoDetach, Target: target})
}

func TestNothingGoesOnAfterTheDaemonHasDied(t *testing.T) {
	cmd := exec.Command("/proc/self/exe", "volume-child")
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	target := filepath.Join(t.TempDir(), "v")
	task := `{"do":"mount","target":"` + target + `","attempts":[{"command":["sleep","100"]}]}` + "\n"
	if _, err := in.Write([]byte(task)); err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond)
	in.Close() // as the kernel does for a dead parent
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		t.Error("the child goes on")
		_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
	}
}
