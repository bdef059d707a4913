package diag

import (
	"context"
	"slices"
	"sync"
	"time"
)

// hostFindingsLast is for how long what was found on the host is told again without looking.
const hostFindingsLast = 10 * time.Second

// hostFindings are those of the quick checks, with their time.
type hostFindings struct {
	mu    sync.Mutex
	found []Finding
	at    time.Time
}

// quick names the checks that need milliseconds, ask nobody and send nothing.
func quick() []string {
	return []string{"underlay", "namespace", "filter", "gateway", "certificates", "clock", "disk"}
}

// onHost makes the quick checks of this node, if none were made a moment ago.
func (d *Diagnosis) onHost(ctx context.Context, c cluster) []Finding {
	if d.src.Site.RunDir == "" {
		return nil // nobody has said where to look
	}
	d.host.mu.Lock()
	defer d.host.mu.Unlock()
	if now := d.src.Now(); now.Sub(d.host.at) < hostFindingsLast && !now.Before(d.host.at) {
		return d.host.found
	}
	e, err := d.examiner(c)
	if err != nil {
		return []Finding{finding("kernel", Unknown, d.src.Node.Name, "run `netdriver check` as root", "this host could not be looked at: %v", err)}
	}
	defer e.close()
	var found []Finding
	for _, check := range checks() {
		if slices.Contains(quick(), check.name) {
			found = append(found, check.run(ctx, e)...)
		}
	}
	d.host.found, d.host.at = unique(found), d.src.Now()
	return d.host.found
}
