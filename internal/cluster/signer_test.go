package cluster

import (
	"errors"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/netdriver/netdriver/store"
)

// clock is a time that tests move.
type clock struct{ passed atomic.Int64 }

func (c *clock) now() time.Time       { return start.Add(time.Duration(c.passed.Load())) }
func (c *clock) pass(d time.Duration) { c.passed.Add(int64(d)) }
func put(t testing.TB, s store.Store, ops ...store.Op) {
	t.Helper()
	if _, err := s.Commit(t.Context(), nil, ops...); err != nil {
		t.Fatal(err)
	}
}

func testSigner(t testing.TB) (*signer, *clock) {
	t.Helper()
	c := &clock{}
	return &signer{store: store.NewMemory(), authority: testAuthority(t), now: c.now}, c
}

func TestATokenAdmitsUntilItEnds(t *testing.T) {
	t.Parallel()
	s, clock := testSigner(t)
	tok, err := s.token(t.Context(), "n1", fixedToken().Endpoints, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	refused := func(id string, secret []byte, want string) {
		t.Helper()
		if err := s.admit(t.Context(), id, secret); !errors.Is(err, ErrDenied) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want a refusal with %q", err, want)
		}
	}
	admitted := func() {
		t.Helper()
		if err := s.admit(t.Context(), tok.ID, tok.Secret); err != nil {
			t.Error(err)
		}
	}
	admitted()
	admitted() // several nodes use one token
	refused(tok.ID, fixedToken().Secret, "secret is wrong")
	refused(tok.ID, nil, "secret is wrong")
	refused("another", tok.Secret, "no such token")
	refused("../nodes/n1", tok.Secret, "token")
	clock.pass(time.Hour)
	admitted()
	clock.pass(time.Second)
	refused(tok.ID, tok.Secret, "has expired")
	put(t, s.store, store.DeletePrefix(store.TokenPrefix))
	refused(tok.ID, tok.Secret, "was revoked")
}

func TestTheStoreDoesNotKnowATokensSecret(t *testing.T) {
	t.Parallel()
	s, _ := testSigner(t)
	tok, err := s.token(t.Context(), "n1", fixedToken().Endpoints, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	kv, err := s.store.Get(t.Context(), store.TokenKey(tok.ID))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.admit(t.Context(), tok.ID, kv.Value); !errors.Is(err, ErrDenied) {
		t.Errorf("the record opens the door: %v", err)
	}
	if strings.Contains(tok.String(), string(kv.Value)) || strings.Contains(string(kv.Value), string(tok.Secret)) {
		t.Error("the record has the secret")
	}
}

func TestAStoreThatIsAwayIsNoRefusal(t *testing.T) {
	t.Parallel()
	s, _ := testSigner(t)
	failing := &failing{Store: s.store, left: 0}
	s.store = failing
	if _, err := s.token(t.Context(), "n1", nil, time.Hour); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("%v", err)
	}
}

func TestANameOrAddressOfALivingNodeIsNotGivenAgain(t *testing.T) {
	t.Parallel()
	addr, other := netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.3")
	for name, c := range map[string]struct {
		alive    bool
		id, node string
		addr     netip.Addr
		free     bool
	}{
		"another node":            {true, "new", "n3", other, true},
		"its name":                {true, "new", "n2", other, false},
		"its address":             {true, "new", "n3", addr, false},
		"the node itself":         {true, "old", "n2", addr, true},
		"name of a lost node":     {false, "new", "n2", other, true},
		"address of a lost node":  {false, "new", "n3", addr, true},
		"both, and it lives":      {true, "new", "n2", addr, false},
		"itself, at another name": {true, "old", "n3", addr, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, _ := testSigner(t)
			put(t, s.store, store.Put(store.NodeKey("n2"), store.Encode(store.Node{Name: "n2", ID: "old", VTEP: addr})))
			if c.alive {
				put(t, s.store, store.PutAlive(store.AliveKey("n2"), []byte("old")))
			}
			err := s.nameFree(t.Context(), c.id, c.node, c.addr)
			if c.free && err != nil || !c.free && !errors.Is(err, ErrDenied) {
				t.Errorf("%v, want free %t", err, c.free)
			}
		})
	}
}

func TestEveryCertificateIsRecordedSoThatItCanBeRefused(t *testing.T) {
	t.Parallel()
	s, _ := testSigner(t)
	_, request := testRequest(t, "n2")
	text, err := s.sign(t.Context(), request, "n2", loopback)
	if err != nil {
		t.Fatal(err)
	}
	c, err := parseCertificate(text)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.store.Get(t.Context(), store.CertificateKey("n2", serial(c))); err != nil {
		t.Fatal(err)
	}
	if refused, err := revoked(t.Context(), s.store); err != nil || len(refused) != 0 {
		t.Errorf("%v, %v", refused, err)
	}
	if err := forget(t.Context(), s.store, "n2"); err != nil {
		t.Fatal(err)
	}
	der, err := s.crl(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	files := FilesIn(t.TempDir())
	if err := files.write(files.CRL(), der); err != nil {
		t.Fatal(err)
	}
	if refused, err := listed(files); err != nil || len(refused) != 1 || !refused[serial(c)] {
		t.Errorf("%v, %v; want %s", refused, err, serial(c))
	}
	// A certificate that was not recorded would never be refused, so it is not given.
	s.store = &failing{Store: s.store}
	if text, err := s.sign(t.Context(), request, "n2", loopback); err == nil || text != nil {
		t.Errorf("signed without a record: %v", err)
	}
}
