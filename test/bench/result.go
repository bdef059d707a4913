package main

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"strings"
)

// A Result is one line of the table. Smaller is better in all of them.
type Result struct {
	// What was measured, and against what.
	What string
	// Value is the measured figure in Unit; a ratio has no unit.
	Value float64
	Unit  string
	// Spread says how much the figure varied, in words, for example "p25–p75 .84–.87".
	Spread string
	// Target is the largest Value that is good, in Unit; 0 for a figure that is shown for information only.
	Target float64
	// Detail has the absolute figures behind a ratio and how many were measured.
	Detail string
}

// ratioResult makes the result of two samples that were measured in turns, in unit. The ratio is ours ÷ theirs.
func ratioResult(what string, ours, theirs sample, unit string, target float64) (Result, error) {
	pairs, err := ratios(ours, theirs)
	if err != nil {
		return Result{}, fmt.Errorf("%s: %w", what, err)
	}
	return Result{
		What:   what,
		Value:  pairs.median(),
		Spread: fmt.Sprintf("p25–p75 %s–%s", figure(pairs.percentile(25), ""), figure(pairs.percentile(75), "")),
		Target: target,
		Detail: fmt.Sprintf("%s against %s, %d rounds",
			figure(ours.median(), unit), figure(theirs.median(), unit), len(pairs)),
	}, nil
}

// percentileResult makes the result of a percentile of one sample, in unit.
func percentileResult(what string, s sample, p float64, unit string, target float64) Result {
	return Result{
		What:   fmt.Sprintf("%s, p%g", what, p),
		Value:  s.percentile(p),
		Unit:   unit,
		Spread: fmt.Sprintf("p50 %s, max %s", figure(s.median(), unit), figure(s.percentile(100), unit)),
		Target: target,
		Detail: fmt.Sprintf("%d measured", len(s)),
	}
}

// margin says how far the value is below the target, as a part of it.
func (r Result) margin() string {
	switch m := (r.Target - r.Value) / r.Target * 100; {
	case r.Target == 0:
		return "–"
	case m < 0:
		return fmt.Sprintf("**missed by %.0f %%**", math.Ceil(-m))
	default:
		return fmt.Sprintf("%.0f %%", math.Floor(m))
	}
}

func (r Result) target() string {
	if r.Target == 0 {
		return "–"
	}
	return "≤ " + figure(r.Target, r.Unit)
}

func (r Result) String() string {
	return fmt.Sprintf("%s: %s (%s; target %s, margin %s; %s)",
		r.What, figure(r.Value, r.Unit), r.Spread, r.target(), r.margin(), r.Detail)
}

// figure prints a value with about three significant digits, and its unit.
func figure(v float64, unit string) string {
	digits := 3
	if a := math.Abs(v); a >= 1 {
		digits = max(0, 2-int(math.Log10(a)))
	}
	s := fmt.Sprintf("%.*f", digits, v)
	if unit != "" {
		s += " " + unit
	}
	return s
}

// markdown returns the results as a table.
func markdown(results []Result) string {
	var b strings.Builder
	b.WriteString("| measured | result | spread | target | margin | behind it |\n|---|---|---|---|---|---|\n")
	for _, r := range results {
		fmt.Fprintf(&b, "| %s | **%s** | %s | %s | %s | %s |\n",
			r.What, figure(r.Value, r.Unit), r.Spread, r.target(), r.margin(), r.Detail)
	}
	return b.String()
}

// marks are the lines between which a table stands in the document.
func marks(table string) (begin, end string) {
	if table != "" {
		table += " "
	}
	return "<!-- bench: " + table + "begin -->", "<!-- bench: " + table + "end -->"
}

// splice puts a table between its marks in a document and returns the document.
func splice(document []byte, which, table string) ([]byte, error) {
	begin, end := marks(which)
	head, rest, found := bytes.Cut(document, []byte(begin))
	_, tail, ends := bytes.Cut(rest, []byte(end))
	if !found || !ends {
		return nil, errors.New("the document needs a line " + begin + " and after it a line " + end)
	}
	return bytes.Join([][]byte{head, []byte(begin + "\n" + table + end), tail}, nil), nil
}
