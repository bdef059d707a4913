package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestMain makes the test binary a restore as well, so that it can be killed.
func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == "backup" {
		os.Exit(backupProcess(os.Args[2], os.Args[3]))
	}
	if len(os.Args) == 4 && os.Args[1] == "restore" {
		os.Exit(restoreProcess(os.Args[2], os.Args[3]))
	}
	os.Exit(m.Run())
}

func backupProcess(from, dir string) int {
	d, err := OpenDirectory(dir)
	if err == nil {
		var src *os.File
		if src, err = os.Open(from); err == nil {
			_, _, err = d.Create(context.Background(), Source{Dir: src, Name: "v"}, false)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// Whatever is in a directory of backups is whole, and what a killed one has left goes with the next.
func TestABackupKilledAtAnyMomentLeavesOnlyWholeArchives(t *testing.T) {
	from, dir := disk(t), disk(t)
	for i := range 50 {
		try(t, os.WriteFile(filepath.Join(from, fmt.Sprint("f", i)), bytes.Repeat([]byte{byte(i)}, 20000), 0o640))
	}
	killed := 0
	for i := range 50 {
		try(t, os.WriteFile(filepath.Join(from, fmt.Sprint("f", i)), fmt.Append(nil, i), 0o640))
		cmd := exec.Command("/proc/self/exe", "backup", from, dir)
		try(t, cmd.Start())
		time.Sleep(time.Duration(rand.Int64N(int64(60 * time.Millisecond))))
		_ = cmd.Process.Kill()
		if cmd.Wait() != nil {
			killed++
		}
		d, err := OpenDirectory(dir)
		try(t, err)
		files, err := os.ReadDir(dir)
		try(t, err)
		for _, f := range files {
			if !stamped.MatchString(strings.TrimPrefix(f.Name(), "v")) {
				t.Fatalf("%s is left behind", f.Name())
			}
			name := filepath.Join(dir, f.Name())
			in, err := os.Open(name)
			try(t, err)
			_, err = Verify(t.Context(), in, Beside(name), nil)
			try(t, err, in.Close())
		}
		_, err = d.Retain("v", 1)
		try(t, err, d.Close())
	}
	if killed < 10 {
		t.Errorf("only %d of 50 were killed before their end: the test proves little", killed)
	}
}

func restoreProcess(file, dir string) int {
	in, err := os.Open(file)
	if err == nil {
		var to *os.File
		if to, err = os.Open(dir); err == nil {
			_, err = Restore(context.Background(), in, Target{Dir: to})
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func TestARestoreKilledAtAnyMomentLosesNothingAndTheNextOneFinishes(t *testing.T) {
	from := disk(t)
	for i := range 200 {
		dir := filepath.Join(from, fmt.Sprint("d", i%10))
		try(t, os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, fmt.Sprint("f", i)), bytes.Repeat([]byte{byte(i)}, 10000), 0o640))
	}
	archive := create(t, from)
	file := filepath.Join(disk(t), "archive")
	try(t, os.WriteFile(file, archive, 0o600))
	want := look(t, from)
	delete(want, ".") // the time of the volume's own directory changes when a killed restore is put in place
	killed := 0
	for range 50 {
		to := disk(t)
		cmd := exec.Command("/proc/self/exe", "restore", file, to)
		try(t, cmd.Start())
		time.Sleep(time.Duration(rand.Int64N(int64(80 * time.Millisecond))))
		_ = cmd.Process.Kill()
		if cmd.Wait() != nil {
			killed++
		}
		_, err := Restore(t.Context(), bytes.NewReader(archive), Target{Dir: open(t, to)})
		if err != nil && !errors.Is(err, ErrNotEmpty) { // it had come so far that this one has put it in place
			t.Fatal(err)
		}
		got := look(t, to)
		delete(got, ".")
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("(-want +got):\n%.1000s", diff)
		}
		for _, name := range []string{stage, staged} {
			if _, err := os.Stat(filepath.Join(to, name)); err == nil {
				t.Fatalf("%s is left behind", name)
			}
		}
	}
	if killed < 10 {
		t.Errorf("only %d of 50 were killed before their end: the test proves little", killed)
	}
}
