//go:build e2e

package faults

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/netdriver/netdriver/diag"
)

// healthyRuns is how often all is asked; `make healthy` asks a hundred times.
func healthyRuns(t *testing.T) int {
	t.Helper()
	text := os.Getenv("HEALTHY_RUNS")
	if text == "" {
		return 50
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("HEALTHY_RUNS=%q: want a number of runs", text)
	}
	return n
}

// While containers send what they can, a daemon is restarted again and again and a service updated task by task, no verb
// says that anything is wrong.
func TestHealthyNetworksRaiseNoAlarm(t *testing.T) {
	w := useWorld(t)
	n1, n2 := w.Nodes[0], w.Nodes[1]
	ctx, cancel := context.WithCancel(t.Context())
	var busy sync.WaitGroup
	defer busy.Wait()
	defer cancel()
	flood := w.flood(n1, "lan-n1", w.addressOf(n2, "lan-n2"), 5*time.Millisecond)
	defer flood()
	restarts, updates, late := 0, 0, 0
	var away atomic.Int64 // until when the restarted daemon is or was away
	every := func(pause time.Duration, do func() error) {
		busy.Go(func() {
			for ctx.Err() == nil {
				if err := do(); err != nil && ctx.Err() == nil {
					t.Error(err)
				}
				select {
				case <-ctx.Done():
				case <-time.After(pause):
				}
			}
		})
	}
	every(3*time.Second, func() error {
		restarts++
		away.Store(time.Now().Add(time.Hour).UnixNano())
		err := n2.StopDaemon()
		if err == nil {
			err = n2.StartDaemon(context.WithoutCancel(ctx), w.daemonConfig(n2))
		}
		away.Store(time.Now().UnixNano())
		return err
	})
	every(3*time.Second, func() error {
		updates++
		_, err := n1.Docker(context.WithoutCancel(ctx), "service", "update", "--detach=false", "--quiet", "--no-resolve-image", "--force", "--update-order", "start-first", "api")
		return err
	})
	questions := [][]string{{"inspect"}, {"check"}, {"trace", "narrow-n1", "narrow-n2"}, {"trace", "lan-n1", "lan-n2"}, {"trace", "client", "api"}}
	begin, runs := time.Now(), healthyRuns(t)
	for i := range runs {
		q := questions[i%len(questions)]
		asked := time.Now().Add(-3 * time.Second) // it reads the records and tells
		for _, alarm := range w.alarms(q) {
			// A busy machine takes longer to start it than netdriver waits: then this is true.
			if away.Load() > asked.UnixNano() && slices.ContainsFunc(ofDaemon(n2.Name), func(words string) bool { return strings.Contains(alarm, words) }) {
				late++
				continue
			}
			t.Errorf("run %d after %s: netdriver %v: %s", i, time.Since(begin).Round(time.Millisecond), q, alarm)
		}
	}
	t.Logf("%d runs, %d restarts of a daemon, %d rolling updates, %d times it was still away, %s",
		runs, restarts, updates, late, time.Since(begin))
}

// ofDaemon are the words that say that a node's daemon is away or has just come back.
func ofDaemon(node string) []string {
	return []string{"the daemon of " + node, node + " is not connected", node + " has applied revision", node + " cannot be asked"}
}

// alarms are what a verb complains of.
func (w *world) alarms(q []string) (out []string) {
	w.t.Helper()
	var r struct {
		Verdict  diag.Verdict
		Findings []diag.Finding
		Reasons  []diag.Reason
		Networks []struct {
			Network string
			Verdict diag.Verdict
			Reasons []diag.Reason
		}
	}
	text, _ := w.Nodes[0].Exec(w.t.Context(), append(append([]string{"netdriver"}, q...), "-o", "json")...)
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		return []string{fmt.Sprintf("%v: %q", err, text)}
	}
	for _, f := range r.Findings {
		out = append(out, fmt.Sprintf("%s: %s at %s (%q)", f.Severity, f.Cause, f.Place, f.Evidence))
	}
	for _, n := range r.Networks {
		for _, x := range n.Reasons {
			out = append(out, fmt.Sprintf("network %s: %s: %s at %s", n.Network, x.Verdict, x.Cause, x.Place))
		}
	}
	return out
}
