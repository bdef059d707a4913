package diag

import (
	"context"
	"fmt"

	"github.com/netdriver/netdriver/dataplane/firewall"
)

// Filter is what diag needs of the host's packet filter; *firewall.Filter is the real one.
type Filter interface {
	Kind() string
	// Counts are what an owner's rules have matched, by their names.
	Counts(ctx context.Context, owner string) (map[string]firewall.Count, error)
	// Problem says why the kernel is not as wanted.
	Problem() error
	Receipts() []firewall.Receipt
}

// Admission says what this node does with VXLAN packets that come from nowhere in the cluster. It is about all networks of
// the node together.
type Admission struct {
	// Filter is the packet filter in use: "nftables" or "iptables", empty if the host has none that can be used.
	Filter string `json:"filter,omitempty"`
	// Strangers and Containers are packets for networks of this node that were dropped because their source is no node's
	// address, or because a container of this host had sent them.
	Strangers  uint64 `json:"strangers"`
	Containers uint64 `json:"containers"`
	// Drifts are the last repairs of what something else had changed, oldest first.
	Drifts []Drift `json:"drifts,omitempty"`
	Error  string  `json:"error,omitempty"`
}

// admission asks the packet filter; nil if nobody knows of one.
func (d *Diagnosis) admission(ctx context.Context) *Admission {
	switch {
	case d.src.Filter == nil && d.src.Unfiltered == "":
		return nil
	case d.src.Filter == nil:
		return &Admission{Error: d.src.Unfiltered}
	}
	a := &Admission{Filter: d.src.Filter.Kind()}
	counts, err := d.src.Filter.Counts(ctx, firewall.OwnerUnderlay)
	a.Strangers, a.Containers = counts[firewall.CountStranger].Packets, counts[firewall.CountContainer].Packets
	for _, r := range d.src.Filter.Receipts() {
		a.Drifts = append(a.Drifts, Drift{Time: r.Time, Command: r.Op, Seconds: r.Took.Seconds(), Error: r.Error})
	}
	if p := d.src.Filter.Problem(); p != nil {
		err = p
	}
	if err != nil {
		a.Error = err.Error()
	}
	return a
}

// aboutAdmission: without a filter anybody who reaches the node can send into its networks.
func (f facts) aboutAdmission(r NetworkReport) []Reason {
	a := r.Admission
	switch {
	case a == nil || a.Error == "":
		return nil
	case a.Filter == "":
		return []Reason{reason(Degraded, f.me.Name,
			fmt.Sprintf("load the kernel's modules that are named, and restart netdriver; until then let a firewall in front of "+
				"the node accept UDP port %d from the cluster's nodes only", r.Port),
			"VXLAN packets are accepted from anybody: %s", a.Error)}
	}
	return []Reason{reason(Degraded, f.me.Name, "it is tried again all the time; see the daemon's log",
		"the packet filter (%s) is not as wanted: %s", a.Filter, a.Error)}
}
