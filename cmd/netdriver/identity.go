package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/renameio/v2"
	"github.com/google/uuid"
	"golang.org/x/sys/unix"
)

// lockRunDir takes a run directory for this process: two daemons on one would fight over its devices and sockets. The
// kernel gives the lock back when the file is closed or the process dies.
func lockRunDir(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("run directory: %w", err)
	}
	path := filepath.Join(dir, "lock")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("run directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		pid, _ := os.ReadFile(path) // only for the message
		return nil, fmt.Errorf(
			"netdriver runs already in %s as process %s: stop that one, or give this one other directories with "+
				"--run-dir, --data-dir and --socket-dir",
			dir,
			strings.TrimSpace(string(pid)),
		)
	}
	if err := errors.Join(f.Truncate(0), write(f, fmt.Sprintln(os.Getpid()))); err != nil {
		return nil, errors.Join(fmt.Errorf("write %s: %w", path, err), f.Close())
	}
	return f, nil
}

func write(f *os.File, s string) error {
	_, err := f.WriteAt([]byte(s), 0)
	return err
}

// nodeID returns the node's identity, made at the first start and kept in the data directory. It tells two hosts with
// one name apart.
func nodeID(dir string) (string, error) {
	path := filepath.Join(dir, "node-id")
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return newNodeID(dir, path)
	}
	if err != nil {
		return "", fmt.Errorf("node identity: %w", err)
	}
	id, err := uuid.Parse(strings.TrimSpace(string(text)))
	if err != nil {
		return "", fmt.Errorf("node identity in %s: %w; remove the file to get a new one", path, err)
	}
	return id.String(), nil
}

// newNodeID writes the file whole or not at all, also when the power fails.
func newNodeID(dir, path string) (string, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("data directory: %w", err)
	}
	id := uuid.NewString()
	if err := renameio.WriteFile(path, []byte(id+"\n"), 0o600, renameio.WithTempDir(dir)); err != nil {
		return "", fmt.Errorf("node identity: %w", err)
	}
	return id, nil
}
