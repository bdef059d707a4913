package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/netdriver/netdriver/volume/backup"
)

// volumeBenchmarks are those of `make bench-volumes`.
func volumeBenchmarks() []benchmark {
	return []benchmark{{"backup", backups}, {"mount", mounting}}
}

// The volume that is backed up: about 2 GB in 50,000 files, of which a quarter cannot be compressed, as pictures and archives
// cannot, and the rest is words.
const (
	volumeFiles    = 50_000
	volumeMeanSize = 40_000
	largeFile      = 4 << 20 // every thousandth
)

// makeVolume writes that volume.
func makeVolume(dir string) error {
	r := rand.New(rand.NewPCG(1, 2)) // the same one each time
	words := make([]string, 4096)
	for i := range words {
		word := make([]byte, 3+r.IntN(9))
		for j := range word {
			word[j] = byte('a' + r.IntN(26))
		}
		words[i] = string(word) + " "
	}
	var content []byte
	for i := range volumeFiles {
		size := int(volumeMeanSize * (0.1 + 1.8*r.Float64()))
		if i%1000 == 0 {
			size = largeFile
		}
		content = content[:0]
		for len(content) < size {
			if i%4 == 0 {
				content = append(content, byte(r.Uint32()))
			} else {
				content = append(content, words[int(float64(len(words))*r.Float64()*r.Float64())]...)
			}
		}
		name := filepath.Join(dir, fmt.Sprintf("d%03d/e%02d/file-%05d", i/500, i/50%10, i))
		err := os.MkdirAll(filepath.Dir(name), 0o755)
		if err == nil {
			err = os.WriteFile(name, content[:size], 0o640)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// backups measures backups of that volume, and restores, against what an administrator would do without us.
func backups(ctx context.Context, b *bench) ([]Result, error) {
	dir, err := os.MkdirTemp(b.dir, "backup-")
	if err != nil {
		return nil, err
	}
	v := &volumeBench{bench: b, dir: dir, rounds: min(b.rounds, 5)}
	if err := makeVolume(v.path("data")); err != nil {
		return nil, err
	}
	var out []Result
	for _, measure := range []func(context.Context) ([]Result, error){v.full, v.restore, v.incremental} {
		got, err := measure(ctx)
		out = append(out, got...)
		if err != nil {
			return out, err
		}
	}
	return out, os.RemoveAll(dir)
}

type volumeBench struct {
	*bench
	dir    string
	rounds int
	// memory is the most that one of our processes has had, in MB.
	memory float64
}

func (v *volumeBench) path(name string) string { return filepath.Join(v.dir, name) }

// own runs one of our steps in a process of its own.
func (v *volumeBench) own(ctx context.Context, step ...string) (seconds float64, err error) {
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Env = append(os.Environ(), backupStep+"="+strings.Join(step, "\n"))
	cmd.Stderr = os.Stderr
	begin := time.Now()
	err = cmd.Run()
	seconds = time.Since(begin).Seconds()
	if usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		v.memory = max(v.memory, float64(usage.Maxrss)*1024/1e6)
	}
	return seconds, err
}

// shell runs a line of shell in the benchmark's directory.
func (v *volumeBench) shell(ctx context.Context, line string) (seconds float64, err error) {
	cmd := exec.CommandContext(ctx, "bash", "-c", "set -o pipefail; "+line)
	cmd.Dir = v.dir
	cmd.Env = append(os.Environ(), "RESTIC_PASSWORD=bench", "RESTIC_CACHE_DIR="+v.path("cache"))
	begin := time.Now()
	if said, err := cmd.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("%s: %w: %s", line, err, said)
	}
	return time.Since(begin).Seconds(), nil
}

// turns measures two ways in turns. Before each, clean is done.
func (v *volumeBench) turns(
	ctx context.Context, what string, target float64, clean func() error, ours, theirs func() (float64, error),
) (Result, error) {
	var a, b sample
	for i := range v.rounds {
		ways := []struct {
			run  func() (float64, error)
			into *sample
		}{{ours, &a}, {theirs, &b}}
		if i%2 == 1 {
			ways[0], ways[1] = ways[1], ways[0]
		}
		for _, way := range ways {
			if err := errors.Join(clean(), ctx.Err()); err != nil {
				return Result{}, err
			}
			took, err := way.run()
			if err != nil {
				return Result{}, fmt.Errorf("%s: %w", what, err)
			}
			*way.into = append(*way.into, took)
		}
	}
	return ratioResult(what, a, b, "s", target)
}

func (v *volumeBench) full(ctx context.Context) ([]Result, error) {
	ours := func() (float64, error) { return v.own(ctx, "backup", v.path("data"), v.path("ours"), "zstd") }
	theirs := func() (float64, error) { return v.shell(ctx, "tar -S -cf - -C data . | zstd -q -1 -T2 >theirs") }
	clean := func() error { return errors.Join(os.RemoveAll(v.path("ours")), os.RemoveAll(v.path("theirs"))) }
	if _, err := theirs(); err != nil { // both find the files in memory
		return nil, err
	}
	r, err := v.turns(ctx, "backup of 2 GB in 50,000 files, time ÷ that of `tar -S` piped to `zstd -1 -T2`", 1, clean, ours, theirs)
	if err != nil {
		return nil, err
	}
	memory := Result{
		What: "the same, resident memory of the largest process", Value: v.memory, Unit: "MB", Target: 150,
		Spread: "–", Detail: fmt.Sprintf("highest of %d backups", v.rounds),
	}
	alone := func() (float64, error) { return v.own(ctx, "backup", v.path("data"), v.path("ours"), "") }
	c, err := v.turns(ctx, "the same on a host without zstd (for information)", 0, clean, alone, theirs)
	return []Result{r, memory, c}, err
}

func (v *volumeBench) restore(ctx context.Context) ([]Result, error) {
	if _, err := v.own(ctx, "backup", v.path("data"), v.path("ours"), "zstd"); err != nil {
		return nil, err
	}
	if _, err := v.shell(ctx, "tar -S -cf - -C data . | zstd -q -1 -T2 >theirs"); err != nil {
		return nil, err
	}
	clean := func() error {
		return errors.Join(os.RemoveAll(v.path("restored")), os.Mkdir(v.path("restored"), 0o755))
	}
	r, err := v.turns(ctx, "restore of it, on disk and compared, time ÷ that of `zstd -dc` piped to `tar -x`, and `sync`", 1.1, clean,
		func() (float64, error) { return v.own(ctx, "restore", v.path("ours"), v.path("restored")) },
		func() (float64, error) {
			return v.shell(ctx, "zstd -q -dc theirs | tar -S -xpf - -C restored && sync --file-system restored")
		})
	return []Result{r}, errors.Join(err, os.RemoveAll(v.path("restored")))
}

func (v *volumeBench) incremental(ctx context.Context) ([]Result, error) {
	if err := os.Mkdir(v.path("backups"), 0o755); err != nil {
		return nil, err
	}
	if _, err := v.own(ctx, "into", v.path("data"), v.path("backups")); err != nil {
		return nil, err
	}
	if _, err := v.shell(ctx, "restic -q -r repository init && restic -q -r repository backup data"); err != nil {
		return nil, err
	}
	r, err := v.turns(ctx, "second backup into a directory, nothing changed, time ÷ that of restic's second", 1, func() error { return nil },
		func() (float64, error) { return v.own(ctx, "into", v.path("data"), v.path("backups")) },
		func() (float64, error) { return v.shell(ctx, "restic -q -r repository backup data") })
	return []Result{r}, err
}

// backupStep, in the environment, is what a process of our own does: its words are lines.
const backupStep = "NETDRIVER_BENCH_BACKUP"

// doStep does it.
func doStep(ctx context.Context, step []string) error {
	switch step[0] {
	case "backup":
		return backUp(ctx, step[1], step[3], func(src backup.Source) (err error) {
			out, err := os.Create(step[2])
			if err != nil {
				return err
			}
			_, err = backup.Create(ctx, src, out)
			return errors.Join(err, out.Close())
		})
	case "into":
		return backUp(ctx, step[1], "zstd", func(src backup.Source) error {
			d, err := backup.OpenDirectory(step[2])
			if err != nil {
				return err
			}
			_, _, err = d.Create(ctx, src, false)
			return errors.Join(err, d.Close())
		})
	case "restore":
		in, err := os.Open(step[1])
		if err != nil {
			return err
		}
		defer in.Close()
		dir, err := os.Open(step[2])
		if err != nil {
			return err
		}
		defer dir.Close()
		_, err = backup.Restore(ctx, io.Reader(in), backup.Target{Dir: dir})
		return err
	}
	return fmt.Errorf("no such step: %q", step)
}

func backUp(_ context.Context, from, program string, to func(backup.Source) error) error {
	dir, err := os.Open(from)
	if err != nil {
		return err
	}
	defer dir.Close()
	if program != "" {
		if program, err = exec.LookPath(program); err != nil {
			return err
		}
	}
	return to(backup.Source{Dir: dir, Name: "data", Zstd: program})
}
