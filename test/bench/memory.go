package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/dataplane"
	"github.com/netdriver/netdriver/store"
	"github.com/netdriver/netdriver/store/etcd"
	"github.com/netdriver/netdriver/test/e2e/lab"
	"github.com/netdriver/netdriver/vxlan"
)

const (
	// settle is how long the daemon is left alone before its memory is read.
	settle = 20 * time.Second
	// fillLimit is how long 10,000 endpoints may take to be written and programmed.
	fillLimit = 2 * time.Minute
	// attachedToFull is the number of endpoints that are then attached.
	attachedToFull = 100
)

// memory measures the resident memory of a daemon with the embedded etcd: with one network and no endpoint, and with
// 10,000 endpoints of another node in that network, which it therefore follows and has programmed. Then it attaches
// some endpoints there, for what so large a network costs each of them.
func memory(ctx context.Context, b *bench) ([]Result, error) {
	return withCluster(ctx, b, 1, func(l *lab.Lab) ([]Result, error) {
		n := l.Nodes[0]
		e := engineOf(n)
		defer e.close()
		nw, err := e.createNetwork(ctx, "bench", "10.8.0.0/16")
		if err != nil {
			return nil, err
		}
		idle, err := settled(ctx, "resident memory of a daemon with embedded etcd, one network, idle", n, 70)
		if err != nil {
			return nil, err
		}
		if err := fill(ctx, n); err != nil {
			return []Result{idle}, err
		}
		full, err := settled(ctx, "the same with 10,000 endpoints of another node", n, 150)
		if err != nil {
			return []Result{idle}, err
		}
		_, joins, err := attach(ctx, nw, attachedToFull)
		large := percentileResult("CreateEndpoint and Join in that network (for information)", joins, 99, "ms", 0)
		return []Result{idle, full, large}, err
	})
}

// settled waits a while, then reads the memory of a node's daemon.
func settled(ctx context.Context, what string, n *lab.Node, target float64) (Result, error) {
	select {
	case <-time.After(settle):
	case <-ctx.Done():
		return Result{}, ctx.Err()
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", n.DaemonPID()))
	if err != nil {
		return Result{}, err
	}
	now, err := megabytes(string(text), "VmRSS")
	if err != nil {
		return Result{}, err
	}
	peak, err := megabytes(string(text), "VmHWM")
	return Result{
		What: what, Value: now, Unit: "MB", Target: target,
		Spread: "highest until then " + figure(peak, "MB"),
		Detail: fmt.Sprintf("read once, after %s", settle),
	}, err
}

// megabytes reads a value from the text of /proc/PID/status, which has it in units of 1,024 bytes (man 5 proc).
func megabytes(status, name string) (float64, error) {
	for line := range strings.Lines(status) {
		rest, found := strings.CutPrefix(line, name+":")
		if f := strings.Fields(rest); found && len(f) == 2 && f[1] == "kB" {
			n, err := strconv.ParseFloat(f[0], 64)
			return n * 1024 / 1e6, err
		}
	}
	return 0, fmt.Errorf("no %s in the status of the process", name)
}

// fill writes what another node with 10,000 endpoints would have written, into the daemon's own etcd, and waits
// until the daemon's kernel has all of it.
func fill(ctx context.Context, n *lab.Node) error {
	ctx, cancel := context.WithTimeout(ctx, fillLimit)
	defer cancel()
	s, err := etcd.Dial(etcd.Config{
		Endpoints: []string{"unix://" + n.Path("/run/netdriver/etcd/client.sock")}, Cluster: "default",
		Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return err
	}
	vni, err := populate(ctx, s)
	if err := errors.Join(err, s.Close()); err != nil {
		return fmt.Errorf("write 10,000 endpoints: %w", err)
	}
	return programmed(ctx, n, vni)
}

// populate writes the records that 10,000 times CreateEndpoint and Join leave: endpoint, MAC claim and lease.
// It returns the network's VNI.
func populate(ctx context.Context, s store.Store) (vxlan.VNI, error) {
	kv, err := s.Get(ctx, store.NetworkKey("bench"))
	if err != nil {
		return 0, err
	}
	nw, err := store.Decode[store.Network](kv)
	if err != nil {
		return 0, err
	}
	now := time.Now().UTC()
	other := store.Node{
		Name: "other", ID: newID(), VTEP: netip.AddrFrom4([4]byte{10, 99, 0, 200}), UnderlayMTU: underlayMTU, Started: now,
	}
	nw.Members = append(nw.Members, store.Member{Node: other.Name, DockerID: newID(), Since: now})
	ops := []store.Op{
		store.Put(store.NodeKey(other.Name), store.Encode(other)),
		store.Put(kv.Key, store.Encode(nw)),
	}
	subnet := nw.Subnets[0]
	for i := range remoteEndpoints {
		at := netip.AddrFrom4([4]byte{10, 8, byte(128 + i>>8), byte(i)})
		e := store.Endpoint{
			ID: newID(), Network: nw.Name, Node: other.Name, DockerID: nw.Members[1].DockerID, MAC: vxlan.MACFor(at),
			IPv4: netip.PrefixFrom(at, subnet.Bits()), Phase: store.PhaseJoined, Created: now,
		}
		lease := store.Lease{
			Address: at, Kind: store.LeaseEndpoint, Node: other.Name, Endpoint: e.ID, MAC: e.MAC, Created: now,
		}
		ops = append(ops, store.Put(store.EndpointKey(nw.Name, e.ID), store.Encode(e)),
			store.Put(store.MACKey(nw.Name, e.MAC), []byte(e.ID)), store.Put(store.LeaseKey(subnet, at), store.Encode(lease)))
		if len(ops) > store.MaxOps-3 || i == remoteEndpoints-1 {
			if _, err := s.Commit(ctx, nil, ops...); err != nil {
				return 0, err
			}
			ops = nil
		}
	}
	return nw.VNI, nil
}

// programmed waits until a node's bridge knows all 10,000 neighbours, which are the last entries of a plan.
func programmed(ctx context.Context, n *lab.Node, vni vxlan.VNI) error {
	kernel, err := kernelOf(n)
	if err != nil {
		return err
	}
	defer kernel.Close()
	bridge, err := kernel.LinkByName(dataplane.BridgeName(vni))
	if err != nil {
		return fmt.Errorf("find the network's bridge: %w", err)
	}
	for {
		have, err := kernel.NeighList(bridge.Attrs().Index, unix.AF_INET)
		if err == nil && len(have) >= remoteEndpoints {
			return nil
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("the kernel has %d of %d neighbours: %w", len(have), remoteEndpoints, errors.Join(err, ctx.Err()))
		}
	}
}
