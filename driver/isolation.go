package driver

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/netdriver/netdriver/dataplane/rate"
	"github.com/netdriver/netdriver/policy"
	"github.com/netdriver/netdriver/store"
)

// The options that keep endpoints from each other: of networks, but for the group, which is an endpoint's, and the last
// two, which are of both.
const (
	optionIsolate = "isolate"
	optionAllow   = "allow"
	optionGroup   = "group"
	optionRate    = "rate"
	optionBurst   = "burst"
)

// isolation is what a request says of it. Zero fields were not given.
type isolation struct {
	isolate      bool
	isolateGiven bool
	allow        []policy.Rule
	store.Limit
}

const burstHelp = "bytes such as 256k, 128k..64m"

func rateHelp() string {
	return fmt.Sprintf("bits per second such as 100mbit, %s..%s", formatRate(minRate), formatRate(maxRate))
}

// endpointHelp says what each option of an endpoint takes.
func endpointHelp() map[string]string {
	return map[string]string{
		optionGroup: "name of a group that a rule of the network names", optionRate: rateHelp(), optionBurst: burstHelp,
	}
}

// setIsolation takes one of the network's options.
func (i *isolation) setIsolation(key, value string) (err error) {
	switch key {
	case optionIsolate:
		i.isolateGiven = true
		i.isolate, err = strconv.ParseBool(value)
	case optionAllow:
		i.allow, err = policy.Parse(value)
	default:
		err = setLimit(&i.Limit, key, value)
	}
	return err
}

// setLimit takes the rate, or the burst.
func setLimit(l *store.Limit, key, value string) (err error) {
	if key == optionRate {
		l.Rate, err = parseRate(value)
	} else {
		l.Burst, err = parseBurst(value)
	}
	return err
}

// check finds what makes no sense together.
func (i isolation) check() error { return checkLimit(i.Limit) }

func checkLimit(l store.Limit) error {
	if l.Burst != 0 && l.Rate == 0 {
		return fmt.Errorf("%s without %s: add %s, such as 100mbit", optionBurst, optionRate, optionRate)
	}
	return nil
}

// contradictions tells what of a network that exists is not as asked.
func (i isolation) contradictions(nw store.Network, differ func(what string, have, asked any)) {
	if i.isolateGiven && i.isolate != nw.Isolate {
		differ(optionIsolate, nw.Isolate, i.isolate)
	}
	if rules := policy.Strings(i.allow); len(rules) > 0 && !slices.Equal(rules, nw.Allow) {
		differ(optionAllow, strings.Join(nw.Allow, ","), strings.Join(rules, ","))
	}
	if i.Rate != 0 && i.Rate != nw.Rate {
		differ(optionRate, formatRate(nw.Rate), formatRate(i.Rate))
	}
	if i.Burst != 0 && i.Burst != nw.Burst {
		differ(optionBurst, nw.Burst, i.Burst)
	}
}

// record is what the network's record keeps.
func (i isolation) record() store.Isolation {
	out := store.Isolation{Isolate: i.isolate, Limit: i.Limit}
	if len(i.allow) > 0 {
		out.Allow = policy.Strings(i.allow)
	}
	return out
}

const (
	minRate  = 100_000
	maxRate  = 100_000_000_000
	minBurst = rate.MinBurst
	maxBurst = rate.MaxBurst
)

// parseRate reads bits per second as tc does: 100mbit (man 8 tc, RATES).
func parseRate(s string) (uint64, error) {
	number, unit := cutUnit(s)
	factor, known := map[string]uint64{"bit": 1, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9}[unit]
	n, err := strconv.ParseUint(number, 10, 40)
	if err != nil || !known || n > maxRate {
		return 0, errors.New("want a number with bit, kbit, mbit or gbit")
	}
	if n = n * factor / 8 * 8; n < minRate || n > maxRate {
		return 0, fmt.Errorf("%s is not within %s..%s", formatRate(n), formatRate(minRate), formatRate(maxRate))
	}
	return n, nil
}

func formatRate(n uint64) string {
	switch {
	case n != 0 && n%1e9 == 0:
		return strconv.FormatUint(n/1e9, 10) + "gbit"
	case n != 0 && n%1e6 == 0:
		return strconv.FormatUint(n/1e6, 10) + "mbit"
	case n != 0 && n%1e3 == 0:
		return strconv.FormatUint(n/1e3, 10) + "kbit"
	}
	return strconv.FormatUint(n, 10) + "bit"
}

func parseBurst(s string) (uint32, error) {
	number, unit := cutUnit(strings.TrimSuffix(s, "b"))
	factor, known := map[string]uint64{"": 1, "k": 1 << 10, "m": 1 << 20}[unit]
	n, err := strconv.ParseUint(number, 10, 32)
	if err != nil || !known {
		return 0, errors.New("want a number of bytes, or one with k or m")
	}
	if n *= factor; n < minBurst || n > maxBurst {
		return 0, fmt.Errorf("%d bytes are not within %d..%d", n, minBurst, maxBurst)
	}
	return uint32(n), nil
}

// cutUnit parts the digits from what follows them.
func cutUnit(s string) (number, unit string) {
	i := strings.IndexFunc(s, func(r rune) bool { return r < '0' || r > '9' })
	if i < 0 {
		return s, ""
	}
	return s[:i], s[i:]
}

// parseEndpointOptions takes the options that a user gave (docker network connect --driver-opt); what Docker adds by itself
// is left to Docker. The error names every wrong option at once.
func parseEndpointOptions(nw store.Network, options map[string]any, e *store.Endpoint) error {
	var errs []error
	for _, k := range slices.Sorted(maps.Keys(options)) {
		if !strings.HasPrefix(k, labelPrefix) {
			errs = append(errs, setEndpointOption(nw, k, fmt.Sprint(options[k]), e))
		}
	}
	return errors.Join(append(errs, checkLimit(e.Limit))...)
}

func setEndpointOption(nw store.Network, key, value string, e *store.Endpoint) (err error) {
	help, known := endpointHelp()[key]
	switch {
	case !known:
		return fmt.Errorf("unknown endpoint option --driver-opt %s=%s; the options are %s", key, value,
			strings.Join(slices.Sorted(maps.Keys(endpointHelp())), ", "))
	case nw.OnLAN() || nw.Mode == store.ModeBridge:
		return fmt.Errorf("endpoint option --driver-opt %s is for overlays, and network %s has mode %s; omit it", key, nw.Name, nw.Mode)
	case key == optionGroup:
		e.Group, err = value, checkGroup(nw, value)
	default:
		err = setLimit(&e.Limit, key, value)
	}
	if err != nil {
		return fmt.Errorf("bad endpoint option --driver-opt %s=%s (%s): %w", key, value, help, err)
	}
	return nil
}

// checkGroup refuses a group that no rule names: nothing would reach its endpoints, which nobody can want.
func checkGroup(nw store.Network, name string) error {
	if err := policy.CheckGroup(name); err != nil {
		return err
	}
	rules, err := policy.FromStrings(nw.Allow)
	if err != nil {
		return err
	}
	if len(rules) == 0 {
		return fmt.Errorf("network %s has no rules: create it with --opt %s, or omit the group", nw.Name, optionAllow)
	}
	groups := policy.Groups(rules)
	if !slices.Contains(groups, name) {
		return fmt.Errorf("no rule of network %s names it; its groups are %s", nw.Name, strings.Join(groups, ", "))
	}
	return nil
}

// limitOf is an endpoint's own limit or its network's.
func limitOf(nw store.Network, e store.Endpoint) rate.Limit {
	l := e.Limit
	if l.Rate == 0 {
		l = nw.Limit
	}
	if l.Rate != 0 && l.Burst == 0 {
		l.Burst = rate.DefaultBurst(l.Rate)
	}
	return rate.Limit{Rate: l.Rate, Burst: l.Burst}
}

// limits says why this node cannot limit rates.
func (d *Driver) limits(l store.Limit) error {
	if l.Rate == 0 {
		return nil
	}
	if err := d.cfg.Plane.Balances(); err != nil {
		return fmt.Errorf("node %s cannot limit rates: %w; omit %s", d.site.node, err, optionRate)
	}
	return nil
}

// judges says why this node cannot be in a network, if that denies or limits anything.
func (d *Driver) judges(nw store.Network) error {
	if err := d.cfg.Plane.Guards(); err != nil && nw.Judged() {
		return fmt.Errorf("network %s has rules, and node %s cannot keep them: %w; run a kernel with nf_tables for "+
			"bridges, or omit %s and %s", nw.Name, d.site.node, err, optionIsolate, optionAllow)
	}
	return d.limits(nw.Limit)
}
