package diag

import (
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestInspectCarriesWhatQuickChecksFindWithoutJudgingByIt(t *testing.T) {
	c := newCluster(t)
	now, certificate := start.Add(time.Hour), filepath.Join(t.TempDir(), "gone.pem")
	src := c.d.src
	src.Now = func() time.Time { return now }
	look := func(d *Diagnosis) (NetworkReport, string) {
		t.Helper()
		r, err := d.Network(t.Context(), "my-net")
		if err != nil {
			t.Fatal(err)
		}
		var all []string
		for _, f := range r.Host {
			all = append(all, f.Check+" "+f.Place+" "+f.Cause)
		}
		return r, strings.Join(all, "\n")
	}
	if r, _ := look(New(src)); r.Host != nil {
		t.Errorf("nobody has said where to look, and it found %+v", r.Host)
	}
	src.Site = Site{RunDir: t.TempDir(), DataDir: t.TempDir(), Certificates: []string{certificate}}
	d := New(src)
	r, found := look(d)
	if r.Verdict != Healthy {
		t.Errorf("verdict %s of the network", r.Verdict)
	}
	for _, want := range []string{"certificates node1 " + certificate, "underlay node1", "namespace node1"} {
		if !strings.Contains(found, want) {
			t.Errorf("%q is not among\n%s", want, found)
		}
	}
	for _, f := range r.Host {
		if f.Remedy == "" || f.Check == "peers" || f.Check == "networks" {
			t.Errorf("%+v", f)
		}
	}
	d.src.Site.Certificates = nil
	if _, again := look(d); again != found {
		t.Error("it looked again at once")
	}
	now = now.Add(hostFindingsLast)
	if _, later := look(d); strings.Contains(later, certificate) {
		t.Errorf("it does not look again: %s", later)
	}
	all, err := d.Networks(t.Context())
	if err != nil || len(all.Networks) != 1 || all.Networks[0].Host != nil {
		t.Errorf("the summary has %+v, error %v", all.Networks, err)
	}
}
