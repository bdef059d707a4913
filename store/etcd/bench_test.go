package etcd

import (
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/netdriver/netdriver/store"
	"github.com/netdriver/netdriver/vxlan"
)

// large is the number of records in the benchmarks of large networks.
const large = 10_000

// BenchmarkEmbed is how long a new store takes until it answers.
func BenchmarkEmbed(b *testing.B) {
	for b.Loop() {
		h := &host{cfg: EmbedConfig{DataDir: b.TempDir(), RunDir: shortDir(b), Log: slog.New(slog.DiscardHandler)}}
		h.start(b)
		b.StopTimer()
		h.stop()
		b.StartTimer()
	}
}

func BenchmarkCommit(b *testing.B) {
	c := benchClient(b)
	conds := []store.Cond{store.Absent("macs/web/claim")}
	value := store.Encode(benchEndpoint(1))
	for i := 0; b.Loop(); i++ {
		if _, err := c.Commit(b.Context(), conds, store.Put(fmt.Sprintf("endpoints/web/%d", i%large), value)); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkGet(b *testing.B) {
	c := benchClient(b)
	put(b, c, "k", "value")
	for b.Loop() {
		if _, err := c.Get(b.Context(), "k"); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkList10000(b *testing.B) {
	c := benchClient(b)
	fillNetwork(b, c)
	for b.Loop() {
		if kvs, _, err := c.List(b.Context(), "endpoints/web/"); err != nil || len(kvs) != large {
			b.Fatal(len(kvs), err)
		}
	}
}

// BenchmarkWatch is the time from a call of Commit until another client's watch has delivered the change.
func BenchmarkWatch(b *testing.B) {
	c := benchClient(b)
	batches := c.Watch(b.Context(), "w/")
	<-batches
	for b.Loop() {
		rev := put(b, c, "w/1", "value")
		if got := <-batches; got.Revision != rev {
			b.Fatal(got.Revision, rev)
		}
	}
}

// BenchmarkMirrorWait is what Docker's calls pay: a change, and the wait until the mirror has it.
func BenchmarkMirrorWait(b *testing.B) {
	c := benchClient(b)
	fillNetwork(b, c)
	m := store.NewMirror(c, slog.New(slog.DiscardHandler))
	go m.Run(b.Context())
	m.Follow("web")
	start := time.Now()
	if err := m.WaitSynced(b.Context(), "web"); err != nil {
		b.Fatal(err)
	}
	read := time.Since(start)
	for i := 0; b.Loop(); i++ {
		e := benchEndpoint(i % large)
		key := store.EndpointKey("web", e.ID)
		rev, err := c.Commit(b.Context(), nil, store.Put(key, store.Encode(e)))
		if err == nil {
			err = m.Wait(b.Context(), key, rev)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(read.Milliseconds()), "ms/10000-read")
}

func benchClient(b *testing.B) *Client {
	b.Helper()
	h := &host{cfg: EmbedConfig{DataDir: b.TempDir(), RunDir: shortDir(b), Log: slog.New(slog.DiscardHandler)}}
	h.start(b)
	b.Cleanup(h.stop)
	c, err := Dial(Config{Endpoints: []string{h.server.Endpoint()}, Cluster: "c", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { c.Close() })
	return c
}

func fillNetwork(b *testing.B, c *Client) {
	b.Helper()
	for i := 0; i < large; i += 100 {
		var ops []store.Op
		for j := range 100 {
			e := benchEndpoint(i + j)
			ops = append(ops, store.Put(store.EndpointKey("web", e.ID), store.Encode(e)))
		}
		if _, err := c.Commit(b.Context(), nil, ops...); err != nil {
			b.Fatal(err)
		}
	}
}

func benchEndpoint(n int) store.Endpoint {
	a := netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)})
	return store.Endpoint{
		ID: fmt.Sprintf("e%063d", n), Network: "web", Node: fmt.Sprintf("node-%d", n%10), DockerID: strings.Repeat("d", 64),
		IPv4: netip.PrefixFrom(a, 16), MAC: vxlan.MACFor(a), Phase: store.PhaseCreated, Created: time.Unix(1, 0).UTC(),
	}
}
