package main

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"github.com/netdriver/netdriver/diag"
)

const traceLong = `Follow marked probes from one container to another and back, device by device, on all nodes that they pass, and say
where and why something is lost. The probes are echo requests that the container's own interface sends; nothing of them
stays.

SOURCE is a container's name or id, an endpoint's id, a task's name or an address; DESTINATION may also be a service's name
or virtual address. It need not exist: the answer then says why.

Exit status: 0 healthy, 1 degraded, 2 failed, 3 could not tell.`

// trace is the verb that walks a path.
func (a app) trace() *cobra.Command {
	cmd := &cobra.Command{
		Use: "trace SOURCE DESTINATION", Short: "Say at which hop packets between two containers are lost, and why", Long: traceLong,
		Args: cobra.ExactArgs(2), ValidArgsFunction: a.completeContainers(),
	}
	network := cmd.Flags().String("network", "", "the `network`, if the two have several in common")
	cmd.RunE = a.looks(cmd, func(ctx context.Context, l looker, args []string) (answer, error) {
		r, err := l.Trace(ctx, diag.Ask{Source: args[0], Destination: args[1], Network: *network})
		return answer{r, func(p painter) string { return p.trace(r) }, exitOf(r.Verdict)}, err
	})
	return cmd
}

func (p painter) trace(r diag.Trace) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s → %s  network %s  %s", party(r.Source), party(r.Destination), r.Network, p.verdict(r.Verdict))
	if r.Service != "" {
		fmt.Fprintf(&b, "  service %s", r.Service)
	}
	if r.Seconds > 0 {
		fmt.Fprintf(&b, "  there and back in %.2f ms, largest packet %d of %d bytes", r.Seconds*1000, r.PathMTU, r.MTU)
	}
	b.WriteString("\n" + p.findings(r.Findings))
	for _, way := range []struct {
		name string
		hops []diag.Hop
	}{{"THERE", r.Forward}, {"BACK", r.Back}} {
		if len(way.hops) > 0 {
			b.WriteString("\n" + p.hops(way.name, way.hops))
		}
	}
	return b.String()
}

func party(e diag.Party) string {
	name := cmp.Or(e.Container, e.Name)
	if e.Node != "" {
		name += "@" + e.Node
	}
	if len(e.Addresses) > 0 && e.Addresses[0].String() != e.Name {
		name += fmt.Sprintf(" (%s)", e.Addresses[0])
	}
	return name
}

func (p painter) hops(name string, hops []diag.Hop) string {
	colours := map[string]string{diag.HopPassed: green, diag.HopLost: red, diag.HopSilent: yellow, diag.HopUnknown: yellow}
	var rows []table.Row
	for _, h := range hops {
		kind, _, _ := strings.Cut(h.Place, " ")
		took := none
		if h.Seconds > 0 {
			took = fmt.Sprintf("%.3f ms", h.Seconds*1000)
		}
		rows = append(rows, table.Row{
			h.Node, kind, known(h.Device), p.paint(colours[h.State], h.State), fmt.Sprintf("%d/%d", h.Seen, h.Sent), known(h.Largest), took,
		})
	}
	return columns(table.Row{name, "HOP", "DEVICE", "STATE", "SEEN", "LARGEST", "SINCE"}, rows)
}
