package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"

	"github.com/netdriver/netdriver/internal/cluster"
)

// certificateWarning is how long before its end a certificate is worth a word: the daemon renews it much earlier.
const certificateWarning = 30 * 24 * time.Hour

// clusterExit is the exit status of a report.
func clusterExit(r cluster.Report, now time.Time) int {
	if len(clusterReasons(r, now)) > 0 {
		return exitDegraded
	}
	return exitHealthy
}

// clusterReasons says what is wrong, and what to do about it.
func clusterReasons(r cluster.Report, now time.Time) []string {
	var out []string
	for _, m := range r.Members {
		if m.State == "DOWN" {
			out = append(out,
				fmt.Sprintf("member %s does not answer: start its netdriver, or replace it with `netdriver cluster remove %s`",
					m.Node, m.Node))
		}
	}
	if now.Add(certificateWarning).After(r.CertificateEnds) {
		out = append(out, fmt.Sprintf("this node's certificate ends %s and was not renewed: see the daemon's log",
			r.CertificateEnds.Format(time.DateOnly)))
	}
	if now.Add(certificateWarning).After(r.AuthorityEnds) {
		out = append(out,
			fmt.Sprintf("the cluster's authority ends %s: make a new cluster, restore a backup there, and let the nodes join",
				r.AuthorityEnds.Format(time.DateOnly)))
	}
	return out
}

// cluster is the text of `netdriver cluster status`.
func (p painter) cluster(r cluster.Report) string {
	var b strings.Builder
	var rows []table.Row
	for _, m := range r.Members {
		size := fmt.Sprintf("%.1f MB", float64(m.Size)/1e6)
		rows = append(rows, table.Row{m.Node, known(m.Address), p.memberState(m.State), size, m.Behind})
	}
	b.WriteString(columns(table.Row{"MEMBER", "ADDRESS", "STATE", "STORE", "BEHIND"}, rows))
	fmt.Fprintf(&b, "\n%d of %s; can lose %d more\n", len(r.Members), plural(r.Size, "wanted member"), r.Losses)
	if len(r.Clients) > 0 {
		rows = nil
		for _, c := range r.Clients {
			state := p.paint(red, "DOWN")
			if c.Alive {
				state = p.paint(green, "ok")
			}
			rows = append(rows, table.Row{c.Node, c.Address, state})
		}
		b.WriteString("\n" + columns(table.Row{"CLIENT", "ADDRESS", "STATE"}, rows))
	}
	fmt.Fprintf(&b, "\ncertificate of %s until %s, authority until %s, %s\n", r.Node,
		r.CertificateEnds.Format(time.DateOnly),
		r.AuthorityEnds.Format(time.DateOnly), plural(int(r.Tokens), "token"))
	for _, reason := range clusterReasons(r, p.now) {
		b.WriteString(p.paint(yellow, "! ") + reason + "\n")
	}
	return b.String()
}

func (p painter) memberState(s string) string {
	colours := map[string]string{"leader": green, "follower": green, "learner": yellow, "starting": yellow, "DOWN": red}
	return p.paint(colours[s], s)
}
