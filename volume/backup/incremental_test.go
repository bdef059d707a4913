package backup

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// archives is a directory of backups, of which each builds on the one before.
type archives struct {
	t    testing.TB
	dir  string
	last string
	// now is later with each backup, so that what has just been written counts as settled.
	now time.Time
}

// backup backs a directory up and returns what the archive says of itself.
func (a *archives) backup(from, name string) Summary {
	a.t.Helper()
	a.now = a.now.Add(time.Hour)
	src := Source{Dir: open(a.t, from), Name: "v", Now: func() time.Time { return a.now }, Warn: func(s string) { a.t.Error(s) }}
	if a.last != "" {
		base, err := OpenBase(filepath.Join(a.dir, a.last))
		try(a.t, err)
		defer base.Close()
		src.Base = base
	}
	f, err := os.Create(filepath.Join(a.dir, name))
	try(a.t, err)
	s, err := Create(a.t.Context(), src, f)
	try(a.t, err, f.Close())
	a.last = name
	return s
}

func (a *archives) open(name string) (io.ReadCloser, error) {
	return os.Open(filepath.Join(a.dir, name))
}

// restore restores the last backup, after it was verified.
func (a *archives) restore(to string) error {
	a.t.Helper()
	for _, restore := range []bool{false, true} {
		in, err := a.open(a.last)
		try(a.t, err)
		if restore {
			_, err = Restore(a.t.Context(), in, Target{Dir: open(a.t, to), Bases: a.open})
		} else {
			_, err = Verify(a.t.Context(), in, a.open, nil)
		}
		in.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

func TestAnIncrementalBackupReadsOnlyWhatHasChangedAndRestoresEverything(t *testing.T) {
	from, to := disk(t), disk(t)
	fill(t, from)
	a := &archives{t: t, dir: t.TempDir(), now: time.Now()}
	full := a.backup(from, "1")
	if full.Unchanged != 0 || len(full.Bases) != 0 {
		t.Fatalf("the first backup builds on something: %+v", full)
	}
	second := a.backup(from, "2")
	if second.Bytes != 0 || second.UnchangedBytes != full.Bytes {
		t.Errorf("nothing has changed, and %d bytes of %d were read again", second.Bytes, full.Bytes)
	}
	path := func(name string) string { return filepath.Join(from, name) }
	try(t, os.WriteFile(path("new"), []byte("new"), 0o640), os.MkdirAll(path("a.dir/below"), 0o750),
		os.WriteFile(path("a.dir/below/deep"), []byte("deep"), 0o600))
	third := a.backup(from, "3")
	if third.Bytes != int64(len("new")+len("deep")) {
		t.Errorf("%d bytes were read for two new files", third.Bytes)
	}
	try(t, os.Chmod(path("new"), 0o600), os.Remove(path("a.dir/below/deep")))
	fourth := a.backup(from, "4")
	if fourth.Bytes != int64(len("new")) {
		t.Errorf("%d bytes were read for a file with another mode", fourth.Bytes)
	}
	for n, r := range fourth.Bases {
		if r.File == "2" {
			t.Errorf("base %d is an archive that has nothing of it: %+v", n, r)
		}
	}
	try(t, a.restore(to))
	if diff := cmp.Diff(look(t, from), look(t, to)); diff != "" {
		t.Errorf("(-want +got):\n%.2000s", diff)
	}
}

func TestAnIncrementalBackupWithoutItsBaseIsRefusedWithTheBaseNamed(t *testing.T) {
	from := disk(t)
	try(t, os.WriteFile(filepath.Join(from, "f"), []byte("content"), 0o600))
	a := &archives{t: t, dir: t.TempDir(), now: time.Now()}
	a.backup(from, "first")
	archive, err := os.ReadFile(filepath.Join(a.dir, "first"))
	try(t, err)
	a.backup(from, "second")
	alone, err := os.ReadFile(filepath.Join(a.dir, "second"))
	try(t, err)
	if _, err := Verify(t.Context(), bytes.NewReader(alone), nil, nil); !errors.Is(err, ErrForeign) || !strings.Contains(err.Error(), "first") {
		t.Errorf("from a stream: %v", err)
	}
	// Another archive of that name, a damaged one, and none.
	try(t, os.WriteFile(filepath.Join(from, "f"), []byte("another"), 0o600))
	other := &archives{t: t, dir: t.TempDir(), now: time.Now()}
	other.backup(from, "first")
	text, err := os.ReadFile(filepath.Join(other.dir, "first"))
	try(t, err)
	damaged := slices.Clone(archive)
	damaged[len(damaged)/3] ^= 0x40
	for what, content := range map[string][]byte{"another": text, "damaged": damaged, "cut": archive[:len(archive)/2]} {
		try(t, os.WriteFile(filepath.Join(a.dir, "first"), content, 0o600))
		if err := a.restore(disk(t)); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "first") {
			t.Errorf("%s: %v", what, err)
		}
	}
	try(t, os.Remove(filepath.Join(a.dir, "first")))
	if err := a.restore(disk(t)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
	try(t, os.WriteFile(filepath.Join(a.dir, "first"), archive, 0o600), a.restore(disk(t)))
}

// A file that changes within the clock's tick after it was read looks the same.
func TestWhatChangedJustBeforeABackupIsReadAgainByTheNext(t *testing.T) {
	from := disk(t)
	try(t, os.WriteFile(filepath.Join(from, "f"), []byte("content"), 0o600))
	a := &archives{t: t, dir: t.TempDir(), now: time.Now().Add(-time.Hour)} // the backup's time is the file's
	a.backup(from, "1")
	if s := a.backup(from, "2"); s.Bytes == 0 {
		t.Error("a file that changed a moment ago was taken for unchanged")
	}
}

// A volume in use: files come and go while it is read, and the archive is whole all the same.
func TestABackupOfAVolumeInUseIsWhole(t *testing.T) {
	from := disk(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			name := filepath.Join(from, string(rune('a'+rand.IntN(26))), string(rune('a'+rand.IntN(26))))
			switch rand.IntN(3) {
			case 0:
				_ = os.MkdirAll(filepath.Dir(name), 0o755)
				_ = os.WriteFile(name, bytes.Repeat([]byte("x"), rand.IntN(100000)), 0o644)
			case 1:
				_ = os.RemoveAll(name)
			case 2:
				_ = os.RemoveAll(filepath.Dir(name))
			}
		}
	}()
	defer func() { cancel(); <-done }()
	warned := 0
	for range 10 {
		var out bytes.Buffer
		if _, err := Create(t.Context(), Source{Dir: open(t, from), Name: "v", Warn: func(string) { warned++ }}, &out); err != nil {
			t.Fatal(err)
		}
		if _, err := Verify(t.Context(), &out, nil, nil); err != nil {
			t.Fatalf("after %d warnings: %v", warned, err)
		}
	}
	t.Log(warned, "warnings")
}

func TestPathsAreComparedInTheOrderOfAWalk(t *testing.T) {
	names := rapid.StringMatching(`[ab.\-]{1,3}(/[ab.\-]{1,3}){0,2}`)
	rapid.Check(t, func(t *rapid.T) {
		a, b := names.Draw(t, "a"), names.Draw(t, "b")
		want := slices.Compare(strings.Split(a, "/"), strings.Split(b, "/"))
		if got := order(a, b); (got < 0) != (want < 0) || (got > 0) != (want > 0) {
			t.Errorf("order(%q, %q) = %d, want %d", a, b, got, want)
		}
	})
}

func TestTheZstdProgramMakesAnArchiveLikeAnyOther(t *testing.T) {
	from := disk(t)
	fill(t, from)
	program, err := exec.LookPath("zstd")
	try(t, err)
	src := Source{Dir: open(t, from), Name: "v", Zstd: program, Warn: func(s string) { t.Error(s) }}
	// A file that the program itself writes to, one that is appended to, and what is no file.
	for what, flag := range map[string]int{"file": 0, "appended": os.O_APPEND, "stream": 0} {
		name := filepath.Join(t.TempDir(), "archive")
		f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|flag, 0o600)
		try(t, err)
		_, err = f.WriteString("before")
		try(t, err)
		var out io.Writer = f
		if what == "stream" {
			out = struct{ io.Writer }{f}
		}
		_, err = Create(t.Context(), src, out)
		try(t, err, f.Close())
		text, err := os.ReadFile(name)
		try(t, err)
		archive, to := bytes.TrimPrefix(text, []byte("before")), disk(t)
		_, err = Restore(t.Context(), bytes.NewReader(archive), Target{Dir: open(t, to)})
		try(t, err, os.WriteFile(name, archive, 0o600))
		if diff := cmp.Diff(look(t, from), look(t, to)); diff != "" {
			t.Errorf("%s (-want +got):\n%.2000s", what, diff)
		}
		base, err := OpenBase(name) // the end is found
		try(t, err, base.Close())
	}
	src.Zstd = "/bin/false"
	if _, err := Create(t.Context(), src, io.Discard); err == nil || !strings.Contains(err.Error(), "/bin/false") {
		t.Errorf("a program that fails: %v", err)
	}
	src.Zstd = program
	small := t.TempDir()
	try(t, unix.Mount("small", small, "tmpfs", 0, "size=64k"))
	defer unix.Unmount(small, 0)
	for what, name := range map[string]string{"a full disk": filepath.Join(small, "archive"), "what is no file": "/dev/full"} {
		full, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE, 0o600)
		try(t, err)
		if _, err := Create(t.Context(), src, full); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("%s: %v", what, err)
		}
		try(t, full.Close())
	}
}

func FuzzAnIndexLineIsReadAsItWasWrittenOrRefused(f *testing.F) {
	f.Add("3 1 2 5 0 a/b\\nc")
	f.Add("-1 -5 2 18446744073709551615 9 x")
	f.Fuzz(func(t *testing.T, text string) {
		l, err := parseLine(text)
		if err != nil {
			return
		}
		again, err := parseLine(strings.TrimSuffix(string(l.append(nil)), "\n"))
		if err != nil || again != l {
			t.Errorf("%q is %+v, and then %+v: %v", text, l, again, err)
		}
	})
}
