package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/netdriver/netdriver/internal/config"
	"github.com/netdriver/netdriver/volume/backup"
)

// volumeRestore writes an archive into a volume.
func (a app) volumeRestore() *cobra.Command {
	cmd := &cobra.Command{
		Use: "restore FILE VOLUME", Short: "Restore a backup into an empty volume; FILE - is the standard input",
		Long: "Restore a backup into a volume that is empty. FILE may be in another volume, volume:NAME/FILE. Everything appears at\n" +
			"once at the end: a restore that is interrupted, or whose archive is damaged, leaves the volume as it was.",
		Args: cobra.ExactArgs(2),
	}
	config.AddFlags(cmd.Flags(), "run-dir")
	cmd.RunE = func(cmd *cobra.Command, args []string) (err error) {
		in, err := a.archiveFrom(cmd, args[0])
		if err != nil {
			return err
		}
		defer in.close()
		client, err := a.volumeClient(cmd)
		if err != nil {
			return err
		}
		h, err := hold(cmd.Context(), client, args[1])
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, h.drop()) }()
		dir, err := h.root.Open(".")
		if err != nil {
			return err
		}
		defer dir.Close()
		s, err := backup.Restore(cmd.Context(), in, backup.Target{Dir: dir, Bases: in.bases(), Warn: a.warn})
		in.progress.end()
		if err == nil {
			fmt.Fprintf(a.err, "%s: %s, %s of volume %s of %s\n", args[1], entries(s.Entries+s.Unchanged),
				size(s.Bytes+s.UnchangedBytes), s.Volume, s.Created.Format(time.RFC3339))
		}
		return err
	}
	return cmd
}

// volumeVerify reads an archive and says whether it is whole.
func (a app) volumeVerify() *cobra.Command {
	cmd := &cobra.Command{
		Use: "verify FILE", Short: "Check that every file in a backup is as it was; FILE - is the standard input",
		Long: verifyLong, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			in, err := a.archiveFrom(cmd, args[0])
			if err != nil {
				return err
			}
			defer in.close()
			s, err := backup.Verify(cmd.Context(), in, in.bases(), nil)
			in.progress.end()
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(a.out, "%s is whole: volume %s of %s, %s, %s\n", args[0], s.Volume, s.Created.Format(time.RFC3339),
				entries(s.Entries+s.Unchanged), size(s.Bytes+s.UnchangedBytes))
			return err
		},
	}
	config.AddFlags(cmd.Flags(), "run-dir")
	return cmd
}

const verifyLong = `Check that every file in a backup, and in those on which it builds, is as it was. FILE may be in a volume, volume:NAME/FILE,
and - is the standard input.`

// source is an archive that is read, with its progress.
type source struct {
	*os.File
	progress *progress
	done     int64
	// drop gives back the volume in which it is.
	drop func() error
}

// archiveFrom opens an archive: a file, one in a volume, or the standard input.
func (a app) archiveFrom(cmd *cobra.Command, path string) (*source, error) {
	s := &source{File: os.Stdin, progress: a.progress(filepath.Base(path))}
	if path == "-" {
		return s, nil
	}
	rest, inVolume := strings.CutPrefix(path, volumeOutput)
	if !inVolume {
		return s, s.open(path)
	}
	name, file, ok := strings.Cut(rest, "/")
	if !ok || !filepath.IsLocal(file) {
		return nil, fmt.Errorf("%s: want volume:NAME/FILE", path)
	}
	client, err := a.volumeClient(cmd)
	if err != nil {
		return nil, err
	}
	h, err := hold(cmd.Context(), client, name)
	if err != nil {
		return nil, err
	}
	s.drop = h.drop
	if err := s.open(filepath.Join(h.Path, file)); err != nil {
		return nil, errors.Join(err, h.drop())
	}
	return s, nil
}

func (s *source) open(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	s.File, s.progress.total = f, st.Size()
	return nil
}

// bases opens the archives on which an incremental one builds: they are beside it.
func (s *source) bases() backup.Bases {
	if s.File == os.Stdin {
		return nil
	}
	return backup.Beside(s.Name())
}

func (s *source) Read(b []byte) (int, error) {
	n, err := s.File.Read(b)
	s.done += int64(n)
	s.progress.at(s.done, 0)
	return n, err
}

func (s *source) close() {
	s.progress.end()
	if s.File != os.Stdin {
		s.File.Close()
	}
	if s.drop != nil {
		_ = s.drop() // the daemon gives it back once this process has ended
	}
}
