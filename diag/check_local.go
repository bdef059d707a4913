package diag

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/netdriver/netdriver/store"
)

// dialTimeout is what a socket of this host may take.
const dialTimeout = 2 * time.Second

// checkSockets connects to the sockets that the daemon serves.
func checkSockets(ctx context.Context, e *examiner) []Finding {
	var out []Finding
	for _, path := range e.site.Sockets {
		ctx, cancel := context.WithTimeout(ctx, dialTimeout)
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
		cancel()
		if err == nil {
			conn.Close()
			continue
		}
		cause := fmt.Sprintf("nobody serves %s", path)
		if _, e := os.Stat(path); errors.Is(e, fs.ErrNotExist) {
			cause = fmt.Sprintf("the socket %s is not there", path)
		}
		out = append(out, finding("sockets", Degraded, e.here(path),
			"start the daemon, or restart it if it runs; traffic goes on meanwhile, Docker's calls wait and fail",
			"%s: the daemon does not run, or somebody removed its socket", cause).because("%v", err))
	}
	return out
}

// checkDocker asks the engine something that it can always answer.
func checkDocker(ctx context.Context, e *examiner) []Finding {
	if e.d.src.Docker == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	if err := e.d.src.Docker(ctx); err != nil {
		return []Finding{finding("docker", Degraded, e.here("docker"), "start Docker's engine, or name it with --docker-host",
			"the Docker engine does not answer: names and services are not known, and nothing is reclaimed").because("%v", err)}
	}
	return nil
}

// mostPeers bounds the nodes that are probed at once, and in one check.
const (
	mostPeers   = 16
	peersAtOnce = 4
)

// checkPeers sends marked frames from this node's VXLAN devices to those of other nodes, and lets them do the same.
func checkPeers(ctx context.Context, e *examiner) []Finding {
	me := e.d.src.Node.Name
	type lane struct {
		node string
		nw   network
	}
	var lanes []lane
	taken := map[string]bool{}
	for _, nw := range e.mine { // one network of each kind is enough: they share the underlay
		for _, node := range members(nw.Network) {
			key := fmt.Sprint(node, nw.Port, nw.Encrypted)
			if node == me || e.peer != "" && node != e.peer || taken[key] || len(taken) == mostPeers {
				continue
			}
			taken[key] = true
			lanes = append(lanes, lane{node, nw})
		}
	}
	found := make([][]Finding, len(lanes))
	var g errgroup.Group
	g.SetLimit(peersAtOnce)
	for i, l := range lanes {
		g.Go(func() error {
			self, peer := party{}, party{}
			self.Node, peer.Node = me, l.node
			t := Trace{}
			e.d.traceBetween(ctx, e.c, way{network: l.nw, source: self}, peer, &t)
			found[i] = t.Findings
			return nil
		})
	}
	_ = g.Wait() // none fails
	out := slices.Concat(found...)
	for i := range out {
		out[i].Check = "peers"
	}
	return out
}

// Addrs of a party without endpoint are none; its node's VXLAN device stands for it.
func (e party) host() bool {
	return e.Endpoint.ID == "" && e.Endpoint.Node != "" && e.name == store.Name{}
}
