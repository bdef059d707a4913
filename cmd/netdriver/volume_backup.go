package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"

	"github.com/netdriver/netdriver/internal/config"
	"github.com/netdriver/netdriver/internal/engine"
	"github.com/netdriver/netdriver/store"
	"github.com/netdriver/netdriver/volume"
	"github.com/netdriver/netdriver/volume/backup"
)

const backupLong = `Back a volume up: a tar, compressed with zstd, with owners, modes, times, extended attributes, ACLs, hard links, devices
and holes, and the SHA-256 of each file. Plain tar reads it:

  tar --zstd --xattrs --xattrs-include='*' -xpf FILE

Without -o it goes to the standard output. A directory, or another volume (-o volume:NAME), gets a file named after the volume
and the time, which builds on the volume's last backup there: files that have not changed are not read again.`

// backupOptions are how a backup is to be made.
type backupOptions struct {
	output      string
	full        bool
	keep        int
	pause, stop bool
}

// volumeBackup writes a volume to an archive.
func (a app) volumeBackup() *cobra.Command {
	var o backupOptions
	cmd := &cobra.Command{
		Use: "backup VOLUME [-o FILE|DIRECTORY|volume:NAME]", Short: "Back a volume up", Long: backupLong,
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeVolumes,
	}
	cmd.Flags().StringVarP(&o.output, "output", "o", "-", "`file`, directory, or volume:NAME; - is the standard output")
	cmd.Flags().BoolVar(&o.full, "full", false, "build on no earlier backup in the directory")
	cmd.Flags().IntVar(&o.keep, "keep", 0,
		"remove all but the last `N` backups of the volume in the directory, and those on which they build; 0 keeps all")
	cmd.Flags().BoolVar(&o.pause, "pause", false, "pause the containers on this node that use the volume meanwhile")
	cmd.Flags().BoolVar(&o.stop, "stop", false, "stop the containers on this node that use the volume, and start them again afterwards")
	cmd.MarkFlagsMutuallyExclusive("pause", "stop")
	config.AddFlags(cmd.Flags(), "run-dir", "docker-host")
	cmd.RunE = func(cmd *cobra.Command, args []string) error { return a.backUp(cmd, args[0], o) }
	return cmd
}

// backUp makes a backup, and has the daemon note how it went.
func (a app) backUp(cmd *cobra.Command, name string, o backupOptions) (err error) {
	ctx := cmd.Context()
	client, err := a.volumeClient(cmd)
	if err != nil {
		return err
	}
	if o.output == volumeOutput+name {
		return fmt.Errorf("-o %s: that is the volume itself", o.output)
	}
	to, err := a.backupTo(ctx, client, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, to.close()) }()
	h, err := hold(ctx, client, name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.drop()) }()
	note := store.VolumeBackup{Volume: name, Started: time.Now().UTC()}
	s, err := a.suspended(cmd, client, name, o, func() (backup.Summary, error) {
		return a.makeBackup(ctx, h, name, to)
	})
	note.Finished = time.Now().UTC()
	if err == nil {
		note.Succeeded, note.File = note.Finished, cmp.Or(to.path, "the standard output")
		note.Entries, note.Bytes, note.Unchanged = s.Entries+s.Unchanged, s.Bytes+s.UnchangedBytes, s.Unchanged
		fmt.Fprintf(a.err, "%s: %s, %s%s%s\n", name, entries(note.Entries), size(note.Bytes), unchanged(s), to.where())
	} else {
		note.Error = err.Error()
	}
	err = errors.Join(err, to.retain(a, name, o.keep, err == nil))
	if noteErr := client.Backed(context.WithoutCancel(ctx), note); noteErr != nil {
		a.warn(noteErr.Error())
	}
	return err
}

func unchanged(s backup.Summary) string {
	if s.Unchanged == 0 {
		return ""
	}
	return fmt.Sprintf(" (%d files, %s, unchanged)", s.Unchanged, size(s.UnchangedBytes))
}

// suspended does something while the users of the volume are paused or stopped, if that is wanted.
func (a app) suspended(
	cmd *cobra.Command, client *volume.Client, name string, o backupOptions, do func() (backup.Summary, error),
) (s backup.Summary, err error) {
	if !o.pause && !o.stop {
		return do()
	}
	ctx := cmd.Context()
	r, err := client.Inspect(ctx, name)
	if err != nil {
		return s, err
	}
	for node := range r.Users {
		if node != r.Here {
			return s, fmt.Errorf("volume %s is in use on node %s as well: its containers there cannot be paused or stopped from here",
				name, node)
		}
	}
	cfg, err := config.Load(cmd.Flags(), a.environ, "docker-host")
	if err != nil {
		return s, err
	}
	docker, err := engine.Open(cfg.DockerHost)
	if err != nil {
		return s, err
	}
	defer docker.Close()
	users, err := docker.UsersOf(ctx, name)
	if err != nil {
		return s, err
	}
	resume, err := docker.Suspend(ctx, users, o.stop)
	if err != nil {
		return s, err
	}
	// Also after the user has pressed Ctrl-C.
	defer func() { err = errors.Join(err, resume(context.WithoutCancel(ctx))) }()
	return do()
}

// makeBackup reads a volume that is held.
func (a app) makeBackup(ctx context.Context, h held, name string, to *destination) (backup.Summary, error) {
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
	program, _ := exec.LookPath("zstd") // without it we compress ourselves
	return to.write(ctx, backup.Source{
		Dir: dir, Name: name, Zstd: program, Warn: a.warn,
		Progress: func(p backup.Progress) { show.at(p.Bytes, p.Entries) },
	})
}

func (a app) warn(text string) { fmt.Fprintln(a.err, "netdriver: warning:", text) }

// destination is where a backup goes: a stream, a file that gets its name only when it is whole, or a directory.
type destination struct {
	stream io.Writer
	dir    *backup.Directory
	full   bool
	// path is the file; volume is the volume in which it is, if it is.
	path, volume string
	// drop gives that volume back.
	drop func() error
}

// volumeOutput begins an output that is a volume.
const volumeOutput = "volume:"

// backupTo opens the destination of a backup.
func (a app) backupTo(ctx context.Context, client *volume.Client, o backupOptions) (*destination, error) {
	if name, ok := strings.CutPrefix(o.output, volumeOutput); ok {
		return backupToVolume(ctx, client, name, o)
	}
	if o.output == "-" {
		if f, ok := a.out.(*os.File); ok && isTerminal(f) {
			return nil, errors.New("an archive is nothing for a terminal: name a file with -o, or redirect the output")
		}
		return &destination{stream: a.out}, o.forFile()
	}
	if st, err := os.Stat(o.output); err == nil && st.IsDir() {
		dir, err := backup.OpenDirectory(o.output)
		return &destination{dir: dir, full: o.full}, err
	}
	return &destination{path: o.output}, o.forFile()
}

// forFile refuses what only a directory of backups has.
func (o backupOptions) forFile() error {
	if o.full || o.keep != 0 {
		return errors.New("--full and --keep are for a directory of backups: name one with -o")
	}
	return nil
}

func backupToVolume(ctx context.Context, client *volume.Client, name string, o backupOptions) (*destination, error) {
	h, err := hold(ctx, client, name)
	if err != nil {
		return nil, err
	}
	dir, err := backup.OpenDirectory(h.Path)
	if err != nil {
		return nil, errors.Join(err, h.drop())
	}
	return &destination{dir: dir, full: o.full, volume: name, drop: h.drop}, nil
}

// write makes the backup.
func (d *destination) write(ctx context.Context, src backup.Source) (s backup.Summary, err error) {
	switch {
	case d.stream != nil:
		return backup.Create(ctx, src, d.stream)
	case d.dir != nil:
		d.path, s, err = d.dir.Create(ctx, src, d.full)
		return s, err
	}
	f, err := renameio.NewPendingFile(d.path, renameio.WithTempDir(filepath.Dir(d.path)), renameio.WithPermissions(0o600))
	if err != nil {
		return s, fmt.Errorf("back up %s: %w", src.Name, err)
	}
	defer func() { err = errors.Join(err, f.Cleanup()) }()
	if s, err = backup.Create(ctx, src, f); err != nil {
		return s, err
	}
	if err := f.CloseAtomicallyReplace(); err != nil {
		return s, fmt.Errorf("keep %s: %w", d.path, err)
	}
	return s, nil
}

// retain removes old backups after a good one.
func (d *destination) retain(a app, name string, keep int, good bool) error {
	if !good || keep <= 0 || d.dir == nil {
		return nil
	}
	removed, err := d.dir.Retain(name, keep)
	for _, file := range removed {
		fmt.Fprintf(a.err, "%s: removed %s\n", name, file)
	}
	if err != nil {
		return fmt.Errorf("remove old backups of %s: %w", name, err)
	}
	return nil
}

func (d *destination) close() error {
	var errs []error
	if d.dir != nil {
		errs = append(errs, d.dir.Close())
	}
	if d.drop != nil {
		errs = append(errs, d.drop())
	}
	return errors.Join(errs...)
}

func (d *destination) where() string {
	switch {
	case d.path == "":
		return ""
	case d.volume != "":
		return " in " + filepath.Base(d.path) + " on volume " + d.volume
	}
	return " in " + d.path
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
