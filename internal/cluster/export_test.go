package cluster

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netdriver/netdriver/store"
)

func backupOf(t testing.TB, s store.Store) string {
	t.Helper()
	var b bytes.Buffer
	if err := Backup(t.Context(), s, "n1", start, &b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// records returns all lasting records of a store.
func records(t *testing.T, s store.Store) map[string]string {
	t.Helper()
	kvs, _, err := s.List(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, kv := range kvs {
		if !fleeting(kv.Key) {
			out[kv.Key] = string(kv.Value)
		}
	}
	return out
}

func TestARestoredStoreHasWhatTheBackupHas(t *testing.T) {
	t.Parallel()
	from, to := populated(t), store.NewMemory()
	for i := range 3 * store.MaxOps { // more than one transaction, with bytes that are no text
		put(t, from, store.Put(fmt.Sprintf("volumes/v%d", i), []byte{0, '\n', 0xff, byte(i)}))
	}
	put(t, from, store.Put(store.TokenKey("secret"), []byte("hash")))
	put(t, from, store.Put("volumes/large", make([]byte, store.MaxValue)))
	text := backupOf(t, from)
	if strings.Contains(text, "tokens/") || strings.Contains(text, "alive/") {
		t.Error("the backup tells who is alive, or has tokens")
	}
	n, err := Restore(t.Context(), to, strings.NewReader(text), false)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(records(t, from), records(t, to)); diff != "" || n != len(records(t, from)) {
		t.Errorf("%d records, -want +got:\n%s", n, diff)
	}
}

func TestWhatIsNoWholeBackupIsRefusedBeforeTheFirstWrite(t *testing.T) {
	t.Parallel()
	good := backupOf(t, populated(t))
	lines := strings.SplitAfter(good, "\n")
	lines = lines[:len(lines)-1]
	without := func(i int) string { return strings.Join(append(append([]string{}, lines[:i]...), lines[i+1:]...), "") }
	cases := map[string]string{
		"empty":              "",
		"rubbish":            "rubbish\n",
		"another format":     strings.Replace(good, backupFormat, "other backup", 1),
		"later version":      strings.Replace(good, `"v":1`, `"v":2`, 1),
		"no header":          without(0),
		"a record less":      without(3),
		"no end":             without(len(lines) - 1),
		"a record twice":     strings.Join(append(append([]string{}, lines[:2]...), lines[1:]...), ""),
		"changed key":        strings.Replace(good, "nodes/n1", "nodes/n9", 1),
		"something follows":  good + lines[1],
		"an end in between":  lines[0] + lines[len(lines)-1] + strings.Join(lines[1:], ""),
		"a line without key": lines[0] + "{}\n",
		"a line too long":    lines[0] + strings.Repeat("x", maxRecord+1),
	}
	for i := 1; i < len(good)-1; i += 97 {
		cases[fmt.Sprintf("cut at byte %d", i)] = good[:i]
	}
	for name, text := range cases {
		s := store.NewMemory()
		if _, err := Restore(t.Context(), s, strings.NewReader(text), true); !errors.Is(err, ErrBackup) {
			t.Errorf("%s: %v, want ErrBackup", name, err)
		}
		if have := keys(t, s); len(have) > 0 {
			t.Errorf("%s: %v were written", name, have)
		}
	}
	if _, err := Restore(t.Context(), store.NewMemory(), strings.NewReader(good), false); err != nil {
		t.Errorf("the control: %v", err)
	}
}

func TestNetworksAreReplacedOnlyWithForce(t *testing.T) {
	t.Parallel()
	from, to := populated(t), store.NewMemory()
	text := backupOf(t, from)
	network(t, to, 9, "other", "", "n3")
	put(t, to,
		store.Put(store.NodeKey("n3"), store.Encode(store.Node{Name: "n3"})),
		store.Put(store.CertificateKey("n3", "cc"), nil),
		store.Put(store.RevokedKey("dd"), nil), store.PutAlive(store.AliveKey("n3"), []byte("id")),
		store.Put(store.TokenKey("tok"), nil))
	before := keys(t, to)
	_, err := Restore(t.Context(), to, strings.NewReader(text), false)
	fails(t, err, "--force")
	if diff := cmp.Diff(before, keys(t, to)); diff != "" {
		t.Errorf("changed without force:\n%s", diff)
	}
	for range 2 { // it can be repeated
		if _, err := Restore(t.Context(), to, strings.NewReader(text), true); err != nil {
			t.Fatal(err)
		}
	}
	// Nodes that are in the cluster now stay in it, and what is refused stays refused.
	want := records(t, from)
	want[store.NodeKey("n3")] = string(store.Encode(store.Node{Name: "n3"}))
	want[store.CertificateKey("n3", "cc")], want[store.RevokedKey("dd")] = "", ""
	if diff := cmp.Diff(want, records(t, to)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	for _, key := range []string{store.AliveKey("n3"), store.TokenKey("tok")} {
		if _, err := to.Get(t.Context(), key); err != nil {
			t.Error(err)
		}
	}
}

func TestAnInterruptedRestoreIsFinishedByTheNext(t *testing.T) {
	t.Parallel()
	from := populated(t)
	for i := range 2 * store.MaxOps {
		put(t, from, store.Put(fmt.Sprintf("volumes/v%d", i), []byte("{}")))
	}
	text := backupOf(t, from)
	to := store.NewMemory()
	_, err := Restore(t.Context(), &failing{Store: to, left: 1}, strings.NewReader(text), false)
	if !errors.Is(err, store.ErrUnavailable) {
		t.Fatal(err)
	}
	if _, err := Restore(t.Context(), to, strings.NewReader(text), true); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(records(t, from), records(t, to)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func FuzzReadBackup(f *testing.F) {
	s := store.NewMemory()
	put(f, s, store.Put("volumes/v", []byte("{}")))
	good := backupOf(f, s)
	f.Add(good)
	f.Add(good[:len(good)/2])
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		records, err := readBackup(strings.NewReader(text))
		if err != nil {
			if !errors.Is(err, ErrBackup) || records != nil {
				t.Errorf("%v, with %d records", err, len(records))
			}
			return
		}
		named := map[string]bool{}
		for _, r := range records {
			if r.Key == "" || named[r.Key] {
				t.Errorf("key %q", r.Key)
			}
			named[r.Key] = true
		}
	})
}
