//go:build e2e

package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/netdriver/netdriver/test/e2e/lab"
)

// ganeshaConfig is that of an NFS server; its exports follow. Without grace a new one can be used at once.
const ganeshaConfig = `NFS_CORE_PARAM { Protocols = 3,4; NFS_Port = 2049; MNT_Port = 20048; Bind_addr = ADDR; Enable_NLM = false; Enable_RQUOTA = false; }
NFSv4 { Minor_Versions = 0,1,2; Grace_Period = 3; Lease_Lifetime = 10; Graceless = true; RecoveryRoot = DIR/recovery; }
EXPORT_DEFAULTS { Squash = No_Root_Squash; SecType = sys; Protocols = 3,4; Transports = TCP; }
`

// newGanesha starts an NFS server with the exports /share, /deny and /squash.
func newGanesha(t *testing.T, l *lab.Lab, host int) *fileServer {
	t.Helper()
	s := newFileServer(t, l, "ganesha", host)
	s.mkdir("recovery", "share", "deny", "squash")
	s.run("mkdir", "-p", "/run/ganesha", "/var/lib/nfs/ganesha")
	config := s.ganeshaExports(true)
	s.serve("rpcbind", "rpcbind", "-f") // it refuses to start without one, as long as it is to speak version 3
	s.answers("rpcinfo", "-p", "127.0.0.1")
	s.serve("ganesha", "ganesha.nfsd", "-F", "-f", config, "-L", s.path("ganesha.log"), "-p", s.path("own"), "-N", "NIV_EVENT")
	s.listens(2049)
	return s
}

// ganeshaExports writes the configuration, with or without /share, and returns its file.
func (s *fileServer) ganeshaExports(share bool) string {
	text := strings.NewReplacer("ADDR", s.addr, "DIR", s.dir).Replace(ganeshaConfig)
	export := func(id int, name, more string) {
		text += fmt.Sprintf("EXPORT { Export_Id = %d; Path = %s; Pseudo = /%s; %s FSAL { Name = VFS; } }\n", id, s.path(name), name, more)
	}
	if share {
		export(1, "share", "Access_Type = RW;")
	}
	export(2, "deny", "Access_Type = None; CLIENT { Clients = 192.0.2.9; Access_Type = RW; }")
	export(3, "squash", "Access_Type = RW; Squash = Root_Squash;")
	return s.file("ganesha.conf", text)
}

// nfsOptions are those of a volume on an NFS server.
func nfsOptions(addr, path string, o ...string) []string {
	return []string{"type=nfs", "device=:" + path, "o=" + strings.Join(append([]string{"addr=" + addr}, o...), ",")}
}

// bareCluster makes two virtual nodes, of so much memory in MiB, with netdriver and without Docker: their kernels have what the
// machine's lacks.
func bareCluster(t *testing.T, memory int) *cluster {
	t.Helper()
	// Loaded beforehand: on a busy machine that takes longer than a mount may.
	kernel := lab.Kernel{Memory: memory, Modules: []string{"nfsv3", "nfsv4", "ceph"}}
	l := ownLab(t, lab.Config{Nodes: 2, Binary: binary(t), Virtual: true, Kernel: kernel})
	c := &cluster{Lab: l}
	if err := c.certify(); err != nil {
		t.Fatal(err)
	}
	for _, n := range c.Nodes {
		if err := n.StartDaemon(t.Context(), c.daemonConfig(n)); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// One lab for all that speaks NFS, since its start is what takes time.
func TestVolumesOnNFS(t *testing.T) {
	c := bareCluster(t, 512)
	hosts := bareHosts(c.Nodes)
	s := newGanesha(t, c.Lab, 242)
	t.Run("versions", func(t *testing.T) { nfsVersions(t, s, hosts) })
	options := func(o ...string) []string { return nfsOptions(s.addr, "/share", o...) }
	reload := func(share bool) func() {
		return func() {
			s.ganeshaExports(share)
			s.signal("HUP")
		}
	}
	k := &volumeKind{
		fileServer: s, name: "nfs", options: options,
		missing: nfsOptions(s.addr, "/nosuch"), sayMissing: "exports no /nosuch",
		forbidden: nfsOptions(s.addr, "/deny"), sayForbidden: "/etc/exports",
		squashed: nfsOptions(s.addr, "/squash"),
		withdraw: reload(false), offer: reload(true), sayWithdrawn: "exports no /share",
		die: func() { s.kill("ganesha") }, ready: func() { s.listens(2049) },
	}
	k.scenario(t, hosts)
	t.Run("efs", func(t *testing.T) { efsScenario(t, c.Lab, s, hosts) })
}

// nfsVersions: each version that NFS has, and what is agreed on when none is asked for.
func nfsVersions(t *testing.T, s *fileServer, hosts []volumeHost) {
	for version, path := range map[string]string{"3": s.path("share"), "4.0": "/share", "4.1": "/share", "4.2": "/share", "": "/share"} {
		name, o, agreed := "v"+version, []string{}, version
		if version == "" {
			name, agreed = "negotiated", "4.2"
		} else {
			o = append(o, "vers="+version)
		}
		t.Run(name, func(t *testing.T) {
			makeVolume(t, hosts[0], name, nfsOptions(s.addr, path, o...)...)
			uses(t, hosts[0], name, "echo "+name+" >/data/version")
			held := hosts[1].hold(t, name, "sleep 1000")
			says(t, hosts[1].inspect(t, name), `"mounted":"NFS `+agreed, "vers="+agreed)
			if got := uses(t, hosts[1], name, "cat /data/version; rm /data/version"); got != name {
				t.Errorf("the second node reads %q", got)
			}
			held.end(t)
		})
	}
}

// efsScenario: the preset of EFS, through TLS to stunnel in front of an NFS server.
func efsScenario(t *testing.T, l *lab.Lab, nfs *fileServer, hosts []volumeHost) {
	s := newStunnel(t, l, nfs, 243)
	efs := func(ca string, more ...string) []string {
		return append([]string{"type=efs", "volume=fs-0123abcd", "addr=" + s.addr, "device=:/share", "cafile=" + ca}, more...)
	}
	for what, x := range map[string]struct {
		certificate string
		options     []string
		says        string
	}{
		"certificate of an unknown CA":     {"good", efs(s.path("other-ca.pem")), "signed by nobody that this node trusts"},
		"certificate for another name":     {"name", efs(s.path("ca.pem")), "certificate is for another name"},
		"certificate that has expired":     {"expired", efs(s.path("ca.pem")), "has expired"},
		"file of the CA that is not there": {"good", efs("/nosuch.pem"), "no readable file /nosuch.pem"},
		"server without TLS": {"good", append(efs(s.path("ca.pem"))[:2], "addr="+nfs.addr, "device=:/share", "cafile="+s.path("ca.pem")),
			"does not answer to TLS"},
	} {
		t.Run(what, func(t *testing.T) {
			s.present(x.certificate)
			name := "efs-" + strings.ReplaceAll(what, " ", "-")
			makeVolume(t, hosts[0], name, x.options...)
			says(t, refusal(t, hosts[0], name), "efs", x.says)
		})
	}
	s.present("good")
	makeVolume(t, hosts[0], "efs", efs(s.path("ca.pem"))...)
	makeVolume(t, hosts[0], "efs-other")
	k := &volumeKind{
		fileServer: s.fileServer, name: "efs", options: func(...string) []string { return efs(s.path("ca.pem")) },
		ready: func() { s.listens(2049) },
	}
	t.Run("moves", func(t *testing.T) {
		held := hosts[0].hold(t, "efs", "sleep 1000")
		says(t, hosts[0].inspect(t, "efs"), "through TLS", "vers=4.1", "noresvport", "addr=127.0.0.1")
		uses(t, hosts[0], "efs", "echo kept >/data/f")
		if got := uses(t, hosts[1], "efs", "cat /data/f"); got != "kept" {
			t.Errorf("the second node reads %q", got)
		}
		held.end(t)
	})
	t.Run("killed", func(t *testing.T) { k.outage(t, hosts, s.stop, s.start) })
	t.Run("frozen", func(t *testing.T) { k.outage(t, hosts, s.freeze, s.thaw) })
	t.Run("cut off", func(t *testing.T) { k.outage(t, hosts, s.cut, s.connect) })
}

// A stunnel is a TLS server in front of another server.
type stunnel struct{ *fileServer }

// newStunnel starts one with the certificate "good"; "name" is for another name and "expired" has expired.
func newStunnel(t *testing.T, l *lab.Lab, to *fileServer, host int) stunnel {
	t.Helper()
	s := stunnel{newFileServer(t, l, "stunnel", host)}
	s.certify()
	config := s.file("stunnel.conf", fmt.Sprintf(`foreground = yes
pid =
debug = 4
[nfs]
accept = %s:2049
connect = %s:2049
cert = %s
`, s.addr, to.addr, s.path("current.pem")))
	s.copy("good")
	s.serve("stunnel", "stunnel4", config)
	s.listens(2049)
	return s
}

// copy makes a certificate the one that is configured.
func (s stunnel) copy(name string) {
	s.t.Helper()
	text, err := os.ReadFile(s.path(name + ".pem"))
	if err != nil {
		s.t.Fatal(err)
	}
	s.file("current.pem", string(text))
}

// present has the server show another certificate.
func (s stunnel) present(name string) {
	s.t.Helper()
	s.copy(name)
	s.stop()
	s.start()
	s.listens(2049)
}

// certify makes two CAs, and certificates of the first. All began a day ago: a virtual node's clock may be behind.
func (s stunnel) certify() {
	s.t.Helper()
	day := 24 * time.Hour
	template := func(name string, until time.Duration) *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
			NotBefore: time.Now().Add(-2 * day), NotAfter: time.Now().Add(until), KeyUsage: x509.KeyUsageDigitalSignature,
		}
	}
	var authority *x509.Certificate
	var authorityKey *ecdsa.PrivateKey
	for _, name := range []string{"other-ca", "ca"} {
		authority = template(name, day)
		authority.IsCA, authority.BasicConstraintsValid, authority.KeyUsage = true, true, x509.KeyUsageCertSign
		authorityKey = s.sign(name, authority, authority, nil)
	}
	elsewhere := template("name", day)
	elsewhere.DNSNames = []string{"elsewhere.example"}
	for _, c := range []*x509.Certificate{template("good", day), elsewhere, template("expired", -day)} {
		if c != elsewhere {
			c.IPAddresses = []net.IP{net.ParseIP(s.addr)}
		}
		s.sign(c.Subject.CommonName, c, authority, authorityKey)
	}
}

// sign writes a certificate with its key to NAME.pem and returns the key. Without a parent's key it signs itself.
func (s stunnel) sign(name string, c, parent *x509.Certificate, parentKey *ecdsa.PrivateKey) *ecdsa.PrivateKey {
	s.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		s.t.Fatal(err)
	}
	if parentKey == nil {
		parentKey = key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, parentKey)
	if err != nil {
		s.t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		s.t.Fatal(err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	s.file(name+".pem", string(text)+string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})))
	return key
}
