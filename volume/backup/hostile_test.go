package backup

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

// tarOf makes a compressed tar of what somebody else could put into one.
func tarOf(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var plain bytes.Buffer
	w := tar.NewWriter(&plain)
	for _, h := range headers {
		content := ""
		if h.Typeflag == tar.TypeReg {
			content = "evil"
			h.Size = int64(len(content))
		}
		h.Mode = 0o777
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(content)); err != nil {
			t.Fatal(err)
		}
	}
	try(t, w.Close())
	return compress(t, plain.Bytes())
}

func compress(t testing.TB, plain []byte) []byte {
	t.Helper()
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return z.EncodeAll(plain, nil)
}

func TestAHostileArchiveWritesNothingOutsideOfTheVolume(t *testing.T) {
	file := func(name string) tar.Header { return tar.Header{Name: name, Typeflag: tar.TypeReg} }
	for name, headers := range map[string][]tar.Header{
		"..":                    {file("../f")},
		".. inside":             {file("a/../../f")},
		"absolute":              {file("/f")},
		"reserved":              {file(staged + "/f")},
		"through a link":        {{Name: "l", Typeflag: tar.TypeSymlink, Linkname: ".."}, file("l/f")},
		"through an absolute":   {{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "/tmp"}, file("l/f")},
		"directory over a link": {{Name: "l", Typeflag: tar.TypeSymlink, Linkname: ".."}, {Name: "l/", Typeflag: tar.TypeDir}, file("l/f")},
		"hard link outside":     {{Name: "h", Typeflag: tar.TypeLink, Linkname: "../secret"}},
		"a name twice":          {file("f"), file("f")},
		"below a file":          {file("f"), file("f/g")},
	} {
		parent := disk(t)
		to := filepath.Join(parent, "volume")
		try(t, os.Mkdir(to, 0o755), os.WriteFile(filepath.Join(parent, "secret"), []byte("secret"), 0o600))
		_, err := Restore(t.Context(), bytes.NewReader(tarOf(t, headers...)), Target{Dir: open(t, to)})
		if err == nil {
			t.Errorf("%s: restored", name)
		}
		beside, _ := os.ReadDir(parent)
		inside, _ := os.ReadDir(to)
		if len(beside) != 2 || len(inside) != 0 {
			t.Errorf("%s: left %v beside the volume, %v in it (error %v)", name, beside, inside, err)
		}
	}
}

func TestALinkOutOfTheVolumeIsKeptAsItIsAndNotFollowed(t *testing.T) {
	from, to := disk(t), disk(t)
	secret := filepath.Join(disk(t), "secret")
	try(t, os.WriteFile(secret, []byte("secret"), 0o600), os.Symlink(secret, filepath.Join(from, "l")))
	if archive := create(t, from); bytes.Contains(archive, []byte("secretsecret")) {
		t.Error("what the link leads to is in the archive")
	} else if _, err := Restore(t.Context(), bytes.NewReader(archive), Target{Dir: open(t, to)}); err != nil {
		t.Error(err)
	}
	st, err := os.Stat(secret)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the link's target has changed: %v, error %v", st.Mode(), err)
	}
	if target, err := os.Readlink(filepath.Join(to, "l")); err != nil || target != secret {
		t.Errorf("link to %q, error %v", target, err)
	}
}

func TestAnArchiveThatAsksForTooMuchMemoryIsRefused(t *testing.T) {
	// A frame header (RFC 8878 §3.1.1) that asks for a window of 2³¹ bytes and more.
	frame := []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xa8, 0x01, 0x00, 0x00}
	_, err := Verify(t.Context(), bytes.NewReader(frame), nil, nil)
	if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "window") {
		t.Errorf("error %v", err)
	}
}

// A few kilobytes that grow to what the volume has no room for, and a header that asks for memory.
func TestABombIsRefusedAndTheVolumeIsAsItWas(t *testing.T) {
	to := t.TempDir()
	try(t, unix.Mount("small", to, "tmpfs", 0, "size=1m"))
	defer unix.Unmount(to, unix.MNT_DETACH)
	grown := func(h tar.Header) []byte {
		var plain bytes.Buffer
		w := tar.NewWriter(&plain)
		h.Size, h.Mode = 64<<20, 0o600
		try(t, w.WriteHeader(&h))
		_, err := w.Write(make([]byte, h.Size))
		try(t, err, w.Close())
		return plain.Bytes()
	}
	file := grown(tar.Header{Name: "f", Typeflag: tar.TypeReg})
	header := bytes.Clone(file)
	header[156] = tar.TypeXHeader
	copy(header[148:156], "        ")
	sum := 0
	for _, b := range header[:block] {
		sum += int(b)
	}
	copy(header[148:156], fmt.Sprintf("%06o\x00 ", sum))
	for what, x := range map[string]struct {
		plain []byte
		want  error
	}{"file": {file, unix.ENOSPC}, "header": {header, tar.ErrFieldTooLong}} {
		archive := compress(t, x.plain)
		if len(archive) > 100_000 {
			t.Fatalf("%s: %d bytes are no bomb", what, len(archive))
		}
		_, err := Restore(t.Context(), bytes.NewReader(archive), Target{Dir: open(t, to)})
		if !errors.Is(err, x.want) {
			t.Errorf("%s: error %v, want %v", what, err, x.want)
		}
		if left, err := os.ReadDir(to); len(left) != 0 || err != nil {
			t.Errorf("%s: it left %v, error %v", what, left, err)
		}
	}
}

func FuzzNoArchiveLeadsOutOfTheVolume(f *testing.F) {
	for _, h := range []tar.Header{
		{Name: "../f", Typeflag: tar.TypeReg}, {Name: "d/", Typeflag: tar.TypeDir}, {Name: "l", Typeflag: tar.TypeSymlink, Linkname: "/"},
		{Name: "h", Typeflag: tar.TypeLink, Linkname: "f"}, {Name: "f", Typeflag: tar.TypeReg, PAXRecords: map[string]string{"SCHILY.xattr.user.a": "b"}},
	} {
		var plain bytes.Buffer
		w := tar.NewWriter(&plain)
		try(f, w.WriteHeader(&h), w.Close())
		f.Add(plain.Bytes())
	}
	f.Fuzz(func(t *testing.T, plain []byte) {
		parent := t.TempDir()
		to := filepath.Join(parent, "volume")
		try(t, os.Mkdir(to, 0o755))
		_, err := Restore(t.Context(), bytes.NewReader(compress(t, plain)), Target{Dir: open(t, to)})
		if err == nil {
			t.Error("something that has no sums was restored")
		}
		beside, _ := os.ReadDir(parent)
		inside, _ := os.ReadDir(to)
		if len(beside) != 1 || len(inside) != 0 {
			t.Errorf("left %v beside the volume, %v in it", beside, inside)
		}
	})
}
