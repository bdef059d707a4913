package backup

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"path/filepath"
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

// sink takes what is in an archive, in order.
type sink interface {
	// file takes a regular file, whose data has to be read before the call returns.
	file(h *tar.Header, name string, data io.Reader) error
	// other takes everything else; of a hard link h.Linkname is the first name.
	other(h *tar.Header, name string) error
	// sums returns the sums of all files taken, once everything is where it belongs.
	sums() (*manifest, error)
}

// archive is an archive being read.
type archive struct {
	plain   io.Reader
	tar     *tar.Reader
	summary Summary // as counted
}

// read hands everything in an archive to a sink, and returns without error only if the archive is whole and every file has
// the sum that it had when it was written.
func read(ctx context.Context, in io.Reader, to sink) (Summary, error) {
	z, err := zstd.NewReader(&cancelled{ctx, in}, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderConcurrency(2))
	if err != nil {
		return Summary{}, err
	}
	defer z.Close()
	plain := &decompressed{zstd: z}
	a := &archive{plain: plain, tar: tar.NewReader(plain)}
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
		return to.file(h, name, a.tar)
	case tar.TypeLink:
		if h.Linkname, err = safeName(h.Linkname); err != nil {
			return err
		}
		return to.other(h, name)
	case tar.TypeSymlink, tar.TypeChar, tar.TypeBlock, tar.TypeDir, tar.TypeFifo:
		return to.other(h, name)
	}
	return fmt.Errorf("%w: an entry of type %q", ErrForeign, h.Typeflag)
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
	h, err := a.tar.Next()
	if err != nil || h.Name != summaryName {
		return Summary{}, fmt.Errorf("%w: it has no summary: %v", ErrDamaged, err)
	}
	text, err := io.ReadAll(io.LimitReader(a.tar, maxSummary))
	if err != nil {
		return Summary{}, err
	}
	var s Summary
	if err := json.Unmarshal(text, &s); err != nil {
		return Summary{}, fmt.Errorf("%w: its summary: %w", ErrDamaged, err)
	}
	switch {
	case s.Format > format:
		return s, fmt.Errorf("%w: it is of format %d and this program knows %d: upgrade netdriver", ErrForeign, s.Format, format)
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
	return s, nil
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

// cancelled ends reading when its context does.
type cancelled struct {
	ctx context.Context
	in  io.Reader
}

func (c *cancelled) Read(b []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, &inputError{err}
	}
	n, err := c.in.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		err = &inputError{err}
	}
	return n, err
}
