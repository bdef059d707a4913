package cluster

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/time/rate"

	"github.com/netdriver/netdriver/store"
)

// member is a member that serves nodes which join.
type member struct {
	*signer
	at netip.AddrPort
}

func startMember(t *testing.T) *member {
	t.Helper()
	s := &signer{store: store.NewMemory(), now: time.Now} // TLS looks at the real clock
	var err error
	if s.authority, err = NewAuthority("n1", time.Now()); err != nil {
		t.Fatal(err)
	}
	files := FilesIn(t.TempDir())
	m := &member{signer: s, at: freePort(t)}
	m.install(t, files, "n1")
	x := &exchange{
		signer: s, files: files, ports: DefaultPorts(), log: slog.New(slog.DiscardHandler),
		limit:   rate.NewLimiter(rate.Inf, 1),
		members: func(context.Context) ([]netip.Addr, error) { return []netip.Addr{loopback}, nil },
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- x.serve(ctx, m.at) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	for range 100 {
		if c, err := net.Dial("tcp", m.at.String()); err == nil {
			c.Close()
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	return m
}

func freePort(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return netip.MustParseAddrPort(l.Addr().String())
}

// install gives a node its files, as a join does.
func (m *member) install(t *testing.T, files Files, node string) {
	t.Helper()
	key, request := testRequest(t, node)
	certificate, err := m.sign(t.Context(), request, node, loopback)
	if err != nil {
		t.Fatal(err)
	}
	for path, text := range map[string][]byte{
		files.CA(): m.authority.CertificatePEM(), files.Cert(): certificate, files.Key(): key,
	} {
		if err := files.write(path, text); err != nil {
			t.Fatal(err)
		}
	}
}

// node returns how a node with a certificate of the cluster talks to members.
func (m *member) node(t *testing.T, name string) *tls.Config {
	t.Helper()
	files := FilesIn(t.TempDir())
	m.install(t, files, name)
	config, err := mutual(files)
	if err != nil {
		t.Fatal(err)
	}
	return config
}

func (m *member) join(t *testing.T, tok Token, node string) (joinAnswer, error) {
	t.Helper()
	_, request := testRequest(t, node)
	return ask[joinAnswer](t.Context(), trustOnly(tok.Authority, time.Now), []netip.AddrPort{m.at}, "/v1/join",
		joinRequest{
			Token: tok.ID, Secret: tok.Secret, Node: node, ID: "id-" + node, Address: loopback, Request: request,
		})
}

func (m *member) newToken(t *testing.T) Token {
	t.Helper()
	tok, err := m.token(t.Context(), "n1", []netip.AddrPort{m.at}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

// fails checks that an error says why.
func fails(t *testing.T, err error, want string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("%v, want an error with %q", err, want)
	}
}

func TestANodeThatJoinsGetsACertificateOfItsName(t *testing.T) {
	t.Parallel()
	m := startMember(t)
	a, err := m.join(t, m.newToken(t), "n2")
	if err != nil {
		t.Fatal(err)
	}
	c, err := parseCertificate(a.Certificate)
	if err != nil || c.Subject.CommonName != "n2" || string(a.Authority) != string(m.authority.CertificatePEM()) {
		t.Errorf("%v, %v", c.Subject, err)
	}
	if len(a.Members) != 1 || a.Members[0] != loopback || a.Ports != DefaultPorts() {
		t.Errorf("%+v", a)
	}
}

func TestANodeTellsNothingToAServerOfAnotherAuthority(t *testing.T) {
	t.Parallel()
	m, other := startMember(t), startMember(t)
	tok := m.newToken(t)
	_, err := other.join(t, tok, "n2")
	fails(t, err, "no member of the token's cluster")
	if _, err := m.join(t, tok, "n2"); err != nil {
		t.Errorf("the control: %v", err)
	}
}

func TestAMemberRefusesWhoHasNoGoodToken(t *testing.T) {
	t.Parallel()
	m := startMember(t)
	good := m.newToken(t)
	bad := good
	bad.Secret = fixedToken().Secret
	_, err := m.join(t, bad, "n2")
	fails(t, err, "secret is wrong")
	_, err = m.join(t, good, "no/name")
	fails(t, err, "no/name")
	addrOfOthers := netip.MustParseAddr("192.0.2.3")
	put(t, m.store,
		store.Put(store.NodeKey("n3"), store.Encode(store.Node{Name: "n3", ID: "other", VTEP: addrOfOthers})),
		store.PutAlive(store.AliveKey("n3"), []byte("other")))
	_, err = m.join(t, good, "n3")
	fails(t, err, "alive")
	if _, err := m.join(t, good, "n2"); err != nil {
		t.Errorf("the control: %v", err)
	}
}

func renewAt(t *testing.T, m *member, config *tls.Config) (renewAnswer, error) {
	t.Helper()
	_, request := testRequest(t, "whatever")
	return ask[renewAnswer](t.Context(), config, []netip.AddrPort{m.at}, "/v1/renew", renewRequest{request, loopback})
}

func TestACertificateIsRenewedForItsOwnerUntilItIsRefused(t *testing.T) {
	t.Parallel()
	m := startMember(t)
	n2, n3 := m.node(t, "n2"), m.node(t, "n3")
	a, err := renewAt(t, m, n2)
	if err != nil {
		t.Fatal(err)
	}
	if c, err := parseCertificate(a.Certificate); err != nil || c.Subject.CommonName != "n2" {
		t.Errorf("%v: a node gets a certificate of another's name", err)
	}
	_, err = renewAt(t, m, trustOnly(m.newToken(t).Authority, time.Now))
	fails(t, err, "certificate of the cluster is needed")
	if err := forget(t.Context(), m.store, "n2"); err != nil {
		t.Fatal(err)
	}
	_, err = renewAt(t, m, n2)
	fails(t, err, "node n2 was removed")
	if _, err := renewAt(t, m, n3); err != nil {
		t.Errorf("the control: %v", err)
	}
}

func TestTheAuthoritysKeyIsForTheGrowingNodeOnly(t *testing.T) {
	t.Parallel()
	m := startMember(t)
	n2, n3 := m.node(t, "n2"), m.node(t, "n3")
	key := func(config *tls.Config) (keyAnswer, error) {
		return ask[keyAnswer](t.Context(), config, []netip.AddrPort{m.at}, "/v1/authority", struct{}{})
	}
	_, err := key(n2)
	fails(t, err, "does not become a member")
	put(t, m.store, store.PutAlive(store.ClusterGrowing, []byte("n2")))
	a, err := key(n2)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ParseAuthority(m.authority.CertificatePEM(), a.Key); err != nil {
		t.Error(err)
	}
	_, err = key(n3)
	fails(t, err, "does not become a member")
	if err := forget(t.Context(), m.store, "n2"); err != nil {
		t.Fatal(err)
	}
	_, err = key(n2)
	fails(t, err, "was removed")
}

func TestTheNextMemberIsAskedIfOneDoesNotAnswer(t *testing.T) {
	t.Parallel()
	m := startMember(t)
	closed := freePort(t)
	_, request := testRequest(t, "n2")
	_, err := ask[renewAnswer](t.Context(), m.node(t, "n2"), []netip.AddrPort{closed, m.at}, "/v1/renew",
		renewRequest{request, loopback})
	if err != nil {
		t.Error(err)
	}
	_, err = ask[renewAnswer](t.Context(), m.node(t, "n2"), []netip.AddrPort{closed}, "/v1/renew",
		renewRequest{request, loopback})
	fails(t, err, "check that TCP port")
}
