package backup

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"
)

var (
	// ErrDamaged says that an archive is not what was written.
	ErrDamaged = errors.New("the archive is damaged")
	// ErrForeign says that what is read is no archive of netdriver's, or one of a later version.
	ErrForeign = errors.New("not a backup that this program can read")
)

const (
	// maxWindow bounds the memory that an archive may ask of the decompressor, in bytes. Ours ask for 1 MiB.
	maxWindow = 64 << 20
	// maxSummary bounds the summary, in bytes, and maxLine a line of the sums: a path of PATH_MAX, escaped, and its sum.
	maxSummary = 64 << 10
	maxLine    = 16 << 10
)

// Bases opens an archive, by its file's name, that another one builds on.
type Bases func(name string) (io.ReadCloser, error)

// sink takes what is in an archive, in order.
type sink interface {
	// begin is called before each archive.
	begin() error
	// file takes a regular file, whose data has to be read before the call returns. One that is not wanted is only summed up.
	file(h *tar.Header, name string, data io.Reader, wanted bool) error
	// other takes everything else; of a hard link h.Linkname is the first name.
	other(h *tar.Header, name string) error
	// sums returns the sums of all files of an archive, once they are where they belong.
	sums() (*manifest, error)
}

// archive is an archive being read.
type archive struct {
	in      *input
	plain   io.Reader
	tar     *tar.Reader
	summary Summary // as counted
	index   *manifest
	// wanted are the files that another archive lacks, with the number of this one there; nil: everything is wanted.
	wanted *index
	number int
}

// read hands everything in an archive, and in those that it builds on, to a sink, and returns without error only if all are
// whole and every file has the sum that it had when it was written.
func read(ctx context.Context, in io.Reader, bases Bases, to sink) (Summary, error) {
	list, err := newManifest()
	if err != nil {
		return Summary{}, err
	}
	defer list.close()
	s, err := readOne(ctx, in, &archive{index: list}, to)
	if err != nil {
		return s, err
	}
	if err := checkIndex(list.file, s); err != nil {
		return s, err
	}
	for _, n := range slices.Sorted(maps.Keys(s.Bases)) {
		if err := readBase(ctx, list.file, n, s.Bases[n], bases, to); err != nil {
			return s, fmt.Errorf("%s, on which it builds: %w", s.Bases[n].File, err)
		}
	}
	return s, nil
}

// checkIndex makes sure that every file whose content is elsewhere is in an archive that is named.
func checkIndex(list *os.File, s Summary) error {
	i, err := newIndex(list)
	if err != nil {
		return err
	}
	elsewhere := int64(0)
	for i.any {
		if i.next.from != 0 {
			elsewhere++
			if _, ok := s.Bases[i.next.from]; !ok {
				return fmt.Errorf("%w: %s is in an archive that is not named", ErrDamaged, i.next.path)
			}
		}
		if err := i.advance(); err != nil {
			return err
		}
	}
	if elsewhere != s.Unchanged {
		return fmt.Errorf("%w: %d files are in other archives, and %d are expected", ErrDamaged, elsewhere, s.Unchanged)
	}
	return nil
}

// readBase takes from an archive what the index says is in it.
func readBase(ctx context.Context, list *os.File, number int, r Reference, bases Bases, to sink) error {
	if bases == nil {
		return fmt.Errorf("%w: name the file of an incremental backup, in the directory in which it was made", ErrForeign)
	}
	if r.File == "" || r.File != filepath.Base(r.File) {
		return fmt.Errorf("%w: %q is no file's name", ErrForeign, r.File)
	}
	in, err := bases(r.File)
	if err != nil {
		return err
	}
	defer in.Close()
	own, err := newManifest()
	if err != nil {
		return err
	}
	defer own.close()
	wanted, err := newIndex(list)
	if err != nil {
		return err
	}
	a := &archive{index: own, wanted: wanted, number: number}
	s, err := readOne(ctx, in, a, to)
	if err != nil {
		return err
	}
	if s.Sums != r.Sums {
		return fmt.Errorf("%w: it is not the archive that it was", ErrDamaged)
	}
	return a.lacks()
}

// readOne reads one archive.
func readOne(ctx context.Context, in io.Reader, a *archive, to sink) (Summary, error) {
	if err := to.begin(); err != nil {
		return Summary{}, err
	}
	a.in = &input{ctx: ctx, in: in}
	z, err := zstd.NewReader(a.in, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderConcurrency(2))
	if err != nil {
		return Summary{}, err
	}
	defer z.Close()
	a.plain = &decompressed{zstd: z}
	a.tar = tar.NewReader(a.plain)
	last := "its beginning"
	for {
		h, err := a.tar.Next()
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = fmt.Errorf("%w: it ends without a summary: it was cut short", ErrDamaged)
			}
			return Summary{}, a.explain(ctx, err, "after "+last)
		}
		if h.Name == sumsName {
			s, err := a.end(to)
			if err != nil {
				return Summary{}, a.explain(ctx, err, "at its end")
			}
			return s, nil
		}
		if err := a.entry(h, to); err != nil {
			return Summary{}, a.explain(ctx, err, h.Name)
		}
		last = h.Name
	}
}

// explain says where in the archive an error happened, and that it is damage if the tar is not well formed.
func (a *archive) explain(ctx context.Context, err error, where string) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if errors.Is(err, tar.ErrHeader) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return fmt.Errorf("%s: %w", where, err)
}

func (a *archive) entry(h *tar.Header, to sink) error {
	name, err := safeName(h.Name)
	if err != nil {
		return err
	}
	a.summary.Entries++
	switch h.Typeflag {
	case tar.TypeReg:
		a.summary.Bytes += h.Size
		wanted, err := a.wants(name)
		if err != nil {
			return err
		}
		return to.file(h, name, a.tar, wanted)
	case tar.TypeLink, tar.TypeSymlink, tar.TypeChar, tar.TypeBlock, tar.TypeDir, tar.TypeFifo:
		if a.wanted != nil { // the first archive has them all
			return nil
		}
		if h.Typeflag != tar.TypeLink {
			return to.other(h, name)
		}
		if h.Linkname, err = safeName(h.Linkname); err != nil {
			return err
		}
		return to.other(h, name)
	}
	return fmt.Errorf("%w: an entry of type %q", ErrForeign, h.Typeflag)
}

// wants says whether a file is taken from this archive. Files are asked for in the order of a walk.
func (a *archive) wants(name string) (bool, error) {
	if a.wanted == nil {
		return true, nil
	}
	for a.wanted.any && (a.wanted.next.from != a.number || order(a.wanted.next.path, name) < 0) {
		if a.wanted.next.from == a.number {
			return false, a.lacks()
		}
		if err := a.wanted.advance(); err != nil {
			return false, err
		}
	}
	if !a.wanted.any || a.wanted.next.path != name {
		return false, nil
	}
	return true, a.wanted.advance()
}

// lacks is an error if a file that is wanted did not come.
func (a *archive) lacks() error {
	for a.wanted.any {
		if a.wanted.next.from == a.number {
			return fmt.Errorf("%w: it lacks %s", ErrDamaged, a.wanted.next.path)
		}
		if err := a.wanted.advance(); err != nil {
			return err
		}
	}
	return nil
}

// safeName returns an entry's path in the volume. What would lead out of it, or is written as no archive of ours has it, is
// refused.
func safeName(name string) (string, error) {
	clean := path.Clean(name)
	if !filepath.IsLocal(clean) || strings.TrimSuffix(name, "/") != clean && name != "./" ||
		strings.ContainsRune(name, 0) || skip(path.Dir(clean), path.Base(clean)) {
		return "", fmt.Errorf("%w: the name %q leads out of the volume or is reserved", ErrForeign, name)
	}
	return clean, nil
}

// end compares the sums and reads the summary.
func (a *archive) end(to sink) (Summary, error) {
	m, err := to.sums()
	if err != nil {
		return Summary{}, err
	}
	defer m.close()
	sum, err := m.hash()
	if err != nil {
		return Summary{}, err
	}
	if _, err := m.file.Seek(0, io.SeekStart); err != nil {
		return Summary{}, err
	}
	if err := sameLines(a.tar, m.file); err != nil {
		return Summary{}, err
	}
	indexSum, err := readIndex(a.tar, a.index)
	if err != nil {
		return Summary{}, err
	}
	s, err := readSummary(a.tar)
	if err != nil {
		return s, err
	}
	switch {
	case s.Index != indexSum:
		return s, fmt.Errorf("%w: its index has the sum %s, and %s is expected", ErrDamaged, indexSum, s.Index)
	case s.Sums != sum:
		return s, fmt.Errorf("%w: the sum of its sums is %s, and %s is expected", ErrDamaged, sum, s.Sums)
	case s.Entries != a.summary.Entries || s.Bytes != a.summary.Bytes:
		return s, fmt.Errorf("%w: it has %d entries of %d bytes, and %d of %d are expected", ErrDamaged,
			a.summary.Entries, a.summary.Bytes, s.Entries, s.Bytes)
	}
	if _, err := a.tar.Next(); !errors.Is(err, io.EOF) {
		return s, fmt.Errorf("%w: something follows its summary: %v", ErrDamaged, err)
	}
	if n, err := a.plain.Read(make([]byte, 1)); n > 0 || !errors.Is(err, io.EOF) {
		return s, fmt.Errorf("%w: something follows its end: %v", ErrDamaged, err)
	}
	_, err = readTrailer(a.in.end, a.in.size)
	return s, err
}

// sameLines compares two lists of sums and names the first file that differs.
func sameLines(want, got io.Reader) error {
	w, g := bufio.NewScanner(want), bufio.NewScanner(got)
	w.Buffer(nil, maxLine)
	g.Buffer(nil, maxLine)
	for {
		more, also := w.Scan(), g.Scan()
		if err := errors.Join(w.Err(), g.Err()); err != nil {
			return err
		}
		switch {
		case !more && !also:
			return nil
		case !bytes.Equal(w.Bytes(), g.Bytes()) || more != also:
			return fmt.Errorf("%w: the content of %s has changed", ErrDamaged, nameIn(w.Bytes(), g.Bytes()))
		}
	}
}

// nameIn returns the name in the first line that has one.
func nameIn(lines ...[]byte) string {
	for _, line := range lines {
		if _, name, ok := bytes.Cut(line, []byte("  ")); ok {
			return string(name)
		}
	}
	return "a file"
}

// decompressed tells damage from an input that cannot be read: what the decompressor itself complains of is damage, or at
// the very beginning another kind of file.
type decompressed struct {
	zstd *zstd.Decoder
	any  bool
}

func (d *decompressed) Read(b []byte) (int, error) {
	n, err := d.zstd.Read(b)
	d.any = d.any || n > 0
	switch input := (*inputError)(nil); {
	case err == nil, err == io.EOF, errors.As(err, &input):
		return n, err
	case errors.Is(err, zstd.ErrMagicMismatch) && !d.any:
		return n, fmt.Errorf("%w: %w", ErrForeign, err)
	}
	return n, fmt.Errorf("%w: %w", ErrDamaged, err)
}

// inputError is an error of reading the archive's file.
type inputError struct{ err error }

func (e *inputError) Error() string { return "read the archive: " + e.err.Error() }
func (e *inputError) Unwrap() error { return e.err }

// input ends reading when its context does, and remembers the end of what was read.
type input struct {
	ctx  context.Context
	in   io.Reader
	size int64
	end  []byte
}

func (c *input) Read(b []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, &inputError{err}
	}
	n, err := c.in.Read(b)
	c.size += int64(n)
	c.end = append(c.end, b[max(0, n-trailerSize):n]...)
	c.end = append(c.end[:0], c.end[max(0, len(c.end)-trailerSize):]...)
	if err != nil && !errors.Is(err, io.EOF) {
		err = &inputError{err}
	}
	return n, err
}
