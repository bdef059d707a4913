package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"

	"github.com/netdriver/netdriver/diag"
	"github.com/netdriver/netdriver/store"
)

// mostRows is how many endpoints, or backends, the text shows: more than that nobody reads, and -o json has all.
const mostRows = 200

// none stands for what is not known or not there.
const none = "–"

// painter writes reports as text.
type painter struct {
	colour bool
	// now is what ages are counted to.
	now time.Time
}

// The colours of ECMA-48, SGR 31 to 33.
const (
	red    = "31"
	green  = "32"
	yellow = "33"
)

func (p painter) paint(colour, s string) string {
	if !p.colour || colour == "" {
		return s
	}
	return "\x1b[" + colour + "m" + s + "\x1b[0m"
}

func (p painter) verdict(v diag.Verdict) string {
	colours := map[diag.Verdict]string{diag.Healthy: green, diag.Degraded: yellow, diag.Unknown: yellow, diag.Failed: red}
	return p.paint(colours[v], strings.ToUpper(string(v)))
}

func (p painter) state(s string) string {
	colours := map[string]string{
		diag.StateOK:      green,
		diag.StateLocal:   green,
		diag.StateBehind:  yellow,
		diag.StateUnknown: yellow,
		diag.StateDown:    red,

		store.BackendReady:    green,
		store.BackendDraining: yellow,
		store.BackendAbsent:   red,
	}
	return p.paint(colours[s], s)
}

// age writes how long ago t was.
func (p painter) age(t time.Time) string {
	if t.IsZero() {
		return none
	}
	return span(p.now.Sub(t))
}

// span writes a duration with one unit.
func span(d time.Duration) string {
	switch d = max(d, 0); {
	case d < 100*time.Millisecond:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < 10*time.Second:
		return fmt.Sprintf("%.1f s", d.Seconds())
	case d < 2*time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%d m", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h", int(d.Hours()))
	}
	return fmt.Sprintf("%d d", int(d.Hours()/24))
}

// known writes v, or a dash if it is zero.
func known[T comparable](v T) string {
	var zero T
	if v == zero {
		return none
	}
	return fmt.Sprint(v)
}

// plural writes a number with its noun.
func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// columns writes rows below a header, without lines, so that it can be cut and grepped.
func columns(header table.Row, rows []table.Row) string {
	t := table.NewWriter()
	style := table.StyleDefault
	style.Options = table.OptionsNoBordersAndSeparators
	style.Box.PaddingLeft, style.Box.PaddingRight = "", "  "
	style.Format.Header = text.FormatDefault
	t.SetStyle(style)
	t.SuppressTrailingSpaces()
	t.AppendHeader(header)
	t.AppendRows(rows)
	return t.Render() + "\n"
}

// nodes is the table of `netdriver nodes`.
func (p painter) nodes(r diag.NodesReport) string {
	var rows []table.Row
	for _, n := range r.Nodes {
		rows = append(rows, table.Row{
			n.Name, n.VTEP, p.state(n.State), known(n.Role), n.UnderlayMTU, n.Networks, p.age(n.Started), p.age(n.LastStatus),
			known(n.Version), known(n.Docker), len(n.Problems),
		})
	}
	if len(rows) == 0 {
		return "no node is registered in this cluster\n"
	}
	return columns(table.Row{
		"NODE", "ADDRESS", "STATE", "ROLE", "MTU", "NETWORKS", "UP", "LAST STATUS", "VERSION", "DOCKER", "PROBLEMS",
	}, rows)
}

// networks is the table of `netdriver networks`, and of inspect without a name.
func (p painter) networks(r diag.NetworksReport) string {
	if len(r.Networks) == 0 {
		return "no network yet; make one with:\n" +
			"  docker network create -d custom-overlay --ipam-driver custom-overlay --subnet 10.10.0.0/24 NAME\n"
	}
	var rows []table.Row
	for _, n := range r.Networks {
		var subnets []string
		for _, s := range n.Subnets {
			subnets = append(subnets, s.Subnet.String())
		}
		here := "no"
		if n.Member {
			here = "yes"
		}
		encrypted := "no"
		if n.Encryption != nil {
			encrypted = cmp.Or(n.Encryption.Cipher, "yes")
		}
		rows = append(rows, table.Row{
			n.Network, cmp.Or(strings.Join(uniqueNames(n), ","), none), p.verdict(n.Verdict),
			strings.TrimSpace(n.Mode + " " + n.Medium.Parent), known(n.VNI), encrypted,
			strings.Join(subnets, ","), here, len(n.Peers), n.EndpointCount, firstCause(n),
		})
	}
	return columns(table.Row{
		"NETWORK", "DOCKER", "VERDICT", "MODE", "VNI", "ENCRYPTED", "SUBNETS", "HERE", "NODES", "ENDPOINTS", "WHY",
	}, rows)
}

// firstCause is the first reason of the verdict, and how many more there are.
func firstCause(n diag.NetworkReport) string {
	if len(n.Reasons) == 0 {
		return none
	}
	for _, r := range n.Reasons {
		if r.Verdict != n.Verdict {
			continue
		}
		if more := len(n.Reasons) - 1; more > 0 {
			return fmt.Sprintf("%s (and %d more)", r.Cause, more)
		}
		return r.Cause
	}
	return n.Reasons[0].Cause
}

// writeJSON writes a report for programs.
func writeJSON(w io.Writer, report any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(report)
}
