package option

import (
	"strconv"
	"time"
)

// Backup is how often a volume is backed up, and where to. The zero value is never.
type Backup struct {
	Every time.Duration
	// To is the volume that gets the archives.
	To string
	// Keep is how many of them stay, besides those that they build on.
	Keep int
}

// The bounds of backup-keep=, and what it is if it is not given: a week of daily ones.
const (
	defaultKeep = 7
	maxKeep     = 10000
)

// backup reads backup, backup-to and backup-keep.
func (r *reader) backup(spec *Spec) {
	every, scheduled := r.options["backup"]
	for _, key := range []string{"backup-to", "backup-keep"} {
		if _, ok := r.options[key]; ok && !scheduled {
			r.fail("%s says where backups go: add -o backup=daily", key)
		}
	}
	if !scheduled {
		return
	}
	periods := map[string]time.Duration{"hourly": time.Hour, "daily": 24 * time.Hour, "weekly": 7 * 24 * time.Hour}
	period, ok := periods[every]
	if !ok {
		r.fail("backup=%s: want hourly, daily or weekly", every)
	}
	spec.Backup = Backup{Every: period, To: r.options["backup-to"], Keep: defaultKeep}
	if spec.Backup.To == "" {
		r.fail("backup=%s: add -o backup-to=VOLUME, the volume that gets the archives", every)
	}
	if text, ok := r.options["backup-keep"]; ok {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > maxKeep {
			r.fail("backup-keep=%s: want a number from 1 to %d", text, maxKeep)
		}
		spec.Backup.Keep = n
	}
}
