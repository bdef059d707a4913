package option_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/volume/option"
)

// opts reads options as they are typed: "type=nfs o=addr=h,rw".
func opts(line string) map[string]string {
	m := map[string]string{}
	for word := range strings.FieldsSeq(line) {
		key, value, _ := strings.Cut(word, "=")
		m[key] = value
	}
	return m
}

func whole() option.Subdir { return option.Subdir{Mode: 0o755} }

func TestTheOptionsOfTheGuideAreUnderstood(t *testing.T) {
	all := []string{"4.2", "4.1", "4.0", "3"}
	for line, want := range map[string]option.Spec{
		"type=nfs o=addr=192.168.1.100,rw device=:/path/to/share": {
			Type: option.NFS, Servers: []string{"192.168.1.100"}, Path: "/path/to/share", Versions: all, Subdir: whole(),
		},
		"type=nfs o=addr=nas.example.com,ro,noatime,timeo=50,soft,bg,_netdev device=nas.example.com:/s subdir=a/b mode=2770 uid=5 gid=6": {
			Type: option.NFS, Servers: []string{"nas.example.com"}, Path: "/s", Versions: all,
			Flags:    unix.MS_RDONLY | unix.MS_NOATIME,
			Settings: []option.Setting{{Key: "soft"}, {Key: "timeo", Value: "50"}},
			Subdir:   option.Subdir{Name: "a/b", Mode: 0o2770, UID: 5, GID: 6},
		},
		"type=nfs o=addr=fd00::1 device=:/s":   {Type: option.NFS, Servers: []string{"fd00::1"}, Path: "/s", Versions: all, Subdir: whole()},
		"type=nfs o=addr=[fd00::1] device=:/s": {Type: option.NFS, Servers: []string{"fd00::1"}, Path: "/s", Versions: all, Subdir: whole()},
		"type=nfs device=[fd00::1]:/s":         {Type: option.NFS, Servers: []string{"fd00::1"}, Path: "/s", Versions: all, Subdir: whole()},
		"type=nfs4 o=addr=h device=:/":         {Type: option.NFS, Servers: []string{"h"}, Path: "/", Versions: all[:3], Subdir: whole()},
		"type=nfs o=addr=h,nfsvers=4.1 device=:/s": {
			Type: option.NFS, Servers: []string{"h"}, Path: "/s", Versions: []string{"4.1"}, Subdir: whole(),
		},
		"type=nfs o=addr=h,mountport=20048 device=:/s": {
			Type: option.NFS, Servers: []string{"h"}, Path: "/s", Versions: []string{"3"}, Subdir: whole(),
			Settings: []option.Setting{{Key: "mountport", Value: "20048"}},
		},
		"volume=gv0": {Type: option.GlusterFS, Servers: []string{"localhost"}, Volume: "gv0", Subdir: whole()},
		"type=glusterfs volume=gv0 servers=a,b": {
			Type: option.GlusterFS, Servers: []string{"a", "b"}, Volume: "gv0", Subdir: whole(),
		},
		"type=cephfs device=:/p o=mon_addr=10.0.0.1/[fd00::1]:6789/c,name=web,secretfile=/etc/key": {
			Type: option.CephFS, Servers: []string{"10.0.0.1", "[fd00::1]:6789", "c"}, Path: "/p", User: "web", SecretFile: "/etc/key",
			Subdir: whole(),
		},
		"type=efs volume=fs-0123abcd region=eu-west-1": {
			Type: option.EFS, Servers: []string{"fs-0123abcd.efs.eu-west-1.amazonaws.com"}, Volume: "fs-0123abcd", Path: "/",
			Region: "eu-west-1", TLS: true, Versions: []string{"4.1"}, Subdir: whole(),
			Settings: []option.Setting{
				{Key: "hard"}, {Key: "noresvport"}, {Key: "retrans", Value: "2"}, {Key: "rsize", Value: "1048576"},
				{Key: "timeo", Value: "600"}, {Key: "wsize", Value: "1048576"},
			},
		},
		"": {Type: option.Local, Subdir: whole()},
		"backup=weekly backup-to=b backup-keep=3": {
			Type: option.Local, Subdir: whole(), Backup: option.Backup{Every: 7 * 24 * time.Hour, To: "b", Keep: 3},
		},
		"type=local device=/srv/x o=ro": {Type: option.Local, Path: "/srv/x", Flags: unix.MS_RDONLY, Subdir: whole()},
	} {
		got, err := option.Parse(opts(line))
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%s: error %v (-want +got):\n%s", line, err, diff)
		}
	}
}

func TestAMistakeIsRefusedWithWhatIsAllowed(t *testing.T) {
	for line, want := range map[string]string{
		"type=smb":                                          "nfs, efs, glusterfs, cephfs, local",
		"o=addr=h device=:/s":                               "need a type",
		"type=nfs device=:/s":                               "add addr=HOST",
		"type=nfs o=addr=h":                                 "want :/PATH",
		"type=nfs o=addr=h device=/s":                       "want :/PATH",
		"type=nfs o=addr=h device=:/a/../b":                 `without ".."`,
		"type=nfs o=addr=h,foo=1 device=:/s":                "there are ac acdirmax=",
		"type=nfs o=addr=h,vers=5 device=:/s":               "3, 4, 4.0, 4.1, 4.2",
		"type=nfs o=addr=h,rw,ro device=:/s":                "ro and rw exclude each other",
		"type=nfs o=addr=h,hard,soft device=:/s":            "hard and soft exclude each other",
		"type=nfs o=addr=h,lock,nolock device=:/s":          "lock and nolock exclude each other",
		"type=nfs o=addr=h,addr=i device=:/s":               "given twice",
		"type=nfs o=addr=h,vers=4,mountport=1 device=:/s":   "version 3",
		"type=nfs o=addr=10.0.0.1 device=10.0.0.2:/s":       "different servers",
		"type=nfs o=addr=10.0.0.300 device=:/s":             "a host name or an address",
		"type=nfs o=addr=h device=:/s subdir=../x":          "relative path",
		"type=nfs o=addr=h device=:/s subdir=/x":            "relative path",
		"type=nfs o=addr=h device=:/s mode=0777":            "add -o subdir=NAME",
		"type=nfs o=addr=h device=:/s subdir=x mode=8":      "base 8",
		"type=nfs o=addr=h device=:/s subdir=x uid=root":    "base 10",
		"type=nfs o=addr=h device=:/s volume=x":             "the options are type, o, device, subdir",
		"type=nfs o=addr=h,timeo=0 device=:/s":              "a number from 1",
		"type=nfs o=addr=h device=:/s size=1G":              "set a quota on the server",
		"type=glusterfs":                                    "the GlusterFS volume's name",
		"volume=gv0 servers=a,,b":                           "neither a host name nor an address",
		"type=cephfs device=:/p":                            "add mon_addr=HOST",
		"type=cephfs device=h:/p o=mon_addr=a":              "device is :/PATH",
		"type=cephfs device=:/p o=mon_addr=a,secret=QWE=":   "put it in a file",
		"type=cephfs device=:/p o=mon_addr=a,name=x":        "needs secretfile=FILE",
		"type=efs volume=fs-1 region=eu-west-1":             "fs-0123abcd",
		"type=efs volume=fs-0123abcd":                       "add -o region=REGION",
		"type=efs volume=fs-0123abcd addr=h iam=true":       "not supported",
		"type=efs volume=fs-0123abcd addr=h o=accesspoint=": "not supported",
		"type=efs volume=fs-0123abcd addr=h tls=maybe":      "want true or false",
		"type=efs volume=fs-0123abcd addr=h o=vers=3":       "no mount option of type=efs",
		"type=local device=relative":                        "want an absolute one",
		"type=local device=/":                               "root of the node",
		"type=local o=vers=3":                               "no mount option of type=local",
		"backup=sometimes backup-to=b":                      "hourly, daily or weekly",
		"backup=daily":                                      "add -o backup-to=VOLUME",
		"backup-to=b":                                       "add -o backup=daily",
		"backup=daily backup-to=b backup-keep=0":            "from 1 to 10000",
	} {
		_, err := option.Parse(opts(line))
		if !errors.Is(err, option.ErrOption) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %q", line, err, want)
		}
	}
}

func TestEveryMistakeIsToldAtOnce(t *testing.T) {
	_, err := option.Parse(opts("type=nfs o=vers=9,foo device=x mode=9 wrong=1"))
	for _, want := range []string{"vers=9", "foo", "device=x", "mode=9", "wrong"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not name %s", err, want)
		}
	}
}

func TestASecretIsNeverRepeatedInAnError(t *testing.T) {
	for _, line := range []string{
		"type=cephfs device=:/p o=mon_addr=a,name=x,secret=TOPSECRET", "type=cephfs device=:/p o=mon_addr=a secret=TOPSECRET",
		"type=cephfs device=:/p o=mon_addr=a,secret=TOPSECRET,secret=TOPSECRET2",
	} {
		if _, err := option.Parse(opts(line)); err == nil || strings.Contains(err.Error(), "TOPSECRET") {
			t.Errorf("%s: error %v", line, err)
		}
	}
}

func TestOptionsThatMeanTheSameAreNoDrift(t *testing.T) {
	same := [][2]string{
		{"type=nfs o=addr=h,rw device=:/s", "type=nfs o=addr=h device=h:/s"},
		{"volume=gv0", "type=glusterfs volume=gv0 servers=localhost"},
		{"type=nfs o=addr=h,timeo=5,soft device=:/s/", "type=nfs o=soft,timeo=5,addr=h device=:/s"},
		{"", "type=local"},
	}
	for _, p := range same {
		if !option.Same(opts(p[0]), opts(p[1])) {
			t.Errorf("%s and %s are told apart", p[0], p[1])
		}
	}
	if option.Same(opts("type=nfs o=addr=h device=:/s"), opts("type=nfs o=addr=h device=:/t")) {
		t.Error("two paths are the same")
	}
}

func FuzzOptionsNeverReachTheKernelUnchecked(f *testing.F) {
	f.Add("nfs", "addr=192.168.1.100,rw", ":/path", "a/b", "gv0")
	f.Add("cephfs", "mon_addr=a/b,name=u,secretfile=/f", ":/", "", "")
	f.Add("efs", "noresvport", "[fd00::1]:/x", "x", "fs-0123abcd")
	f.Add("local", "ro", "/srv", "x/../y", "")
	f.Fuzz(func(t *testing.T, kind, o, device, subdir, volume string) {
		m := map[string]string{"type": kind, "o": o, "device": device, "subdir": subdir, "volume": volume}
		for k, v := range m {
			if v == "" {
				delete(m, k)
			}
		}
		spec, err := option.Parse(m)
		if err != nil {
			if !errors.Is(err, option.ErrOption) {
				t.Errorf("error %v does not wrap ErrOption", err)
			}
			return
		}
		data := strings.Join(spec.Data(), ",")
		if strings.ContainsAny(data, "\x00\n ") || strings.Contains(data, "secret=") || strings.Contains(data, ",,") {
			t.Errorf("mount data %q", data)
		}
		if n := spec.Subdir.Name; strings.HasPrefix(n, "/") || strings.Contains("/"+n+"/", "/../") {
			t.Errorf("subdirectory %q", n)
		}
		if spec.Path != "" && (!strings.HasPrefix(spec.Path, "/") || strings.Contains(spec.Path+"/", "/../")) {
			t.Errorf("path %q", spec.Path)
		}
		if !option.Same(m, m) {
			t.Error("it differs from itself")
		}
	})
}
