package option

import (
	"net/netip"
	"regexp"
	"slices"
	"strings"
)

// efsID is the form of an EFS file system's id (AWS API reference, FileSystemId).
var efsID = regexp.MustCompile(`^fs-[0-9a-f]{8,40}$`)

var region = regexp.MustCompile(`^[a-z]{2}(-[a-z]+)+-[0-9]{1,2}$`)

// parseEFS reads type=efs: NFS 4.1 with the settings that AWS recommends ("Recommended NFS mount options"), through TLS
// unless tls=false.
func parseEFS(r *reader, spec *Spec) {
	if spec.Volume = r.options["volume"]; !efsID.MatchString(spec.Volume) {
		r.fail("volume=%s: want the file system's id, such as fs-0123abcd", spec.Volume)
	}
	spec.Path, spec.Versions = "/", []string{"4.1"}
	if _, ok := r.options["device"]; ok {
		_, spec.Path = r.device()
	}
	r.efsServer(spec)
	switch tls, ok := r.options["tls"]; {
	case !ok, tls == "true":
		spec.TLS = true
	case tls != "false":
		r.fail("tls=%s: want true or false", tls)
	}
	if file, ok := r.options["cafile"]; ok {
		spec.CAFile = r.absolute("cafile", file)
		if !spec.TLS {
			r.fail("cafile is for tls=true: leave one of the two out")
		}
	}
	rules := nfsRules()
	for _, key := range []string{"addr", "vers", "nfsvers", "minorversion", "proto", "sec", "clientaddr", "xprtsec"} {
		delete(rules, key)
	}
	spec.Settings = r.list(spec, rules)
	if s := usesMountProtocol(spec.Settings); s != "" {
		r.fail("o: %s is for NFS version 3, which EFS does not speak", s)
	}
	r.efsDefaults(spec)
}

// efsServer finds the mount target's name: ID.efs.REGION.amazonaws.com, or what addr= says.
func (r *reader) efsServer(spec *Spec) {
	spec.Region = r.options["region"]
	if spec.Region != "" && !region.MatchString(spec.Region) {
		r.fail("region=%s: want one such as eu-west-1", spec.Region)
	}
	switch addr, ok := r.options["addr"]; {
	case ok:
		spec.Servers = r.hosts("addr", addr, ",")
	case spec.Region != "":
		spec.Servers = []string{spec.Volume + ".efs." + spec.Region + ".amazonaws.com"}
	default:
		r.fail("region is missing: add -o region=REGION, or the mount target with -o addr=ADDRESS")
	}
}

func (r *reader) efsDefaults(spec *Spec) {
	has := func(keys ...string) bool {
		return slices.ContainsFunc(spec.Settings, func(s Setting) bool { return slices.Contains(keys, s.Key) })
	}
	for _, s := range []Setting{{"rsize", "1048576"}, {"wsize", "1048576"}, {"timeo", "600"}, {"retrans", "2"}} {
		if !has(s.Key) {
			spec.Settings = append(spec.Settings, s)
		}
	}
	if !has("hard", "soft", "softerr") {
		spec.Settings = append(spec.Settings, Setting{"hard", ""})
	}
	if !has("resvport", "noresvport") {
		spec.Settings = append(spec.Settings, Setting{"noresvport", ""})
	}
}

// glusterVolume is what glusterd allows as a volume's name (cli-cmd-parser.c).
var glusterVolume = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_-]{0,254}$`)

// parseGluster reads type=glusterfs: -o volume=gv0 [-o servers=a,b]. Without servers, the node's own glusterd is asked,
// as GlusterFS's guides have it: it knows the volume of every peer.
func parseGluster(r *reader, spec *Spec) {
	if spec.Volume = r.options["volume"]; !glusterVolume.MatchString(spec.Volume) {
		r.fail("volume=%s: want the GlusterFS volume's name, such as gv0", spec.Volume)
	}
	servers, ok := r.options["servers"]
	if !ok {
		servers = "localhost"
	}
	spec.Servers = r.hosts("servers", servers, ",")
	seconds := between(0, 3600)
	spec.Settings = r.list(spec, map[string]rule{
		"log-level":     oneOf("CRITICAL", "ERROR", "WARNING", "INFO", "DEBUG", "TRACE", "NONE"),
		"acl":           bare(),
		"entry-timeout": seconds, "attribute-timeout": seconds, "negative-timeout": seconds,
		"direct-io-mode": oneOf("enable", "disable", "auto"),
	})
}

var (
	cephUser = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,128}$`)
	cephFS   = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,128}$`)
)

// parseCeph reads type=cephfs: -o device=:/PATH -o o=mon_addr=a/b,name=USER,secretfile=FILE.
func parseCeph(r *reader, spec *Spec) {
	host, path := r.device()
	if host != "" {
		r.fail("device=%s: the monitors are given by o=mon_addr=HOST[/HOST…], and device is :/PATH", r.options["device"])
	}
	spec.Path = path
	word := rule{"letters, digits, '_', '.' or '-'", cephUser.MatchString}
	number := between(0, 1<<31-1)
	list := r.list(spec, map[string]rule{
		"mon_addr":   {"monitors as HOST[:PORT][/HOST[:PORT]…]", areMonitors},
		"name":       word,
		"secretfile": {"an absolute path on each node", func(v string) bool { return strings.HasPrefix(v, "/") }},
		"fs":         {word.want, cephFS.MatchString}, "mds_namespace": {word.want, cephFS.MatchString},
		"rsize": number, "wsize": number, "rasize": number, "mount_timeout": between(1, 20),
		"rbytes": bare(), "norbytes": bare(), "noshare": bare(),
		"recover_session": oneOf("no", "clean"),
		"ms_mode":         oneOf("legacy", "crc", "secure", "prefer-crc", "prefer-secure"),
	})
	monitors, list := take(list, "mon_addr")
	if monitors == "" {
		r.fail("o: no monitor: add mon_addr=HOST, several separated by '/'")
	}
	for m := range strings.SplitSeq(monitors, "/") {
		spec.Servers = append(spec.Servers, unbracket(m))
	}
	spec.User, list = take(list, "name")
	spec.SecretFile, list = take(list, "secretfile")
	if spec.User != "" && spec.SecretFile == "" {
		r.fail("o: name=%s needs secretfile=FILE, on each node, with the key of client.%s", spec.User, spec.User)
	}
	spec.Settings = list
}

// areMonitors says whether v is a list of monitors, each a host with or without a port.
func areMonitors(v string) bool {
	for m := range strings.SplitSeq(v, "/") {
		if host, port, ok := cutPort(m); !isHost(host) || ok && !between(1, 65535).allow(port) {
			return false
		}
	}
	return true
}

// cutPort splits HOST:PORT; IPv6 addresses with a port have brackets.
func cutPort(s string) (host, port string, ok bool) {
	if a, err := netip.ParseAddrPort(s); err == nil {
		return a.Addr().String(), s[strings.LastIndex(s, ":")+1:], true
	}
	if isHost(s) {
		return s, "", false
	}
	i := strings.LastIndex(s, ":")
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+1:], true
}

// parseLocal reads type=local: a directory of netdriver's own on one node, or one that device= names on each.
func parseLocal(r *reader, spec *Spec) {
	if dir, ok := r.options["device"]; ok {
		if spec.Path = r.absolute("device", dir); spec.Path == "/" {
			r.fail("device=/: the root of the node cannot be a volume")
		}
	}
	r.list(spec, map[string]rule{"bind": bare()})
}
