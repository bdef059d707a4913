package diag

import (
	"context"
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

// slow is a store whose answers take a while.
type slow struct {
	store.Store
	took time.Duration
}

func (s slow) Count(ctx context.Context, prefix string) (int64, error) {
	select {
	case <-time.After(s.took):
		return s.Store.Count(ctx, prefix)
	case <-ctx.Done():
		return 0, store.ErrUnavailable
	}
}

func TestASlowStoreIsToldFromOneThatIsAway(t *testing.T) {
	for name, c := range map[string]struct {
		took time.Duration
		away error
		says string
	}{
		"quick":                        {0, nil, ""},
		"slow":                         {510 * time.Millisecond, nil, "the store is slow"},
		"too slow for all the records": {510 * time.Millisecond, store.ErrUnavailable, "one question took"},
		"away":                         {time.Minute, store.ErrUnavailable, "does not answer"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := &examiner{
				d: New(Sources{Node: store.Node{Name: "n1"}, Store: slow{store.NewMemory(), c.took}}), c: cluster{err: c.away},
			}
			found := checkStore(t.Context(), e)
			if c.says == "" && len(found) > 0 || c.says != "" && (len(found) != 1 || !strings.Contains(found[0].Cause, c.says)) {
				t.Errorf("%+v, want %q", found, c.says)
			}
		})
	}
}

func TestAFirewallIsOpenIfOneOfItsRulesLetsTheClusterIn(t *testing.T) {
	w := doorway{4789, []netip.Addr{netip.MustParseAddr("192.0.2.7")}}
	for rule, want := range map[string]bool{
		"udp dport 4789 accept":                               true,
		"udp dport { 53, 4789 } accept":                       true,
		"udp dport 4790 accept":                               false,
		"ip saddr 192.0.2.0/24 counter accept":                true,
		"ip saddr 198.51.100.0/24 accept":                     false,
		`iifname "lo" accept`:                                 false,
		`iifname "eth0" accept`:                               true,
		"ct state established,related accept":                 false,
		"type filter hook forward priority 0; policy accept;": false,
	} {
		if got := w.open([]string{rule}); got != want {
			t.Errorf("%q: open %t, want %t", rule, got, want)
		}
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
