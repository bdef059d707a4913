package main

import (
	"context"
	"errors"
	"net/netip"
)

// How much traffic one measurement of a round has: about a third of a second.
const (
	udpPackets    = 20_000
	transactions  = 4_000
	transferBytes = 64 << 20
)

// dataPath compares the kernel's work per packet in netdriver's layout and in that of Docker's overlay driver.
func dataPath(ctx context.Context, b *bench) ([]Result, error) {
	bed, err := newTestbed(ctx, b.dir, inClear())
	if err != nil {
		return nil, err
	}
	defer bed.remove()
	from, to := bed.nodes[0].container, bed.nodes[1]
	udp := func(addr netip.Addr) (float64, error) { return udpCost(from, to.container, addr, udpPackets) }
	latency := func(serverCPU int) func(netip.Addr) (float64, error) {
		return func(addr netip.Addr) (float64, error) {
			times, err := requestResponse(from, to.container, addr, addr, transactions, serverCPU)
			return times.percentile(5), err
		}
	}
	transfer := func(addr netip.Addr) (float64, error) { return transferTime(from, to.container, addr, transferBytes) }
	var results []Result
	var errs []error
	for _, m := range []struct {
		what    string
		measure func(netip.Addr) (float64, error)
		rounds  int
		unit    string
		target  float64
	}{
		{"UDP, CPU time per packet ÷ that in Docker's layout", udp, 2 * b.rounds, "µs", .90},
		{"TCP request and response of 1 byte, p5 of the latency ÷ that in Docker's layout",
			latency(0), 2 * b.rounds, "µs", .93},
		{"the same with client and server on two CPUs (for information)", latency(1), b.rounds, "µs", 0},
		{"TCP, time to transfer 64 MiB ÷ that in Docker's layout (for information)", transfer, b.rounds, "ms", 0},
	} {
		ours, theirs, err := inTurns(ctx, m.rounds,
			func() (float64, error) { return m.measure(to.ours) }, func() (float64, error) { return m.measure(to.docker) })
		if err != nil {
			errs = append(errs, err)
			continue
		}
		r, err := ratioResult(m.what, ours, theirs, m.unit, m.target)
		results, errs = append(results, r), append(errs, err)
	}
	return results, errors.Join(errs...)
}

// inTurns measures two things so many times, side by side. The order changes every round, so that being first is no
// advantage; the very first round warms up and does not count.
func inTurns(ctx context.Context, rounds int, one, other func() (float64, error)) (ones, others sample, err error) {
	for round := range rounds + 1 {
		if err := ctx.Err(); err != nil {
			return nil, nil, err
		}
		first, second := one, other
		if round%2 == 1 {
			first, second = other, one
		}
		x, err := first()
		if err != nil {
			return nil, nil, err
		}
		y, err := second()
		if err != nil {
			return nil, nil, err
		}
		if round%2 == 1 {
			x, y = y, x
		}
		if round > 0 {
			ones, others = append(ones, x), append(others, y)
		}
	}
	return ones, others, nil
}
