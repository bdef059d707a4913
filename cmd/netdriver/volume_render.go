package main

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"

	"github.com/netdriver/netdriver/volume"
	"github.com/netdriver/netdriver/volume/mount"
)

// painter returns a painter for this call's output.
func (a app) painter() painter { return painter{colour: a.coloured(), now: time.Now()} }

// health colours what the last question to a volume's server brought.
func (p painter) health(health string) string {
	colours := map[string]string{string(mount.Healthy): green, string(mount.Stale): red, string(mount.Hung): red}
	if health == "" {
		return none
	}
	return p.paint(colours[health], strings.ToUpper(health))
}

// worstHealth is that on the node where a volume is worst: a hung server blocks whoever uses it.
func worstHealth(r volume.Report) string {
	weight := map[string]int{string(mount.Healthy): 1, string(mount.Stale): 2, string(mount.Hung): 3}
	worst := r.Health
	for _, u := range r.Users {
		if weight[u.Health] > weight[worst] {
			worst = u.Health
		}
	}
	return worst
}

// volumes is the table of `netdriver volume ls`.
func (p painter) volumes(list []volume.Report) string {
	if len(list) == 0 {
		return "no volume yet; make one with:\n" +
			"  docker volume create -d custom-volume -o type=nfs -o o=addr=SERVER,rw -o device=:/PATH NAME\n"
	}
	var rows []table.Row
	for _, v := range list {
		users := 0
		for _, u := range v.Users {
			users += u.Users
		}
		rows = append(rows, table.Row{
			v.Name, v.Type, cmp.Or(strings.Join(v.Servers, ","), v.Node), cmp.Or(v.Path, none), p.health(worstHealth(v)), users,
			len(v.Users), cmp.Or(firstLine(v.Problem), none),
		})
	}
	return columns(table.Row{"VOLUME", "TYPE", "SERVER", "PATH", "HEALTH", "USERS", "NODES", "PROBLEM"}, rows)
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

// volume is the text of `netdriver volume inspect`.
func (p painter) volume(r volume.Report) string {
	var b strings.Builder
	line := func(name, value string) {
		if value != "" {
			fmt.Fprintf(&b, "  %-12s %s\n", name, value)
		}
	}
	fmt.Fprintf(&b, "%s  %s\n", r.Name, p.health(r.Health))
	line("type", r.Type)
	line("server", strings.Join(r.Servers, ", "))
	line("path", r.Path)
	for _, key := range slices.Sorted(maps.Keys(r.Options)) {
		line("option", key+"="+r.Options[key])
	}
	line("created", fmt.Sprintf("%s ago on node %s", p.age(r.Created), r.Node))
	if !r.Updated.IsZero() {
		line("updated", p.age(r.Updated)+" ago")
	}
	if r.Mountpoint != "" {
		line("mounted", fmt.Sprintf("%s ago as %s at %s", p.age(r.Since), cmp.Or(r.Mounted, none), r.Mountpoint))
		line("negotiated", r.Negotiated)
		line("checked", p.age(r.Checked)+" ago")
	}
	if r.Outdated {
		line("outdated", "its containers on this node have it with its former options; restart them to have the new ones")
	}
	for _, node := range slices.Sorted(maps.Keys(r.Users)) {
		u := r.Users[node]
		line("used", fmt.Sprintf("by %s on node %s %s", plural(u.Users, "user"), node, u.Health))
	}
	if b := r.Backup; b != nil {
		if !b.Succeeded.IsZero() {
			line("backup", fmt.Sprintf("%s ago: %s, %s in %s", p.age(b.Succeeded), entries(b.Entries), size(b.Bytes), b.File))
		}
		switch {
		case b.Error != "":
			line("backup", fmt.Sprintf("failed %s ago on node %s: %s", p.age(b.Started), b.Node, b.Error))
		case b.Finished.IsZero():
			line("backup", fmt.Sprintf("began %s ago on node %s", p.age(b.Started), b.Node))
		}
	}
	for _, x := range r.Drift {
		line("drift", fmt.Sprintf("node %s asked for other options %s ago", x.Node, p.age(x.Since)))
	}
	line("problem", r.Problem)
	if r.FUSE && r.Health == string(mount.Hung) {
		line("remedy", "if it stays away: `netdriver volume abort "+r.Name+"` lets its containers be stopped")
	}
	return b.String()
}
