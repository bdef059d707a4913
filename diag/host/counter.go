package host

import (
	"bufio"
	"bytes"
	"os"
	"slices"
	"strconv"
	"strings"

	nl "github.com/netdriver/netdriver/internal/netlink"
)

// Counters are the kernel's counts of packets that it dropped, and why, by name.
type Counters map[string]uint64

// Counters reads the namespace's: of IP, UDP and XFRM, and of its devices.
func (s *Space) Counters() Counters {
	out := Counters{}
	_ = nl.In(s.fd, func() error { // what this kernel does not count is not there
		for _, file := range []string{"snmp", "netstat"} {
			text, _ := os.ReadFile("/proc/thread-self/net/" + file)
			out.pairs(text)
		}
		for _, file := range []string{"snmp6", "xfrm_stat"} {
			text, _ := os.ReadFile("/proc/thread-self/net/" + file)
			out.lines(text)
		}
		return nil
	})
	links, err := s.Links()
	if err != nil {
		return out
	}
	for _, l := range links {
		out["device "+l.Name] = l.Dropped
	}
	return out
}

// pairs reads lines of names, each followed by one of numbers.
func (c Counters) pairs(text []byte) {
	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() {
		names := strings.Fields(lines.Text())
		if !lines.Scan() {
			return
		}
		for i, v := range strings.Fields(lines.Text()) {
			if i > 0 && i < len(names) && meaning(names[i]) != "" {
				c[names[i]], _ = strconv.ParseUint(v, 10, 64)
			}
		}
	}
}

func (c Counters) lines(text []byte) {
	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() {
		if f := strings.Fields(lines.Text()); len(f) == 2 && meaning(f[0]) != "" {
			c[f[0]], _ = strconv.ParseUint(f[1], 10, 64)
		}
	}
}

// meaning says what a counter counts; empty if it is about nothing that a network between containers could suffer from.
func meaning(name string) string {
	switch name {
	case "IPReversePathFilter":
		return "packets whose source is not reached through the device they came in by (rp_filter)"
	case "NoPorts", "Udp6NoPorts":
		return "UDP packets to a port on which nothing listens"
	case "RcvbufErrors", "Udp6RcvbufErrors":
		return "UDP packets for which a socket had no room"
	case "OutNoRoutes", "Ip6OutNoRoutes":
		return "packets without a route"
	case "InAddrErrors", "Ip6InAddrErrors":
		return "packets to an address that the host has not"
	case "InNoRoutes", "Ip6InNoRoutes":
		return "received packets without a route"
	case "FragFails", "Ip6FragFails":
		return "packets that were too large and could not be fragmented"
	case "ReasmFails", "Ip6ReasmFails":
		return "packets of which a fragment was missing"
	case "InTooBigErrors", "Ip6InTooBigErrors":
		return "packets that were too large"
	}
	if strings.HasPrefix(name, "Xfrm") {
		return "packets that IPsec refused (linux/Documentation/networking/xfrm_proc.rst)"
	}
	return ""
}

// Moved is a counter that moved.
type Moved struct {
	Name string `json:"name"`
	// Meaning says what it counts.
	Meaning string `json:"meaning"`
	By      uint64 `json:"by"`
}

// Since returns what has moved from before to c, by name.
func (c Counters) Since(before Counters) []Moved {
	var out []Moved
	for name, n := range c {
		if was, known := before[name]; known && n > was {
			out = append(out, Moved{name, explain(name), n - was})
		}
	}
	slices.SortFunc(out, func(a, b Moved) int { return strings.Compare(a.Name, b.Name) })
	return out
}

func explain(name string) string {
	if strings.HasPrefix(name, "device ") {
		return "packets that the device dropped or could not read"
	}
	return meaning(name)
}
