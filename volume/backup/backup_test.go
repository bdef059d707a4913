package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// open opens a directory.
func open(t testing.TB, dir string) *os.File {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func try(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// fill puts one of everything that a volume can have into a directory. The random content does not compress.
func fill(t testing.TB, dir string) {
	t.Helper()
	at := func(name string) string { return filepath.Join(dir, name) }
	random := make([]byte, 5<<20)
	for i := range random {
		random[i] = byte(rand.Uint32())
	}
	long := strings.Repeat("long-name-", 20)
	try(t,
		os.MkdirAll(at("d/"+long+"/"+long), 0o755), os.Mkdir(at("empty"), 0o700),
		os.WriteFile(at("small"), []byte("hello"), 0o640), os.WriteFile(at("none"), nil, 0o600),
		os.WriteFile(at("d/big"), random, 0o644), os.WriteFile(at("d/"+long+"/"+long+"/f"), []byte("deep"), 0o644),
		os.WriteFile(at("grüße 💾"), []byte("x"), 0o644), os.WriteFile(at("line\nbreak\\"), []byte("y"), 0o644),
		os.Link(at("small"), at("d/second name")), os.Symlink("/nowhere/"+long, at("link")), os.Symlink("small", at("short link")),
		unix.Mknod(at("device"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))), unix.Mknod(at("disk"), unix.S_IFBLK|0o600, int(unix.Mkdev(252, 70000))),
		unix.Mkfifo(at("pipe"), 0o622),
		os.Lchown(at("link"), 1000, 1001), os.Chown(at("small"), 3000000000, 7), os.Chown(at("d/big"), 70000, 70001),
		unix.Chmod(at("d/big"), 0o6755), unix.Chmod(at("empty"), 0o3777),
		unix.Setxattr(at("small"), "user.comment", []byte("with\x00zero\nand line"), 0),
		unix.Setxattr(at("d"), "trusted.kind", []byte("dir"), 0),
		unix.Lsetxattr(at("link"), "trusted.kind", []byte("link"), 0),
		unix.Setxattr(at("d/big"), "security.capability", []byte("\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0),
	)
	try(t, sparse(at("sparse"), 40<<20, 3<<20, 30<<20), sparse(at("only hole"), 9<<20), sparse(at("d/hole at end"), 20<<20, 0))
	if out, err := exec.Command("setfacl", "-m", "u:1234:rwx,d:g:77:r-x", at("empty")).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for i, name := range []string{"small", "link", "empty", "d/big", "device", "d", "."} {
		times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Sec: int64(i-1) * 1e8, Nsec: 123456789}}
		try(t, unix.UtimesNanoAt(unix.AT_FDCWD, at(name), times, unix.AT_SYMLINK_NOFOLLOW))
	}
}

// sparse makes a file of a size with data in some places.
func sparse(path string, size int64, data ...int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	for _, at := range data {
		if _, err := f.WriteAt(bytes.Repeat([]byte("data"), 5000), at); err != nil {
			return err
		}
	}
	return f.Truncate(size)
}

// look describes everything in a volume, so that two can be compared: all metadata, content by its hash.
func look(t testing.TB, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	root := open(t, dir)
	first := map[string]string{}
	w := walker{root: int(root.Fd()), first: map[fileID]string{}, warn: func(s string) { t.Error(s) }, emit: func(e *entry) error {
		s := &e.stat
		text := fmt.Sprintf("%o %d:%d", s.Mode, s.Uid, s.Gid)
		if !e.hard {
			text += fmt.Sprintf(" %d.%d xattrs %q link %q rdev %x", s.Mtim.Sec, s.Mtim.Nsec, e.xattrs, e.link, s.Rdev)
		}
		if e.regular() {
			fd, err := openBeneath(int(root.Fd()), e.path, unix.O_RDONLY, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			xattrs, err := readXattrs(fd)
			if err != nil {
				return err
			}
			segments, err := findSegments(fd, s)
			if err != nil {
				return err
			}
			content, err := os.ReadFile(filepath.Join(dir, e.path))
			if err != nil {
				return err
			}
			text += fmt.Sprintf(" xattrs %q size %d segments %v", xattrs, s.Size, segments)
			first[e.path] = string(content)
		}
		if e.hard {
			text += " is " + e.link
		}
		out[e.path] = text
		return nil
	}}
	if err := w.walk(t.Context(), "."); err != nil {
		t.Fatal(err)
	}
	for name, content := range first {
		out["content of "+name] = content
	}
	return out
}

// create backs a directory up.
func create(t testing.TB, dir string) []byte {
	t.Helper()
	var out bytes.Buffer
	if _, err := Create(t.Context(), Source{Dir: open(t, dir), Name: "v", Warn: func(s string) { t.Error(s) }}, &out); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// disk returns a directory on a file system that keeps everything; /tmp may be memory.
func disk(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Setxattr(dir, "user.test", []byte("x"), 0); err != nil {
		t.Fatalf("%s keeps no user attributes: set TMPDIR to a directory on ext4, xfs or btrfs: %v", dir, err)
	}
	try(t, unix.Removexattr(dir, "user.test"))
	return dir
}

func TestARestoredVolumeIsTheSameByteForByteWithAllMetadata(t *testing.T) {
	from, to := disk(t), disk(t)
	fill(t, from)
	archive := create(t, from)
	s, err := Restore(t.Context(), bytes.NewReader(archive), Target{Dir: open(t, to), Warn: func(s string) { t.Error(s) }})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(look(t, from), look(t, to)); diff != "" {
		t.Errorf("(-backed up +restored):\n%.5000s", diff)
	}
	if v, err := Verify(t.Context(), bytes.NewReader(archive), nil, nil); err != nil || !cmp.Equal(v, s) || s.Volume != "v" || s.Entries != 20 {
		t.Errorf("summary %+v, verified %+v, error %v", s, v, err)
	}
}

func TestPlainTarAndSha256sumReadAnArchive(t *testing.T) {
	from, to := disk(t), disk(t)
	fill(t, from)
	file := filepath.Join(t.TempDir(), "a.tar.zst")
	try(t, os.WriteFile(file, create(t, from), 0o600))
	for _, line := range []string{
		"tar --zstd --warning=no-timestamp --xattrs --xattrs-include=* -C " + to + " -xpf " + file, "cd " + to + " && sha256sum --check --strict --quiet " + sumsName,
	} {
		if out, err := exec.Command("sh", "-c", strings.ReplaceAll(line, "=*", "='*'")).CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("%s: %v\n%s", line, err, out)
		}
	}
	try(t, os.RemoveAll(filepath.Join(to, Meta)))
	// tar sets the times of the volume's own directory before this test removes the sums from it.
	want, got := look(t, from), look(t, to)
	delete(want, ".")
	delete(got, ".")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-backed up +extracted):\n%.5000s", diff)
	}
}

func TestADamagedArchiveIsRefusedWithTheFileNamedAndNothingIsRestored(t *testing.T) {
	from := disk(t)
	try(t, os.WriteFile(filepath.Join(from, "a"), bytes.Repeat([]byte("aaaa"), 1<<20), 0o600))
	try(t, os.WriteFile(filepath.Join(from, "b"), []byte("b"), 0o600))
	archive := create(t, from)
	for name, change := range map[string]func([]byte) []byte{
		"a byte changed": func(b []byte) []byte { b[len(b)/3] ^= 0xff; return b },
		"cut":            func(b []byte) []byte { return b[:len(b)-40] },
		"cut to nothing": func([]byte) []byte { return nil },
		"more after it":  func(b []byte) []byte { return append(b, b...) },
	} {
		to := disk(t)
		damaged := change(bytes.Clone(archive))
		_, err := Verify(t.Context(), bytes.NewReader(damaged), nil, nil)
		if !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: verify says %v", name, err)
		}
		if _, err := Restore(t.Context(), bytes.NewReader(damaged), Target{Dir: open(t, to)}); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: restore says %v", name, err)
		}
		if left, err := os.ReadDir(to); err != nil || len(left) > 0 {
			t.Errorf("%s: left %v, error %v", name, left, err)
		}
	}
	_, err := Verify(t.Context(), strings.NewReader("PK\x03\x04 something else"), nil, nil)
	if !errors.Is(err, ErrForeign) {
		t.Errorf("a file of another kind: %v", err)
	}
}

func TestAChangedFileIsNamed(t *testing.T) {
	for name, lines := range map[string][2]string{
		"b":      {"11  a\n22  b\n33  c\n", "11  a\n23  b\n33  c\n"},
		"c":      {"11  a\n33  c\n", "11  a\n"},
		"a file": {"", "x\n"},
	} {
		err := sameLines(strings.NewReader(lines[0]), strings.NewReader(lines[1]))
		if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), name) {
			t.Errorf("error %v does not name %s", err, name)
		}
	}
	if err := sameLines(strings.NewReader("11  a\n"), strings.NewReader("11  a\n")); err != nil {
		t.Error(err)
	}
}

func TestAVolumeWithDataIsNotOverwritten(t *testing.T) {
	from, to := disk(t), disk(t)
	try(t, os.WriteFile(filepath.Join(from, "new"), nil, 0o600), os.WriteFile(filepath.Join(to, "old"), nil, 0o600))
	_, err := Restore(t.Context(), bytes.NewReader(create(t, from)), Target{Dir: open(t, to)})
	if !errors.Is(err, ErrNotEmpty) || !strings.Contains(err.Error(), "old") {
		t.Errorf("error %v", err)
	}
}

func TestAnInterruptedRestoreLeavesAnEmptyVolumeOrAWholeOne(t *testing.T) {
	from := disk(t)
	fill(t, from)
	archive := create(t, from)
	want := look(t, from)
	for i := range 12 {
		to := disk(t)
		ctx, cancel := context.WithCancel(t.Context())
		stop := int64(i * len(archive) / 10)
		in := io.TeeReader(bytes.NewReader(archive), writerFunc(func(b []byte) (int, error) {
			if stop -= int64(len(b)); stop < 0 {
				cancel()
			}
			return len(b), nil
		}))
		_, err := Restore(ctx, in, Target{Dir: open(t, to)})
		cancel()
		left, readErr := os.ReadDir(to)
		if readErr != nil || err != nil && len(left) > 0 {
			t.Errorf("after %d tenths: error %v, left %v (%v)", i, err, left, readErr)
		}
		if _, err := Restore(t.Context(), bytes.NewReader(archive), Target{Dir: open(t, to)}); err != nil && len(left) == 0 {
			t.Errorf("the next restore: %v", err)
		}
		if diff := cmp.Diff(want, look(t, to)); diff != "" {
			t.Errorf("after %d tenths (-want +got):\n%.2000s", i, diff)
		}
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

func TestALinkPutIntoAVolumeWhileItIsReadLeadsNowhere(t *testing.T) {
	dir := disk(t)
	try(t, os.Symlink("/etc", filepath.Join(dir, "etc")))
	root := open(t, dir)
	for _, path := range []string{"etc/passwd", "../x", "/etc/passwd", "etc"} {
		if fd, err := openBeneath(int(root.Fd()), path, unix.O_RDONLY, 0); err == nil {
			unix.Close(fd)
			t.Errorf("%s can be opened", path)
		}
	}
}
