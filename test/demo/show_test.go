package main

import (
	"bytes"
	"context"
	"errors"
	"os/exec"
	"strings"
	"testing"
)

// What the demo prints can be copied into a shell.
func TestPrintedArgumentsMeanTheSameToAShell(t *testing.T) {
	args := []string{"", "plain", "network=my-net", "{{.Name}}", "it's", `a "b" $c`, "a\nb", "*", "#", "~", "é"}
	for _, arg := range args {
		out, err := exec.Command("sh", "-c", "printf %s "+quote(arg)).Output()
		if err != nil || string(out) != arg {
			t.Errorf("quote(%q) = %s means %q to sh (%v)", arg, quote(arg), out, err)
		}
	}
}

func TestFailedStepIsNamedAndEndsTheDemo(t *testing.T) {
	var out bytes.Buffer
	var ran []string
	broken := errors.New("broken")
	part := func(name string, err error) step {
		return step{name, func(context.Context) error {
			ran = append(ran, name)
			return err
		}}
	}
	s := &show{out: &out}
	err := s.run(t.Context(), []step{part("one", nil), part("two", broken), part("three", nil)})
	if !errors.Is(err, broken) || !strings.Contains(err.Error(), `step 2, "two"`) {
		t.Errorf("error: %v", err)
	}
	if got := strings.Join(ran, " "); got != "one two" {
		t.Errorf("ran %s, want one two", got)
	}
	if strings.Contains(out.String(), "\x1b") {
		t.Errorf("colours without a terminal: %q", out.String())
	}
}
