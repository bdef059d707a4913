package backup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestRetentionKeepsTheLastBackupsWithAllThatTheyBuildOn(t *testing.T) {
	from, dir := disk(t), t.TempDir()
	d, err := OpenDirectory(dir)
	try(t, err)
	defer d.Close()
	now := time.Now()
	try(t, os.WriteFile(filepath.Join(from, "old"), []byte("of the first"), 0o600))
	var last string
	for i := range 5 {
		try(t, os.WriteFile(filepath.Join(from, "each"), fmt.Append(nil, i), 0o600))
		now = now.Add(24 * time.Hour)
		last, _, err = d.Create(t.Context(), Source{Dir: open(t, from), Name: "v", Now: func() time.Time { return now }}, i == 1)
		try(t, err)
	}
	// The second is a full one: the first is not needed by the last two, the second is.
	names, err := d.list("v")
	try(t, err)
	try(t, os.WriteFile(filepath.Join(dir, "v-other-20260101T000000Z.tar.zst"), nil, 0o600), os.WriteFile(filepath.Join(dir, "v-notes"), nil, 0o600))
	removed, err := d.Retain("v", 2)
	try(t, err)
	if diff := cmp.Diff([]string{names[2], names[4]}, removed); diff != "" {
		t.Errorf("removed (-want +got):\n%s", diff)
	}
	in, err := os.Open(last)
	try(t, err)
	defer in.Close()
	to := disk(t)
	_, err = Restore(t.Context(), in, Target{Dir: open(t, to), Bases: Beside(last)})
	try(t, err)
	if text, err := os.ReadFile(filepath.Join(to, "old")); err != nil || string(text) != "of the first" {
		t.Errorf("restored %q, error %v", text, err)
	}
	try(t, os.WriteFile(filepath.Join(dir, names[0]), []byte("damaged"), 0o600))
	if removed, err := d.Retain("v", 1); err == nil || len(removed) > 0 {
		t.Errorf("removed %v though the one that stays cannot be read: %v", removed, err)
	}
	warned := ""
	path, s, err := d.Create(t.Context(), Source{
		Dir: open(t, from), Name: "v", Warn: func(s string) { warned = s }, Now: func() time.Time { return now.Add(time.Hour) },
	}, false)
	try(t, err)
	if len(s.Bases) > 0 || !strings.Contains(warned, "full backup") || filepath.Dir(path) != dir {
		t.Errorf("%s builds on %v, warning %q", path, s.Bases, warned)
	}
	if _, err := OpenDirectory(dir); !errors.Is(err, ErrBusy) {
		t.Errorf("a second backup at the same time: %v", err)
	}
}
