package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/dataplane"
	"github.com/netdriver/netdriver/test/e2e/lab"
	"github.com/netdriver/netdriver/vxlan"
)

const (
	manyServices    = 1000
	serviceBackends = 3
	// requests is how many connections one measurement of a round makes.
	requests = 300
)

// againstIPVS is balancing in a virtual node, since only few kernels that tests run on have IPVS. Its results against the
// straight way are left out.
func againstIPVS(ctx context.Context, b *bench) ([]Result, error) {
	modules := []string{"ip_vs", "ip_vs_rr", "xt_ipvs", "xt_mark", "iptable_nat", "iptable_mangle"}
	results, err := virtually(ctx, b, lab.Kernel{Modules: modules}, "", "^balance$")
	ours := results[:0]
	for _, r := range results {
		if r.Target > 0 {
			r.What += ", in a virtual node"
			ours = append(ours, r)
		}
	}
	if err == nil && len(ours) == 0 {
		err = errors.New("the virtual node's kernel has no IPVS")
	}
	return ours, err
}

// balancing measures what a service's virtual address costs against none, and against Docker's way where the kernel has
// IPVS.
func balancing(ctx context.Context, b *bench) ([]Result, error) {
	bed, err := newTestbed(ctx, b.dir, inClear())
	if err != nil {
		return nil, err
	}
	defer bed.remove()
	client, server := bed.nodes[0], bed.nodes[1]
	straight := path{from: client.container, to: server.container, at: server.ours, via: server.ours}
	ours := straight
	if ours.via, err = client.balanceOurs(ctx, server); err != nil {
		return nil, err
	}
	results, err := comparePaths(ctx, b, "straight to the task (for information)", ours, straight, 0)
	if err != nil || !hasIPVS() {
		return results, err
	}
	docker := path{from: client.container, to: server.container, at: server.docker}
	if docker.via, err = bed.balanceDocker(client, server); err != nil {
		return results, fmt.Errorf("make the load balancer of Docker: %w", err)
	}
	more, err := comparePaths(ctx, b, "through Docker's load balancer (IPVS)", ours, docker, 1)
	return append(results, more...), err
}

// A path is how a client reaches a server: it listens at its own address, the client calls via.
type path struct {
	from, to *host
	at, via  netip.Addr
}

// comparePaths measures two paths in turns.
func comparePaths(ctx context.Context, b *bench, against string, ours, theirs path, target float64) ([]Result, error) {
	var results []Result
	for _, m := range []struct {
		what    string
		measure func(path) (float64, error)
	}{
		{"TCP request and response of 1 byte to a virtual address, p5 of the latency", func(p path) (float64, error) {
			times, err := requestResponse(p.from, p.to, p.at, p.via, transactions, 0)
			return times.percentile(5), err
		}},
		{"connection, request, response, end, mean time", func(p path) (float64, error) {
			times, err := p.request(requests)
			return times.mean(), err
		}},
		{"connection, request, response, end, p99", func(p path) (float64, error) {
			times, err := p.request(requests)
			return times.percentile(99), err
		}},
	} {
		one, other, err := inTurns(ctx, b.rounds,
			func() (float64, error) { return m.measure(ours) }, func() (float64, error) { return m.measure(theirs) })
		if err != nil {
			return results, fmt.Errorf("%s: %w", m.what, err)
		}
		r, err := ratioResult(m.what+" ÷ that "+against, one, other, "µs", target)
		if err != nil {
			return results, err
		}
		results = append(results, r)
	}
	return results, nil
}

// request makes connections one after the other, each for one byte and one byte back, and returns how long each took,
// in microseconds.
func (p path) request(count int) (sample, error) {
	l, at, err := listener(p.to, unix.SOCK_STREAM, p.at)
	if err != nil {
		return nil, err
	}
	defer unix.Close(l)
	times := make(sample, count)
	answers := onCPU(0, func() error {
		for range count {
			if err := answerOne(l); err != nil {
				return fmt.Errorf("answer: %w", err)
			}
		}
		return nil
	})
	asks := onCPU(0, func() error { // on a thread that stays in the client's namespace: entering it is not in the time
		if err := netns.Set(p.from.ns); err != nil {
			return fmt.Errorf("enter the client's namespace: %w", err)
		}
		for i := range times {
			start := time.Now()
			if err := askOne(called(at, p.via)); err != nil {
				return fmt.Errorf("ask %s: %w", p.via, err)
			}
			times[i] = float64(time.Since(start).Nanoseconds()) / 1e3
		}
		return nil
	})
	a, b := <-asks, <-answers
	return times, errors.Join(a.err, b.err)
}

func answerOne(listener int) error {
	fd, err := accept(listener)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	b := make([]byte, 1)
	return errors.Join(exactly(again(unix.Read, fd, b)), exactly(again(unix.Write, fd, b)))
}

func askOne(to unix.Sockaddr) error {
	fd, err := socket(unix.SOCK_STREAM)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := connect(fd, to); err != nil {
		return err
	}
	b := make([]byte, 1)
	return errors.Join(exactly(again(unix.Write, fd, b)), exactly(again(unix.Read, fd, b)))
}

// balanceOurs makes a service over the server's container on the client's node and returns its virtual address.
func (n *node) balanceOurs(ctx context.Context, server *node) (netip.Addr, error) {
	vip := netip.AddrFrom4([4]byte{10, 8, 0, 100})
	n.want.Services = []dataplane.Service{{ID: "bench", VIPs: []netip.Addr{vip},
		Backends: []dataplane.Backend{{Address: server.ours, MAC: server.mac}}}}
	_, err := n.plane.Apply(ctx, n.want)
	return vip, err
}

// servicesProgrammed measures how long a node takes from knowing of many services to balancing them, read back included.
func servicesProgrammed(ctx context.Context, b *bench) ([]Result, error) {
	var took sample
	for range max(5, b.rounds/2) {
		ms, err := timeProgramming(ctx, b.dir, manyBalanced)
		if err != nil {
			return nil, err
		}
		took = append(took, ms)
	}
	what := fmt.Sprintf("%d services of %d tasks programmed and read back", manyServices, serviceBackends)
	return []Result{percentileResult(what, took, 99, "ms", 1000)}, nil
}

// manyBalanced gives the node a container and many services.
func manyBalanced(ctx context.Context, t *target) error {
	vtep := t.want.VXLAN.Local
	t.want = emptyNetwork(vtep, "ul")
	port := dataplane.Port{Endpoint: "services0000", MAC: vxlan.MACFor(vtep), MTU: overlayMTU, Up: true, Enslaved: true}
	t.want.Ports = []dataplane.Port{port}
	for i := range manyServices {
		at := func(k int) netip.Addr { return netip.AddrFrom4([4]byte{10, byte(8 + k), byte(i >> 8), byte(i)}) }
		s := dataplane.Service{ID: fmt.Sprintf("service%04d", i), VIPs: []netip.Addr{at(0)}}
		for k := range serviceBackends {
			s.Backends = append(s.Backends, dataplane.Backend{Address: at(k + 1), MAC: vxlan.MACFor(at(k + 1))})
		}
		t.want.Services = append(t.want.Services, s)
	}
	_, err := t.plane.Apply(ctx, t.want)
	if err != nil {
		return err
	}
	got, err := t.plane.Read(ctx, t.want.VNI)
	if err == nil && (len(got.Services) != manyServices || slices.ContainsFunc(got.Services, func(s dataplane.Service) bool {
		return s.Stale || len(s.Backends) != serviceBackends
	})) {
		err = fmt.Errorf("the kernel has %d services that are not as wanted", len(got.Services))
	}
	return err
}

// hasIPVS says whether this kernel has Docker's load balancer: the module makes that file.
func hasIPVS() bool {
	_, err := os.Stat("/proc/net/ip_vs")
	return err == nil
}
