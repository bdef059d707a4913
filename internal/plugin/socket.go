package plugin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// maxPath is the longest path of a unix socket in bytes: sun_path has 108 with the final zero (man 7 unix).
const maxPath = 107

// headerTimeout bounds how long a connection may take to send a request's header.
const headerTimeout = 10 * time.Second

// Serve answers calls on a unix socket that only root can use, until ctx ends; calls that run then are still answered.
// It makes the socket's directory, replaces a socket that nobody serves, and removes its own at the end. The error is
// nil after an end by ctx. A socket that another process serves is left alone, and the error names that process.
func (s *Server) Serve(ctx context.Context, path string) error {
	l, err := listen(path)
	if err != nil {
		return fmt.Errorf("serve plugin socket %s: %w", path, err)
	}
	defer l.remove()
	srv := &http.Server{
		Handler:           s,
		ReadHeaderTimeout: headerTimeout,
		// No idle timeout: moby keeps its connection, and would see a call fail that meets a closing one.
		ErrorLog: slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelDebug),
	}
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(l) }()
	select {
	case err := <-failed:
		return fmt.Errorf("serve plugin socket %s: %w", path, err)
	case <-ctx.Done():
	}
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.Deadline+2*grace)
	defer cancel()
	err = srv.Shutdown(end)
	<-failed
	if err != nil {
		return fmt.Errorf("end plugin socket %s: %w", path, errors.Join(err, srv.Close()))
	}
	return nil
}

// socket is a listener with the file that it made.
type socket struct {
	net.Listener
	path string
	made fs.FileInfo
}

// listen makes the socket in a directory that only root can enter and moves it to its place: so it never has another
// mode there than 0600, and a stale one is replaced in one step.
func listen(path string) (*socket, error) {
	if len(path) > maxPath {
		return nil, fmt.Errorf("the path has %d bytes, a unix socket's has at most %d", len(path), maxPath)
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	if err := checkStale(path); err != nil {
		return nil, err
	}
	private, err := os.MkdirTemp(dir, ".s")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(private)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(private, "s"), Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // the file will have another name
	made, err := place(filepath.Join(private, "s"), path)
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return &socket{l, path, made}, nil
}

func place(from, to string) (fs.FileInfo, error) {
	if err := os.Chmod(from, 0o600); err != nil {
		return nil, err
	}
	if err := os.Rename(from, to); err != nil {
		return nil, err
	}
	return os.Lstat(to)
}

// remove removes the socket's file, unless another process has put its own there.
func (s *socket) remove() {
	if now, err := os.Lstat(s.path); err == nil && os.SameFile(now, s.made) {
		os.Remove(s.path)
	}
}

// checkStale says whether path may be replaced: there is nothing, or a socket that nobody serves.
func checkStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return errors.New("there is a file that is no socket; remove it or choose another path")
	}
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if errors.Is(err, unix.ECONNREFUSED) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find out whether another process serves it: %w", err)
	}
	defer conn.Close()
	return fmt.Errorf("process %s serves it already; stop that one or choose another path", owner(conn))
}

// owner names the process that listens at the other end.
func owner(conn *net.UnixConn) string {
	raw, err := conn.SyscallConn()
	if err != nil {
		return "unknown"
	}
	pid := 0
	if err := raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = int(cred.Pid)
		}
	}); err != nil || pid == 0 {
		return "unknown"
	}
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return fmt.Sprint(pid)
	}
	return fmt.Sprintf("%d (%s)", pid, bytes.TrimSpace(name))
}
