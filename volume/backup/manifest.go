package backup

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// format is the version of the archives that this program writes; a later one is refused.
const format = 1

// The names of the last members.
const (
	sumsName    = Meta + "/SHA256SUMS"
	summaryName = Meta + "/backup.json"
)

// Summary is what an archive says of itself, in its last member.
type Summary struct {
	Format  int       `json:"format"`
	Volume  string    `json:"volume"`
	Created time.Time `json:"created"`
	// Entries are files, directories, links and so on; Bytes those of the files' contents.
	Entries int64 `json:"entries"`
	Bytes   int64 `json:"bytes"`
	// Unchanged are files whose content is in Bases, by their number in the index; UnchangedBytes those of their contents.
	Unchanged      int64             `json:"unchanged,omitempty"`
	UnchangedBytes int64             `json:"unchangedBytes,omitempty"`
	Bases          map[int]Reference `json:"bases,omitempty"`
	// Sums and Index are the SHA-256 of the list of sums and of the index.
	Sums  string `json:"sums"`
	Index string `json:"index"`
}

// appendSum appends a line as sha256sum writes it: a name with a backslash or newline is escaped, and the line then begins
// with a backslash (GNU coreutils manual, "cksum output modes").
func appendSum(lines, sum []byte, path string) []byte {
	if escaped := escapeName(path); escaped != path {
		lines, path = append(lines, '\\'), escaped
	}
	lines = hex.AppendEncode(lines, sum)
	return append(append(append(lines, "  "...), path...), '\n')
}

func escapeName(path string) string {
	if !strings.ContainsAny(path, "\\\n\r") { // hardly any has them, and to make a Replacer takes long
		return path
	}
	return strings.NewReplacer("\\", `\\`, "\n", `\n`, "\r", `\r`).Replace(path)
}

func unescapeName(text string) string {
	return strings.NewReplacer(`\\`, "\\", `\n`, "\n", `\r`, "\r").Replace(text)
}

// manifest gathers the sums of an archive in a file, so that its size costs no memory.
type manifest struct {
	file *os.File
	w    *bufio.Writer
	sum  hash.Hash
	size int64
}

func newManifest() (*manifest, error) {
	f, err := os.CreateTemp("", "netdriver-sums")
	if err == nil {
		err = os.Remove(f.Name()) // it lives as long as it is open
	}
	if err != nil {
		return nil, fmt.Errorf("keep the list of sums: %w", err)
	}
	m := &manifest{file: f, sum: sha256.New()}
	m.w = bufio.NewWriter(io.MultiWriter(f, m.sum))
	return m, nil
}

func (m *manifest) Write(b []byte) (int, error) {
	m.size += int64(len(b))
	return m.w.Write(b)
}

// hash returns the sum of all lines.
func (m *manifest) hash() (string, error) {
	if err := m.w.Flush(); err != nil {
		return "", fmt.Errorf("keep the list of sums: %w", err)
	}
	return hex.EncodeToString(m.sum.Sum(nil)), nil
}

func (m *manifest) close() { m.file.Close() }

// lists are what a backup tells of its files.
type lists struct{ sums, index *manifest }

func newLists() (l lists, err error) {
	if l.sums, err = newManifest(); err != nil {
		return l, err
	}
	if l.index, err = newManifest(); err != nil {
		l.sums.close()
	}
	return l, err
}

func (l lists) close() {
	l.sums.close()
	l.index.close()
}

// writeTo writes the last members and the end of the tar: two blocks of zeros.
func (l lists) writeTo(out io.Writer, s *Summary) (err error) {
	if s.Sums, err = l.sums.hash(); err != nil {
		return err
	}
	if s.Index, err = l.index.hash(); err != nil {
		return err
	}
	summary, err := json.Marshal(s)
	if err != nil {
		return err
	}
	for _, m := range []struct {
		name string
		*manifest
	}{{sumsName, l.sums}, {indexName, l.index}} {
		if _, err := m.file.Seek(0, io.SeekStart); err != nil {
			return err
		}
		if err := writeMember(out, m.name, s.Created, m.size, m.file); err != nil {
			return err
		}
	}
	if err := writeMember(out, summaryName, s.Created, int64(len(summary)), bytes.NewReader(summary)); err != nil {
		return err
	}
	_, err = out.Write(make([]byte, 2*block))
	return err
}

// writeMember writes one of the last members.
func writeMember(out io.Writer, name string, created time.Time, size int64, from io.Reader) error {
	e := &entry{path: name}
	e.stat.Mode, e.stat.Mtim = unix.S_IFREG|0o600, unix.NsecToTimespec(created.Truncate(time.Second).UnixNano())
	if _, err := out.Write(appendHeader(nil, e, size, nil)); err != nil {
		return err
	}
	n, err := io.Copy(out, from)
	if err == nil && n != size {
		err = fmt.Errorf("%s has %d bytes, expected %d", name, n, size)
	}
	_, padErr := out.Write(pad(nil, size))
	return errors.Join(err, padErr)
}
