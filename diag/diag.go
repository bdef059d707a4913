package diag

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/netdriver/netdriver/dataplane"
	"github.com/netdriver/netdriver/dataplane/balance"
	"github.com/netdriver/netdriver/dataplane/guard"
	"github.com/netdriver/netdriver/dataplane/lan"
	"github.com/netdriver/netdriver/store"
	"github.com/netdriver/netdriver/vxlan"
)

// ErrNoNetwork is wrapped by the error about a network that the cluster does not have.
var ErrNoNetwork = errors.New("no such network")

// Sources is what a Diagnosis asks.
type Sources struct {
	Store  store.Store
	Mirror *store.Mirror
	Plane  Plane
	// LAN is the data plane of the host's own networks; nil: there is none.
	LAN    LAN
	Driver Driver
	// Filter is the host's packet filter; if nil, Unfiltered says why there is none.
	Filter     Filter
	Unfiltered string
	// Unheard says why nobody is told of frames that are dropped, which are counted all the same; empty: they are told. It
	// may be nil.
	Unheard func() string
	// Encryption may be nil.
	Encryption Protector
	// Node is this node's record.
	Node store.Node
	// Stopped: no daemon runs on this node, and a command looks by itself.
	Stopped bool
	// Hangs: a daemon runs, and answers nothing.
	Hangs bool
	// Site is what this daemon runs with.
	Site Site
	// Docker asks the engine for a sign of life; nil if there is none to ask.
	Docker func(context.Context) error
	// Peers asks other nodes; nil if they cannot be asked.
	Peers Peers
	// Now is the clock, time.Now if nil.
	Now func() time.Time
}

// Plane is what diag needs of the data plane; *dataplane.Plane is the real one.
type Plane interface {
	Present(ctx context.Context) ([]dataplane.Network, error)
	Receipts(vni vxlan.VNI) []dataplane.Receipt
	Counts(ctx context.Context, vni vxlan.VNI) ([]balance.Count, error)
	Drops(ctx context.Context, vni vxlan.VNI) ([]guard.Drops, error)
}

// LAN is what diag needs of that data plane; *lan.Plane is the real one.
type LAN interface {
	Receipts(network string) []lan.Receipt
}

// Driver is what diag needs of the driver; *driver.Driver is the real one.
type Driver interface {
	// Diff returns the commands that would make the kernel as wanted, freshly read.
	Diff(ctx context.Context, network string) ([]string, error)
	// Problems are the networks that this node could not make as wanted.
	Problems() map[string]error
}

// Diagnosis makes reports. All methods may be called concurrently and change nothing.
type Diagnosis struct {
	src  Sources
	host hostFindings
}

// New returns a Diagnosis of what src says.
func New(src Sources) *Diagnosis {
	if src.Now == nil {
		src.Now = time.Now
	}
	return &Diagnosis{src: src}
}

// Network reports on one network, by its name in the cluster or in Docker. Without the store it answers within 3 s from
// what this node knows. The error wraps ErrNoNetwork, with the networks there are, or store.ErrUnavailable if it cannot be
// known.
func (d *Diagnosis) Network(ctx context.Context, name string) (NetworkReport, error) {
	c := d.cluster(ctx)
	nw, ok := c.networks[name]
	if !ok {
		var err error
		if nw, ok, err = c.called(name, d.src.Node.Name); err != nil {
			return NetworkReport{}, err
		}
	}
	if !ok {
		return d.missing(ctx, c, name)
	}
	f := []facts{d.facts(ctx, c, nw, true)}
	d.settle(ctx, f)
	r := judge(f[0])
	if r.Member {
		r.Host = d.onHost(ctx, c)
	}
	return r, nil
}

// Networks reports on all networks, without their endpoints, by name.
func (d *Diagnosis) Networks(ctx context.Context) (NetworksReport, error) {
	return d.networksIn(ctx, d.cluster(ctx))
}

// networksIn is Networks of a cluster that was read already.
func (d *Diagnosis) networksIn(ctx context.Context, c cluster) (NetworksReport, error) {
	out := NetworksReport{Schema: Schema, Networks: []NetworkReport{}, Data: c.data()}
	if c.err != nil && !c.whole {
		return d.kernelOnly(ctx, c)
	}
	var all []facts
	for _, name := range slices.Sorted(maps.Keys(c.networks)) {
		all = append(all, d.facts(ctx, c, c.networks[name], false))
	}
	d.settle(ctx, all)
	for _, f := range all {
		r := judge(f)
		r.Endpoints, r.Services = nil, nil
		r.Encryption = r.Encryption.brief()
		out.Networks = append(out.Networks, r)
	}
	return out, nil
}

// missing tells about a network that no record has. While the records are not known the kernel may have it all the
// same.
func (d *Diagnosis) missing(ctx context.Context, c cluster, name string) (NetworkReport, error) {
	if err := c.bad[store.NetworkKey(name)]; err != nil {
		return NetworkReport{}, fmt.Errorf("network %q has a record that this node cannot read: %w", name, err)
	}
	if c.err == nil || c.whole {
		names := c.allNames()
		if len(names) == 0 {
			return NetworkReport{}, fmt.Errorf("%w %q: the cluster has none", ErrNoNetwork, name)
		}
		return NetworkReport{}, fmt.Errorf("%w %q: the cluster has %s", ErrNoNetwork, name, strings.Join(names, ", "))
	}
	all, err := d.kernelOnly(ctx, c)
	if err != nil {
		return NetworkReport{}, err
	}
	for _, r := range all.Networks {
		if r.Network == name {
			return r, nil
		}
	}
	return NetworkReport{}, fmt.Errorf(
		"network %q is not in this node's kernel, and the cluster's records cannot be read: %w",
		name,
		c.err,
	)
}

// kernelOnly reports what this node's devices tell when no record can be read.
func (d *Diagnosis) kernelOnly(ctx context.Context, c cluster) (NetworksReport, error) {
	out := NetworksReport{Schema: Schema, Networks: []NetworkReport{}, Data: Data{SourceKernel, c.taken}}
	present, err := d.src.Plane.Present(ctx)
	if err != nil {
		return out, errors.Join(c.err, err)
	}
	for _, n := range present {
		r := NetworkReport{
			Schema: Schema, Network: n.Name, Verdict: Unknown, Node: d.src.Node.Name, Member: true, Mode: store.ModeOverlay,
			VNI:  n.VNI,
			Port: n.VXLAN.Port, Subnets: []Subnet{}, MTU: mtu(store.Network{MTU: n.Bridge.MTU}, d.src.Node), Peers: []Peer{},
			EndpointCount: len(n.Ports), Data: out.Data, Reasons: []Reason{unread(d.src.Node.Name, c.err)},
		}
		for _, p := range n.Ports {
			r.Endpoints = append(r.Endpoints, Endpoint{ID: p.Endpoint, Node: r.Node, SeenBy: -1})
		}
		r.Kernel.Drifts = drifts(d.src.Plane.Receipts(n.VNI))
		out.Networks = append(out.Networks, r)
	}
	slices.SortFunc(out.Networks, func(a, b NetworkReport) int { return cmp.Compare(a.Network, b.Network) })
	return out, nil
}

// Nodes reports on all nodes of the cluster, by name.
func (d *Diagnosis) Nodes(ctx context.Context) (NodesReport, error) {
	c := d.cluster(ctx)
	if c.err != nil && !c.whole {
		return NodesReport{}, fmt.Errorf("the cluster's nodes have not been read: %w", c.err)
	}
	out := NodesReport{Schema: Schema, Nodes: []Node{}, Data: c.data()}
	for _, name := range slices.Sorted(maps.Keys(c.nodes)) {
		n, st := c.nodes[name], c.statuses[name]
		row := Node{
			Name: name, ID: n.ID, VTEP: n.VTEP, UnderlayMTU: n.UnderlayMTU, Version: n.Version, Started: n.Started,
			LastStatus: st.Updated, Problems: st.Problems, State: c.liveness(d.src.Node.Name, name),
			Role: c.engines[name].Role, Docker: c.engines[name].Version, Unbalanced: c.engines[name].Unbalanced,
		}
		for _, nw := range c.networks {
			if slices.Contains(members(nw.Network), name) {
				row.Networks++
			}
		}
		out.Nodes = append(out.Nodes, row)
	}
	return out, nil
}

// Health reports on this daemon itself.
func (d *Diagnosis) Health(ctx context.Context) Health {
	me := d.src.Node
	h := Health{Schema: Schema, Node: me.Name, Version: me.Version, Started: me.Started, Problems: map[string]string{}}
	ctx, cancel := context.WithTimeout(ctx, askStore)
	defer cancel()
	if _, err := d.src.Store.Count(ctx, store.NodePrefix); err != nil {
		h.Store = err.Error()
	}
	for name, err := range d.src.Driver.Problems() {
		h.Problems[name] = err.Error()
	}
	return h
}
