package cluster

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/netdriver/netdriver/store"
)

// vouched is a cluster's node with the records that vouch for it.
func vouched(t *testing.T, a *Authority, node string, records map[string]store.KV) *Identity {
	t.Helper()
	files := FilesIn(t.TempDir())
	key, request, err := newRequest(node)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := a.Sign(request, node, netip.MustParseAddr("192.0.2.1"), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for path, text := range map[string][]byte{files.CA(): a.CertificatePEM(), files.Cert(): certificate, files.Key(): key} {
		if err := files.write(path, text); err != nil {
			t.Fatal(err)
		}
	}
	c, err := parseCertificate(certificate)
	if err != nil {
		t.Fatal(err)
	}
	k := store.CertificateKey(node, serial(c))
	records[k] = store.KV{Key: k, Value: certificate}
	id, err := OpenIdentity(files, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestASignatureIsBelievedOnlyWithACertificateOfThatNode(t *testing.T) {
	a, err := NewAuthority("test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	other, err := NewAuthority("other", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	records := map[string]store.KV{}
	record := func(key string) (store.KV, bool) { kv, ok := records[key]; return kv, ok }
	n1, n2 := vouched(t, a, "n1", records), vouched(t, a, "n2", records)
	stranger := vouched(t, other, "n1", records)
	message := []byte("an offer")
	sign := func(i *Identity) []byte {
		signature, err := i.Sign(message)
		if err != nil {
			t.Fatal(err)
		}
		return signature
	}
	of1, of2, ofStranger := sign(n1), sign(n2), sign(stranger)
	if err := n2.Verifier(record, nil).Verify("n1", message, of1); err != nil {
		t.Fatalf("a true one: %v", err)
	}
	changed := append(append([]byte{}, of1[:len(of1)-1]...), of1[len(of1)-1]^1)
	for what, c := range map[string]struct {
		node      string
		message   string
		signature []byte
		want      string
	}{
		"of another node":      {"n1", "an offer", of2, "no certificate"},
		"of another authority": {"n1", "an offer", ofStranger, "authority"},
		"another message":      {"n1", "an order", of1, "signature"},
		"changed":              {"n1", "an offer", changed, "signature"},
		"empty":                {"n1", "an offer", nil, "no signature"},
		"cut":                  {"n1", "an offer", of1[:5], "no signature"},
		"too long a number":    {"n1", "an offer", append([]byte{255}, make([]byte, 300)...), "no signature"},
	} {
		err := n2.Verifier(record, nil).Verify(c.node, []byte(c.message), c.signature)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v does not say %q", what, err, c.want)
		}
	}
	late := *n2
	late.now = func() time.Time { return time.Now().Add(2 * CertificateLife) }
	if err := late.Verifier(record, nil).Verify("n1", message, of1); err == nil || !strings.Contains(err.Error(), "valid from") {
		t.Errorf("after its end: error %v", err)
	}
	// Whoever can write the store's records puts the certificate of one node under the name of another.
	for key, kv := range records {
		if strings.HasPrefix(key, store.NodeCertificates("n2")) {
			records[strings.Replace(key, "/n2/", "/n1/", 1)] = kv
		}
	}
	if err := n2.Verifier(record, nil).Verify("n1", message, of2); err == nil || !strings.Contains(err.Error(), "of node n2") {
		t.Errorf("a certificate in another's place: error %v", err)
	}
	for key := range records {
		if number, ok := strings.CutPrefix(key, store.NodeCertificates("n1")); ok {
			records[store.RevokedKey(number)] = store.KV{Key: store.RevokedKey(number)}
		}
	}
	if err := n2.Verifier(record, nil).Verify("n1", message, of1); err == nil || !strings.Contains(err.Error(), "removed") {
		t.Errorf("a refused one: error %v", err)
	}
}
