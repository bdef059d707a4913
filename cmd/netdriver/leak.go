package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"github.com/netdriver/netdriver/internal/control"
	"github.com/netdriver/netdriver/ipam"
	"github.com/netdriver/netdriver/store"
)

// LeakSchema names the version of the JSON of `netdriver ipam check`.
const leakSchema = "netdriver.ipam/v1"

// leakReport is what the daemon answers.
type leakReport struct {
	Schema string      `json:"schema"`
	Leaks  []ipam.Leak `json:"leaks"`
	// Freed are those that were freed, with --reclaim.
	Freed []ipam.Leak `json:"freed,omitempty"`
}

// leakRequest asks for it.
type leakRequest struct {
	Seconds float64 `json:"seconds"` // how old a leak has to be
	Reclaim bool    `json:"reclaim"`
}

const leakLong = `List the addresses that are leased and that no container, task or service has, in all networks of the cluster. They are
left when a daemon dies between two calls of Docker's, or is away when Docker releases an address, which it never repeats.
Each node's daemon frees its own after a minute; what stays is listed here. With --reclaim it is freed: only what has not
changed since it was read.

Exit status: 0 none, 1 there are (or were, with --reclaim), 3 could not tell.`

func (a app) ipam() *cobra.Command {
	root := group(&cobra.Command{Use: "ipam", Short: "Look after addresses"})
	cmd := &cobra.Command{Use: "check", Short: "List addresses that nothing has, and free them", Long: leakLong, Args: cobra.NoArgs}
	reclaim := cmd.Flags().Bool("reclaim", false, "free them")
	older := cmd.Flags().Duration("older", 10*time.Minute, "how old they have to be, a `duration`; a container that starts needs some time")
	cmd.RunE = a.ask(cmd, func(ctx context.Context, c *control.Client, _ []string) (answer, error) {
		var r leakReport
		if err := c.Change(ctx, "/v1/ipam/check", leakRequest{older.Seconds(), *reclaim}, &r); err != nil {
			return answer{}, err
		}
		code := exitHealthy
		if len(r.Leaks) > 0 {
			code = exitDegraded
		}
		return answer{r, func(painter) string { return r.text() }, code}, nil
	})
	root.AddCommand(cmd)
	return root
}

func (r leakReport) text() string {
	if len(r.Leaks) == 0 {
		return "no address is leased without an owner\n"
	}
	freed := map[string]bool{}
	for _, l := range r.Freed {
		freed[l.Address.String()] = true
	}
	var rows []table.Row
	for _, l := range r.Leaks {
		state := "leaked"
		if freed[l.Address.String()] {
			state = "freed"
		}
		rows = append(rows, table.Row{l.Address, l.Subnet, known(l.Node), l.Created.Format(time.RFC3339), state, l.Why})
	}
	var b strings.Builder
	b.WriteString(columns(table.Row{"ADDRESS", "SUBNET", "NODE", "SINCE", "STATE", "WHY"}, rows))
	if len(r.Freed) == 0 {
		b.WriteString("\nfree them: netdriver ipam check --reclaim\n")
	}
	return b.String()
}

// handleLeaks answers POST /v1/ipam/check.
func handleLeaks(s store.Store) http.Handler {
	return changed(func(ctx context.Context, req *http.Request) (leakReport, error) {
		r := leakReport{Schema: leakSchema, Leaks: []ipam.Leak{}}
		var q leakRequest
		if err := json.NewDecoder(req.Body).Decode(&q); err != nil {
			return r, fmt.Errorf("malformed request: %w", err)
		}
		leaks, err := ipam.Leaks(ctx, s, time.Now().Add(-time.Duration(q.Seconds*float64(time.Second))))
		r.Leaks = append(r.Leaks, leaks...)
		if err == nil && q.Reclaim {
			r.Freed, err = ipam.Free(ctx, s, leaks)
		}
		return r, err
	})
}

// changed makes a handler for the local socket of what changes something.
func changed[A any](f func(context.Context, *http.Request) (A, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		ctx, cancel := context.WithTimeout(req.Context(), changeDaemon)
		defer cancel()
		a, err := f(ctx, req)
		w.Header().Set("Content-Type", "application/json")
		if err != nil {
			w.WriteHeader(http.StatusInternalServerError)
			_ = json.NewEncoder(w).Encode(map[string]string{"error": err.Error()}) // who asked has gone
			return
		}
		_ = json.NewEncoder(w).Encode(a) // who asked has gone
	})
}
