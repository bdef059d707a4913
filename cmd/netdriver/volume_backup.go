package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"

	"github.com/netdriver/netdriver/internal/config"
	"github.com/netdriver/netdriver/volume/backup"
)

const backupLong = `Back a volume up: a tar, compressed with zstd, with owners, modes, times, extended attributes, ACLs, hard links, devices
and holes, and the SHA-256 of each file. Plain tar reads it:

  tar --zstd --xattrs --xattrs-include='*' -xpf FILE

Without -o it goes to the standard output. A directory gets a file named after the volume and the time.`

// archiveSuffix is what the files in a backup directory are called.
const archiveSuffix = ".tar.zst"

// volumeBackup writes a volume to an archive.
func (a app) volumeBackup() *cobra.Command {
	cmd := &cobra.Command{
		Use: "backup VOLUME [-o FILE|DIRECTORY]", Short: "Back a volume up", Long: backupLong,
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeVolumes,
	}
	output := cmd.Flags().StringP("output", "o", "-", "`file` or directory; - is the standard output")
	config.AddFlags(cmd.Flags(), "run-dir")
	cmd.RunE = func(cmd *cobra.Command, args []string) (err error) {
		to, err := a.backupTo(*output, args[0], time.Now())
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, to.abandon()) }()
		client, err := a.volumeClient(cmd)
		if err != nil {
			return err
		}
		h, err := hold(cmd.Context(), client, args[0])
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, h.drop()) }()
		s, err := a.makeBackup(cmd.Context(), h, args[0], to)
		if err == nil {
			err = to.keep()
		}
		if err == nil {
			fmt.Fprintf(a.err, "%s: %s, %s%s\n", args[0], entries(s.Entries), size(s.Bytes), to.where())
		}
		return err
	}
	return cmd
}

// makeBackup reads a volume that is held.
func (a app) makeBackup(ctx context.Context, h held, name string, out io.Writer) (backup.Summary, error) {
	dir, err := h.root.Open(".")
	if err != nil {
		return backup.Summary{}, err
	}
	defer dir.Close()
	show := a.progress(name)
	defer show.end()
	if show.visible {
		total, err := backup.Measure(ctx, dir)
		if err != nil {
			return backup.Summary{}, err
		}
		show.total = total.Bytes
	}
	return backup.Create(ctx, backup.Source{
		Dir: dir, Name: name, Warn: a.warn,
		Progress: func(p backup.Progress) { show.at(p.Bytes, p.Entries) },
	}, out)
}

func (a app) warn(text string) { fmt.Fprintln(a.err, "netdriver: warning:", text) }

// destination is where a backup goes. A file gets its name only when it is whole.
type destination struct {
	io.Writer
	file *renameio.PendingFile
	path string
}

// backupTo opens the destination of a backup.
func (a app) backupTo(output, name string, now time.Time) (*destination, error) {
	if output == "-" {
		if f, ok := a.out.(*os.File); ok && isTerminal(f) {
			return nil, errors.New("an archive is nothing for a terminal: name a file with -o, or redirect the output")
		}
		return &destination{Writer: a.out}, nil
	}
	if st, err := os.Stat(output); err == nil && st.IsDir() {
		output = filepath.Join(output, name+"-"+now.UTC().Format("20060102T150405Z")+archiveSuffix)
	}
	f, err := renameio.NewPendingFile(output, renameio.WithTempDir(filepath.Dir(output)))
	if err != nil {
		return nil, fmt.Errorf("back up %s: %w", name, err)
	}
	return &destination{f, f, output}, nil
}

// keep gives the file its name.
func (d *destination) keep() error {
	if d.file == nil {
		return nil
	}
	if err := d.file.CloseAtomicallyReplace(); err != nil {
		return fmt.Errorf("keep %s: %w", d.path, err)
	}
	return nil
}

// abandon removes a file that is not kept.
func (d *destination) abandon() error {
	if d.file == nil {
		return nil
	}
	return d.file.Cleanup()
}

func (d *destination) where() string {
	if d.path == "" {
		return ""
	}
	return " in " + d.path
}

// volumeRestore writes an archive into a volume.
func (a app) volumeRestore() *cobra.Command {
	cmd := &cobra.Command{
		Use: "restore FILE VOLUME", Short: "Restore a backup into an empty volume; FILE - is the standard input",
		Long: "Restore a backup into a volume that is empty. Everything appears at once at the end: a restore that is interrupted,\n" +
			"or whose archive is damaged, leaves the volume as it was.",
		Args: cobra.ExactArgs(2),
	}
	config.AddFlags(cmd.Flags(), "run-dir")
	cmd.RunE = func(cmd *cobra.Command, args []string) (err error) {
		in, err := a.archiveFrom(args[0])
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
		s, err := backup.Restore(cmd.Context(), in, backup.Target{Dir: dir, Warn: a.warn})
		in.progress.end()
		if err == nil {
			fmt.Fprintf(a.err, "%s: %s, %s of volume %s of %s\n", args[1], entries(s.Entries), size(s.Bytes), s.Volume,
				s.Created.Format(time.RFC3339))
		}
		return err
	}
	return cmd
}

// volumeVerify reads an archive and says whether it is whole.
func (a app) volumeVerify() *cobra.Command {
	return &cobra.Command{
		Use: "verify FILE", Short: "Check that every file in a backup is as it was; FILE - is the standard input",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			in, err := a.archiveFrom(args[0])
			if err != nil {
				return err
			}
			defer in.close()
			s, err := backup.Verify(cmd.Context(), in, nil)
			in.progress.end()
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(a.out, "%s is whole: volume %s of %s, %s, %s\n", args[0], s.Volume, s.Created.Format(time.RFC3339),
				entries(s.Entries), size(s.Bytes))
			return err
		},
	}
}

// source is an archive that is read, with its progress.
type source struct {
	*os.File
	progress *progress
	done     int64
}

func (a app) archiveFrom(path string) (*source, error) {
	s := &source{File: os.Stdin, progress: a.progress(filepath.Base(path))}
	if path == "-" {
		return s, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	s.File, s.progress.total = f, st.Size()
	return s, nil
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
}

// size writes a number of bytes with a unit of 1000.
func size(n int64) string {
	units := []string{"B", "kB", "MB", "GB", "TB"}
	f, i := float64(n), 0
	for f >= 1000 && i < len(units)-1 {
		f, i = f/1000, i+1
	}
	if i == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return strings.TrimSuffix(fmt.Sprintf("%.1f", f), ".0") + " " + units[i]
}

func entries(n int64) string {
	if n == 1 {
		return "1 entry"
	}
	return fmt.Sprintf("%d entries", n)
}
