package backup

import (
	"archive/tar"
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

// indexName is the member that lists every regular file of the volume, in the order of a walk, one a line: size, mtime,
// ctime, inode, the number of the archive that has its content (0 for this one), and its name. The next backup into the same
// directory compares with it, and a restore finds by it what is in which archive.
const indexName = Meta + "/INDEX"

// Reference names an archive that another one builds on.
type Reference struct {
	// File is its name, in the same directory.
	File string `json:"file"`
	// Sums is that of its summary: it has to be the very archive.
	Sums string `json:"sums"`
}

// line is one of the index.
type line struct {
	size         int64
	mtime, ctime unix.Timespec
	inode        uint64
	from         int
	path         string
}

// unknown is the size of a file that changed while it was read: no later one is the same.
const unknown = -1

func lineOf(e *entry) line {
	return line{e.stat.Size, e.stat.Mtim, e.stat.Ctim, e.stat.Ino, e.from, e.path}
}

func (l line) append(buf []byte) []byte {
	for _, n := range []int64{l.size, l.mtime.Nano(), l.ctime.Nano(), int64(l.inode), int64(l.from)} {
		buf = append(strconv.AppendInt(buf, n, 10), ' ')
	}
	return append(append(buf, escapeName(l.path)...), '\n')
}

func parseLine(text string) (line, error) {
	fields := strings.SplitN(text, " ", 6)
	if len(fields) != 6 {
		return line{}, fmt.Errorf("%w: its index has the line %.80q", ErrDamaged, text)
	}
	var n [5]int64
	for i := range n {
		var err error
		if n[i], err = strconv.ParseInt(fields[i], 10, 64); err != nil || i == 4 && n[i] < 0 {
			return line{}, fmt.Errorf("%w: its index has the line %.80q", ErrDamaged, text)
		}
	}
	l := line{n[0], unix.NsecToTimespec(n[1]), unix.NsecToTimespec(n[2]), uint64(n[3]), int(n[4]), unescapeName(fields[5])}
	if _, err := safeName(l.path); err != nil {
		return line{}, err
	}
	return l, nil
}

// unchanged says whether a file is as it was in the index: ctime changes with anything that is done to it, also with a name
// or a mode, and cannot be set.
func (l line) unchanged(st *unix.Stat_t) bool {
	return l.size == st.Size && l.inode == st.Ino && l.mtime == st.Mtim && l.ctime == st.Ctim
}

// order compares two paths as a walk meets them: by name within a directory, what is in one right after it.
func order(a, b string) int {
	for i := range min(len(a), len(b)) {
		x, y := a[i], b[i]
		switch {
		case x == y:
		case x == '/': // no name has a byte below it
			return -1
		case y == '/':
			return 1
		case x < y:
			return -1
		default:
			return 1
		}
	}
	return len(a) - len(b)
}

// index reads the lines of one.
type index struct {
	in   *bufio.Scanner
	next line
	any  bool // next is there
}

// newIndex reads a file from its beginning.
func newIndex(f *os.File) (*index, error) {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	i := &index{in: bufio.NewScanner(f)}
	i.in.Buffer(nil, maxLine)
	return i, i.advance()
}

func (i *index) advance() (err error) {
	if i.any = i.in.Scan(); !i.any {
		return i.in.Err()
	}
	i.next, err = parseLine(i.in.Text())
	return err
}

// find returns the line of a path; paths have to be asked for in order.
func (i *index) find(path string) (l line, found bool, err error) {
	for i.any && order(i.next.path, path) < 0 {
		if err := i.advance(); err != nil {
			return line{}, false, err
		}
	}
	return i.next, i.any && i.next.path == path, nil
}

// The last frame of an archive is one that decompressors skip (RFC 8878 §3.1.2). It says where the last members begin, so
// that they are found without reading the whole.
const (
	skippable   = 0x184D2A5E
	trailerMark = "netdrive"
	trailerSize = 8 + len(trailerMark) + 8 + 4
)

func appendTrailer(buf []byte, at int64) []byte {
	buf = binary.LittleEndian.AppendUint32(buf, skippable)
	buf = binary.LittleEndian.AppendUint32(buf, uint32(trailerSize-8))
	buf = binary.LittleEndian.AppendUint64(append(buf, trailerMark...), uint64(at))
	return binary.LittleEndian.AppendUint32(buf, crc32.ChecksumIEEE(buf[len(buf)-trailerSize+4:]))
}

// readTrailer returns where the last members begin in an archive of a size, whose end it is given.
func readTrailer(end []byte, size int64) (int64, error) {
	at := int64(0)
	if len(end) == trailerSize {
		at = int64(binary.LittleEndian.Uint64(end[8+len(trailerMark):]))
	}
	if at < 0 || at >= size || !bytes.Equal(appendTrailer(nil, at), end) {
		return 0, fmt.Errorf("%w: it does not end as a backup does", ErrDamaged)
	}
	return at, nil
}

// Base is an archive in a directory that the next one can build on.
type Base struct {
	Reference
	Summary Summary
	index   *os.File
}

// OpenBase reads the end of an archive.
func OpenBase(path string) (*Base, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := &Base{Reference: Reference{File: filepath.Base(path)}}
	if err := b.read(f); err != nil {
		return nil, fmt.Errorf("%s: %w", path, errors.Join(err, b.Close()))
	}
	b.Sums = b.Summary.Sums
	return b, nil
}

// Close forgets the index.
func (b *Base) Close() error {
	if b.index == nil {
		return nil
	}
	return b.index.Close()
}

func (b *Base) read(f *os.File) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	end := make([]byte, min(int64(trailerSize), st.Size()))
	if _, err := f.ReadAt(end, st.Size()-int64(len(end))); err != nil {
		return err
	}
	at, err := readTrailer(end, st.Size())
	if err != nil {
		return err
	}
	z, err := zstd.NewReader(io.NewSectionReader(f, at, st.Size()-at), zstd.WithDecoderMaxWindow(maxWindow),
		zstd.WithDecoderConcurrency(1))
	if err != nil {
		return err
	}
	defer z.Close()
	return b.members(tar.NewReader(z))
}

// members reads the last ones: sums, index, summary.
func (b *Base) members(in *tar.Reader) error {
	if h, err := in.Next(); err != nil || h.Name != sumsName {
		return fmt.Errorf("%w: no sums at its end: %v", ErrDamaged, err)
	}
	list, err := newManifest()
	if err != nil {
		return err
	}
	b.index = list.file
	sum, err := readIndex(in, list)
	if err != nil {
		return err
	}
	if b.Summary, err = readSummary(in); err != nil {
		return err
	}
	if b.Summary.Index != sum {
		return fmt.Errorf("%w: its index has the sum %s, and %s is expected", ErrDamaged, sum, b.Summary.Index)
	}
	return nil
}

// readIndex copies the index to a file and returns its sum.
func readIndex(in *tar.Reader, list *manifest) (string, error) {
	h, err := in.Next()
	if err != nil || h.Name != indexName {
		return "", fmt.Errorf("%w: it has no index: %v", ErrDamaged, err)
	}
	if _, err := io.Copy(list, in); err != nil {
		return "", fmt.Errorf("%w: its index: %w", ErrDamaged, err)
	}
	return list.hash()
}

func readSummary(in *tar.Reader) (Summary, error) {
	var s Summary
	h, err := in.Next()
	if err != nil || h.Name != summaryName {
		return s, fmt.Errorf("%w: it has no summary: %v", ErrDamaged, err)
	}
	text, err := io.ReadAll(io.LimitReader(in, maxSummary))
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(text, &s); err != nil {
		return s, fmt.Errorf("%w: its summary: %w", ErrDamaged, err)
	}
	if s.Format > format {
		return s, fmt.Errorf("%w: it is of format %d and this program knows %d: upgrade netdriver", ErrForeign, s.Format, format)
	}
	return s, nil
}

// settled is how old a change has to be, by the file's own clock, to be believed: within one tick of that clock a file can
// change twice and have the same times.
const settled = 2 * time.Second

// comparison finds what has not changed since a base.
type comparison struct {
	base  *Base
	lines *index
}

func compareWith(b *Base) (*comparison, error) {
	if b == nil {
		return nil, nil
	}
	lines, err := newIndex(b.index)
	return &comparison{b, lines}, err
}

// note gives an entry the number of the archive that has its content already.
func (c *comparison) note(e *entry) error {
	if c == nil || !e.regular() {
		return nil
	}
	l, found, err := c.lines.find(e.path)
	if err != nil {
		return fmt.Errorf("%s: %w", c.base.File, err)
	}
	young := time.Unix(e.stat.Ctim.Unix()).After(c.base.Summary.Created.Add(-settled))
	if found && l.unchanged(&e.stat) && !young {
		e.from = l.from + 1
	}
	return nil
}

// references are the archives that the next one builds on, by their numbers in its index.
func (b *Base) references(used map[int]bool) map[int]Reference {
	out := map[int]Reference{}
	for n := range used {
		if n == 1 {
			out[n] = b.Reference
		} else {
			out[n] = b.Summary.Bases[n-1]
		}
	}
	return out
}
