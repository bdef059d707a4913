// Package policy has the rules that say which groups of endpoints may speak to each other in a network. It is pure.
package policy

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Any stands for every endpoint, in a group or in none.
const Any = "*"

const (
	// MaxRules and MaxGroups bound what a packet filter has to hold for one network.
	MaxRules  = 256
	MaxGroups = 64
)

// The protocols of rules; the empty one is all of them.
const (
	TCP  = "tcp"
	UDP  = "udp"
	ICMP = "icmp" // ICMPv6 too
)

// Rule allows what group From sends to group To.
type Rule struct {
	From, To string
	// Proto is empty for everything, whatever its protocol.
	Proto string
	// First and Last are the destination ports; both are 0 for all of them.
	First, Last uint16
}

// String returns the rule as Parse reads it.
func (r Rule) String() string {
	s := r.From + ">" + r.To
	if r.Last != 0 {
		s += ":" + strconv.Itoa(int(r.First))
		if r.Last != r.First {
			s += "-" + strconv.Itoa(int(r.Last))
		}
	}
	if r.Proto != "" {
		s += "/" + r.Proto
	}
	return s
}

var group = regexp.MustCompile(`^[a-zA-Z][a-zA-Z0-9_-]{0,31}$`)

// CheckGroup says whether name can name a group.
func CheckGroup(name string) error {
	if !group.MatchString(name) {
		return fmt.Errorf("group %q: want 1 to 32 letters, digits, '_' or '-', beginning with a letter", name)
	}
	return nil
}

// Parse reads a list of rules, separated by commas: FROM>TO, FROM>TO:PORT, FROM>TO:PORT-PORT, each with /PROTOCOL or
// without. A port without protocol is one of TCP. The result is sorted and has no duplicates; the error names every rule
// that is wrong.
func Parse(list string) ([]Rule, error) {
	var rules []Rule
	var errs []error
	for word := range strings.SplitSeq(list, ",") {
		r, err := parseRule(strings.TrimSpace(word))
		if err != nil {
			errs = append(errs, fmt.Errorf("rule %q: %w", strings.TrimSpace(word), err))
		}
		rules = append(rules, r)
	}
	slices.SortFunc(rules, func(a, b Rule) int { return strings.Compare(a.String(), b.String()) })
	rules = slices.Compact(rules)
	if len(rules) > MaxRules {
		errs = append(errs, fmt.Errorf("%d rules: at most %d are allowed in one network", len(rules), MaxRules))
	}
	if n := len(Groups(rules)); n > MaxGroups {
		errs = append(errs, fmt.Errorf("%d groups: at most %d are allowed in one network", n, MaxGroups))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return rules, nil
}

func parseRule(word string) (r Rule, err error) {
	from, rest, found := strings.Cut(word, ">")
	if !found {
		return r, errors.New("want FROM>TO[:PORT][/PROTOCOL], such as web>db:5432/tcp; quote it, since > is the shell's")
	}
	rest, proto, hasProto := strings.Cut(rest, "/")
	to, ports, hasPorts := strings.Cut(rest, ":")
	r = Rule{From: from, To: to, Proto: proto}
	if hasPorts && !hasProto {
		r.Proto = TCP
	}
	errs := []error{checkSide(from), checkSide(to)}
	if hasProto && !slices.Contains([]string{TCP, UDP, ICMP}, proto) {
		errs = append(errs, fmt.Errorf("protocol %q: want tcp, udp or icmp, or omit it for all", proto))
	}
	if hasPorts {
		if proto == ICMP {
			errs = append(errs, errors.New("icmp has no ports; omit them"))
		}
		r.First, r.Last, err = parsePorts(ports)
		errs = append(errs, err)
	}
	return r, errors.Join(errs...)
}

func checkSide(name string) error {
	if name == Any {
		return nil
	}
	return CheckGroup(name)
}

func parsePorts(s string) (first, last uint16, err error) {
	a, b, ranged := strings.Cut(s, "-")
	if !ranged {
		b = a
	}
	f, err1 := strconv.ParseUint(a, 10, 16)
	l, err2 := strconv.ParseUint(b, 10, 16)
	if err1 != nil || err2 != nil || f == 0 || l < f {
		return 0, 0, fmt.Errorf("port %q: want 1..65535, or a range such as 8000-8010", s)
	}
	return uint16(f), uint16(l), nil
}

// Groups returns the groups that the rules name, sorted.
func Groups(rules []Rule) []string {
	var all []string
	for _, r := range rules {
		for _, g := range []string{r.From, r.To} {
			if g != Any {
				all = append(all, g)
			}
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// Strings and FromStrings turn rules into what a record keeps, and back.
func Strings(rules []Rule) []string {
	out := make([]string, len(rules))
	for i, r := range rules {
		out[i] = r.String()
	}
	return out
}

// FromStrings reads what Strings wrote.
func FromStrings(all []string) ([]Rule, error) {
	if len(all) == 0 {
		return nil, nil
	}
	return Parse(strings.Join(all, ","))
}
