//go:build linux

package firewall

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/internal/netlink"
)

// IPTables is the Kernel of hosts without nf_tables for the family inet: their iptables is the old one. It has chains
// NETDRIVER-OWNER-HOOK, with one jump to each, before the rules of anybody else.
//
// It also has what nf_tables cannot do: at the hook Allow, a packet is let pass that a later rule or the policy of the same
// table would drop.
type IPTables struct {
	ns       int
	path     string // of ns, empty for the process's own
	programs map[string]programs
}

// programs are those of one address family.
type programs struct{ save, restore string }

// OpenIPTables finds the programs: iptables-legacy where there are two kinds and legacy is asked for, else whatever iptables is
// on this host. ns is as for OpenNFTables.
func OpenIPTables(ns string, legacy bool) (*IPTables, error) {
	found := map[string]programs{}
	for family, name := range map[string]string{familyIP: "iptables", familyIP6: "ip6tables"} {
		var errs []error
		for _, kind := range map[bool][]string{true: {"-legacy", ""}, false: {""}}[legacy] {
			save, err1 := exec.LookPath(name + kind + "-save")
			restore, err2 := exec.LookPath(name + kind + "-restore")
			if err1 == nil && err2 == nil {
				found[family] = programs{save, restore}
				break
			}
			errs = append(errs, err1, err2)
		}
		if found[family] == (programs{}) {
			return nil, fmt.Errorf("find %s: %w", name, errors.Join(errs...))
		}
	}
	fd, err := netlink.Namespace(ns)
	if err != nil {
		return nil, err
	}
	return &IPTables{ns: fd, path: ns, programs: found}, nil
}

// Name implements Kernel.
func (t *IPTables) Name() string { return "iptables" }

// Compile implements Kernel.
func (t *IPTables) Compile(s Ruleset) Compiled { return compileIPTables(s) }

// Close implements Kernel.
func (t *IPTables) Close() error { return unix.Close(t.ns) }

// lockWait is how long the programs wait for another that has the tables' lock, in seconds.
const lockWait = "5"

// run runs one of the programs in the namespace.
func (t *IPTables) run(ctx context.Context, input string, args ...string) (string, error) {
	if t.path != "" {
		args = append([]string{"nsenter", "--net=" + t.path, "--"}, args...)
	}
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	var out, said bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &out, &said
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(said.String()))
	}
	return out.String(), nil
}

// Read implements Kernel.
func (t *IPTables) Read(ctx context.Context) (Compiled, error) {
	var out Compiled
	for _, family := range []string{familyIP, familyIP6} {
		text, err := t.run(ctx, "", t.programs[family].save)
		if err != nil {
			return Compiled{}, err
		}
		out.Chains = append(out.Chains, parseSave(family, text).chains()...)
	}
	return out.sorted(), nil
}

// Counts implements Kernel.
func (t *IPTables) Counts(ctx context.Context) (map[string]Count, error) {
	out := map[string]Count{}
	for _, family := range []string{familyIP, familyIP6} {
		text, err := t.run(ctx, "", t.programs[family].save, "-c")
		if err != nil {
			return nil, err
		}
		for _, r := range parseSave(family, text).ours {
			if r.counter != "" {
				c := out[r.counter]
				out[r.counter] = Count{c.Packets + r.count.Packets, c.Bytes + r.count.Bytes}
			}
		}
	}
	return out, nil
}

// Run implements Kernel. Each table is written at once, by one call of iptables-restore. Rules that are written anew
// go on counting where they were.
func (t *IPTables) Run(ctx context.Context, ops []Op) error {
	var errs []error
	for _, family := range []string{familyIP, familyIP6} {
		var tables []string
		for _, o := range ops {
			if o.Family == family && !slices.Contains(tables, o.Table) {
				tables = append(tables, o.Table)
			}
		}
		if len(tables) == 0 {
			continue
		}
		text, err := t.run(ctx, "", t.programs[family].save, "-c")
		if err != nil {
			errs = append(errs, err)
			continue
		}
		have := parseSave(family, text)
		for _, table := range tables {
			mine := slices.DeleteFunc(slices.Clone(ops), func(o Op) bool { return o.Family != family || o.Table != table })
			_, err := t.run(ctx, restoreInput(table, mine, have), t.programs[family].restore,
				"-c", "--noflush", "-w", lockWait)
			if err != nil {
				errs = append(errs, &OpError{mine[0], fmt.Errorf("with %d more: %w", len(mine)-1, err)})
			}
		}
	}
	return errors.Join(errs...)
}

// restoreInput is what iptables-restore is told: with --noflush, naming a chain makes or empties it.
func restoreInput(table string, ops []Op, have saved) string {
	var b strings.Builder
	fmt.Fprintf(&b, "*%s\n", table)
	for _, o := range ops {
		switch o.Verb {
		case AddChain, FlushChain:
			if o.Verb == AddChain || have.has(o.Object) {
				fmt.Fprintf(&b, ":%s - [0:0]\n", o.Name)
			}
		}
	}
	jumps := func(o Op) {
		for range have.jumps[o.Object] {
			base, _ := hung(o.Text)
			fmt.Fprintf(&b, "-D %s -j %s\n", base, o.Name)
		}
	}
	for _, o := range ops {
		switch o.Verb {
		case AddRule:
			c := have.counts[o.Object.String()+" "+o.Text]
			fmt.Fprintf(&b, "[%d:%d] %s\n", c.Packets, c.Bytes, o.Text)
		case Hang:
			jumps(o)
			base, _ := hung(o.Text)
			fmt.Fprintf(&b, "-I %s 1 -j %s\n", base, o.Name)
		case Unhang:
			jumps(o)
		case DelChain:
			if have.has(o.Object) {
				fmt.Fprintf(&b, "-X %s\n", o.Name)
			}
		}
	}
	b.WriteString("COMMIT\n")
	return b.String()
}

// saved is what iptables-save has printed, as far as it is ours.
type saved struct {
	names []Object
	ours  []savedRule
	jumps map[Object]int
	bases map[Object]string
	// counts has what rules have counted, by chain and text.
	counts map[string]Count
}

type savedRule struct {
	chain   Object
	text    string
	counter string
	count   Count
}

func (s saved) has(o Object) bool { return slices.Contains(s.names, o) }

// parseSave reads iptables-save, with or without -c.
func parseSave(family, text string) saved {
	s := saved{jumps: map[Object]int{}, bases: map[Object]string{}, counts: map[string]Count{}}
	table := ""
	foreign := map[string]bool{} // chains in which a rule of somebody else's has been
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		var count Count
		if rest, counted := strings.CutPrefix(line, "["); counted {
			numbers, rule, _ := strings.Cut(rest, "] ")
			p, b, _ := strings.Cut(numbers, ":")
			count.Packets, _ = strconv.ParseUint(p, 10, 64) // its own format
			count.Bytes, _ = strconv.ParseUint(b, 10, 64)
			line = rule
		}
		words := strings.Fields(line)
		switch {
		case strings.HasPrefix(line, "*"):
			table, foreign = line[1:], map[string]bool{}
		case strings.HasPrefix(line, ":"+chainPrefix):
			s.names = append(s.names, Object{family, table, words[0][1:]})
		case len(words) < 2 || words[0] != "-A":
		case strings.HasPrefix(words[1], chainPrefix):
			r := savedRule{chain: Object{family, table, words[1]}, text: line, count: count, counter: comment(words)}
			s.ours = append(s.ours, r)
			s.counts[r.chain.String()+" "+line] = count
		case len(words) == 4 && words[2] == "-j" && strings.HasPrefix(words[3], chainPrefix):
			o := Object{family, table, words[3]}
			s.jumps[o]++
			s.bases[o] = words[1]
			if foreign[words[1]] || s.jumps[o] > 1 {
				s.bases[o] = fmt.Sprintf("%s %d behind others", words[1], s.jumps[o])
			}
		default:
			foreign[words[1]] = true
		}
	}
	return s
}

// comment returns a rule's comment: its counter's name.
func comment(words []string) string {
	if i := slices.Index(words, "--comment"); i >= 0 && i+1 < len(words) {
		return words[i+1]
	}
	return ""
}

func (s saved) chains() []CompiledChain {
	var out []CompiledChain
	for _, o := range s.names {
		c := CompiledChain{Object: o, Base: s.bases[o]}
		for _, r := range s.ours {
			if r.chain == o {
				c.Rules = append(c.Rules, CompiledRule{r.text, r.text, r.counter})
			}
		}
		out = append(out, c)
	}
	return out
}

// pollEvery is how often the tables are looked at, since the old iptables tells nobody of changes.
const pollEvery = 250 * time.Millisecond

// Changes implements Kernel.
func (t *IPTables) Changes(ctx context.Context) (<-chan struct{}, error) {
	version, err := t.run(ctx, "", t.programs[familyIP].restore, "--version")
	if err != nil {
		return nil, err
	}
	if strings.Contains(version, "nf_tables") { // which the old tables' replacement writes into
		return follow(ctx, t.ns, func([]byte) bool { return true })
	}
	p, err := openPeek(t.ns)
	if err != nil {
		return nil, err
	}
	out := make(chan struct{}, 1)
	go func() {
		defer close(out)
		defer p.close()
		last := p.look()
		tick := time.NewTicker(pollEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			if now := p.look(); now != last {
				last = now
				tell(out)
			}
		}
	}()
	return out, nil
}
