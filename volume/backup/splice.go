package backup

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// pipeSize is that of the pipe to a compressor, in bytes: what an unprivileged process may have (man 7 pipe).
const pipeSize = 1 << 20

// splicer hands chunks to the program that reads a pipe without copying them: the pipe has their pages (man 2 vmsplice), so
// each chunk is lent until the program has read it.
type splicer struct {
	conn syscall.RawConn
	// slots is how many pages the pipe has room for.
	slots int
	lent  []lent
	// back takes chunks that nobody reads any more.
	back func([]byte)
}

// lent is a chunk whose pages may be in the pipe, and how many at least were put there after it.
type lent struct {
	chunk []byte
	after int
}

func newSplicer(pipe *os.File, back func([]byte)) (*splicer, error) {
	conn, err := pipe.SyscallConn()
	if err != nil {
		return nil, err
	}
	s := &splicer{conn: conn, back: back}
	controlErr := conn.Control(func(fd uintptr) {
		_, _ = unix.FcntlInt(fd, unix.F_SETPIPE_SZ, pipeSize) // it is faster, no more
		var size int
		size, err = unix.FcntlInt(fd, unix.F_GETPIPE_SZ, 0)
		s.slots = size / os.Getpagesize()
	})
	return s, errors.Join(err, controlErr)
}

// put puts a chunk into the pipe, and takes it.
func (s *splicer) put(chunk []byte) (err error) {
	for rest := chunk; len(rest) > 0 && err == nil; {
		waitErr := s.conn.Write(func(fd uintptr) bool {
			v := unix.Iovec{Base: &rest[0]}
			v.SetLen(len(rest))
			var n int
			n, err = unix.Vmsplice(int(fd), []unix.Iovec{v}, unix.SPLICE_F_NONBLOCK)
			if errors.Is(err, unix.EAGAIN) {
				return false // it is full: wait
			}
			if errors.Is(err, unix.EINTR) {
				n, err = 0, nil
			}
			rest = rest[max(n, 0):]
			return true
		})
		err = errors.Join(err, waitErr)
	}
	if err != nil {
		return fmt.Errorf("hand data to the compressor: %w", err)
	}
	// A page takes a slot, a part of one does, too.
	for i := range s.lent {
		s.lent[i].after += len(chunk) / os.Getpagesize()
	}
	s.lent = append(s.lent, lent{chunk: chunk})
	for s.lent[0].after >= s.slots { // of the pipe, whatever it has came later
		s.back(s.lent[0].chunk)
		s.lent = s.lent[1:]
	}
	return nil
}
