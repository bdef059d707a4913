package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/netdriver/netdriver/diag"
	"github.com/netdriver/netdriver/internal/capture"
	"github.com/netdriver/netdriver/internal/cluster"
	"github.com/netdriver/netdriver/internal/config"
	"github.com/netdriver/netdriver/internal/peer"
	"github.com/netdriver/netdriver/store"
)

const captureLong = `Show the frames of a network's containers on all nodes, in the order of time, as they are between container and bridge:
inside of VXLAN and ESP. A frame between two containers is seen twice, where it is sent and where it arrives. Nothing is
left behind, also if this command is killed.

ENDPOINT is a container's name or id, a task's or service's name, an endpoint's id or an address; without it all are
captured, also those that come meanwhile. FILTER is in the language of pcap-filter(7), as far as it is made of:
  host net port portrange proto ether ip ip6 arp tcp udp sctp icmp icmp6 broadcast multicast less greater src dst
  and or not ( )
where host takes a container's name, too.

It ends by itself after --time, --size or --count, whichever comes first.

Exit status: 0 all nodes were captured, 1 some were not, 3 none could be.`

// captureOptions are the flags of capture.
type captureOptions struct {
	file, size, output string
	count, snap        int
	time               time.Duration
	nodes              []string
	bytes              int64
}

// captureVerb shows frames of all nodes.
func (a app) captureVerb() *cobra.Command {
	var o captureOptions
	cmd := &cobra.Command{
		Use: "capture NETWORK [ENDPOINT] [FILTER…]", Short: "Show the frames of a network's containers, from all nodes", Long: captureLong,
		Args: judged(cobra.MinimumNArgs(1)), ValidArgsFunction: a.completeEndpoints(),
	}
	f := cmd.Flags()
	f.StringVarP(&o.file, "write", "w", "", "write pcapng to this `file`, or to stdout if it is -")
	f.IntVarP(&o.count, "count", "c", 0, "end after so many `frames`")
	f.StringVar(&o.size, "size", "100MB", "end after so many `bytes` of frames")
	f.DurationVar(&o.time, "time", 10*time.Minute, "end after this `time`, 1h at most")
	f.IntVarP(&o.snap, "snaplen", "s", maxSnap, "keep so many `bytes` of each frame")
	f.StringSliceVar(&o.nodes, "node", nil, "only these `nodes`")
	f.StringVarP(&o.output, "output", "o", "text", "`format` without --write: text or json (one object a line)")
	config.AddFlags(f, "run-dir")
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return cannotTell(err) })
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		cfg, err := config.Load(cmd.Flags(), a.environ, "run-dir")
		if err == nil {
			err = o.check()
		}
		if err != nil {
			return cannotTell(err)
		}
		return a.capture(cmd.Context(), cfg.RunDir, o, args)
	}
	return cmd
}

// maxSnap is tcpdump's default, larger than any frame.
const maxSnap = 262144

// check refuses values that mean nothing.
func (o *captureOptions) check() (err error) {
	switch {
	case o.count < 0:
		return fmt.Errorf("--count %d: want 1 or more; without it there is no bound", o.count)
	case o.time <= 0 || o.time > capture.MaxTime:
		return fmt.Errorf("--time %s: want more than 0 and at most %s", o.time, capture.MaxTime)
	case o.snap < 14 || o.snap > maxSnap:
		return fmt.Errorf("--snaplen %d: want 14 to %d bytes", o.snap, maxSnap)
	case o.output != "text" && o.output != "json":
		return fmt.Errorf("--output %q: want text or json", o.output)
	case o.output == "json" && o.file != "":
		return fmt.Errorf("--output json and --write %s exclude each other: a file is pcapng; omit one of the two", o.file)
	}
	if o.bytes, err = units.FromHumanSize(o.size); err != nil || o.bytes <= 0 {
		return fmt.Errorf("--size %q: want a number of bytes such as 500kB or 2GB", o.size)
	}
	return nil
}

// capture does what the verb says.
func (a app) capture(ctx context.Context, runDir string, o captureOptions, args []string) error {
	var r diag.NetworkReport
	asking, cancel := context.WithTimeout(ctx, askDaemon)
	err := a.look(asking, runDir, func(ctx context.Context, l looker) (err error) {
		r, err = l.Network(ctx, args[0])
		return err
	})
	cancel()
	if err != nil {
		return cannotTell(err)
	}
	job, err := newCaptureJob(r, o, args[1:])
	if err != nil {
		return cannotTell(err)
	}
	ctx, cancel = context.WithTimeout(ctx, o.time)
	defer cancel()
	sources, missing, err := a.captureSources(ctx, runDir, job)
	if err != nil {
		return cannotTell(err)
	}
	for _, m := range missing {
		fmt.Fprintln(a.err, "netdriver: not captured:", m)
	}
	if len(sources) == 0 {
		return cannotTell(fmt.Errorf("no node's frames of network %s can be captured", r.Network))
	}
	job.scene.Sources = sources
	failed, err := a.writeCapture(ctx, job, o)
	if err != nil {
		return cannotTell(err)
	}
	if failed || len(missing) > 0 {
		return status{code: exitDegraded}
	}
	return nil
}

// captureJob is what is captured, of which network.
type captureJob struct {
	report   diag.NetworkReport
	question capture.Question
	scene    capture.Scene
	// nodes are those to ask.
	nodes []diag.Peer
}

// newCaptureJob understands the words behind the network's name.
func newCaptureJob(r diag.NetworkReport, o captureOptions, words []string) (*captureJob, error) {
	if r.Mode != string(store.ModeOverlay) && r.Mode != "" {
		return nil, fmt.Errorf("network %s is of mode %s: its frames do not pass netdriver's ports; look at them with tcpdump on the host's interface", r.Network, r.Mode)
	}
	j := &captureJob{report: r, question: capture.Question{Network: r.Network, VNI: r.VNI, Seconds: nodeSeconds(o.time)}}
	known := map[string]capture.Endpoint{}
	for _, e := range r.Endpoints {
		known[e.ID] = capture.Endpoint{Container: cmp.Or(e.Task, e.Container), Addresses: e.Addresses}
	}
	text := strings.Join(words, " ")
	on := map[string]bool{}
	if first, _, _ := strings.Cut(strings.TrimLeft(text, "(! "), " "); first != "" && !capture.Begins(first) {
		for _, e := range matching(r.Endpoints, first) {
			j.question.Endpoints = append(j.question.Endpoints, e.ID)
			on[e.Node] = true
		}
		if len(on) == 0 {
			return nil, fmt.Errorf("%q is no endpoint of network %s (see `netdriver inspect %s`), and no filter begins with it", first, r.Network, r.Network)
		}
		text = strings.TrimSpace(strings.TrimPrefix(text, first))
	}
	var err error
	j.question.Filter, err = capture.Compile(text, uint32(o.snap), func(name string) (out []netip.Addr) {
		for _, e := range matching(r.Endpoints, name) {
			out = append(out, e.Addresses...)
		}
		return out
	})
	if err != nil {
		return nil, err
	}
	j.scene = capture.Scene{Network: r.Network, Filter: text, Endpoint: func(id string) capture.Endpoint { return known[id] }}
	peers := r.Peers
	if r.Member && !slices.ContainsFunc(peers, func(p diag.Peer) bool { return p.Node == r.Node }) {
		peers = append(slices.Clone(peers), diag.Peer{Node: r.Node})
	}
	for _, name := range o.nodes {
		if !slices.ContainsFunc(peers, func(p diag.Peer) bool { return p.Node == name }) {
			return nil, fmt.Errorf("--node %s: it does not have network %s (see `netdriver inspect %s`)", name, r.Network, r.Network)
		}
	}
	for _, p := range peers {
		if (len(on) == 0 || on[p.Node]) && (len(o.nodes) == 0 || slices.Contains(o.nodes, p.Node)) {
			j.nodes = append(j.nodes, p)
		}
	}
	return j, nil
}

// nodeSeconds is how long nodes are asked to capture: a little longer than this command does, in case it dies.
func nodeSeconds(d time.Duration) int {
	const spare = 5
	return min(int(math.Ceil(d.Seconds()))+spare, int(capture.MaxTime.Seconds()))
}

// matching are the endpoints that people mean by a name.
func matching(all []diag.Endpoint, name string) []diag.Endpoint {
	const shortest = 4 // of an id's beginning
	begins := func(id string) bool { return len(name) >= shortest && strings.HasPrefix(id, name) }
	var out []diag.Endpoint
	for _, e := range all {
		address := slices.ContainsFunc(e.Addresses, func(a netip.Addr) bool { return a.String() == name })
		if name == e.Container || name == e.Task || name == e.Service || address || begins(e.ID) || begins(e.ContainerID) {
			out = append(out, e)
		}
	}
	return out
}

// captureSources makes ready to capture here and asks the others to. What cannot be had is in missing.
func (a app) captureSources(ctx context.Context, runDir string, j *captureJob) (sources []capture.Source, missing []string, err error) {
	cfg, err := lastSettings(runDir)
	if err != nil {
		return nil, nil, fmt.Errorf("what the last daemon ran with: %w", err)
	}
	state, err := cluster.FilesIn(cfg.DataDir).State()
	if err != nil {
		return nil, nil, err
	}
	files, certified := certificates(cfg, state)
	client := peer.Client{Files: files, Port: cfg.PeerPort}
	found, failed := make([]*capture.Source, len(j.nodes)), make([]error, len(j.nodes))
	var g errgroup.Group
	for i, n := range j.nodes {
		switch {
		case n.Node == j.report.Node:
			here := capture.Node{RunDir: runDir}
			found[i] = &capture.Source{Node: n.Node, Read: func(ctx context.Context, emit func(capture.Batch) error) error {
				return here.Run(ctx, j.question, emit)
			}}
		case !certified || cfg.PeerPort == 0:
			failed[i] = fmt.Errorf("%s: this node has no certificate to ask others with, or peer-port 0", n.Node)
		case !n.Address.IsValid():
			failed[i] = fmt.Errorf("%s: its address is not known", n.Node)
		default:
			g.Go(func() error {
				s, err := client.Capture(ctx, store.Node{Name: n.Node, VTEP: n.Address}, j.question)
				if failed[i] = err; err == nil {
					found[i] = &s
				}
				return nil
			})
		}
	}
	_ = g.Wait() // each error is in failed
	for i, s := range found {
		if s != nil {
			sources = append(sources, *s)
		} else {
			missing = append(missing, failed[i].Error())
		}
	}
	return sources, missing, nil
}

// writeCapture merges the sources into a file or onto the screen, and says on stderr what came. failed: a source ended early.
func (a app) writeCapture(ctx context.Context, j *captureJob, o captureOptions) (failed bool, err error) {
	var mu sync.Mutex
	note := func(source int, text string) {
		mu.Lock()
		defer mu.Unlock()
		failed = true
		fmt.Fprintf(a.err, "netdriver: %s: %s\n", j.scene.Sources[source].Node, text)
	}
	fmt.Fprintln(a.err, j.scene.About())
	sink, end, err := a.captureSink(j, o, note)
	if err != nil {
		return false, err
	}
	bounded := &capture.Bounded{Sink: sink, Count: o.count, Bytes: o.bytes}
	err = errors.Join(capture.Merge(ctx, j.scene.Sources, bounded), end())
	fmt.Fprintf(a.err, "%s, %s, from %s; %d lost for want of room\n",
		plural(bounded.Frames, "frame"), size(bounded.Data), plural(len(j.scene.Sources), "node"), bounded.Missed)
	return failed, err
}

// captureSink opens where frames go, and returns how that is ended.
func (a app) captureSink(j *captureJob, o captureOptions, note func(int, string)) (capture.Sink, func() error, error) {
	if o.file == "" {
		l := capture.NewLines(a.out, j.scene, o.output == "json", note)
		return l, l.Close, nil
	}
	var out io.WriteCloser = nopCloser{a.out}
	if o.file != "-" {
		f, err := os.OpenFile(o.file, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600) // it holds what containers say
		if err != nil {
			return nil, nil, fmt.Errorf("--write: %w", err)
		}
		out = f
	} else if terminal(a.out) {
		return nil, nil, errors.New("--write -: stdout is a terminal: pipe it into `tshark -r -`, or name a file")
	}
	f := capture.NewFile(out, j.scene, o.snap, note)
	return f, func() error { return errors.Join(f.Close(), out.Close()) }, nil
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }
