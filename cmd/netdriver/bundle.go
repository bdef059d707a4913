package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"

	"github.com/netdriver/netdriver/dataplane"
	"github.com/netdriver/netdriver/internal/config"
	"github.com/netdriver/netdriver/internal/events"
	"github.com/netdriver/netdriver/volume"
)

const bundleLong = `Write one archive with all that somebody needs who looks for a bug: the reports on all networks and nodes, this host's
check, what the kernel lacks, its devices, entries, rules and counters, and the daemon's last log lines. Keys, tokens,
certificates and passwords are removed, whatever they come from; look through it all the same before you give it away.`

// bundle is the verb for bug reports.
func (a app) bundle() *cobra.Command {
	cmd := &cobra.Command{
		Use: "bundle [FILE]", Short: "Write one archive for a bug report, without secrets", Long: bundleLong, Args: cobra.MaximumNArgs(1),
	}
	config.AddFlags(cmd.Flags(), "run-dir")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		cfg, err := config.Load(cmd.Flags(), a.environ, "run-dir")
		if err != nil {
			return err
		}
		now := time.Now().UTC()
		name := "netdriver-" + now.Format("20060102-150405") + ".tar.gz"
		if len(args) > 0 {
			name = args[0]
		}
		f, err := renameio.NewPendingFile(name, renameio.WithTempDir(filepath.Dir(name)), renameio.WithPermissions(0o600))
		if err != nil {
			return err
		}
		defer f.Cleanup() //nolint:errcheck // nothing is left once it has its name
		ctx, cancel := context.WithTimeout(cmd.Context(), 2*askDaemon)
		defer cancel()
		if err := a.writeBundle(ctx, f, cfg.RunDir, now); err != nil {
			return fmt.Errorf("bundle: %w", err)
		}
		if err := f.CloseAtomicallyReplace(); err != nil {
			return err
		}
		_, err = fmt.Fprintf(a.out, "%s\n", name)
		return err
	}
	return cmd
}

// bundled is one file of an archive. What cannot be had is a file that says why.
type bundled struct {
	name string
	make func(context.Context) ([]byte, error)
}

func (a app) writeBundle(ctx context.Context, w io.Writer, runDir string, now time.Time) error {
	z := gzip.NewWriter(w)
	t := tar.NewWriter(z)
	for _, b := range append(a.reportFiles(runDir), commandFiles(runDir)...) {
		text, err := b.make(ctx)
		if err != nil {
			text = append(text, fmt.Sprintf("\ncould not be had: %v\n", err)...)
		}
		text = clean(text)
		h := &tar.Header{Name: "netdriver/" + b.name, Mode: 0o600, Size: int64(len(text)), ModTime: now, Typeflag: tar.TypeReg}
		if err := t.WriteHeader(h); err != nil {
			return err
		}
		if _, err := t.Write(text); err != nil {
			return err
		}
	}
	return errors.Join(t.Close(), z.Close())
}

// reportFiles are what the verbs that look say.
func (a app) reportFiles(runDir string) []bundled {
	report := func(name string, ask func(context.Context, looker) (any, error)) bundled {
		return bundled{name, func(ctx context.Context) (text []byte, err error) {
			err = a.look(ctx, runDir, func(ctx context.Context, l looker) error {
				r, err := ask(ctx, l)
				if err != nil {
					return err
				}
				text, err = json.MarshalIndent(r, "", "  ")
				return err
			})
			return text, err
		}}
	}
	return []bundled{
		{"version.txt", func(context.Context) ([]byte, error) { return []byte(version() + "\n"), nil }},
		report("networks.json", func(ctx context.Context, l looker) (any, error) { return l.Networks(ctx) }),
		report("nodes.json", func(ctx context.Context, l looker) (any, error) { return l.Nodes(ctx) }),
		report("check.json", func(ctx context.Context, l looker) (any, error) { return l.Check(ctx, "") }),
		report("diff.json", func(ctx context.Context, l looker) (any, error) { return l.Diff(ctx, "") }),
		report("inspect.json", func(ctx context.Context, l looker) (any, error) {
			all, err := l.Networks(ctx)
			if err != nil {
				return nil, err
			}
			out := map[string]any{}
			for _, n := range all.Networks {
				if out[n.Network], err = l.Network(ctx, n.Network); err != nil {
					out[n.Network] = err.Error()
				}
			}
			return out, nil
		}),
		{"volumes.json", func(ctx context.Context) ([]byte, error) {
			list, err := volume.NewClient(volume.ControlPath(runDir)).List(ctx)
			if err != nil {
				return nil, err
			}
			return json.MarshalIndent(volumesReport{volumesSchema, list}, "", "  ")
		}},
		{"events.jsonl", func(context.Context) ([]byte, error) {
			last, err := lastSettings(runDir)
			if err != nil {
				return nil, err
			}
			var b bytes.Buffer
			err = events.Read(events.Dir(last.DataDir), func(e events.Event) error { return json.NewEncoder(&b).Encode(e) })
			return b.Bytes(), err
		}},
		{"settings.json", func(context.Context) ([]byte, error) { return os.ReadFile(settingsFile(runDir)) }},
	}
}

// commandFiles are what a host's own programs say, here and in netdriver's namespace.
func commandFiles(runDir string) []bundled {
	run := func(name string, args ...string) bundled {
		return bundled{name, func(ctx context.Context) ([]byte, error) {
			const each = 5 * time.Second
			ctx, cancel := context.WithTimeout(ctx, each)
			defer cancel()
			return exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput()
		}}
	}
	out := []bundled{
		run("uname.txt", "uname", "-a"), run("docker-version.txt", "docker", "version"), run("docker-networks.txt", "docker", "network", "ls"),
		run("journal.txt", "journalctl", "--unit", "netdriver", "--lines", "2000", "--no-pager"),
	}
	enter := []string{"nsenter", "--net=" + dataplane.NamespaceIn(runDir), "--"}
	for _, c := range []struct{ name, command string }{
		{"links", "ip -details -statistics link"}, {"addresses", "ip address"}, {"routes", "ip route show table all"},
		{"neighbours", "ip neigh"}, {"forwarding", "bridge fdb"}, {"nft", "nft list ruleset"}, {"qdisc", "tc -statistics qdisc"},
		{"snmp", "cat /proc/net/snmp /proc/net/netstat"},
	} {
		args := strings.Fields(c.command)
		out = append(out, run("host/"+c.name+".txt", args...), run("namespace/"+c.name+".txt", append(append([]string{}, enter...), args...)...))
	}
	return append(out, run("host/iptables.txt", "iptables-save", "-c"))
}

// The shapes of secrets: PEM blocks, tokens of a cluster, keys in hexadecimal as ip-xfrm prints them, and values of
// settings that are called so.
func secrets() []*regexp.Regexp {
	return []*regexp.Regexp{
		regexp.MustCompile(`(?s)-----BEGIN [A-Z0-9 ]+-----.*?(-----END [A-Z0-9 ]+-----|$)`),
		regexp.MustCompile(`netdriver1-[0-9A-Za-z_-]+`),
		regexp.MustCompile(`0x[0-9a-fA-F]{32,}`),
		regexp.MustCompile(`(?i)("?(password|passwd|secret|token|private[_-]?key|credentials?|authorization)"?\s*[:=]\s*)("[^"]*"|[^\s,}]+)`),
		regexp.MustCompile(`(?i)(://[^/\s:@]+:)[^@\s/]+@`),
	}
}

// clean removes secrets from a text.
func clean(text []byte) []byte {
	for _, s := range secrets() {
		text = s.ReplaceAllFunc(text, func(found []byte) []byte {
			m := s.FindSubmatch(found)
			if len(m) > 2 || len(m) > 1 && bytes.Contains(m[1], []byte("://")) {
				return append(append([]byte{}, m[1]...), "(removed)"...)
			}
			return []byte("(removed)")
		})
	}
	return text
}
