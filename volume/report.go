package volume

import (
	"maps"
	"slices"
	"time"

	"github.com/netdriver/netdriver/store"
	"github.com/netdriver/netdriver/volume/mount"
	"github.com/netdriver/netdriver/volume/option"
)

// Report is what a node knows of a volume, without asking its server.
type Report struct {
	Name    string            `json:"name"`
	Type    string            `json:"type"`
	Servers []string          `json:"servers,omitempty"`
	Path    string            `json:"path,omitempty"`
	Options map[string]string `json:"options"`
	// Node made the volume; a local one's data is there.
	Node    string    `json:"node"`
	Created time.Time `json:"created"`
	Updated time.Time `json:"updated,omitzero"`
	// Here is the node that reports.
	Here string `json:"here"`
	// Mountpoint is empty if the volume is not mounted on the node that reports.
	Mountpoint string `json:"mountpoint,omitempty"`
	// Mounted is how it was mounted, such as "NFS 4.2"; Negotiated are the file system's options.
	Mounted    string    `json:"mounted,omitempty"`
	Negotiated string    `json:"negotiated,omitempty"`
	Since      time.Time `json:"since,omitzero"`
	// FUSE: a process of this node is its client, and whoever waits for that cannot be killed.
	FUSE bool `json:"fuse,omitempty"`
	// Health is healthy, stale, hung, or empty if it is not mounted or not known yet; Checked is when that was found out.
	Health  string    `json:"health,omitempty"`
	Checked time.Time `json:"checked,omitzero"`
	// Problem is the error of the last mount or probe.
	Problem string `json:"problem,omitempty"`
	// Outdated: its present users have it with options that were changed since.
	Outdated bool `json:"outdated,omitempty"`
	// References are this node's users; Users those of all nodes.
	References []string                   `json:"references,omitempty"`
	Users      map[string]store.VolumeUse `json:"users,omitempty"`
	Drift      []store.VolumeDrift        `json:"drift,omitempty"`
	// Backup is what is known of its backups, made by schedule or by hand.
	Backup *store.VolumeBackup `json:"backup,omitempty"`
}

// report gathers what is known of a volume.
func (d *Driver) report(v store.Volume) Report {
	s := d.engine.State(v.Name)
	r := Report{
		Name: v.Name, Here: d.cfg.Node, Options: v.Options, Node: v.Node, Created: v.Created, Updated: v.Updated, Drift: v.Drift,
		Mountpoint: d.mountpoint(v.Name), Mounted: s.Label, Negotiated: s.Mounted.Options, Since: s.Since, FUSE: s.Mounted.FUSE(),
		Health: string(s.Health), Checked: s.Checked, Outdated: s.Outdated, References: s.IDs, Users: d.users(v.Name, s),
	}
	if b, ok := d.catalog.backup(v.Name); ok {
		r.Backup = &b
	}
	spec, err := option.Parse(v.Options)
	if err != nil { // made by a later version
		r.Problem = err.Error()
		return r
	}
	r.Type, r.Servers, r.Path = string(spec.Type), spec.Servers, spec.Path
	if spec.Volume != "" {
		r.Path = spec.Volume
	}
	if s.Problem != nil {
		_, explain := d.host.Volume(v.Name, spec)
		r.Problem = explain(s.Problem).Error()
	}
	return r
}

// users returns who uses a volume on all nodes. This node knows its own users better than its record, which is written a
// moment later.
func (d *Driver) users(name string, s mount.State) map[string]store.VolumeUse {
	out := d.catalog.users(name)
	delete(out, d.cfg.Node)
	if len(s.IDs) > 0 {
		out[d.cfg.Node] = use(s)
	}
	return out
}

// status is the report as `docker volume inspect` shows it.
func (r Report) status() map[string]any {
	out := map[string]any{"type": r.Type}
	add := func(key string, value any, present bool) {
		if present {
			out[key] = value
		}
	}
	add("servers", r.Servers, len(r.Servers) > 0)
	add("path", r.Path, r.Path != "")
	add("node", r.Node, r.Type == string(option.Local))
	add("mounted", r.Mounted, r.Mounted != "")
	add("negotiated", r.Negotiated, r.Negotiated != "")
	add("health", r.Health, r.Health != "")
	add("problem", r.Problem, r.Problem != "")
	add("outdated", r.Outdated, r.Outdated)
	add("references", r.References, len(r.References) > 0)
	add("nodes", slices.Sorted(maps.Keys(r.Users)), len(r.Users) > 0)
	if b := r.Backup; b != nil {
		add("lastBackup", b.Succeeded.Format(time.RFC3339)+" in "+b.File, !b.Succeeded.IsZero())
		add("backupProblem", b.Started.Format(time.RFC3339)+" on node "+b.Node+": "+b.Error, b.Error != "")
	}
	for _, x := range r.Drift {
		add("drift", "node "+x.Node+" asked for other options: "+difference(r.Options, x.Options), true)
	}
	return out
}
