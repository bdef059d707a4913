package main

import (
	"errors"
	"log/slog"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/netdriver/netdriver/internal/door"
)

const doorLong = `Forward Docker's calls to the daemon of this node, and wait for a daemon that restarts.

This is what runs inside the managed plugin custom-overlay:latest, which ` + "`netdriver install --swarm`" + ` makes.`

// door is the process in the managed plugin.
func (a app) door() *cobra.Command {
	cmd := &cobra.Command{
		Use: "door", Short: "Forward Docker's calls to the daemon", Long: doorLong, Args: cobra.NoArgs, Hidden: true,
	}
	daemon := cmd.Flags().String("daemon", "", "`socket` at which the daemon serves a swarm")
	listen := cmd.Flags().String("listen", door.Listen, "`socket` at which Docker calls")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if !filepath.IsAbs(*daemon) || !filepath.IsAbs(*listen) {
			return errors.New("--daemon and --listen: want absolute paths of sockets")
		}
		log := slog.New(slog.NewTextHandler(a.out, nil)) // Docker writes what comes to the other stream as errors
		log.Info("the door is open", "daemon", *daemon, "protocol", door.Protocol)
		return door.New(*daemon, log).Serve(cmd.Context(), *listen)
	}
	return cmd
}
