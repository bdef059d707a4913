package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/netdriver/netdriver/diag"
)

func TestTheDocumentListsEverySchemaAndNoOther(t *testing.T) {
	text, err := os.ReadFile("../../docs/json.md")
	if err != nil {
		t.Fatal(err)
	}
	var made, told []string
	constant := regexp.MustCompile(`= "(netdriver\.[a-z]+/v[0-9]+)"`)
	err = filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		source, err := os.ReadFile(path)
		for _, m := range constant.FindAllSubmatch(source, -1) {
			made = append(made, string(m[1]))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile("(?m)^\\| `(netdriver\\.[a-z]+/v[0-9]+)` \\|.*\\| (below|\\[.*\\]\\((.*)\\)) \\|$").FindAllStringSubmatch(string(text), -1) {
		told = append(told, m[1])
		if m[3] != "" {
			if _, err := os.Stat("../../docs/" + m[3]); err != nil {
				t.Error(err)
			}
		}
	}
	slices.Sort(made)
	slices.Sort(told)
	if !slices.Equal(made, told) || len(made) < 10 {
		t.Errorf("docs/json.md lists %v, the program makes %v", told, made)
	}
}

// Monitoring takes the exit status of each verb that judges.
func TestTheExitStatusOfEveryVerbThatJudgesIsItsVerdict(t *testing.T) {
	dir := startReports(t, all())
	for _, c := range []struct {
		words string
		want  int
	}{
		{"inspect healthy", 0}, {"inspect degraded", 1}, {"inspect failed", 2}, {"inspect unknown", 3}, {"inspect none", 3},
		{"check", 1}, {"check too many", 3}, {"check --wrong", 3},
		{"trace a b", 2}, {"trace a", 3}, {"trace a b --wrong", 3}, {"trace a b -o xml", 3},
		{"diff web", 1}, {"diff a b", 3}, {"diff --wrong", 3},
		{"ipam check", 3}, {"ipam check --wrong", 3}, // this daemon does not look after addresses
		{"capture none", 3}, {"capture", 3}, {"capture --wrong", 3}, {"prove none", 3}, {"prove", 3},
		{"networks", 0}, {"nodes", 0}, {"networks -o xml", 3}, {"nodes -o xml", 3}, {"volumes", 3}, {"volumes x", 3},
		{"version", 0}, {"version x", 1}, {"bundle a b", 1}, {"man", 1}, {"no-such-verb", 1}, {"volume no-such-verb", 1}, {"cluster no-such-verb", 1}, {"volume", 0}, {"", 0},
	} {
		words := strings.Fields(c.words)
		environ := []string{"NETDRIVER_RUN_DIR=" + dir}
		code, _, errs := execute(t, environ, words...)
		if code != c.want {
			t.Errorf("%s: status %d, want %d (%s)", c.words, code, c.want, errs)
		}
		if wordless := code == exitUnknown && errs == "" && !strings.Contains(c.words, "unknown"); wordless {
			t.Errorf("%s: status 3 without a reason", c.words)
		}
	}
	for _, v := range []struct {
		verdict diag.Verdict
		want    int
	}{{diag.Healthy, 0}, {diag.Degraded, 1}, {diag.Failed, 2}, {diag.Unknown, 3}, {"of a later version", 3}} {
		if got := exitOf(v.verdict); got != v.want {
			t.Errorf("%s: status %d, want %d", v.verdict, got, v.want)
		}
	}
}
