package main

import (
	"bytes"
	"context"
	"os"
	"strings"
	"testing"
	"time"
)

// watched runs a command line until it has written a text so many times, or its time is over.
func watched(t *testing.T, text string, times int, args ...string) (code int, out string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	w := &counting{text: text, times: times, enough: cancel}
	code = app{out: w, err: &bytes.Buffer{}}.execute(ctx, args)
	return code, w.all.String()
}

type counting struct {
	text   string
	times  int
	all    bytes.Buffer
	enough func()
}

func (c *counting) Write(b []byte) (int, error) {
	n, err := c.all.Write(b)
	if strings.Count(c.all.String(), c.text) >= c.times {
		c.enough()
	}
	return n, err
}

func TestWatchLooksAgainUntilItIsEndedAndEndsWithTheLastVerdict(t *testing.T) {
	dir := startReports(t, all())
	code, out := watched(t, "DEGRADED", 4, "inspect", "degraded", "--watch=500ms", "--run-dir", dir)
	if code != exitDegraded || strings.Count(out, "SEEN BY") < 2 || strings.Contains(out, "\x1b") {
		t.Errorf("status %d, output %q", code, out)
	}
	// What cannot be told now may be told at the next look.
	code, out = watched(t, "no such network", 2, "inspect", "nothing", "--watch=500ms", "--run-dir", dir)
	if code != exitUnknown || strings.Count(out, "no such network") != 2 {
		t.Errorf("status %d, output %q", code, out)
	}
	if code, _, errs := execute(t, nil, "inspect", "--watch=1ms", "--run-dir", dir); code != exitUnknown || !strings.Contains(errs, "500ms or more") {
		t.Errorf("too often: status %d, errors %q", code, errs)
	}
}

func TestAReportIsWrittenOverTheOneBefore(t *testing.T) {
	var b bytes.Buffer
	s := &screen{Writer: &b, over: true}
	if n, err := s.Write([]byte("a\nb\n")); n != 4 || err != nil {
		t.Errorf("%d bytes, %v", n, err)
	}
	if got, want := b.String(), "\x1b[Ha\x1b[K\nb\x1b[K\n\x1b[J"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	pty, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer pty.Close()
	if terminal(&screen{Writer: &b}) || !terminal(&screen{Writer: pty}) {
		t.Error("a screen is a terminal if what is below it is one")
	}
}
