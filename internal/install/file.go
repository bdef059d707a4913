package install

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"
	"github.com/moby/sys/mountinfo"
)

// planFiles returns the steps to the program and its settings.
func (i *Installer) planFiles() (steps []Step, err error) {
	if i.program != i.cfg.Self {
		same, err := sameContent(i.cfg.Self, i.path(i.program))
		if err != nil {
			return nil, err
		}
		if !same {
			steps = append(steps, Step{"install -m 755 " + i.cfg.Self + " " + i.program, func(context.Context) error {
				self, err := os.Open(i.cfg.Self)
				if err != nil {
					return err
				}
				defer self.Close()
				return replace(i.path(i.program), self, 0o755)
			}})
		}
	}
	if !bytes.Equal(i.old, i.text) {
		command := "edit " + i.cfg.File + ":"
		for _, g := range i.cfg.Given {
			command += " " + g.Name + "=" + g.Value
		}
		steps = append(steps, Step{command, func(context.Context) error {
			return replace(i.path(i.cfg.File), bytes.NewReader(i.text), 0o644)
		}})
	}
	return steps, nil
}

// sameContent says whether two files hold the same; a missing second one does not.
func sameContent(a, b string) (bool, error) {
	want, err := os.ReadFile(a)
	if err != nil {
		return false, fmt.Errorf("read this program: %w", err)
	}
	have, err := os.ReadFile(b)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	return err == nil && bytes.Equal(want, have), nil
}

// replace writes a file whole or not at all, also when the power fails. A program that runs keeps its old file.
func replace(path string, content io.Reader, mode fs.FileMode) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	f, err := renameio.NewPendingFile(path, renameio.WithTempDir(dir), renameio.WithStaticPermissions(mode))
	if err != nil {
		return err
	}
	defer f.Cleanup() //nolint:errcheck // nothing is left once it has its name
	if _, err := io.Copy(f, content); err != nil {
		return err
	}
	return f.CloseAtomicallyReplace()
}

// Mounted lists what is mounted on dir or below it, in this process's mount namespace.
func Mounted(dir string) ([]string, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	var points []string
	for _, m := range mounts {
		points = append(points, m.Mountpoint)
	}
	return points, err
}
