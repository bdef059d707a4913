package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/netdriver/netdriver/diag"
	"github.com/netdriver/netdriver/internal/config"
	"github.com/spf13/cobra"
)

// The exit statuses. Those of inspect are its verdicts, as in monitoring plugins.
const (
	exitHealthy  = 0
	exitDegraded = 1
	exitFailed   = 2
	exitUnknown  = 3 // also: the question could not be asked
	exitError    = 1 // of the verbs that do not judge
)

// status is an exit status with its error, which may be nil.
type status struct {
	code int
	err  error
}

func (s status) Error() string {
	if s.err == nil {
		return fmt.Sprintf("exit status %d", s.code)
	}
	return s.err.Error()
}

func (s status) Unwrap() error { return s.err }

// cannotTell is how a verb that judges ends when it could not ask.
func cannotTell(err error) error { return status{exitUnknown, err} }

func exitOf(v diag.Verdict) int {
	switch v {
	case diag.Healthy:
		return exitHealthy
	case diag.Degraded:
		return exitDegraded
	case diag.Failed:
		return exitFailed
	}
	return exitUnknown
}

// app is one call of the program.
type app struct {
	environ  []string
	out, err io.Writer
}

// execute runs a command line and returns the exit status.
func (a app) execute(ctx context.Context, args []string) int {
	root := a.root()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	s := status{code: exitError, err: err}
	errors.As(err, &s)
	if s.err != nil {
		fmt.Fprintln(a.err, "netdriver:", s.err)
	}
	return s.code
}

func (a app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "netdriver",
		Short: "Overlay networks between plain Docker engines",
		Long: "netdriver is a network and IPAM driver for Docker: VXLAN overlays between plain engines, with the truth in\n" +
			"etcd. Start `netdriver run` on each host, then:\n\n" +
			"  docker network create -d custom-overlay --ipam-driver custom-overlay --subnet 10.10.0.0/24 NAME",
		SilenceErrors: true, SilenceUsage: true,
	}
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.AddCommand(
		a.run(), a.inspect(), a.prove(), a.networks(), a.nodes(), a.cluster(), a.volume(), a.install(), a.uninstall(), a.door(), a.volumeChildVerb(),
		a.volumeTunnelVerb(), a.version(),
	)
	root.AddCommand(a.check(), a.trace(), a.diff(), a.ipam(), a.bundle(), a.man(), a.eventsVerb(), a.captureVerb(), a.volumesVerb())
	a.completeFlags(root)
	return root
}

// group makes a command of one that only has others: a word that is none of them is an error, which cobra says of the
// program's own only.
func group(cmd *cobra.Command) *cobra.Command {
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			return fmt.Errorf("unknown command %q for %q: see `%s --help`", args[0], cmd.CommandPath(), cmd.CommandPath())
		}
		return cmd.Help()
	}
	return cmd
}

// run is the daemon.
func (a app) run() *cobra.Command {
	cmd := &cobra.Command{
		Use: "run", Short: "Run the daemon", Args: cobra.NoArgs,
		Long: "Run the daemon until SIGTERM or SIGINT. It leaves the kernel's networks in place: containers keep theirs.\n" +
			"Every flag is also an environment variable (NETDRIVER_STORE_CA for --store-ca) and a key of the file.",
	}
	config.AddFlags(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := config.Load(cmd.Flags(), a.environ)
		if err != nil {
			return err
		}
		return serve(cmd.Context(), cfg, logger(a.err, cfg))
	}
	return cmd
}

func logger(w io.Writer, cfg config.Config) *slog.Logger {
	options := &slog.HandlerOptions{Level: cfg.LogLevel}
	if cfg.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}

func (a app) version() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintf(a.out, "netdriver %s %s %s/%s\n", version(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
}

// version is what the Go toolchain stamped: a tag, or a pseudo-version with the commit.
func version() string {
	if b, ok := debug.ReadBuildInfo(); ok && b.Main.Version != "" {
		return b.Main.Version
	}
	return "(unknown)"
}

// coloured says whether the output is a terminal that wants colours (https://no-color.org).
func (a app) coloured() bool {
	unwanted := func(env string) bool {
		value, found := strings.CutPrefix(env, "NO_COLOR=")
		return found && value != "" || env == "TERM=dumb"
	}
	if slices.ContainsFunc(a.environ, unwanted) {
		return false
	}
	return terminal(a.out)
}

// terminal says whether something that is written to is one.
func terminal(w io.Writer) bool {
	if s, ok := w.(*screen); ok {
		w = s.Writer
	}
	f, ok := w.(*os.File)
	return ok && isTerminal(f)
}
