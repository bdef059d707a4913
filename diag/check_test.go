package diag

import (
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/netdriver/netdriver/store"
	"github.com/netdriver/netdriver/test/e2e/lab"
)

func TestCertificatesAreComparedWithTheClock(t *testing.T) {
	here := netip.MustParseAddr("127.0.0.1")
	all, err := lab.Certificates(filepath.Join(t.TempDir(), "tls"), here)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		now  time.Time
		says string
	}{
		"now":        {time.Now(), ""},
		"long ago":   {time.Now().AddDate(-20, 0, 0), "it is behind"},
		"long ahead": {time.Now().AddDate(200, 0, 0), "ended at"},
	} {
		e := &examiner{
			d:    New(Sources{Now: func() time.Time { return c.now }, Node: store.Node{Name: "n1"}}),
			site: Site{Certificates: []string{all[here].Cert}},
		}
		found := checkCertificates(t.Context(), e)
		if c.says == "" && len(found) > 0 || c.says != "" && (len(found) != 1 || !strings.Contains(found[0].Cause, c.says)) {
			t.Errorf("%s: %+v, want %q", name, found, c.says)
		}
	}
	e := &examiner{d: New(Sources{Node: store.Node{Name: "n1"}}), site: Site{Certificates: []string{"/nowhere"}}}
	if found := checkCertificates(t.Context(), e); len(found) != 1 || found[0].Severity != Failed {
		t.Errorf("a certificate that is not there: %+v", found)
	}
}

func TestAClockThatIsAheadIsFoundByWhatItWrote(t *testing.T) {
	now := time.Now()
	e := &examiner{
		d: New(Sources{Now: func() time.Time { return now }, Node: store.Node{Name: "n1"}}),
		c: cluster{statuses: map[string]store.Status{"n1": {Updated: now}, "n2": {Updated: now.Add(-time.Hour)}, "n3": {Updated: now.Add(time.Hour)}}},
	}
	found := checkClock(t.Context(), e)
	if len(found) != 1 || found[0].Place != "n3" || !strings.Contains(found[0].Cause, "ahead") {
		t.Errorf("findings %+v, want one about n3", found)
	}
}
