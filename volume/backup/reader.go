package backup

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"

	"golang.org/x/sys/unix"
)

// reader turns entries into chunks of tar.
type reader struct {
	*creator
	ctx   context.Context
	batch *batch
	buf   []byte
	// sum and digest are those of the file that is read.
	sum    hash.Hash
	digest [sha256.Size]byte
}

// flush hands the buffer on and takes a new one.
func (r *reader) flush() error {
	if len(r.buf) == 0 {
		return nil
	}
	k := &chunk{raw: r.buf, done: make(chan struct{})}
	to := []chan *chunk{r.compress, r.batch.chunks}
	if r.Zstd != "" {
		k.packed = k.raw
		close(k.done)
		to = to[1:]
	}
	for _, to := range to {
		select {
		case to <- k:
		case <-r.ctx.Done():
			return r.ctx.Err()
		}
	}
	r.buf = r.buffer()
	return nil
}

// entry appends one entry with its data.
func (r *reader) entry(e *entry) error {
	if e.from > 0 {
		r.batch.same++
		r.batch.sameBytes += e.stat.Size
		r.batch.from[e.from] = true
		r.batch.index = lineOf(e).append(r.batch.index)
		return nil
	}
	if !e.regular() {
		r.batch.count++
		r.buf = appendHeader(r.buf, e, 0, nil)
		return r.room()
	}
	fd, err := openBeneath(r.root, e.path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOATIME, 0)
	if errors.Is(err, unix.EPERM) { // O_NOATIME is for the owner only, where root is squashed
		fd, err = openBeneath(r.root, e.path, unix.O_RDONLY|unix.O_NONBLOCK, 0)
	}
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ELOOP) {
		r.Warn(e.path + " disappeared while it was read")
		return nil
	}
	if err != nil {
		return fmt.Errorf("open %s: %w", e.path, err)
	}
	defer unix.Close(fd)
	if err := r.file(e, fd); err != nil {
		return fmt.Errorf("read %s: %w", e.path, err)
	}
	return r.room()
}

// room hands a full buffer on.
func (r *reader) room() error {
	if len(r.buf) < chunkSize {
		return nil
	}
	return r.flush()
}
