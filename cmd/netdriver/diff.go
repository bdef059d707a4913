package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"github.com/netdriver/netdriver/diag"
	"github.com/netdriver/netdriver/internal/control"
)

const diffLong = `Print the commands that would make this host's kernel as the records want it, one network after the other; nothing if
it is. With --fix the daemon does it at once, which it does by itself every 30 s.

Exit status: 0 nothing differs, 1 something does or did, 3 could not tell.`

// diff is the verb that compares.
func (a app) diff() *cobra.Command {
	cmd := &cobra.Command{
		Use: "diff [NETWORK]", Short: "Print what the kernel lacks, as ip, bridge and nft commands", Long: diffLong,
		Args: cobra.MaximumNArgs(1), ValidArgsFunction: a.completeNetworks,
	}
	fix := cmd.Flags().Bool("fix", false, "do it")
	cmd.RunE = a.looks(cmd, func(ctx context.Context, l looker, args []string) (answer, error) {
		r, err := l.Diff(ctx, strings.Join(args, ""))
		if err == nil && *fix {
			err = repair(ctx, l, r)
		}
		return answer{r, func(painter) string { return differences(r, *fix) }, differs(r)}, err
	})
	return cmd
}

// repair has the daemon make what differs.
func repair(ctx context.Context, l looker, r diag.DiffReport) error {
	c, daemon := l.(*control.Client)
	if !daemon {
		return errors.New("--fix is done by the daemon, which does not run: start it, and it repairs everything")
	}
	var errs []error
	for _, n := range r.Networks {
		if len(n.Commands) > 0 {
			errs = append(errs, c.Change(ctx, "/v1/repair/"+url.PathEscape(n.Network), struct{}{}, &struct{}{}))
		}
	}
	return errors.Join(errs...)
}

func differs(r diag.DiffReport) int {
	code := exitHealthy
	for _, n := range r.Networks {
		switch {
		case n.Error != "":
			return exitUnknown
		case len(n.Commands) > 0:
			code = exitDegraded
		}
	}
	return code
}

func differences(r diag.DiffReport, fixed bool) string {
	var b strings.Builder
	for _, n := range r.Networks {
		if n.Error != "" {
			fmt.Fprintf(&b, "# network %s: %s\n", n.Network, n.Error)
		}
		if len(n.Commands) == 0 {
			continue
		}
		done := ""
		if fixed {
			done = ", done"
		}
		fmt.Fprintf(&b, "# network %s on %s, in netdriver's namespace%s\n%s\n", n.Network, r.Node, done, strings.Join(n.Commands, "\n"))
	}
	return b.String()
}

// repairer makes a network as wanted.
type repairer interface {
	Repair(ctx context.Context, network string) error
}

// handleRepair answers POST /v1/repair/NETWORK.
func handleRepair(r repairer) http.Handler {
	return changed(func(ctx context.Context, req *http.Request) (struct{}, error) {
		return struct{}{}, r.Repair(ctx, req.PathValue("name"))
	})
}
