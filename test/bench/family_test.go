package main

import (
	"os/exec"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestAProcessIsReadWhateverItsName(t *testing.T) {
	const stat = "42 (a) (b c) S 7 42 42 0 -1 4194560 1 2 3 4 10 20 300 400 20 0 1 0 5 6 7"
	pid, p, err := parseProcess(stat)
	if diff := cmp.Diff(process{parent: 7, own: 30, ended: 700}, p, cmp.AllowUnexported(process{})); diff != "" || pid != 42 || err != nil {
		t.Errorf("process %d, error %v (-want +got):\n%s", pid, err, diff)
	}
	for _, bad := range []string{"", "42", "x (a) S 7", "42 (a) S 7 42", "42 (a) S x 42 42 0 -1 4194560 1 2 3 4 10 20 300 400 20"} {
		if _, _, err := parseProcess(bad); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}

func TestAFamilyIsAllDescendants(t *testing.T) {
	all := map[int]process{
		1: {0, 1000, 1000}, 10: {1, 500, 7}, // the root's own time is not its family's
		11: {10, 1, 2}, 12: {11, 10, 20}, 13: {12, 100, 200},
		20: {1, 5000, 5000}, 21: {20, 5000, 5000}, 22: {23, 9, 9}, 23: {22, 9, 9},
	}
	if got := family(all, 10, nil); got != 340 {
		t.Errorf("got %d ticks, want 7+3+30+300", got)
	}
	if got := family(all, 10, []int{12}); got != 310 { // not what it started
		t.Errorf("without 12: got %d ticks, want 7+3+300", got)
	}
}

func TestTheTimeOfWhatThisProcessStartedIsCounted(t *testing.T) {
	before, err := familyTime()
	if err != nil {
		t.Fatal(err)
	}
	if err := exec.Command("sh", "-c", "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done").Run(); err != nil {
		t.Fatal(err)
	}
	after, err := familyTime()
	if err != nil || after <= before {
		t.Errorf("%d ticks before and %d after, error %v", before, after, err)
	}
}
