package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestTableShowsRatioSpreadTargetAndMargin(t *testing.T) {
	ratio, err := ratioResult("UDP", sample{8, 9, 9, 12}, sample{10, 10, 12, 12}, "µs", .9)
	if err != nil {
		t.Fatal(err)
	}
	got := markdown([]Result{
		ratio,
		percentileResult("Join", sample{1.5, 2, 22.25}, 99, "ms", 10),
		{What: "TCP", Value: 1.004, Spread: "p25–p75 0.9–1.1", Detail: "for information"},
	})
	want := strings.Join([]string{
		"| measured | result | spread | target | margin | behind it |",
		"|---|---|---|---|---|---|",
		"| UDP | **0.850** | p25–p75 0.750–0.900 | ≤ 0.900 | 5 % | 9.00 µs against 11.0 µs, 4 rounds |",
		"| Join, p99 | **22.2 ms** | p50 2.00 ms, max 22.2 ms | ≤ 10.0 ms | **missed by 123 %** | 3 measured |",
		"| TCP | **1.00** | p25–p75 0.9–1.1 | – | – | for information |",
		"",
	}, "\n")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("table differs (-want +got):\n%s", diff)
	}
}

func TestMarginIsNeverRoundedIntoTheTarget(t *testing.T) {
	for value, want := range map[float64]string{.9: "0 %", .8999: "0 %", .9001: "**missed by 1 %**", .45: "50 %"} {
		if got := (Result{Value: value, Target: .9}).margin(); got != want {
			t.Errorf("margin of %g = %s, want %s", value, got, want)
		}
	}
}

func TestSpliceReplacesOnlyTheTable(t *testing.T) {
	tableBegins, tableEnds := marks("volumes")
	document := "# Title\n\n" + tableBegins + "\nold\n" + tableEnds + "\n\nmore\n"
	got, err := splice([]byte(document), "volumes", "new\n")
	want := "# Title\n\n" + tableBegins + "\nnew\n" + tableEnds + "\n\nmore\n"
	if diff := cmp.Diff(want, string(got)); diff != "" || err != nil {
		t.Fatalf("%v, document differs (-want +got):\n%s", err, diff)
	}
	again, err := splice(got, "volumes", "new\n")
	if diff := cmp.Diff(want, string(again)); diff != "" || err != nil {
		t.Fatalf("%v, writing twice differs (-want +got):\n%s", err, diff)
	}
}

func TestSpliceRefusesADocumentWithoutMarks(t *testing.T) {
	begins, ends := marks("")
	for _, document := range []string{"", begins, ends + begins} {
		if _, err := splice([]byte(document), "volumes", "new\n"); err == nil {
			t.Errorf("no error for %q", document)
		}
	}
}
