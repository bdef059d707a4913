//go:build e2e

package faults

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/netdriver/netdriver/diag"
	"github.com/netdriver/netdriver/test/e2e/lab"
)

// fault is one way to break the network between the containers of the first two nodes.
type fault struct {
	name string
	// inject breaks it, repair undoes that.
	inject, repair func(w *world)
	// dead: packets do not get through meanwhile. Else they do, and it is degraded.
	dead bool
	// large: only packets of full size do not.
	large bool
	// verb is asked on a node; trace from the first container to the second, on the first node, if they are not set.
	verb []string
	on   *lab.Node
	// offline is a node whose daemon is stopped: the same has to be found there by the command itself.
	offline *lab.Node
	// also are words of what else is true meanwhile, and may be said.
	also []string
	// symptom waits for the fault instead of dead and large, well for health after the repair.
	symptom func(w *world) error
	well    func(w *world) error
	// says are words of the cause, its place and its remedy, all of which have to be in one finding.
	says []string
}

func TestFaults(t *testing.T) {
	w := newWorld(t)
	w.healthy("at first")
	w.try(w.faults())
}

// try breaks and repairs one thing after the other.
func (w *world) try(all []fault) {
	t := w.t
	for _, f := range all {
		ok := t.Run(f.name, func(t *testing.T) {
			w.t = t
			defer func() { w.t = t }()
			f.inject(w)
			repaired := false
			defer func() {
				if !repaired {
					f.repair(w)
					w.recovered(f)
				}
			}()
			w.eventually(30*time.Second, func() error { return w.symptom(f) })
			w.demand(f)
			f.repair(w)
			repaired = true
			w.recovered(f)
		})
		w.t = t
		if !ok {
			t.Logf("%s is not as it has to be", f.name)
		}
	}
}

// recovered waits for health.
func (w *world) recovered(f fault) {
	w.t.Helper()
	if f.well == nil {
		w.healthy("after the repair")
		return
	}
	w.eventually(60*time.Second, func() error { return f.well(w) })
}

// symptom waits until the fault is there.
func (w *world) symptom(f fault) error {
	if f.symptom != nil {
		return f.symptom(w)
	}
	a, b := w.Nodes[0], w.Nodes[1]
	small, large := w.ping(a, b), w.ping(a, b, "-s", "1400")
	switch {
	case f.dead && small == nil:
		return fmt.Errorf("%s: packets still get through", f.name)
	case f.large && (small != nil || large == nil):
		return fmt.Errorf("%s: small packets %v, large packets %v", f.name, small, large)
	}
	return nil
}

// demand wants the cause, and no other.
func (w *world) demand(f fault) {
	w.t.Helper()
	verb := f.verb
	if verb == nil {
		verb = []string{"trace", "c-n1", "c-n2"}
	}
	var r struct {
		Verdict  diag.Verdict
		Findings []diag.Finding
		Reasons  []diag.Reason // of inspect
	}
	on := w.Nodes[0]
	for _, n := range []*lab.Node{f.on, f.offline} {
		if n != nil {
			on = n
		}
	}
	const limit, tries = 5 * time.Second, 3 // a busy machine may make one answer late, not three
	took := w.ask(on, &r, verb...)
	for i := 1; took > limit && i < tries; i++ {
		r.Findings, r.Reasons = nil, nil
		took = w.ask(on, &r, verb...)
	}
	for _, x := range r.Reasons {
		r.Findings = append(r.Findings, diag.Finding{Severity: x.Verdict, Place: x.Place, Cause: x.Cause, Remedy: x.Remedy})
	}
	text, _ := json.MarshalIndent(r, "", " ")
	w.t.Logf("netdriver %s took %s", strings.Join(verb, " "), took)
	if r.Verdict == diag.Healthy || r.Verdict == diag.Unknown {
		w.t.Errorf("verdict %s", r.Verdict)
	}
	named := 0
	for _, x := range r.Findings {
		one := strings.Join(append([]string{x.Cause, x.Place, x.Remedy}, x.Evidence...), "\n")
		if missing(one, f.says) == "" {
			named++
		} else if x.Severity == diag.Failed && (f.also == nil || missing(one, f.also) != "") {
			w.t.Errorf("a cause that is not there: %s (%s lacks %q)", x.Cause, one, missing(one, f.says))
		}
		if x.Remedy == "" || x.Place == "" {
			w.t.Errorf("without place or remedy: %+v", x)
		}
	}
	if named == 0 {
		w.t.Errorf("no finding says %q: %s", f.says, text)
	}
	if took > limit {
		w.t.Errorf("netdriver %s took %s, more than %s", strings.Join(verb, " "), took, limit)
	}
}

func missing(text string, words []string) string {
	for _, word := range words {
		if !strings.Contains(text, word) {
			return word
		}
	}
	return ""
}

// healthy demands that nothing is said by any verb on any node.
func (w *world) healthy(when string) {
	w.t.Helper()
	w.eventually(30*time.Second, func() error {
		var n diag.NetworkReport
		if w.ask(w.Nodes[0], &n, "inspect", network); n.Verdict != diag.Healthy {
			return fmt.Errorf("%s: inspect: %+v", when, n.Reasons)
		}
		var c diag.CheckReport
		if w.ask(w.Nodes[2], &c, "check"); c.Verdict != diag.Healthy {
			return fmt.Errorf("%s: check: %+v", when, c.Findings)
		}
		var r diag.Trace
		if w.ask(w.Nodes[0], &r, "trace", "c-n1", "c-n2"); r.Verdict != diag.Healthy || r.PathMTU != r.MTU {
			text, _ := json.Marshal(r)
			return fmt.Errorf("%s: trace: %s", when, text)
		}
		return nil
	})
}
