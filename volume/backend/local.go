package backend

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/volume/mount"
)

// Directory is where a local volume without device= keeps its data.
func (h Host) Directory(name string) string { return filepath.Join(h.Data, name) }

// Purge removes a local volume's data.
func (h Host) Purge(name string) error { return os.RemoveAll(h.Directory(name)) }

// prepareLocal binds a directory of this node. One that device= names is never made: a mistyped path would be an empty
// volume.
func (s *session) prepareLocal(context.Context) (mount.Plan, error) {
	a := mount.Attempt{Label: "directory", Bind: true, Source: s.spec.Path, Flags: s.spec.Flags}
	if s.spec.Path == "" {
		a.Source, a.Make = s.host.Directory(s.name), true
	}
	return mount.Plan{Attempts: []mount.Attempt{a}}, nil
}

func (s *session) explainLocal(err error) (cause, remedy string) {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return "there is no directory " + s.spec.Path + " on this node", "make it, or choose another with -o device="
	}
	return "", ""
}
