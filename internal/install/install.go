// Package install puts netdriver on a host and takes it off again: the program, the service of systemd, the managed
// plugin of Docker. It compares what is wanted with what is there and names each difference as the command that an
// administrator would have typed, so that a second run does nothing and a dry run shows what a real one would do.
package install

import (
	"context"
	"fmt"
)

// Step is one change of the host.
type Step struct {
	// Command is the step as somebody would type it.
	Command string
	run     func(ctx context.Context) error
}

// Config is what an Installer is made of.
type Config struct {
	// Self is the path of the running program.
	Self string
	// RunDir is the daemon's run directory.
	RunDir string
	Docker Docker
}

// Installer compares this host with what is wanted.
type Installer struct{ cfg Config }

// New makes an Installer, which does nothing yet.
func New(cfg Config) *Installer { return &Installer{cfg} }

// Run runs steps in order until one fails; done is told of each before it runs.
func Run(ctx context.Context, steps []Step, show func(Step)) error {
	for _, s := range steps {
		show(s)
		if err := s.run(ctx); err != nil {
			return fmt.Errorf("%s: %w", s.Command, err)
		}
	}
	return nil
}

// Plan returns what is missing on this host.
func (i *Installer) Plan(ctx context.Context, swarm bool) ([]Step, error) {
	if !swarm {
		return nil, nil
	}
	return i.planPlugin(ctx)
}
