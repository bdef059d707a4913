package cluster

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestTheStateIsReadAsItWasWritten(t *testing.T) {
	t.Parallel()
	files := FilesIn(t.TempDir())
	if s, err := files.State(); s != nil || err != nil {
		t.Errorf("without a file: %v, %v", s, err)
	}
	want := State{
		Role: RoleMember, Address: loopback, Ports: DefaultPorts(), Members: []netip.Addr{loopback}, Initial: "n1=https://x",
		Store: "members/abc",
	}
	if err := files.save(want); err != nil {
		t.Fatal(err)
	}
	got, err := files.State()
	want.V = stateVersion
	if diff := cmp.Diff(&want, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" || err != nil {
		t.Errorf("%v\n%s", err, diff)
	}
	if info, err := os.Stat(files.state()); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v: others may read it", info.Mode(), err)
	}
	if err := files.Remove(); err != nil {
		t.Fatal(err)
	}
	if s, err := files.State(); s != nil || err != nil {
		t.Errorf("after its removal: %v, %v", s, err)
	}
	if err := files.Remove(); err != nil { // it can be repeated
		t.Error(err)
	}
}

// A node that misread its state would begin with an empty store of its own, and give addresses out twice.
func TestAStateThatIsNotUnderstoodIsAnError(t *testing.T) {
	t.Parallel()
	good := `{"v":1,"role":"client","address":"127.0.0.1"}`
	for name, c := range map[string]struct{ text, want string }{
		"good":          {good, ""},
		"empty":         {"", "restore the file"},
		"cut":           {good[:20], "restore the file"},
		"later version": {strings.Replace(good, `"v":1`, `"v":2`, 1), "upgrade"},
		"no version":    {strings.Replace(good, `"v":1,`, "", 1), "version 0"},
		"other role":    {strings.Replace(good, "client", "king", 1), "king"},
		"no address":    {strings.Replace(good, "127.0.0.1", "", 1), "address"},
	} {
		dir := t.TempDir()
		if err := os.MkdirAll(filepath.Join(dir, "cluster"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "cluster", "state.json"), []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := FilesIn(dir).State()
		if c.want == "" && (err != nil || s == nil) {
			t.Errorf("%s: %v", name, err)
		}
		if c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want an error with %q", name, err, c.want)
		}
	}
}

func TestANodeThatHasLeftKeepsNothingOfTheCluster(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := State{Role: RoleMember, Address: loopback, Store: "members/abc"}
	if err := FilesIn(dir).save(s); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"members/abc/member", "etcd", "volumes"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 { // it can be repeated
		if err := Depart(dir, s); err != nil {
			t.Fatal(err)
		}
	}
	for path, stays := range map[string]bool{"members/abc": false, "cluster": false, "etcd": true, "volumes": true} {
		if _, err := os.Stat(filepath.Join(dir, path)); (err == nil) != stays {
			t.Errorf("%s: %v, want that it stays: %t", path, err, stays)
		}
	}
}
