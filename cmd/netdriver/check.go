package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"github.com/netdriver/netdriver/diag"
)

const checkLong = `Say whether this host can do what its networks need: kernel, underlay, packet filter, sockets, store,
certificates, disk, and the way to each other node by marked frames. Each finding has its cause, the evidence and a remedy.

Exit status: 0 healthy, 1 degraded, 2 failed, 3 could not tell.`

// check is the verb that looks at this host.
func (a app) check() *cobra.Command {
	cmd := &cobra.Command{
		Use: "check", Short: "Say whether this host is well, and its way to the others", Long: checkLong, Args: cobra.NoArgs,
	}
	peer := cmd.Flags().String("peer", "", "look at the way to this `node` only")
	cmd.RunE = a.looks(cmd, func(ctx context.Context, l looker, _ []string) (answer, error) {
		r, err := l.Check(ctx, *peer)
		return answer{r, func(p painter) string { return p.check(r) }, exitOf(r.Verdict)}, err
	})
	return cmd
}

// check writes the verdict, what is wrong, and the table of all that was looked at.
func (p painter) check(r diag.CheckReport) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s  %s\n", r.Node, p.verdict(r.Verdict))
	b.WriteString(p.findings(r.Findings))
	var rows []table.Row
	for _, c := range r.Checks {
		rows = append(rows, table.Row{c.Name, p.verdict(c.Verdict), c.Looks})
	}
	return b.String() + "\n" + columns(table.Row{"CHECK", "VERDICT", "LOOKS AT"}, rows)
}

// findings writes each with its place, evidence and remedy.
func (p painter) findings(all []diag.Finding) string {
	var b strings.Builder
	for _, f := range all {
		fmt.Fprintf(&b, "  %s  %s\n    at   %s\n", p.verdict(f.Severity), f.Cause, f.Place)
		for _, e := range f.Evidence {
			fmt.Fprintf(&b, "    seen %s\n", e)
		}
		fmt.Fprintf(&b, "    do   %s\n", f.Remedy)
	}
	return b.String()
}
