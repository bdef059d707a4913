package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/netdriver/netdriver/diag"
	"github.com/netdriver/netdriver/internal/control"
)

// reports is a daemon that knows these networks.
type reports map[string]diag.NetworkReport

func (r reports) Network(_ context.Context, name string) (diag.NetworkReport, error) {
	if n, ok := r[name]; ok {
		return n, nil
	}
	return diag.NetworkReport{}, fmt.Errorf("%w %q: the cluster has others", diag.ErrNoNetwork, name)
}

func (r reports) Networks(context.Context) (diag.NetworksReport, error) {
	out := diag.NetworksReport{Schema: diag.Schema}
	for _, n := range r {
		out.Networks = append(out.Networks, n)
	}
	return out, nil
}

func (reports) Nodes(context.Context) (diag.NodesReport, error) {
	return diag.NodesReport{Schema: diag.Schema, Nodes: []diag.Node{{Name: "node1", State: diag.StateLocal}}}, nil
}

func (reports) Check(_ context.Context, peer string) (diag.CheckReport, error) {
	return diag.CheckReport{Schema: diag.CheckSchema, Node: "node1", Verdict: diag.Degraded, Findings: []diag.Finding{
		{Check: "peers", Severity: diag.Degraded, Place: peer, Cause: "c", Evidence: []string{"e"}, Remedy: "r"},
	}, Checks: []diag.CheckRow{{Name: "peers", Looks: "frames", Verdict: diag.Degraded}}}, nil
}

func (reports) Trace(_ context.Context, a diag.Ask) (diag.Trace, error) {
	if a.Source == "" {
		return diag.Trace{}, diag.ErrNoSource
	}
	return diag.Trace{Schema: diag.TraceSchema, Verdict: diag.Failed, Network: a.Network, Source: diag.Party{Name: a.Source},
		Destination: diag.Party{Name: a.Destination}}, nil
}

func (reports) Diff(_ context.Context, network string) (diag.DiffReport, error) {
	return diag.DiffReport{Schema: diag.DiffSchema, Node: "node1", Networks: []diag.NetworkDiff{
		{Network: network, Commands: []string{"ip link set ndb1 up"}},
	}}, nil
}

func (r reports) Traffic(context.Context, string) (diag.Traffic, error) { return diag.Traffic{}, nil }

func (reports) Health(context.Context) diag.Health { return diag.Health{} }

// startReports serves reports as a daemon does, and returns its run directory.
func startReports(t *testing.T, r reports) string {
	t.Helper()
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- control.NewServer(r, slog.New(slog.DiscardHandler)).Serve(ctx, control.SocketPath(dir))
	}()
	t.Cleanup(func() { cancel(); <-done })
	client := control.NewClient(control.SocketPath(dir))
	for range 1000 {
		if _, err := client.Health(t.Context()); err == nil {
			return dir
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatal("the socket is not served")
	return ""
}

// execute runs a command line.
func execute(t *testing.T, environ []string, args ...string) (code int, out, errs string) {
	t.Helper()
	var o, e bytes.Buffer
	code = app{environ: environ, out: &o, err: &e}.execute(t.Context(), args)
	return code, o.String(), e.String()
}

func all() reports {
	return reports{"healthy": healthy(), "degraded": degraded(), "failed": failed(), "unknown": unknown()}
}

func TestTheExitStatusOfInspectIsTheVerdict(t *testing.T) {
	dir := startReports(t, all())
	for name, want := range map[string]int{"healthy": 0, "degraded": 1, "failed": 2, "unknown": 3} {
		code, out, errs := execute(t, nil, "inspect", name, "--run-dir", dir)
		if code != want || !strings.Contains(out, strings.ToUpper(name)) || errs != "" {
			t.Errorf("%s: status %d, want %d; output %.60q, errors %q", name, code, want, out, errs)
		}
	}
	if code, _, _ := execute(t, nil, "inspect", "--run-dir", dir); code != 2 {
		t.Errorf("all together: status %d, want 2", code)
	}
	if code, _, _ := execute(t, nil, "networks", "--run-dir", dir); code != 0 {
		t.Errorf("networks: status %d, want 0 since it does not judge", code)
	}
}

func TestTheWorstVerdictOfAllNetworksCounts(t *testing.T) {
	for want, rs := range map[int][]diag.NetworkReport{
		0: {healthy()}, 1: {healthy(), degraded()}, 2: {failed(), unknown()}, 3: {unknown(), degraded()},
	} {
		if got := worst(diag.NetworksReport{Networks: rs}); got != want {
			t.Errorf("status %d, want %d", got, want)
		}
	}
	if worst(diag.NetworksReport{}) != 0 {
		t.Error("no network is not healthy")
	}
}

func TestWhatCannotBeAskedIsStatus3WithTheReason(t *testing.T) {
	dir := startReports(t, all())
	for _, c := range []struct {
		want string
		args []string
	}{
		{"start it with `netdriver run`", []string{"inspect", "my-net", "--run-dir", t.TempDir()}},
		{"start it with `netdriver run`", []string{"nodes", "--run-dir", t.TempDir()}},
		{`no such network "web"`, []string{"inspect", "web", "--run-dir", dir}},
		{"text or json", []string{"inspect", "-o", "yaml", "--run-dir", dir}},
		{"absolute", []string{"inspect", "--run-dir", "x"}},
		{"at most 1 arg", []string{"inspect", "a", "b"}},
		{"unknown flag", []string{"inspect", "--wrong"}},
	} {
		code, out, errs := execute(t, nil, c.args...)
		if code != 3 || out != "" || !strings.Contains(errs, c.want) {
			t.Errorf("%v: status %d, output %q, errors %q; want 3 and %q", c.args, code, out, errs, c.want)
		}
	}
}

func TestTheRunDirectoryComesFromTheEnvironmentToo(t *testing.T) {
	dir := startReports(t, all())
	if code, out, errs := execute(t, []string{"NETDRIVER_RUN_DIR=" + dir}, "nodes"); code != 0 ||
		!strings.Contains(out, "node1") {
		t.Errorf("status %d, output %q, errors %q", code, out, errs)
	}
}

func TestJSONIsTheReport(t *testing.T) {
	dir := startReports(t, all())
	_, out, _ := execute(t, nil, "inspect", "degraded", "-o", "json", "--run-dir", dir)
	var r diag.NetworkReport
	if err := json.Unmarshal([]byte(out), &r); err != nil || r.Schema != diag.Schema || r.Verdict != diag.Degraded {
		t.Errorf("report %+v, error %v", r, err)
	}
}

func TestNetworkNamesAreCompleted(t *testing.T) {
	dir := startReports(t, reports{"healthy": healthy()})
	if _, out, _ := execute(t, []string{"NETDRIVER_RUN_DIR=" + dir}, "__complete", "inspect", ""); !strings.HasPrefix(
		out,
		"my-net\n",
	) {
		t.Errorf("completion %q", out)
	}
}

func TestAMistakeInTheSettingsEndsTheDaemonBeforeItDoesAnything(t *testing.T) {
	dir := t.TempDir() + "/run"
	code, _, errs := execute(t, nil, "run", "--run-dir", dir, "--vxlan-port", "0")
	if code != 1 || !strings.Contains(errs, "1..65535") {
		t.Errorf("status %d, errors %q", code, errs)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Error("it made its run directory")
	}
}

func TestTheVersionIsPrinted(t *testing.T) {
	if code, out, _ := execute(t, nil, "version"); code != 0 || !strings.HasPrefix(out, "netdriver ") {
		t.Errorf("status %d, output %q", code, out)
	}
}

func TestColourNeedsATerminalThatWantsIt(t *testing.T) {
	if (app{out: &bytes.Buffer{}}).coloured() {
		t.Error("colour without a terminal")
	}
	pty, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer pty.Close()
	wants := map[string]bool{"TERM=xterm": true, "TERM=dumb": false, "NO_COLOR=1": false, "NO_COLOR=": true}
	for env, want := range wants {
		if got := (app{environ: []string{env}, out: pty}).coloured(); got != want {
			t.Errorf("%s: colour %v, want %v", env, got, want)
		}
	}
}
