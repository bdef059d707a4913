package diag

import (
	"net/netip"
	"slices"
	"strings"
)

// doorway is what a packet filter that drops by default has to let in: a port, from nodes.
type doorway struct {
	port uint16
	from []netip.Addr
}

// open says whether one of the rules that accept lets something through the doorway, as far as their text tells.
func (w doorway) open(accepting []string) bool { return slices.ContainsFunc(accepting, w.lets) }

func (w doorway) lets(rule string) bool {
	switch {
	case strings.Contains(rule, "policy "):
		return false // the head of another chain
	case strings.Contains(rule, "dport"):
		return mentions(rule, w.port)
	}
	for _, word := range strings.FieldsFunc(rule, func(r rune) bool { return strings.ContainsRune(" ,{}", r) }) {
		prefix, err := netip.ParsePrefix(word)
		if a, bad := netip.ParseAddr(word); bad == nil {
			prefix, err = a.Prefix(a.BitLen())
		}
		if err == nil {
			return slices.ContainsFunc(w.from, prefix.Contains)
		}
	}
	// Whatever comes in by a device is accepted, but for those that lead to the host itself and its containers.
	for _, word := range []string{"iif lo", `iif "lo"`, `iifname "lo"`, "docker", "br-", " ct state ", "icmp"} {
		if strings.Contains(" "+rule, word) {
			return false
		}
	}
	return true
}
