//go:build linux

package dataplane

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	vish "github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/internal/netlink"
)

// many is the number of remote endpoints of the benchmarks; each has three entries.
const many = 10_000

// manyRemote is a network with one local and many remote endpoints on ten peers.
func manyRemote(extra ...int) Network {
	n := newTestNet("192.0.2.1").local(1)
	for i := range 10 {
		ids := make([]int, 0, many/10)
		for k := range many / 10 {
			ids = append(ids, 1000+i*many/10+k)
		}
		n.peer(fmt.Sprintf("192.0.2.%d", 20+i), ids...)
	}
	return n.peer("192.0.2.20", extra...).network()
}

// BenchmarkProgram compares one Run for 10,000 remote endpoints with a call per entry, in turns; ratio is ours/theirs.
func BenchmarkProgram(b *testing.B) {
	h := newHost(b)
	empty := newTestNet("192.0.2.1").local(1).network()
	full := manyRemote()
	adds, dels := plan(empty.asRead(), full), plan(full.asRead(), empty)
	must := func(err error) {
		if err != nil {
			b.Fatal(err)
		}
	}
	must(h.kernel.Run(b.Context(), plan(Network{}, empty)))
	var ours, theirs time.Duration
	for b.Loop() {
		start := time.Now()
		must(h.kernel.Run(b.Context(), adds))
		ours += time.Since(start)
		must(h.kernel.Run(b.Context(), dels))
		start = time.Now()
		must(netlink.In(h.kernel.ours, func() error { return oneByOne(adds) }))
		theirs += time.Since(start)
		must(h.kernel.Run(b.Context(), dels))
	}
	b.ReportMetric(ours.Seconds()*1000/float64(b.N), "ms/run")
	b.ReportMetric(theirs.Seconds()*1000/float64(b.N), "ms/one-by-one")
	b.ReportMetric(float64(ours)/float64(theirs), "ratio")
}

// oneByOne does what ops do with the netlink package's functions, as libnetwork does.
func oneByOne(ops []Op) error {
	index := map[string]int{}
	for _, op := range ops {
		if index[op.Device] == 0 {
			l, err := vish.LinkByName(op.Device)
			if err != nil {
				return err
			}
			index[op.Device] = l.Attrs().Index
		}
		n := vish.Neigh{LinkIndex: index[op.Device], HardwareAddr: op.MAC.HardwareAddr(), Family: unix.AF_BRIDGE}
		set := vish.NeighSet
		switch {
		case op.Verb == PutNeighbour:
			n.Family, n.State, n.IP = unix.AF_INET, vish.NUD_PERMANENT, op.Address.AsSlice()
		case op.VTEP.IsValid():
			n.Flags, n.State, n.IP = vish.NTF_SELF, vish.NUD_PERMANENT, op.VTEP.AsSlice()
			if op.MAC.IsZero() {
				set = vish.NeighAppend
			}
		default:
			n.Flags, n.State = vish.NTF_MASTER, vish.NUD_NOARP
		}
		if err := set(&n); err != nil {
			return fmt.Errorf("%s: %w", op, err)
		}
	}
	return nil
}

// BenchmarkAttach adds and removes one local endpoint through the plane, alone and among 10,000 remote ones.
func BenchmarkAttach(b *testing.B) {
	b.Run("alone", func(b *testing.B) { attach(b, newTestNet("192.0.2.1").local(1).network()) })
	b.Run("among-10000", func(b *testing.B) { attach(b, manyRemote()) })
}

func attach(b *testing.B, without Network) {
	h := newHost(b)
	p := NewPlane(h.kernel, quiet())
	with := newTestNet("192.0.2.1").local(2)
	with.Ports = append(with.Ports, without.Ports...)
	with.FDB = append(with.FDB, without.FDB...)
	with.Neighbours = append(with.Neighbours, without.Neighbours...)
	more := with.network()
	if _, err := p.Apply(b.Context(), without); err != nil {
		b.Fatal(err)
	}
	var took []time.Duration
	for b.Loop() {
		start := time.Now()
		if _, err := p.Apply(b.Context(), more); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(start))
		if _, err := p.Apply(b.Context(), without); err != nil {
			b.Fatal(err)
		}
	}
	slices.Sort(took)
	b.ReportMetric(took[len(took)/2].Seconds()*1000, "ms-p50")
	b.ReportMetric(took[len(took)*99/100].Seconds()*1000, "ms-p99")
}

func BenchmarkRead(b *testing.B) {
	h := newHost(b)
	if err := h.kernel.Run(b.Context(), plan(Network{}, manyRemote())); err != nil {
		b.Fatal(err)
	}
	b.Run("one", func(b *testing.B) {
		for b.Loop() {
			if n, err := h.kernel.ReadNetwork(b.Context(), testVNI); err != nil || len(n.Neighbours) != many+1 {
				b.Fatal(len(n.Neighbours), err)
			}
		}
	})
	b.Run("all", func(b *testing.B) {
		for b.Loop() {
			if ns, err := h.kernel.Read(b.Context()); err != nil || len(ns) != 1 {
				b.Fatal(len(ns), err)
			}
		}
	})
}

func BenchmarkPlanOneChange(b *testing.B) {
	have, want := manyRemote().asRead(), manyRemote(5)
	for b.Loop() {
		if ops := plan(have, want); len(ops) != 3 {
			b.Fatal(ops)
		}
	}
}

func BenchmarkApplyOneChange(b *testing.B) {
	p := NewPlane(NewFake(), quiet())
	wants := []Network{manyRemote(), manyRemote(5)}
	for i := 0; b.Loop(); i++ {
		if _, err := p.Apply(b.Context(), wants[i%2]); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkServices programs 1,000 services of three tasks, then changes one task of one of them.
func BenchmarkServices(b *testing.B) {
	h := newHost(b)
	p := NewPlane(h.kernel, quiet())
	none := newTestNet("192.0.2.1").local(1).network()
	all := none.clone()
	for i := range 1000 {
		s := Service{ID: fmt.Sprintf("service%04d", i), VIPs: []netip.Addr{endpointIP(1<<20 + i)}}
		for k := range 3 {
			at := (k+2)<<20 + i
			s.Backends = append(s.Backends, Backend{Address: endpointIP(at), MAC: endpointMAC(at)})
		}
		slices.SortFunc(s.Backends, compareBackends)
		all.Services = append(all.Services, s)
	}
	one := all.clone()
	one.Services[500].Backends = one.Services[500].Backends[:2]
	apply := func(want Network) time.Duration {
		start := time.Now()
		if _, err := p.Apply(b.Context(), want); err != nil {
			b.Fatal(err)
		}
		return time.Since(start)
	}
	var program, change time.Duration
	for b.Loop() {
		apply(none)
		program += apply(all)
		change += apply(one)
	}
	b.ReportMetric(program.Seconds()*1000/float64(b.N), "ms/1000-services")
	b.ReportMetric(change.Seconds()*1000/float64(b.N), "ms/one-change")
}
