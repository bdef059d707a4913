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
	"sync"

	"golang.org/x/sys/unix"
)

// pipeSize is that of the pipe to a compressor, in bytes: what an unprivileged process may have (man 7 pipe).
const pipeSize = 1 << 20

// packer returns where the tar is written, chunk by chunk, and how to end that. Without a program chunks are compressed
// already; with one, it compresses all as one frame.
func (c *creator) packer(ctx context.Context, out *counter) (to io.Writer, end func() error, err error) {
	if c.Zstd == "" {
		return out, func() error { return nil }, nil
	}
	in, pipe, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	defer in.Close()
	conn, err := pipe.SyscallConn()
	if err == nil {
		err = conn.Control(func(fd uintptr) { _, _ = unix.FcntlInt(fd, unix.F_SETPIPE_SZ, pipeSize) }) // it is faster, no more
	}
	if err != nil {
		return nil, nil, errors.Join(err, pipe.Close())
	}
	var said bytes.Buffer
	cmd := exec.CommandContext(ctx, c.Zstd, "-1", "-T"+strconv.Itoa(runtime.GOMAXPROCS(0)), "--check", "--quiet", "--stdout")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, out, &said
	if err := cmd.Start(); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("start %s: %w", c.Zstd, err), pipe.Close())
	}
	return pipe, sync.OnceValue(func() error {
		closeErr := pipe.Close()
		err := cmd.Wait()
		if out.err != nil { // why the program could not go on
			return fmt.Errorf("write the archive: %w", out.err)
		}
		if err != nil {
			return fmt.Errorf("%s: %w: %s", c.Zstd, err, bytes.TrimSpace(said.Bytes()))
		}
		return closeErr
	}), nil
}

// ReadFrom lets the kernel move what a compressor writes, where the archive is a file.
func (c *counter) ReadFrom(r io.Reader) (int64, error) {
	n, err := io.Copy(c.Writer, r)
	c.note(n, err)
	return n, err
}
