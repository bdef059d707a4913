package metrics

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/netdriver/netdriver/store"
)

// Encryption is what is counted in encryption; *keying.Keying is the real one.
type Encryption interface {
	Protection(ctx context.Context) (store.Protection, error)
}

// encryption reads how the pairs of encrypted networks stand when somebody scrapes. It has no key.
type encryption struct {
	src Sources

	pairs, epoch, drops              *prometheus.Desc
	packets, bytes, replayed, forged *prometheus.Desc
}

func newEncryption(src Sources) *encryption {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(namespace+"_encryption_"+name, help, labels, nil)
	}
	return &encryption{
		src:   src,
		pairs: desc("pairs", "Other nodes in this node's encrypted networks, by whether something is sent to them (open, blocked).", "state"),
		epoch: desc("epoch", "Number of this node's newest key."),
		drops: desc("dropped_packets", "Packets that the kernel has dropped since it booted: plain_in and plain_out in clear, filter_in and "+
			"filter_out in clear and past the policies, replayed, forged, unknown SPI.", "reason"),
		packets:  desc("sa_packets", "Packets that went through the SAs that a pair has now.", "peer", "direction"),
		bytes:    desc("sa_bytes", "Bytes, before encryption, that went through the SAs that a pair has now.", "peer", "direction"),
		replayed: desc("sa_replayed_packets", "Packets of a peer that came again or too late, of the SAs that the pair has now.", "peer"),
		forged:   desc("sa_forged_packets", "Packets of a peer that failed the integrity check, of the SAs that the pair has now.", "peer"),
	}
}

// Describe implements prometheus.Collector.
func (e *encryption) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{e.pairs, e.epoch, e.drops, e.packets, e.bytes, e.replayed, e.forged} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (e *encryption) Collect(ch chan<- prometheus.Metric) {
	if e.src.Encryption == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), askStore)
	defer cancel()
	p, err := e.src.Encryption.Protection(ctx)
	if err != nil {
		return // this kernel has no IPsec
	}
	d := p.Drops
	for reason, n := range map[string]uint64{
		"plain_in": d.PlainIn, "plain_out": d.PlainOut, "filter_in": d.FilterIn, "filter_out": d.FilterOut,
		"replayed": d.Replayed, "forged": d.Forged, "unknown": d.Unknown,
	} {
		gauge(ch, e.drops, int64(n), reason)
	}
	gauge(ch, e.epoch, int64(p.Epoch))
	blocked := 0
	for _, pair := range p.Pairs {
		if pair.Blocked != "" {
			blocked++
		}
		e.pair(ch, pair)
	}
	gauge(ch, e.pairs, blocked, "blocked")
	gauge(ch, e.pairs, len(p.Pairs)-blocked, "open")
}

// pair adds up a pair's SAs: those of different keys are of no interest here.
func (e *encryption) pair(ch chan<- prometheus.Metric, p store.Pair) {
	var in, out store.SA
	for _, s := range p.SAs {
		sum := &out
		if s.In {
			sum = &in
		}
		sum.Packets += s.Packets
		sum.Bytes += s.Bytes
		sum.Replayed += s.Replayed + s.Late
		sum.Forged += s.Forged
	}
	for direction, s := range map[string]store.SA{"in": in, "out": out} {
		gauge(ch, e.packets, int64(s.Packets), p.Peer, direction)
		gauge(ch, e.bytes, int64(s.Bytes), p.Peer, direction)
	}
	gauge(ch, e.replayed, int64(in.Replayed), p.Peer)
	gauge(ch, e.forged, int64(in.Forged), p.Peer)
}
