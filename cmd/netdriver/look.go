package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/netdriver/netdriver/diag"
	"github.com/netdriver/netdriver/internal/config"
	"github.com/netdriver/netdriver/internal/control"
)

// askDaemon bounds what a verb waits for the daemon.
const askDaemon = 25 * time.Second

const inspectLong = `Say whether a network is well, who is on it and what is wrong, with the numbers behind it.
Without a name: one line for each network.

Exit status: 0 healthy, 1 degraded, 2 failed, 3 could not tell.`

// inspect is the verb that judges.
func (a app) inspect() *cobra.Command {
	over := &screen{Writer: a.out}
	a.out = over
	cmd := &cobra.Command{
		Use: "inspect [NETWORK]", Short: "Say whether a network is well, and what is wrong", Long: inspectLong,
		Args: cobra.MaximumNArgs(1), ValidArgsFunction: a.completeNetworks,
	}
	once := a.looks(cmd, func(ctx context.Context, c looker, args []string) (answer, error) {
		if len(args) == 0 {
			r, err := c.Networks(ctx)
			return answer{r, func(p painter) string { return p.networks(r) }, worst(r)}, err
		}
		r, err := c.Network(ctx, args[0])
		return answer{r, func(p painter) string { return p.network(r) }, exitOf(r.Verdict)}, err
	})
	cmd.RunE = a.watching(cmd, over, once)
	return cmd
}

// worst is the exit status for all networks together.
func worst(r diag.NetworksReport) int {
	code := exitHealthy
	for _, n := range r.Networks {
		switch c := exitOf(n.Verdict); {
		case code == exitFailed || c == exitFailed: // known to be broken weighs more than not knowing
			code = exitFailed
		default:
			code = max(code, c)
		}
	}
	return code
}

func (a app) networks() *cobra.Command {
	cmd := &cobra.Command{Use: "networks", Short: "List the cluster's networks", Args: cobra.NoArgs}
	cmd.RunE = a.looks(cmd, func(ctx context.Context, c looker, _ []string) (answer, error) {
		r, err := c.Networks(ctx)
		return answer{r, func(p painter) string { return p.networks(r) }, 0}, err
	})
	return cmd
}

func (a app) nodes() *cobra.Command {
	cmd := &cobra.Command{Use: "nodes", Short: "List the cluster's nodes", Args: cobra.NoArgs}
	cmd.RunE = a.looks(cmd, func(ctx context.Context, c looker, _ []string) (answer, error) {
		r, err := c.Nodes(ctx)
		return answer{r, func(p painter) string { return p.nodes(r) }, 0}, err
	})
	return cmd
}

// answer is a report, its text and the exit status that follows from it.
type answer struct {
	report any
	text   func(painter) string
	code   int
}

// ask gives a verb the flags of those that ask the daemon, and returns what it runs.
func (a app) ask(
	cmd *cobra.Command, question func(context.Context, *control.Client, []string) (answer, error),
) func(*cobra.Command, []string) error {
	return a.shows(cmd, func(ctx context.Context, runDir string, args []string) (answer, error) {
		return question(ctx, control.NewClient(control.SocketPath(runDir)), args)
	})
}

// looks is ask for a verb that looks by itself if no daemon runs.
func (a app) looks(
	cmd *cobra.Command, question func(context.Context, looker, []string) (answer, error),
) func(*cobra.Command, []string) error {
	return a.shows(cmd, func(ctx context.Context, runDir string, args []string) (r answer, err error) {
		err = a.look(ctx, runDir, func(ctx context.Context, l looker) (err error) {
			r, err = question(ctx, l, args)
			return err
		})
		return r, err
	})
}

// shows gives a verb the flags of those that show a report, and returns what it runs.
func (a app) shows(
	cmd *cobra.Command, question func(ctx context.Context, runDir string, args []string) (answer, error),
) func(*cobra.Command, []string) error {
	output := cmd.Flags().StringP("output", "o", "text", "`format`: text or json")
	config.AddFlags(cmd.Flags(), "run-dir")
	cmd.Args = judged(cmd.Args)
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return cannotTell(err) })
	return func(cmd *cobra.Command, args []string) error {
		if *output != "text" && *output != "json" {
			return cannotTell(fmt.Errorf("--output %q: want text or json", *output))
		}
		cfg, err := config.Load(cmd.Flags(), a.environ, "run-dir")
		if err != nil {
			return cannotTell(err)
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), askDaemon)
		defer cancel()
		r, err := question(ctx, cfg.RunDir, args)
		if err != nil {
			return cannotTell(err)
		}
		if *output == "json" {
			err = writeJSON(a.out, r.report)
		} else {
			_, err = fmt.Fprint(a.out, r.text(painter{colour: a.coloured(), now: time.Now()}))
		}
		if err != nil {
			return cannotTell(fmt.Errorf("write the report: %w", err))
		}
		if r.code != 0 {
			return status{code: r.code}
		}
		return nil
	}
}

func (a app) client(cmd *cobra.Command) (*control.Client, error) {
	cfg, err := config.Load(cmd.Flags(), a.environ, "run-dir")
	if err != nil {
		return nil, err
	}
	return control.NewClient(control.SocketPath(cfg.RunDir)), nil
}

// judged makes a mistake in the arguments of a verb that judges "could not tell": its statuses 1 and 2 have a meaning.
func judged(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return cannotTell(err)
		}
		return nil
	}
}

// completeNetworks lets the shell complete network names, the cluster's and Docker's.
func (a app) completeNetworks(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	client, err := a.client(cmd)
	if err != nil || len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	r, err := client.Networks(cmd.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, n := range r.Networks {
		names = append(append(names, n.Network), uniqueNames(n)...)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
