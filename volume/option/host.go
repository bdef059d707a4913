package option

import (
	"net/netip"
	"regexp"
	"slices"
	"strings"
)

// hostName is RFC 1123 §2.1, with the '_' that private zones use.
var hostName = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?)*\.?$`)

// dottedNumber is what looks like an IPv4 address: a name's last label is never all digits (RFC 1123 §2.1).
var dottedNumber = regexp.MustCompile(`(^|\.)[0-9]+\.?$`)

// isHost says whether s is an address, IPv6 with or without brackets, or can be a host's name (at most 253 bytes, RFC
// 1035 §2.3.4).
func isHost(s string) bool {
	if a, err := netip.ParseAddr(unbracket(s)); err == nil {
		return !a.IsUnspecified() && !a.IsMulticast() && !strings.ContainsAny(a.Zone(), "/,: ")
	}
	return len(s) <= 253 && hostName.MatchString(s) && !dottedNumber.MatchString(s)
}

func unbracket(s string) string {
	if strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]") {
		return s[1 : len(s)-1]
	}
	return s
}

// device reads -o device=[HOST]:/PATH and returns its two parts. A path on the server is never guessed.
func (r *reader) device() (host, path string) {
	text := r.options["device"]
	host, path, ok := cutDevice(text)
	if !ok {
		r.fail("device=%s: want :/PATH or HOST:/PATH, an IPv6 address in brackets: [fd00::1]:/PATH", text)
		return "", "/"
	}
	if host != "" && !isHost(host) {
		r.fail("device=%s: %q is neither a host name nor an address", text, host)
	}
	return unbracket(host), r.absolute("device", path)
}

func cutDevice(text string) (host, path string, ok bool) {
	i := strings.Index(text, ":/")
	if strings.HasPrefix(text, "[") {
		i = strings.Index(text, "]:/") + 1
	}
	if i < 0 || text == "" || text[i:] == "" || text[i] != ':' {
		return "", "", false
	}
	return text[:i], text[i+1:], true
}

// hosts reads a list of hosts, at least one.
func (r *reader) hosts(key, text, separator string) []string {
	var out []string
	for part := range strings.SplitSeq(text, separator) {
		part = strings.TrimSpace(part)
		if !isHost(part) {
			r.fail("%s=%s: %q is neither a host name nor an address", key, text, part)
		}
		if part = unbracket(part); !slices.Contains(out, part) {
			out = append(out, part)
		}
	}
	return out
}
