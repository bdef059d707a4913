package host

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	nl "github.com/netdriver/netdriver/internal/netlink"
)

// Rule is one rule of a packet filter that drops or rejects.
type Rule struct {
	// Table and Chain as nft or iptables write them, and Handle the rule's number there.
	Family, Table, Chain string
	Handle               uint64
	// Counted: it has a counter, which is Packets.
	Counted bool
	Packets uint64
	// Text is the rule as iptables writes it; of nftables only Describe knows it.
	Text string
}

// Rules returns the rules of the namespace that drop, of nftables (iptables-nft writes there too) and of the old iptables.
func (s *Space) Rules() []Rule {
	return append(s.nftRules(), s.legacyRules()...)
}

func (s *Space) nftRules() []Rule {
	conn, chains := s.chains()
	var out []Rule
	for _, c := range chains {
		rules, err := conn.GetRules(c.Table, c)
		if err != nil {
			continue // removed meanwhile
		}
		for _, r := range rules {
			rule := Rule{Family: familyName(c.Table.Family), Table: c.Table.Name, Chain: c.Name, Handle: r.Handle}
			drops := false
			for _, e := range r.Exprs {
				switch e := e.(type) {
				case *expr.Counter:
					rule.Counted, rule.Packets = true, e.Packets
				case *expr.Verdict:
					drops = drops || e.Kind == expr.VerdictDrop
				case *expr.Reject:
					drops = true
				case *expr.Target:
					drops = drops || e.Name == "REJECT"
				}
			}
			if drops {
				out = append(out, rule)
			}
		}
	}
	return out
}

// chains returns those of nftables, and the connection that they were read by; none on a kernel without nftables.
func (s *Space) chains() (*nftables.Conn, []*nftables.Chain) {
	conn, err := nftables.New(nftables.WithNetNSFd(s.fd))
	if err != nil {
		return nil, nil
	}
	all, err := conn.ListChains()
	if err != nil {
		return nil, nil
	}
	return conn, all
}

func familyName(f nftables.TableFamily) string {
	names := map[nftables.TableFamily]string{
		nftables.TableFamilyINet: "inet", nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6",
		nftables.TableFamilyBridge: "bridge", nftables.TableFamilyNetdev: "netdev", nftables.TableFamilyARP: "arp",
	}
	return names[f]
}

// Policy is a chain of nftables at one of the kernel's hooks that drops what none of its rules accepts. The kernel counts
// nothing for it; of the old iptables it is a counted Rule.
type Policy struct {
	Family, Table, Chain string
	// Hook is ingress, prerouting, input, forward, output, postrouting or egress.
	Hook string
}

// String writes it as people look for it.
func (p Policy) String() string {
	return fmt.Sprintf("%s %s %s (hook %s): policy drop", p.Family, p.Table, p.Chain, p.Hook)
}

// Policies returns the chains that drop by default.
func (s *Space) Policies() []Policy {
	_, chains := s.chains()
	var out []Policy
	for _, c := range chains {
		if c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop && c.Hooknum != nil {
			out = append(out, Policy{familyName(c.Table.Family), c.Table.Name, c.Name, hookName(c.Table.Family, *c.Hooknum)})
		}
	}
	return out
}

// Accepts returns the rules of a policy's table that accept, as nft writes them.
func (s *Space) Accepts(p Policy) (rules []string) {
	_ = nl.In(s.fd, func() error { // without nft nothing is known of them
		ctx, cancel := context.WithTimeout(context.Background(), filterTimeout)
		defer cancel()
		text, err := exec.CommandContext(ctx, "nft", "list", "table", p.Family, p.Table).Output()
		for _, line := range strings.Split(string(text), "\n") {
			if line = strings.TrimSpace(line); strings.Contains(line, " accept") {
				rules = append(rules, line)
			}
		}
		return err
	})
	return rules
}

// hookName names a hook (linux/netfilter.h).
func hookName(f nftables.TableFamily, hook nftables.ChainHook) string {
	names := []string{"prerouting", "input", "forward", "output", "postrouting", "ingress"}
	switch {
	case f == nftables.TableFamilyNetdev:
		names = []string{"ingress", "egress"}
	case f == nftables.TableFamilyARP:
		names = []string{"input", "output", "forward"}
	}
	if int(hook) >= len(names) {
		return fmt.Sprint(uint32(hook))
	}
	return names[hook]
}

// filterTimeout bounds what iptables or nft may take to list.
const filterTimeout = 2 * time.Second

// legacyRules asks iptables-legacy only where its tables are: it would load its modules otherwise.
func (s *Space) legacyRules() []Rule {
	var out []Rule
	_ = nl.In(s.fd, func() error { // without the tables or the program there are no such rules
		for file, program := range map[string]string{"ip_tables_names": "iptables-legacy-save", "ip6_tables_names": "ip6tables-legacy-save"} {
			names, err := os.ReadFile("/proc/thread-self/net/" + file)
			if err != nil || len(names) == 0 {
				continue
			}
			ctx, cancel := context.WithTimeout(context.Background(), filterTimeout)
			text, err := exec.CommandContext(ctx, program, "-c").Output()
			cancel()
			if err == nil {
				out = append(out, parseSave(string(text))...)
			}
		}
		return nil
	})
	return out
}

// parseSave reads what iptables-save -c writes.
func parseSave(text string) []Rule {
	var out []Rule
	table := ""
	for i, line := range strings.Split(text, "\n") {
		if name, ok := strings.CutPrefix(line, "*"); ok {
			table = name
		}
		if r, is := savedPolicy(line); is {
			r.Table, r.Handle = table, uint64(i)
			out = append(out, r)
		}
		counter, rule, found := strings.Cut(strings.TrimPrefix(line, "["), "] -A ")
		if !found || !strings.Contains(rule, "-j DROP") && !strings.Contains(rule, "-j REJECT") {
			continue
		}
		packets, _, _ := strings.Cut(counter, ":")
		n, _ := strconv.ParseUint(packets, 10, 64)
		chain, _, _ := strings.Cut(rule, " ")
		out = append(out, Rule{
			Family: "iptables", Table: table, Chain: chain, Handle: uint64(i), Counted: true, Packets: n, Text: "-A " + rule,
		})
	}
	return out
}

// savedPolicy reads a line such as ":INPUT DROP [3:180]".
func savedPolicy(line string) (Rule, bool) {
	f := strings.Fields(line)
	if len(f) != 3 || !strings.HasPrefix(f[0], ":") || f[1] != "DROP" {
		return Rule{}, false
	}
	packets, _, _ := strings.Cut(strings.TrimPrefix(f[2], "["), ":")
	n, _ := strconv.ParseUint(packets, 10, 64)
	return Rule{Family: "iptables", Chain: f[0][1:], Counted: true, Packets: n, Text: "policy DROP"}, true
}

// Dropped returns the rules that dropped something between two readings, with Packets the number of it.
func Dropped(before, after []Rule) []Rule {
	type key struct {
		family, table, chain string
		handle               uint64
	}
	was := map[key]uint64{}
	for _, r := range before {
		was[key{r.Family, r.Table, r.Chain, r.Handle}] = r.Packets
	}
	var out []Rule
	for _, r := range after {
		if n, known := was[key{r.Family, r.Table, r.Chain, r.Handle}]; known && r.Packets > n {
			r.Packets -= n
			out = append(out, r)
		}
	}
	return out
}

// uncounted matches what a rule has counted so far, which makes the same rule look like another one a moment later.
var uncounted = regexp.MustCompile(`counter packets \d+ bytes \d+ `)

// Describe writes a rule as an engineer would look for it.
func (s *Space) Describe(r Rule) string {
	where := fmt.Sprintf("%s %s %s", r.Family, r.Table, r.Chain)
	if r.Text != "" {
		return fmt.Sprintf("%s: %s", where, r.Text)
	}
	var text []byte
	_ = nl.In(s.fd, func() (err error) { // without nft the handle has to do
		ctx, cancel := context.WithTimeout(context.Background(), filterTimeout)
		defer cancel()
		text, err = exec.CommandContext(ctx, "nft", "-a", "list", "chain", r.Family, r.Table, r.Chain).Output()
		return err
	})
	suffix := fmt.Sprintf("# handle %d", r.Handle)
	for _, line := range strings.Split(string(text), "\n") {
		if rule, found := strings.CutSuffix(strings.TrimSpace(line), suffix); found {
			return fmt.Sprintf("%s: %s(handle %d)", where, uncounted.ReplaceAllString(rule, ""), r.Handle)
		}
	}
	return fmt.Sprintf("%s: rule with handle %d", where, r.Handle)
}
