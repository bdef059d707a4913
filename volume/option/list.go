package option

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const flagReadOnly = unix.MS_RDONLY

// flag is a mount option that every file system has: bits of mount(2), set or cleared.
type flag struct {
	bits  uintptr
	clear bool
}

// flags are those of man 8 mount, "filesystem-independent mount options", that mean something to mount(2).
func flags() map[string]flag {
	return map[string]flag{
		"ro": {unix.MS_RDONLY, false}, "rw": {unix.MS_RDONLY, true},
		"nosuid": {unix.MS_NOSUID, false}, "suid": {unix.MS_NOSUID, true},
		"nodev": {unix.MS_NODEV, false}, "dev": {unix.MS_NODEV, true},
		"noexec": {unix.MS_NOEXEC, false}, "exec": {unix.MS_NOEXEC, true},
		"sync": {unix.MS_SYNCHRONOUS, false}, "async": {unix.MS_SYNCHRONOUS, true},
		"dirsync": {unix.MS_DIRSYNC, false},
		"noatime": {unix.MS_NOATIME, false}, "atime": {unix.MS_NOATIME, true},
		"nodiratime": {unix.MS_NODIRATIME, false}, "diratime": {unix.MS_NODIRATIME, true},
		"relatime": {unix.MS_RELATIME, false}, "norelatime": {unix.MS_RELATIME, true},
		"strictatime": {unix.MS_STRICTATIME, false},
	}
}

// dropped are options for mount(8), mount.nfs and fstab, which mean nothing here: netdriver mounts in the foreground
// when Docker asks for it, and says at once what is wrong. mount(2) would refuse them with EINVAL.
func dropped() []string {
	return []string{"defaults", "bg", "fg", "retry", "_netdev", "auto", "noauto", "nofail", "user", "nouser", "intr", "nointr"}
}

// rule says what value an option of a file system may have.
type rule struct {
	// want is what is allowed, for the error.
	want  string
	allow func(value string) bool
}

// bare is an option without a value.
func bare() rule { return rule{"no value", func(v string) bool { return v == "" }} }

func oneOf(values ...string) rule {
	return rule{strings.Join(values, ", "), func(v string) bool { return slices.Contains(values, v) }}
}

func between(low, high uint64) rule {
	return rule{fmt.Sprintf("a number from %d to %d", low, high), func(v string) bool {
		n, err := strconv.ParseUint(v, 10, 64)
		return err == nil && low <= n && n <= high
	}}
}

func hostRule() rule { return rule{"a host name or an address", isHost} }

// list reads o=: a list of options separated by commas. Those that rules do not know are refused. What every file
// system has goes to spec.Flags, the rest is returned in the user's order.
func (r *reader) list(spec *Spec, rules map[string]rule) []Setting {
	var out []Setting
	seen := map[string]string{}
	for item := range strings.SplitSeq(r.options["o"], ",") {
		item = strings.TrimSpace(item)
		key, value, _ := strings.Cut(item, "=")
		if item == "" || slices.Contains(dropped(), key) || strings.HasPrefix(key, "x-") {
			continue
		}
		if reason := refusedKey(spec.Type, key); reason != "" { // its value may be a secret: it is not repeated
			r.fail("o: %s: %s", key, reason)
			continue
		}
		if before, again := seen[key]; again && before != value {
			r.fail("o: %s is given twice, with %q and %q: give it once", key, before, value)
		} else if again {
			continue
		}
		seen[key] = value
		if r.flag(spec, key, value) {
			continue
		}
		rule, known := rules[key]
		switch {
		case !known:
			r.fail("o: %s is no mount option of type=%s: there are %s", key, spec.Type, allowed(rules))
		case !rule.allow(value):
			r.fail("o: %s=%s: want %s", key, value, rule.want)
		default:
			out = append(out, Setting{key, value})
		}
	}
	r.contradictions(seen)
	return out
}

// flag takes an option that every file system has.
func (r *reader) flag(spec *Spec, key, value string) bool {
	f, ok := flags()[key]
	if !ok {
		return false
	}
	if value != "" {
		r.fail("o: %s has no value", key)
	}
	if !f.clear {
		spec.Flags |= f.bits
	}
	return true
}

// contradictions refuses options that exclude each other: X with noX, and the groups.
func (r *reader) contradictions(seen map[string]string) {
	groups := [][]string{
		{"ro", "rw"}, {"sync", "async"}, {"hard", "soft", "softerr"}, {"vers", "nfsvers"}, {"noatime", "relatime", "strictatime"},
		{"fs", "mds_namespace"},
	}
	for key := range seen {
		groups = append(groups, []string{key, "no" + key})
	}
	slices.SortFunc(groups, slices.Compare)
	for _, g := range groups {
		found := slices.DeleteFunc(slices.Clone(g), func(key string) bool { _, ok := seen[key]; return !ok })
		if len(found) > 1 {
			r.fail("o: %s exclude each other: give one of them", strings.Join(found, " and "))
		}
	}
}

// allowed lists what o= takes.
func allowed(rules map[string]rule) string {
	var names []string
	for name, rule := range rules {
		if !rule.allow("") {
			name += "="
		}
		names = append(names, name)
	}
	for name := range flags() {
		names = append(names, name)
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

// take removes a setting from a list and returns its value, or "".
func take(list []Setting, key string) (string, []Setting) {
	value := ""
	var rest []Setting
	for _, s := range list {
		if s.Key == key {
			value = s.Value
		} else {
			rest = append(rest, s)
		}
	}
	return value, rest
}
