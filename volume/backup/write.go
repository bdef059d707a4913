package backup

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// job is one regular file on its way to a writer.
type job struct {
	header *tar.Header
	name   string
	// wanted: it is written, and not only summed up.
	wanted bool
	// pieces are its content in order.
	pieces chan []byte
	// sum is the content's; valid once done is closed, as is cut.
	sum []byte
	// cut: the archive ended before the file did. Its reader says why.
	cut  bool
	done chan struct{}
}

// file hands a file to a writer, piece by piece.
func (r *restorer) file(h *tar.Header, name string, data io.Reader, wanted bool) error {
	j := &job{header: h, name: name, wanted: wanted, pieces: make(chan []byte, piecesAhead), done: make(chan struct{})}
	defer close(j.pieces)
	for _, to := range []chan *job{r.order, r.jobs} {
		select {
		case to <- j:
		case <-r.ctx.Done():
			return r.ctx.Err()
		}
	}
	for rest := h.Size; rest > 0; {
		buf := *r.free.Get().(*[]byte)
		n, err := io.ReadFull(data, buf[:min(rest, pieceSize)])
		if err != nil {
			return err
		}
		rest -= int64(n)
		select {
		case j.pieces <- buf[:n]:
		case <-r.ctx.Done():
			return r.ctx.Err()
		}
	}
	return nil
}

// write is one writer.
func (r *restorer) write() error {
	for {
		select {
		case j, ok := <-r.jobs:
			if !ok {
				return nil
			}
			err := r.one(j)
			if j.cut = errors.Is(err, errCut); err != nil && !j.cut {
				return fmt.Errorf("%s: %w", j.name, err)
			}
			close(j.done)
			if j.wanted {
				r.note(j.header.Size)
			}
		case <-r.ctx.Done():
			return r.ctx.Err()
		}
	}
}

// errCut is how a writer learns that the archive's reader has failed.
var errCut = errors.New("the archive ended")

// one writes a file and gives it its metadata.
func (r *restorer) one(j *job) error {
	if !j.wanted {
		return r.content(j, -1)
	}
	fd, err := openBeneath(r.root, j.name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = r.content(j, fd)
	if err == nil {
		err = r.describe(fd, j.header)
	}
	if closeErr := unix.Close(fd); err == nil {
		err = closeErr // NFS tells of a full disk here
	}
	return err
}

// hole is the unit in which zeros are left out of a sparse file, in bytes: a page, which file systems have blocks of.
const hole = 4096

// content writes a file's pieces. Of a sparse file, blocks of zeros are left out.
func (r *restorer) content(j *job, fd int) error {
	sum := sha256.New()
	sparse := j.header.PAXRecords["GNU.sparse.major"] != ""
	at := int64(0)
	for {
		var piece []byte
		var ok bool
		select {
		case piece, ok = <-j.pieces:
		case <-r.ctx.Done():
			return r.ctx.Err()
		}
		if !ok {
			break
		}
		_, _ = sum.Write(piece)
		var err error
		if !j.wanted {
			// it is in a later archive, or gone
		} else if sparse {
			err = writeSparse(fd, piece, at)
		} else {
			err = writeAt(fd, piece, at)
		}
		if err != nil {
			return err
		}
		at += int64(len(piece))
		whole := piece[:cap(piece)]
		r.free.Put(&whole)
	}
	if at != j.header.Size {
		return errCut
	}
	j.sum = sum.Sum(nil)
	if sparse && j.wanted {
		return unix.Ftruncate(fd, at)
	}
	return nil
}

func writeAt(fd int, b []byte, at int64) error {
	for len(b) > 0 {
		n, err := unix.Pwrite(fd, b, at)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		b, at = b[n:], at+int64(n)
	}
	return nil
}

// writeSparse writes the runs of blocks that are not all zeros.
func writeSparse(fd int, b []byte, at int64) error {
	var empty [hole]byte
	for len(b) > 0 {
		n := 0
		for n < len(b) && bytes.Equal(b[n:min(n+hole, len(b))], empty[:min(hole, len(b)-n)]) {
			n += min(hole, len(b)-n)
		}
		b, at = b[n:], at+int64(n)
		n = 0
		for n < len(b) && !bytes.Equal(b[n:min(n+hole, len(b))], empty[:min(hole, len(b)-n)]) {
			n += min(hole, len(b)-n)
		}
		if err := writeAt(fd, b[:n], at); err != nil {
			return err
		}
		b, at = b[n:], at+int64(n)
	}
	return nil
}

// collect gathers the sums in the archive's order.
func (r *restorer) collect() error {
	for {
		select {
		case j, ok := <-r.order:
			if !ok {
				return nil
			}
			select {
			case <-j.done:
			case <-r.ctx.Done():
				return r.ctx.Err()
			}
			if j.cut {
				return nil
			}
			if _, err := r.manifest.Write(appendSum(nil, j.sum, j.name)); err != nil {
				return err
			}
		case <-r.ctx.Done():
			return r.ctx.Err()
		}
	}
}
