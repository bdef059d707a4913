package lab

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Process ids are used again: only the same id with the same start time is the same process.
func TestIdentityIsNotFooledByAProcessIDUsedAgain(t *testing.T) {
	child := exec.Command("sleep", "100")
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	recorded, err := identify(child.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	earlier := identity{PID: recorded.PID, Start: recorded.Start - 1}
	if earlier.alive() {
		t.Error("a process with another start time counts as the recorded one")
	}
	if err := earlier.end(); err != nil || !recorded.alive() {
		t.Errorf("ending an earlier process hit its successor (%v)", err)
	}
	// Its parent has to take its exit status for it to be gone.
	go child.Wait()
	if err := recorded.end(); err != nil || recorded.alive() {
		t.Errorf("the recorded process is still there (%v)", err)
	}
}

// A test that stops a daemon and is killed leaves an nsenter that is stopped, too, and waits for nobody.
func TestAStoppedProcessDoesNotKeepItsNodesNamespace(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("namespaces need root")
	}
	start := func(args ...string) (child int) {
		t.Helper()
		p, err := start(exec.Command(args[0], args[1:]...), filepath.Join(t.TempDir(), "log"))
		if err != nil {
			t.Fatal(err)
		}
		return p.pid
	}
	init, err := identify(start("unshare", "--pid", "--fork", "sleep", "1000"))
	if err != nil {
		t.Fatal(err)
	}
	inside := start("nsenter", "--target", strconv.Itoa(init.PID), "--pid", "sleep", "1000")
	if err := unix.Kill(inside, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	time.Sleep(200 * time.Millisecond) // until nsenter has stopped as well
	if err := init.end(); err != nil {
		t.Error(err)
	}
}

func TestOnlyControlGroupsOfALabAreRemoved(t *testing.T) {
	for _, name := range []string{"", ".", "..", "../docker", "/docker", "docker", "system.slice"} {
		if err := removeCgroups(name); err == nil {
			t.Errorf("removeCgroups(%q) did not refuse", name)
		}
	}
	if err := removeCgroups(dirPrefix + "that-never-was"); err != nil {
		t.Error(err)
	}
}

func TestReapRefusesALabWhoseMakerRuns(t *testing.T) {
	self, err := identify(os.Getpid())
	if err != nil || !self.alive() {
		t.Fatalf("this process does not count as alive (%v)", err)
	}
	l := &Lab{Dir: t.TempDir(), cgroup: dirPrefix + "test"}
	l.Outside = &Node{init: &process{pid: os.Getpid()}}
	if err := l.record(); err != nil {
		t.Fatal(err)
	}
	if err := Reap(l.Dir); err == nil {
		t.Fatal("Reap removed the lab of a running process")
	}
	if _, err := os.Stat(l.Dir); err != nil {
		t.Error(err)
	}
}
