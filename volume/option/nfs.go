package option

import (
	"net/netip"
	"slices"
	"strings"
)

// nfsRules are the options of man 5 nfs that the kernel takes (fs/nfs/fs_context.c).
func nfsRules() map[string]rule {
	number := between(0, 1<<31-1)
	rules := map[string]rule{
		"addr": hostRule(), "vers": oneOf("3", "4", "4.0", "4.1", "4.2"), "minorversion": between(0, 2),
		"proto": oneOf("tcp", "tcp6", "udp", "udp6", "rdma", "rdma6"), "port": between(1, 65535),
		"mountaddr": hostRule(), "mounthost": hostRule(), "mountport": between(1, 65535),
		"mountproto": oneOf("tcp", "tcp6", "udp", "udp6"), "mountvers": between(1, 3),
		"sec":        oneOf("sys", "none", "krb5", "krb5i", "krb5p"),
		"local_lock": oneOf("none", "all", "flock", "posix"), "lookupcache": oneOf("all", "none", "pos", "positive"),
		"nconnect": between(1, 16), "max_connect": between(1, 16), "clientaddr": hostRule(),
		"xprtsec": oneOf("none", "tls", "mtls"), "timeo": between(1, 1<<31-1), "retrans": number,
		"rsize": number, "wsize": number, "namlen": number,
	}
	rules["nfsvers"] = rules["vers"]
	for _, key := range []string{"acregmin", "acregmax", "acdirmin", "acdirmax", "actimeo"} {
		rules[key] = number
	}
	for _, key := range []string{"hard", "soft", "softerr", "softreval", "posix"} {
		rules[key] = bare()
	}
	for _, key := range []string{"ac", "acl", "cto", "fsc", "lock", "migration", "rdirplus", "resvport", "sharecache"} {
		rules[key], rules["no"+key] = bare(), bare()
	}
	return rules
}

// parseNFS reads type=nfs: -o o=addr=HOST,rw -o device=:/PATH.
func parseNFS(r *reader, spec *Spec) {
	host, path := r.device()
	list := r.list(spec, nfsRules())
	addr, list := take(list, "addr")
	addr = unbracket(addr)
	spec.Path = path
	switch {
	case addr == "" && host == "":
		r.fail("o: no server: add addr=HOST, as in -o o=addr=192.168.1.100,rw")
	case addr == "":
		addr = host
	case host != "" && host != addr && isAddr(host) && isAddr(addr):
		r.fail("o: addr=%s and device=%s:%s name different servers: leave the one in device out", addr, host, path)
	}
	spec.Servers = []string{addr}
	spec.Versions, spec.Settings = r.versions(list)
}

func isAddr(s string) bool { _, err := netip.ParseAddr(s); return err == nil }

// versions returns those that are to be tried, the newest first as mount.nfs does, and the settings without them.
func (r *reader) versions(list []Setting) ([]string, []Setting) {
	vers, list := take(list, "vers")
	old, list := take(list, "nfsvers")
	minor, list := take(list, "minorversion")
	if vers == "" {
		vers = old
	}
	if vers == "" && r.options["type"] == "nfs4" {
		vers = "4"
	}
	three := usesMountProtocol(list)
	switch {
	case minor != "" && (vers == "4" || vers == ""):
		vers = "4." + minor
	case minor != "" && vers != "4."+minor:
		r.fail("o: minorversion=%s and vers=%s exclude each other: give vers=4.%s", minor, vers, minor)
	}
	if three != "" && strings.HasPrefix(vers, "4") {
		r.fail("o: %s is for NFS version 3, and vers=%s is asked for: leave one of the two out", three, vers)
	}
	switch {
	case three != "":
		return []string{"3"}, list
	case vers == "":
		return []string{"4.2", "4.1", "4.0", "3"}, list
	case vers == "4":
		return []string{"4.2", "4.1", "4.0"}, list
	}
	return []string{vers}, list
}

// usesMountProtocol returns an option that only NFS version 3 has, with its separate mount and lock protocols, or "".
func usesMountProtocol(list []Setting) string {
	for _, s := range list {
		if strings.HasPrefix(s.Key, "mount") || s.Key == "proto" && strings.HasPrefix(s.Value, "udp") ||
			slices.Contains([]string{"lock", "nolock", "local_lock"}, s.Key) {
			return s.String()
		}
	}
	return ""
}
