// Package option turns the options of `docker volume create -o KEY=VALUE` into a checked description of what is to be
// mounted. It is pure: names are resolved and servers asked at each mount, not here.
package option

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// ErrOption is wrapped by every error about a volume's options.
var ErrOption = errors.New("bad volume option")

// Type is the kind of a volume, -o type=.
type Type string

// The types. The guide's spelling is the only one, but for nfs4, which Docker's own local driver knows as well.
const (
	NFS       Type = "nfs"
	EFS       Type = "efs"
	GlusterFS Type = "glusterfs"
	CephFS    Type = "cephfs"
	Local     Type = "local"
)

// Spec is what a volume's options mean.
type Spec struct {
	Type Type
	// Servers are host names or addresses, the first preferred; IPv6 without brackets.
	Servers []string
	// Path is the server's absolute path (NFS, CephFS, EFS), or this node's (Local with device=).
	Path string
	// Volume is the server's name of the volume: of GlusterFS, or an EFS file system's id.
	Volume string
	Subdir Subdir
	// Flags are MS_ flags of mount(2).
	Flags uintptr
	// Settings are the file system's own options, sorted by key, as mount(2) takes them.
	Settings []Setting
	// Versions of NFS, in the order in which they are tried.
	Versions []string
	// User and SecretFile are what a CephFS client proves itself with; the file is on each node.
	User, SecretFile string
	// TLS and CAFile: whether NFS goes through TLS, and the file with the CAs that may sign the server's certificate
	// (empty: the system's).
	TLS    bool
	CAFile string
	// Region of EFS, part of the mount target's name.
	Region string
	// Backup is the schedule of its backups. It changes nothing of how the volume is mounted.
	Backup Backup
}

// Setting is one option of a file system; Value is empty for a flag.
type Setting struct{ Key, Value string }

func (s Setting) String() string {
	if s.Value == "" {
		return s.Key
	}
	return s.Key + "=" + s.Value
}

// Subdir is the directory below Path that is mounted, made when it is missing.
type Subdir struct {
	// Name is relative, without "..", and empty for the whole.
	Name string
	// Mode is given to a directory that is made; default 0755.
	Mode fs.FileMode
	// UID and GID own a directory that is made; default 0.
	UID, GID uint32
}

// defaultMode is that of a directory which is made.
const defaultMode fs.FileMode = 0o755

// ReadOnly says whether the volume is mounted read-only.
func (s Spec) ReadOnly() bool { return s.Flags&flagReadOnly != 0 }

// Data returns the settings as mount(2) takes them.
func (s Spec) Data() []string {
	var out []string
	for _, x := range s.Settings {
		out = append(out, x.String())
	}
	return out
}

// Setting returns the value of one setting, "" if it is not there.
func (s Spec) Setting(key string) string {
	for _, x := range s.Settings {
		if x.Key == key {
			return x.Value
		}
	}
	return ""
}

// kind is how one type's options are read.
type kind struct {
	// keys are those that -o allows besides type.
	keys  []string
	parse func(*reader, *Spec)
}

func kinds() map[Type]kind {
	dir := []string{"subdir", "mode", "uid", "gid", "backup", "backup-to", "backup-keep"}
	return map[Type]kind{
		NFS:       {append([]string{"o", "device"}, dir...), parseNFS},
		EFS:       {append([]string{"volume", "region", "addr", "tls", "cafile", "device", "o"}, dir...), parseEFS},
		GlusterFS: {append([]string{"volume", "servers", "o"}, dir...), parseGluster},
		CephFS:    {append([]string{"device", "o"}, dir...), parseCeph},
		Local:     {append([]string{"device", "o"}, dir...), parseLocal},
	}
}

// Types returns what -o type= allows.
func Types() []string {
	return []string{string(NFS), string(EFS), string(GlusterFS), string(CephFS), string(Local)}
}

// Parse reads options. The error wraps ErrOption, tells everything that is wrong at once, and what is allowed.
func Parse(options map[string]string) (Spec, error) {
	r := &reader{options: options}
	t, err := typeOf(options)
	if err != nil {
		return Spec{}, err
	}
	spec := Spec{Type: t}
	k := kinds()[t]
	for _, key := range slices.Sorted(maps.Keys(options)) {
		if reason := refusedKey(t, key); reason != "" {
			r.fail("%s: %s", key, reason)
		} else if key != "type" && !slices.Contains(k.keys, key) {
			r.fail("%s is none of type=%s: the options are %s", key, t, strings.Join(append([]string{"type"}, k.keys...), ", "))
		}
		if i := strings.IndexFunc(options[key], unicode.IsControl); i >= 0 {
			r.fail("%s: control character at byte %d", key, i)
		}
	}
	k.parse(r, &spec)
	r.subdir(&spec)
	r.backup(&spec)
	slices.SortStableFunc(spec.Settings, func(a, b Setting) int { return strings.Compare(a.Key, b.Key) })
	if err := errors.Join(r.errs...); err != nil {
		return Spec{}, err
	}
	return spec, nil
}

// Same says whether two sets of options mean the same volume.
func Same(a, b map[string]string) bool {
	x, errA := Parse(a)
	y, errB := Parse(b)
	if errA != nil || errB != nil {
		return maps.Equal(a, b)
	}
	return reflect.DeepEqual(x, y)
}

// typeOf returns the type that options name, or that the rest of them implies.
func typeOf(options map[string]string) (Type, error) {
	switch t, named := options["type"]; {
	case t == "nfs4":
		return NFS, nil
	case named:
		if !slices.Contains(Types(), t) {
			return "", fmt.Errorf("%w: type=%s: want one of %s", ErrOption, t, strings.Join(Types(), ", "))
		}
		return Type(t), nil
	case options["volume"] != "": // the guide's short form
		return GlusterFS, nil
	case options["device"] != "" || options["o"] != "":
		return "", fmt.Errorf("%w: device and o need a type: add -o type=%s", ErrOption, strings.Join(Types(), "|"))
	}
	return Local, nil
}

// refusedKey is the reason why a key that a user may expect is not there.
func refusedKey(t Type, key string) string {
	switch key {
	case "secret", "password":
		return "a secret is not kept in the cluster's store: put it in a file on each node and name that with o=secretfile="
	case "size", "quota":
		return "no backend here limits a volume's size: set a quota on the server, or on the file system below"
	case "iam", "accesspoint":
		if t == EFS {
			return "IAM authorisation and access points of EFS are not supported: allow the nodes by security group and file " +
				"system policy, and use subdir= with mode=, uid= and gid="
		}
	}
	return ""
}

// reader reads options and gathers what is wrong with them.
type reader struct {
	options map[string]string
	errs    []error
}

func (r *reader) fail(format string, args ...any) {
	r.errs = append(r.errs, fmt.Errorf("%w %s", ErrOption, fmt.Sprintf(format, args...)))
}

// subdir reads subdir, mode, uid and gid.
func (r *reader) subdir(spec *Spec) {
	name, named := r.options["subdir"]
	if named {
		clean := strings.Trim(path.Clean("/"+name), "/")
		if name == "" || strings.HasPrefix(name, "/") || !filepath.IsLocal(name) || clean == "" {
			r.fail("subdir=%s: want a relative path without \"..\", such as data/web", name)
		}
		for part := range strings.SplitSeq(clean, "/") {
			if len(part) > maxName {
				r.fail("subdir: a name of %d bytes, at most %d are allowed", len(part), maxName)
			}
		}
		spec.Subdir.Name = clean
	}
	spec.Subdir.Mode = fs.FileMode(r.number("mode", 8, 0o7777, uint64(defaultMode)))
	spec.Subdir.UID = uint32(r.number("uid", 10, maxID, 0))
	spec.Subdir.GID = uint32(r.number("gid", 10, maxID, 0))
	if named || spec.Type == Local && spec.Path == "" {
		return
	}
	for _, key := range []string{"mode", "uid", "gid"} {
		if _, ok := r.options[key]; ok {
			r.fail("%s says how the directory subdir is made: add -o subdir=NAME", key)
		}
	}
}

const (
	// maxName is NAME_MAX (man 7 path_resolution).
	maxName = 255
	// maxID is the largest user id: 2³²−1 is "unchanged" for chown(2).
	maxID = 1<<32 - 2
)

func (r *reader) number(key string, base int, limit, fallback uint64) uint64 {
	text, ok := r.options[key]
	if !ok {
		return fallback
	}
	n, err := strconv.ParseUint(text, base, 64)
	if err != nil || n > limit {
		r.fail("%s=%s: want a number in base %d, at most %s", key, text, base, strconv.FormatUint(limit, base))
	}
	return n
}

// absolute checks a path of a server or a node.
func (r *reader) absolute(key, p string) string {
	if !strings.HasPrefix(p, "/") || slices.Contains(strings.Split(p, "/"), "..") {
		r.fail("%s: path %q: want an absolute one without \"..\"", key, p)
	}
	return path.Clean(p)
}
