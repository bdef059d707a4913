package host

import (
	"context"
	"fmt"
	"os"
	"os/exec"
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
	conn, err := nftables.New(nftables.WithNetNSFd(s.fd))
	if err != nil {
		return nil
	}
	chains, err := conn.ListChains()
	if err != nil {
		return nil // this kernel has no nftables
	}
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

func familyName(f nftables.TableFamily) string {
	names := map[nftables.TableFamily]string{
		nftables.TableFamilyINet: "inet", nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6",
		nftables.TableFamilyBridge: "bridge", nftables.TableFamilyNetdev: "netdev", nftables.TableFamilyARP: "arp",
	}
	return names[f]
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
			return fmt.Sprintf("%s: %s(handle %d)", where, rule, r.Handle)
		}
	}
	return fmt.Sprintf("%s: rule with handle %d", where, r.Handle)
}
