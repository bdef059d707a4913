//go:build e2e

package e2e

import (
	"crypto/rand"
	"encoding/base64"
	le "encoding/binary"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/netdriver/netdriver/test/e2e/lab"
)

// cephConfig is the smallest Ceph: one process of each kind, everything in memory.
const cephConfig = `[global]
fsid = FSID
mon host = [v2:ADDR:3300,v1:ADDR:6789]
public addr = ADDR
cluster addr = ADDR
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pg autoscale mode = off
mon warn on pool no redundancy = false
mon allow pool size one = true
osd crush chooseleaf type = 0
osd objectstore = memstore
memstore device bytes = 268435456
osd max object name len = 256
mon data avail crit = 1
mon data avail warn = 2
ms bind ipv6 = false
run dir = DIR/run
log file = DIR/log/$name.log
admin socket = DIR/run/$name.asok
mon data = DIR/mon
mgr data = DIR/mgr
osd data = DIR/osd
mds data = DIR/mds
keyring = DIR/keyring
mds session timeout = 30
mgr initial modules =
mgr disabled modules = restful,dashboard,diskprediction_local,prometheus,k8sevents,cephadm,rook,telemetry,volumes,pg_autoscaler,balancer,devicehealth,progress,orchestrator,crash,iostat,status,telegraf,influx,insights,zabbix,snap_schedule,nfs,mirroring,stats,localpool,alerts,test_orchestrator,selftest,osd_perf_query,osd_support,rbd_support,mds_autoscaler
`

// cephCaps are the entities of the cluster with what they may do. The clients are those of the tests: app may all, reader
// may read only, and squashed is no root.
func cephCaps() map[string][]string {
	return map[string][]string{
		"mon.":            {"mon", "allow *"},
		"client.admin":    {"mon", "allow *", "mgr", "allow *", "osd", "allow *", "mds", "allow *"},
		"mgr.x":           {"mon", "allow profile mgr", "osd", "allow *", "mds", "allow *"},
		"osd.0":           {"mon", "allow profile osd", "osd", "allow *", "mgr", "allow profile osd"},
		"mds.m":           {"mon", "allow profile mds", "osd", "allow *", "mds", "allow *", "mgr", "allow profile mds"},
		"client.app":      {"mon", "allow r", "osd", "allow rw", "mds", "allow rw"},
		"client.reader":   {"mon", "allow r", "osd", "allow r", "mds", "allow r"},
		"client.squashed": {"mon", "allow r", "osd", "allow rw", "mds", "allow rw root_squash"},
	}
}

// cephKey makes a key: type 1 (AES), time of creation, length, 16 random bytes (src/auth/Crypto.cc, CryptoKey::encode).
func cephKey() string {
	b := le.LittleEndian.AppendUint16(nil, 1)
	b = le.LittleEndian.AppendUint32(b, uint32(time.Now().Unix()))
	b = le.LittleEndian.AppendUint32(b, 0)
	b = le.LittleEndian.AppendUint16(b, 16)
	secret := make([]byte, 16)
	_, _ = rand.Read(secret)
	return base64.StdEncoding.EncodeToString(append(b, secret...))
}

// newCeph starts a Ceph with a file system. Each client's key is in a file KEY.NAME in the server's directory.
func newCeph(t *testing.T, l *lab.Lab, host int) *fileServer {
	t.Helper()
	s := newFileServer(t, l, "ceph", host)
	s.mkdir("mon", "mgr", "osd", "mds", "log", "run")
	fsid := strings.TrimSpace(s.run("cat", "/proc/sys/kernel/random/uuid"))
	config := s.file("ceph.conf", strings.NewReplacer("FSID", fsid, "ADDR", s.addr, "DIR", s.dir).Replace(cephConfig))
	var keyring strings.Builder
	for name, caps := range cephCaps() {
		key := cephKey()
		fmt.Fprintf(&keyring, "[%s]\n\tkey = %s\n", name, key)
		for i := 0; i < len(caps); i += 2 {
			fmt.Fprintf(&keyring, "\tcaps %s = \"%s\"\n", caps[i], caps[i+1])
		}
		s.file("KEY."+strings.TrimPrefix(name, "client."), key+"\n")
	}
	ring := s.file("keyring", keyring.String())
	s.run("monmaptool", "--create", "--addv", "a", fmt.Sprintf("[v2:%s:3300,v1:%s:6789]", s.addr, s.addr), "--fsid", fsid, s.path("monmap"))
	s.run("ceph-mon", "-c", config, "-i", "a", "--mkfs", "--monmap", s.path("monmap"), "--keyring", ring)
	s.serve("mon", "ceph-mon", "-c", config, "-i", "a", "-f")
	s.answers(s.ceph("status")...)
	s.serve("mgr", "ceph-mgr", "-c", config, "-i", "x", "-f")
	osd := strings.TrimSpace(s.run("cat", "/proc/sys/kernel/random/uuid"))
	s.run(s.ceph("osd", "new", osd)...)
	s.run("ceph-osd", "-c", config, "-i", "0", "--mkfs", "--osd-uuid", osd)
	s.serve("osd", "ceph-osd", "-c", config, "-i", "0", "-f")
	s.run(s.ceph("osd", "pool", "create", "md", "8")...)
	s.run(s.ceph("osd", "pool", "create", "da", "8")...)
	s.run(s.ceph("fs", "new", "cfs", "md", "da")...)
	s.serve("mds", "ceph-mds", "-c", config, "-i", "m", "-f")
	s.cephServes()
	return s
}

func (s *fileServer) ceph(args ...string) []string {
	return append([]string{"timeout", "20", "ceph", "-c", s.path("ceph.conf")}, args...)
}

// cephServes waits until the metadata server serves the file system.
func (s *fileServer) cephServes() {
	s.t.Helper()
	s.answers("sh", "-c", `timeout 10 ceph -c "$0" mds stat | grep up:active`, s.path("ceph.conf"))
}

func TestVolumesOnCephFS(t *testing.T) {
	c := hosts(t)
	k := cephKind(newCeph(t, c.Lab, 241))
	k.client = "ceph-fuse"
	k.scenario(t, dockerHosts(c.Nodes[:2]))
}

// cephKind is a Ceph as the scenarios use it.
func cephKind(s *fileServer) *volumeKind {
	options := func(user, key, path string, o ...string) []string {
		o = append([]string{"mon_addr=" + s.addr, "name=" + user, "secretfile=" + s.path("KEY."+key)}, o...)
		return []string{"type=cephfs", "device=:" + path, "o=" + strings.Join(o, ",")}
	}
	caps := func(mds string) {
		s.run(s.ceph("auth", "caps", "client.app", "mon", "allow r", "osd", "allow rw", "mds", mds)...)
	}
	return &volumeKind{
		fileServer: s, name: "ceph",
		options: func(o ...string) []string { return options("app", "app", "/", o...) },
		missing: options("app", "app", "/nosuch"), sayMissing: "has no /nosuch",
		forbidden: options("app", "reader", "/"), sayForbidden: "its key is another",
		squashed: options("squashed", "squashed", "/"),
		withdraw: func() { caps("allow rw path=/nothing") },
		offer:    func() { caps("allow rw") }, sayWithdrawn: "client.app may not use",
		// What is in the object store's memory would be gone with it.
		die: func() { s.kill("mon", "mgr", "mds") }, ready: s.cephServes,
	}
}
