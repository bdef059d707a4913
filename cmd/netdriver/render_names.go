package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"

	"github.com/netdriver/netdriver/diag"
)

const (
	// longestName is how much of a container's name the text shows, in characters.
	longestName = 32
	// shownID is how much of the id of a task, which is the end of its container's name, tells it apart.
	shownID = 5
)

// uniqueNames are the names that Docker has for a network, each once.
func uniqueNames(r diag.NetworkReport) []string {
	var out []string
	for _, d := range r.DockerNetworks {
		if !slices.Contains(out, d.Name) { // they are sorted by name, but other nodes' may have the same
			out = append(out, d.Name)
		}
	}
	return out
}

// dockerNames says what users call the network, and where; nothing if that is its name here, too.
func dockerNames(r diag.NetworkReport) string {
	names := uniqueNames(r)
	if len(names) == 0 || len(names) == 1 && names[0] == r.Network {
		return ""
	}
	for i, name := range names {
		var nodes []string
		swarm := false
		for _, d := range r.DockerNetworks {
			if d.Name == name {
				nodes, swarm = append(nodes, d.Nodes...), swarm || d.Swarm
			}
		}
		slices.Sort(nodes)
		switch {
		case swarm:
			names[i] += " in the swarm"
		case len(names) > 1:
			names[i] += " on " + strings.Join(slices.Compact(nodes), ", ")
		}
	}
	return strings.Join(names, " · ")
}

// container writes the name of the container that has an endpoint, as short as can be: the name of a task's ends with
// the task's id of 25 characters.
func container(e diag.Endpoint) string {
	name := cmp.Or(e.Container, none)
	if e.Host {
		return "the node itself"
	}
	if i := strings.LastIndexByte(name, '.'); e.Task != "" && e.Task == name && len(name)-i-1 > shownID {
		return name[:i+1+shownID] + "…"
	}
	if len(name) > longestName {
		return name[:longestName] + "…"
	}
	return name
}

// services is the table of services with their backends, one row for each, so that it can be grepped for either.
func (p painter) services(services []diag.Service) string {
	var rows []table.Row
	for _, s := range services {
		head := table.Row{s.Name, addresses(s.VIPs, "dnsrr"), fmt.Sprintf("%d/%d", s.Ready, len(s.Backends))}
		if len(s.Backends) == 0 {
			rows = append(rows, append(head, none, none, none, none, none))
		}
		for _, b := range s.Backends {
			rows = append(rows, append(slices.Clone(head),
				b.Name, known(b.Node), addresses(b.Addresses, none), p.state(b.State), sent(b.Sent)))
		}
	}
	header := table.Row{"SERVICE", "VIP", "READY", "TASK", "NODE", "ADDRESS", "STATE", "FLOWS HERE"}
	return columns(header, rows[:min(len(rows), mostRows)]) + more(len(rows))
}

// sent writes how many flows clients here have begun to a backend.
func sent(s *diag.Sent) string {
	if s == nil {
		return none
	}
	return fmt.Sprint(s.Flows)
}
