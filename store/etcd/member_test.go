package etcd

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/netdriver/netdriver/store"
	"github.com/netdriver/netdriver/test/e2e/lab"
)

// peers are members of one store, on loopback.
type peers struct {
	t     *testing.T
	files EmbedConfig // what all have: certificate and authority
	hosts map[string]*host
	// removed is the certificate of a node that is no member.
	removed *lab.Certificate
}

// member returns the configuration of one that does not run yet.
func (p *peers) member(name, initial string) EmbedConfig {
	cfg := p.files
	cfg.DataDir, cfg.RunDir, cfg.Log = p.t.TempDir(), shortDir(p.t), testLog(p.t)
	cfg.Listen = []string{"https://" + freeAddress(p.t)}
	cfg.Member = &Member{
		Name: name, Dir: "members/" + name, Peer: "https://" + freeAddress(p.t), Initial: initial, CRL: p.files.Member.CRL,
	}
	return cfg
}

// client is one of a remote node.
func (p *peers) client() *Client {
	var urls []string
	for _, h := range p.hosts {
		urls = append(urls, h.cfg.Listen...)
	}
	tls, err := ClientTLS(p.files.CA, p.files.Cert, p.files.Key)
	if err != nil {
		p.t.Fatal(err)
	}
	return dialTest(p.t, Config{Endpoints: urls, TLS: tls, Cluster: "c"})
}

func (p *peers) start(cfg EmbedConfig) {
	p.t.Helper()
	h := &host{cfg: cfg}
	h.start(p.t)
	p.t.Cleanup(h.stop)
	p.hosts[cfg.Member.Name] = h
}

// grow adds a member, which learns first and then gets a vote.
func (p *peers) grow(name string) {
	p.t.Helper()
	cfg := p.member(name, "")
	c := p.client()
	for range 2 { // who was interrupted asks again
		p.settled(func() (err error) {
			cfg.Member.Initial, err = c.AddLearner(p.t.Context(), name, cfg.Member.Peer)
			return err
		})
	}
	p.start(cfg)
	tls, err := ClientTLS(p.files.CA, p.files.Cert, p.files.Key)
	if err != nil {
		p.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(p.t.Context(), 20*time.Second)
	defer cancel()
	for range 2 { // one that has a vote needs nothing
		if err := p.hosts[name].server.PromoteLearner(ctx, c.cfg.Endpoints, tls); err != nil {
			p.t.Fatal(err)
		}
	}
}

// settled does what the members allow once they have been connected for a while.
func (p *peers) settled(change func() error) {
	p.t.Helper()
	end := time.Now().Add(30 * time.Second)
	for {
		err := change()
		if err == nil {
			return
		}
		if !errors.Is(err, rpctypes.ErrUnhealthy) || time.Now().After(end) {
			p.t.Fatal(err)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

func (p *peers) lose(name string) {
	p.hosts[name].stop()
	delete(p.hosts, name)
}

// members waits until the store has these, all with a vote.
func (p *peers) members(want string) []MemberInfo {
	p.t.Helper()
	var got string
	var list []MemberInfo
	for range 100 {
		var names []string
		var err error
		list, err = p.client().Members(p.t.Context())
		for _, m := range list {
			name := m.Name
			if m.Learner {
				name += "(learner)"
			}
			names = append(names, name)
		}
		if got = fmt.Sprint(strings.Join(names, " "), err); got == want+"<nil>" {
			return list
		}
		time.Sleep(100 * time.Millisecond)
	}
	p.t.Fatalf("members %s, want %s", got, want)
	return nil
}

// writes proves that the store takes writes and has all earlier ones.
func (p *peers) writes(n int) {
	p.t.Helper()
	c := p.client()
	put(p.t, c, fmt.Sprintf("k/%d", n), "x")
	if count, err := c.Count(p.t.Context(), "k/"); err != nil || count != int64(n) {
		p.t.Fatalf("%d records, %v; want %d", count, err, n)
	}
}

// single makes the first member, of a store that was a node's own until then, with one record.
func single(t *testing.T) *peers {
	t.Helper()
	h := startHost(t, nil)
	put(t, dialTest(t, Config{Endpoints: []string{h.server.Endpoint()}, Cluster: "c"}), "k/1", "of the single one")
	h.stop()
	mine, other := netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.2")
	certificates, err := lab.Certificates(t.TempDir(), mine, other)
	if err != nil {
		t.Fatal(err)
	}
	p := &peers{t: t, hosts: map[string]*host{}, removed: certificates[other]}
	p.files = EmbedConfig{
		CA: certificates[mine].CA, Cert: certificates[mine].Cert, Key: certificates[mine].Key,
		Member: &Member{CRL: filepath.Join(t.TempDir(), "revoked.crl")},
	}
	p.refuse()
	cfg := p.member("n1", "")
	cfg.DataDir, cfg.Member.Dir = h.cfg.DataDir, "etcd"
	p.start(cfg)
	return p
}

// refuse writes the list of refused certificates, as the members read it.
func (p *peers) refuse(serials ...*big.Int) {
	p.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		p.t.Fatal(err)
	}
	list := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour)}
	for _, serial := range serials {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: serial, RevocationTime: time.Now()})
	}
	// etcd does not look at the signature: the file is the member's own.
	issuer := &x509.Certificate{KeyUsage: x509.KeyUsageCRLSign, SubjectKeyId: []byte{1}, PublicKey: key.Public()}
	der, err := x509.CreateRevocationList(rand.Reader, list, issuer, key)
	if err == nil {
		err = os.WriteFile(p.files.Member.CRL, der, 0o600)
	}
	if err != nil {
		p.t.Fatal(err)
	}
}

func TestASingleStoreGrowsToThreeLosesOneAndReplacesIt(t *testing.T) {
	t.Parallel()
	p := single(t)
	p.members("n1")
	p.writes(2) // what the single one had is there
	p.grow("n2")
	p.grow("n3")
	list := p.members("n1 n2 n3")
	p.writes(3)

	p.lose("n1") // even the first one
	p.writes(4)
	p.settled(func() error { return p.client().RemoveMember(t.Context(), list[0].ID) })
	if err := p.client().RemoveMember(t.Context(), list[0].ID); err != nil {
		t.Errorf("removed twice: %v", err)
	}
	p.members("n2 n3")
	p.grow("n4")
	p.members("n2 n3 n4")
	p.lose("n2") // the new one votes
	p.writes(5)
	for name, h := range p.hosts {
		st, err := Probe(t.Context(), h.cfg.Listen[0], p.client().cfg.TLS)
		if err != nil || st.Leader == 0 || st.Index == 0 || st.Size == 0 {
			t.Errorf("%s: %+v, %v", name, st, err)
		}
	}
}

func TestAMemberKeepsItsPlaceWhenItIsStartedAgain(t *testing.T) {
	t.Parallel()
	p := single(t)
	p.grow("n2")
	p.grow("n3")
	cfg := p.hosts["n2"].cfg
	p.lose("n2")
	p.writes(2)
	p.start(cfg)
	p.members("n1 n2 n3")
	p.lose("n3")
	p.writes(3) // it has what it missed, and its vote counts
}

func TestNoMemberIsRemovedIfTooFewWouldBeLeft(t *testing.T) {
	t.Parallel()
	p := single(t)
	p.grow("n2")
	p.grow("n3")
	list := p.members("n1 n2 n3")
	p.lose("n3")
	// Of n1 and n3, only one would answer.
	if err := p.client().RemoveMember(t.Context(), list[1].ID); err == nil || !strings.Contains(err.Error(),
		"no majority") {
		t.Errorf("%v, want that it is refused", err)
	}
	p.members("n1 n2 n3")
	p.settled(func() error { return p.client().RemoveMember(t.Context(), list[2].ID) }) // the control: the lost one
	p.members("n1 n2")
}

func TestARefusedCertificateOpensNoConnection(t *testing.T) {
	t.Parallel()
	p := single(t)
	get := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		tls, err := ClientTLS(p.files.CA, p.removed.Cert, p.removed.Key)
		if err != nil {
			t.Fatal(err)
		}
		_, err = dialTest(t, Config{Endpoints: p.hosts["n1"].cfg.Listen, TLS: tls, Cluster: "c"}).Get(ctx, "k/1")
		return err
	}
	if err := get(); err != nil {
		t.Fatalf("the control, before it is refused: %v", err)
	}
	text, err := os.ReadFile(p.removed.Cert)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	p.refuse(c.SerialNumber)
	if err := get(); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("%v, want ErrUnavailable", err)
	}
	p.writes(2) // others go on
}

func TestAMemberNeedsACertificate(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ cert, peer string }{
		"no certificate": {"", "https://127.0.0.1:2380"},
		"plain":          {"cert.pem", "http://127.0.0.1:2380"},
		"no URL":         {"cert.pem", "127.0.0.1:2380"},
	} {
		_, err := Embed(t.Context(), EmbedConfig{
			DataDir: t.TempDir(), RunDir: shortDir(t), Log: testLog(t), Cert: c.cert, Key: "key.pem", CA: "ca.pem",
			Member: &Member{Name: "n1", Peer: c.peer},
		})
		if err == nil || !strings.Contains(err.Error(), "want https://") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
