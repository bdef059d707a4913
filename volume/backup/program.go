package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"
)

// packer returns what takes the tar, chunk by chunk, and how to end that. Without a program chunks are compressed already;
// with one, it compresses all as one frame.
func (c *creator) packer(ctx context.Context, out *counter) (to func(chunk []byte) error, end func() error, err error) {
	if c.Zstd == "" {
		write := func(chunk []byte) error {
			_, err := out.Write(chunk)
			c.reuse(chunk)
			return err
		}
		return write, func() error { return nil }, nil
	}
	in, pipe, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	defer in.Close()
	s, err := newSplicer(pipe, c.reuse)
	if err != nil {
		return nil, nil, errors.Join(err, pipe.Close())
	}
	var said bytes.Buffer
	file, at := regular(out.Writer)
	cmd := exec.CommandContext(ctx, c.Zstd, "-1", "-T"+strconv.Itoa(runtime.GOMAXPROCS(0)), "--check", "--quiet", "--stdout")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, out, &said
	if file != nil { // a copy of everything would cost as much as all reading of files
		cmd.Stdout = file
	}
	if err := cmd.Start(); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("start %s: %w", c.Zstd, err), pipe.Close())
	}
	return s.put, sync.OnceValue(func() error {
		closeErr := pipe.Close()
		err := cmd.Wait()
		if file != nil {
			now, seekErr := file.Seek(0, io.SeekCurrent)
			out.note(now-at, seekErr)
			if strings.Contains(said.String(), noSpace) {
				out.err = unix.ENOSPC
			}
		}
		if out.err != nil { // why the program could not go on
			return fmt.Errorf("write the archive: %w", out.err)
		}
		if err != nil {
			return fmt.Errorf("%s: %w: %s", c.Zstd, err, bytes.TrimSpace(said.Bytes()))
		}
		return closeErr
	}), nil
}

// noSpace is what a program says of ENOSPC.
const noSpace = "No space left on device"

// regular returns the file behind a writer and the position in it, if it is one that a program can write itself and of which
// can be seen afterwards how much was written.
func regular(w io.Writer) (*os.File, int64) {
	var f *os.File
	switch w := w.(type) {
	case *os.File:
		f = w
	case *renameio.PendingFile:
		f = w.File
	default:
		return nil, 0
	}
	st, err := f.Stat()
	flags, flagsErr := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
	at, seekErr := f.Seek(0, io.SeekCurrent)
	if errors.Join(err, flagsErr, seekErr) != nil || !st.Mode().IsRegular() || flags&unix.O_APPEND != 0 {
		return nil, 0
	}
	return f, at
}
