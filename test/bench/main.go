// Command bench measures what netdriver promises, side by side with the alternative wherever there is one, and
// prints one table. docs/benchmarks.md says what is measured and how to read it.
//
// A figure that misses its target does not fail the command: machines differ. A measurement that is broken does.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A benchmark gives one or more results.
type benchmark struct {
	name string
	run  func(context.Context, *bench) ([]Result, error)
}

// tables are the benchmarks of each table in the document.
func tables() map[string][]benchmark {
	return map[string][]benchmark{"": benchmarks(), "volumes": volumeBenchmarks(), "encryption": encryptionBenchmarks()}
}

func benchmarks() []benchmark {
	return []benchmark{
		{"datapath", dataPath},
		{"guard", guarding},
		{"program", programming},
		{"services", servicesProgrammed},
		{"balance", balancing},
		{"ipvs", againstIPVS},
		{"attach", attaching},
		{"bridge", attachingToBridges},
		{"propagate", propagating},
		{"memory", memory},
		{"replicas", replicating},
	}
}

// bench is what the benchmarks are given.
type bench struct {
	// dir is for files, the daemons' data among them; it is removed at the end, unless something could not be measured.
	dir string
	// binary is the netdriver program, an absolute path.
	binary string
	// rounds is how often things are measured in turns.
	rounds int
	// progress is where it is said what is going on.
	progress io.Writer
}

// options are the command line.
type options struct {
	run    string
	rounds int
	write  bool
	json   bool
	binary string
	doc    string
	table  string
}

func main() {
	var o options
	flag.StringVar(&o.run, "run", ".", "run the benchmarks whose name matches this regular expression")
	flag.IntVar(&o.rounds, "rounds", 15, "how many rounds of measuring in turns; more make the figures steadier")
	flag.BoolVar(&o.write, "write", false, "put the table into the document")
	flag.BoolVar(&o.json, "json", false, "print the results as JSON on the standard output, all else on the other")
	flag.StringVar(&o.binary, "binary", "bin/netdriver", "the netdriver program, built by make build")
	flag.StringVar(&o.doc, "doc", "docs/benchmarks.md", "the document for -write")
	flag.StringVar(&o.table, "table", "", "which table of benchmarks: volumes, encryption, or empty for networks")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	run := func() error { return start(ctx, o) }
	if step := os.Getenv(backupStep); step != "" {
		run = func() error { return doStep(ctx, strings.Split(step, "\n")) }
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1)
	}
}

// apart is set in the environment of the process that measures.
const apart = "NETDRIVER_BENCH_APART=1"

// start runs the benchmarks in a child process with mounts and a network of its own, so that nothing on this machine is
// touched and the kernel cleans up, however the benchmarks end.
func start(ctx context.Context, o options) error {
	if os.Getenv("NETDRIVER_BENCH_APART") != "" {
		return measure(ctx, o)
	}
	if os.Geteuid() != 0 {
		return errors.New("network namespaces need root")
	}
	runtime.LockOSThread() // Pdeathsig comes when the thread that started the child ends
	cmd := exec.CommandContext(ctx, "/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), apart)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.Exited() {
		return errors.New("not everything could be measured, see above")
	}
	return err
}

// measure runs the chosen benchmarks one after the other and prints the table.
func measure(ctx context.Context, o options) (err error) {
	chosen, err := regexp.Compile(o.run)
	if err != nil {
		return fmt.Errorf("-run: %w", err)
	}
	b := &bench{rounds: max(o.rounds, 2), progress: os.Stdout}
	if o.json {
		b.progress = os.Stderr
	}
	if b.binary, err = filepath.Abs(o.binary); err != nil {
		return err
	}
	// On a disk, as a host's data directory is: the embedded etcd waits for it at each transaction. /tmp may be in memory.
	if b.dir, err = os.MkdirTemp("/var/tmp", "netdriver-bench-"); err != nil {
		return err
	}
	defer func() {
		if err == nil {
			err = os.RemoveAll(b.dir)
		}
	}()
	results, err := runAll(ctx, b, o.table, chosen)
	if o.json {
		return errors.Join(err, json.NewEncoder(os.Stdout).Encode(results))
	}
	table := markdown(results)
	fmt.Println("\n" + table)
	if err != nil || !o.write {
		return err
	}
	return write(o.doc, o.table, table)
}

// runAll runs the benchmarks whose names match. One that fails does not keep the others from being run.
func runAll(ctx context.Context, b *bench, table string, chosen *regexp.Regexp) ([]Result, error) {
	var results []Result
	var errs []error
	matched := false
	for _, m := range tables()[table] {
		if !chosen.MatchString(m.name) || ctx.Err() != nil {
			continue
		}
		matched = true
		load, err := busy(time.Second)
		if err != nil {
			return results, err
		}
		began := time.Now()
		got, err := m.run(ctx, b)
		took := time.Since(began).Round(time.Second)
		fmt.Fprintf(b.progress, "%s, %s, CPUs %.0f %% busy with other things before\n", m.name, took, load*100)
		for _, r := range got {
			fmt.Fprintln(b.progress, "  ", r)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", m.name, err))
			fmt.Fprintln(b.progress, "  ", err)
		}
		results = append(results, got...)
	}
	if !matched {
		errs = append(errs, fmt.Errorf("no benchmark matches -run %s", chosen))
	}
	return results, errors.Join(append(errs, ctx.Err())...)
}

// write puts the table into the document.
func write(name, which, table string) error {
	old, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	document, err := splice(old, which, table)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return os.WriteFile(name, document, 0o644)
}
