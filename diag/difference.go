package diag

import (
	"context"
	"fmt"
	"maps"
	"slices"
)

// DiffSchema names the version of the JSON of differences.
const DiffSchema = "netdriver.diff/v1"

// DiffReport is what would have to be done to this node's kernel.
type DiffReport struct {
	Schema   string        `json:"schema"`
	Node     string        `json:"node"`
	Networks []NetworkDiff `json:"networks"`
}

// NetworkDiff is that of one network: the commands, in order, or why they are not known.
type NetworkDiff struct {
	Network  string   `json:"network"`
	Commands []string `json:"commands"`
	Error    string   `json:"error,omitempty"`
}

// Diff compares the kernel with the records of one network, or of all that this node is a member of if name is empty.
func (d *Diagnosis) Diff(ctx context.Context, name string) (DiffReport, error) {
	c := d.cluster(ctx)
	only, err := d.only(c, name)
	if err != nil {
		return DiffReport{}, err
	}
	out := DiffReport{Schema: DiffSchema, Node: d.src.Node.Name, Networks: []NetworkDiff{}}
	for _, n := range slices.Sorted(maps.Keys(c.networks)) {
		if only != "" && n != only || !slices.Contains(members(c.networks[n].Network), d.src.Node.Name) {
			continue
		}
		x := NetworkDiff{Network: n, Commands: []string{}}
		if !d.src.Mirror.Synced(n) {
			x.Error = "the network's records have not been read"
		} else if commands, err := d.src.Driver.Diff(ctx, n); err != nil {
			x.Error = err.Error()
		} else {
			x.Commands = append(x.Commands, commands...)
		}
		out.Networks = append(out.Networks, x)
	}
	if only != "" && len(out.Networks) == 0 {
		return out, fmt.Errorf("this node is no member of network %s: there is nothing to compare", only)
	}
	return out, nil
}
