package backup

import (
	"errors"
	"fmt"
	"hash"
	"io"

	"golang.org/x/sys/unix"
)

// file appends a regular file: its header, which needs its size at the moment of opening, and its data.
func (r *reader) file(e *entry, fd int) (err error) {
	if err := unix.Fstat(fd, &e.stat); err != nil {
		return err
	}
	if e.stat.Mode&unix.S_IFMT != unix.S_IFREG {
		r.Warn(e.path + " became something else while it was read")
		return nil
	}
	if e.xattrs, err = readXattrs(fd); err != nil {
		return err
	}
	segments, err := findSegments(fd, &e.stat)
	if err != nil {
		return err
	}
	sum := r.sum
	sum.Reset()
	if segments == nil {
		r.buf = appendHeader(r.buf, e, e.stat.Size, nil)
		err = r.data(e, fd, segment{0, e.stat.Size}, sum)
		r.buf = pad(r.buf, e.stat.Size)
	} else {
		err = r.sparse(e, fd, segments, sum)
	}
	r.batch.sums = appendSum(r.batch.sums, sum.Sum(r.digest[:0]), e.path)
	r.batch.bytes += e.stat.Size
	r.batch.count++
	if err != nil {
		return err
	}
	l := lineOf(e)
	var now unix.Stat_t
	if err := unix.Fstat(fd, &now); err != nil {
		return err
	}
	if !l.unchanged(&now) {
		l.size = unknown
	}
	r.batch.index = l.append(r.batch.index)
	return nil
}

// sparse appends a file with holes: a map, then its segments. The checksum is that of the whole content, as sha256sum
// would read it.
func (r *reader) sparse(e *entry, fd int, segments []segment, sum hash.Hash) error {
	table := sparseMap(segments, e.stat.Size)
	size := int64(len(table))
	for _, s := range segments {
		size += s.size
	}
	r.buf = append(appendHeader(r.buf, e, size, segments), table...)
	at := int64(0)
	for _, s := range segments {
		hashZeros(sum, s.at-at)
		if err := r.data(e, fd, s, sum); err != nil {
			return err
		}
		at = s.at + s.size
	}
	hashZeros(sum, e.stat.Size-at)
	r.buf = pad(r.buf, size)
	return nil
}

// data appends a piece of a file. The header has promised its size: what a file that is cut meanwhile lacks is filled with
// zeros, as tar does.
func (r *reader) data(e *entry, fd int, s segment, sum hash.Hash) error {
	for at, end := s.at, s.at+s.size; at < end; {
		if len(r.buf) >= chunkSize {
			if err := r.flush(); err != nil {
				return err
			}
		}
		have := len(r.buf)
		want := int(min(end-at, int64(chunkSize-have)))
		if cap(r.buf)-have < want {
			r.buf = append(r.buf, make([]byte, want)...)[:have]
		}
		piece := r.buf[have : have+want]
		n, err := unix.Pread(fd, piece, at)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("at byte %d: %w", at, err)
		}
		if n == 0 {
			r.Warn(e.path + " became shorter while it was read; its end is filled with zeros")
			clear(piece)
			n = want
		}
		_, _ = sum.Write(piece[:n]) // a hash takes everything
		r.buf = r.buf[:have+n]
		at += int64(n)
	}
	return nil
}

// hashZeros hashes what a hole reads as.
func hashZeros(sum hash.Hash, n int64) {
	_, _ = io.CopyN(sum, zeros{}, n)
}

// zeros reads as zeros without end.
type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}
