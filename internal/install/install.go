// Package install puts netdriver on a host and takes it off again: the program, its settings, the service of systemd,
// the managed plugin of Docker. It compares what is wanted with what is there and names each difference as the command
// that an administrator would type, so that a second run does nothing and a dry run shows what a real one would do.
package install

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/netdriver/netdriver/internal/config"
)

const (
	// programPath is where the program is put, unless it runs from one of systemPaths already.
	programPath = "/usr/local/bin/netdriver"
	// unitPath is the service's file; the directory is that of the administrator's own units (man systemd.unit).
	unitPath = "/etc/systemd/system/" + service
	service  = "netdriver.service"
)

// systemPaths are the directories whose programs stay where they are: a package manager looks after them.
func systemPaths() []string {
	return []string{"/usr/local/bin", "/usr/local/sbin", "/usr/bin", "/usr/sbin", "/bin", "/sbin"}
}

// Config is what an Installer is made of.
type Config struct {
	// Self is the path of the running program, Version its version.
	Self, Version string
	// File is the daemon's configuration file, config.DefaultFile if empty.
	File string
	// Given are settings that the file shall have.
	Given []config.Given
	// Sockets are the files in Docker's plugin directory that a daemon may have left.
	Sockets []string
	// Root is put before every path of the host; empty but in tests.
	Root    string
	Systemd Systemd
	Docker  Docker
	Kernel  Kernel
	// Mounts lists what is mounted on a directory or below it; Mounted is the real one.
	Mounts func(dir string) ([]string, error)
	// Answers asks the daemon with that run directory for its version.
	Answers func(ctx context.Context, runDir string) (version string, err error)
}

// Kernel is what the daemon leaves in the kernel when it ends, so that containers keep their networks.
type Kernel interface {
	// Present lists what there is, for people; nothing if there is nothing.
	Present(ctx context.Context, runDir string) ([]string, error)
	// Remove removes all of it.
	Remove(ctx context.Context, runDir string) error
}

// Step is one change of the host.
type Step struct {
	// Command is the step as somebody would type it; a line that begins with # only says something.
	Command string
	run     func(ctx context.Context) error
}

// note makes a step that does nothing but to say something.
func note(format string, args ...any) Step {
	return Step{"# " + fmt.Sprintf(format, args...), func(context.Context) error { return nil }}
}

// Run runs steps in order until one fails; show is told of each before it runs.
func Run(ctx context.Context, steps []Step, show func(Step)) error {
	for _, s := range steps {
		show(s)
		if err := s.run(ctx); err != nil {
			return fmt.Errorf("%s: %w", s.Command, err)
		}
	}
	return nil
}

// Installer compares this host with what is wanted.
type Installer struct {
	cfg Config
	// program is the path of the program that the service runs.
	program string
	// old and text are the configuration file as it is and as it shall be; settings is how the daemon reads the latter.
	old, text []byte
	settings  config.Config
}

// New reads the host's configuration file and checks what the daemon would make of it, with the given settings in it.
func New(cfg Config) (*Installer, error) {
	if cfg.File == "" {
		cfg.File = config.DefaultFile
	}
	i := &Installer{cfg: cfg, program: programPath}
	if slices.Contains(systemPaths(), filepath.Dir(cfg.Self)) {
		i.program = cfg.Self
	}
	var err error
	if i.old, err = os.ReadFile(i.path(cfg.File)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	if i.text, err = config.Edit(i.old, cfg.Given); err != nil {
		return nil, fmt.Errorf("%s: %w", cfg.File, err)
	}
	i.settings, err = config.Read(cfg.File, i.text)
	return i, err
}

func (i *Installer) path(p string) string { return filepath.Join(i.cfg.Root, p) }

// Plan returns what is missing on this host; with swarm, the managed plugin too.
func (i *Installer) Plan(ctx context.Context, swarm bool) ([]Step, error) {
	files, err := i.planFiles()
	if err != nil {
		return nil, err
	}
	steps, err := i.planService(ctx, len(files) > 0)
	if err != nil {
		return nil, err
	}
	steps = append(files, steps...)
	if !swarm {
		return steps, nil
	}
	plugin, err := i.planPlugin(ctx)
	return append(steps, plugin...), err
}
