package store_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/netdriver/netdriver/store"
	"github.com/netdriver/netdriver/vxlan"
)

// patience is how long a test waits for what comes by itself.
const patience = 10 * time.Second

// mirrored is a running mirror with its store.
type mirrored struct {
	*store.Mirror
	t   testing.TB
	mem *store.Memory
}

func newMirror(t testing.TB) *mirrored {
	return startMirror(t, store.NewMemory(), slog.New(slog.NewTextHandler(io.Discard, nil)))
}

func startMirror(t testing.TB, mem *store.Memory, log *slog.Logger) *mirrored {
	m := &mirrored{store.NewMirror(mem, log), t, mem}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		m.Run(ctx)
		close(done)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return m
}

// synced waits until network was read.
func (m *mirrored) synced(network string) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.t.Context(), patience)
	defer cancel()
	if err := m.WaitSynced(ctx, network); err != nil {
		m.t.Fatal(err)
	}
}

// write commits ops and waits until the mirror has what they did to key.
func (m *mirrored) write(key string, ops ...store.Op) int64 {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.t.Context(), patience)
	defer cancel()
	rev, err := m.mem.Commit(ctx, nil, ops...)
	if err == nil {
		err = m.Wait(ctx, key, rev)
	}
	if err != nil {
		m.t.Fatal(err)
	}
	return rev
}

func (m *mirrored) put(key string, value []byte) int64 {
	m.t.Helper()
	return m.write(key, store.Put(key, value))
}

// endpoints are the ids of network's endpoints.
func (m *mirrored) endpoints(network string) (ids []string) {
	m.Read(func(r *store.Records) { ids = slices.Sorted(maps.Keys(r.Endpoints[network])) })
	return ids
}

var created = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func node(name, vtep string) store.Node {
	return store.Node{Name: name, ID: "id" + name, VTEP: netip.MustParseAddr(vtep), UnderlayMTU: 1500, Started: created}
}

func network(name string) store.Network {
	return store.Network{
		Name: name, Mode: store.ModeOverlay, VNI: 5000, Port: 4789, MTU: 1450, Creator: "n1", Created: created,
	}
}

func endpoint(network string, n int) store.Endpoint {
	a := netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)})
	return store.Endpoint{
		ID: fmt.Sprintf("e%063d", n), Network: network, Node: fmt.Sprintf("node-%d", n%10), DockerID: strings.Repeat("d", 64),
		IPv4: netip.PrefixFrom(a, 16), MAC: vxlan.MACFor(a), Phase: store.PhaseCreated, Created: created,
	}
}

func putEndpoint(e store.Endpoint) store.Op {
	return store.Put(store.EndpointKey(e.Network, e.ID), store.Encode(e))
}

func TestMirrorShowsWhatTheStoreHas(t *testing.T) {
	m := newMirror(t)
	pool := store.Pool{Subnet: netip.MustParsePrefix("10.1.0.0/16"), Network: "web", Creator: "n1", Created: created}
	m.Follow("web")
	m.put(store.NodeKey("n1"), store.Encode(node("n1", "192.0.2.1")))
	m.put(store.NetworkKey("web"), store.Encode(network("web")))
	m.put(store.PoolKey(pool.Subnet), store.Encode(pool))
	m.write(store.AliveKey("n1"), store.PutAlive(store.AliveKey("n1"), []byte("idn1")))
	e := endpoint("web", 1)
	m.write(store.EndpointKey("web", e.ID), putEndpoint(e))
	svc := store.Service{ID: "s1", Name: "api", Network: "web", VIPs: []netip.Addr{netip.MustParseAddr("10.1.0.2")}}
	m.put(store.ServiceKey("web", "s1"), store.Encode(svc))
	m.synced("web")
	want := store.Records{
		Nodes:     map[string]store.Node{"n1": node("n1", "192.0.2.1")},
		Networks:  map[string]store.Network{"web": network("web")},
		Pools:     map[netip.Prefix]store.Pool{pool.Subnet: pool},
		Endpoints: map[string]map[string]store.Endpoint{"web": {e.ID: e}},
		Services:  map[string]map[string]store.Service{"web": {"s1": svc}},
		Alive:     map[string]string{"n1": "idn1"},
	}
	opts := []cmp.Option{cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
		cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })}
	m.Read(func(r *store.Records) {
		if diff := cmp.Diff(want, *r, opts...); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
	for _, key := range []string{store.NodeKey("n1"), store.NetworkKey("web"), store.PoolKey(pool.Subnet),
		store.AliveKey("n1"), store.EndpointKey("web", e.ID), store.ServiceKey("web", "s1")} {
		m.write(key, store.Delete(key))
	}
	m.Read(func(r *store.Records) {
		empty := store.Records{
			Endpoints: map[string]map[string]store.Endpoint{"web": {}}, Services: map[string]map[string]store.Service{"web": {}},
		}
		if diff := cmp.Diff(empty, *r, append(opts, cmpopts.EquateEmpty())...); diff != "" {
			t.Errorf("after the deletions (-want +got):\n%s", diff)
		}
	})
}

func TestMirrorReadsOnlyFollowedNetworks(t *testing.T) {
	m := newMirror(t)
	m.Follow("web")
	m.Follow("web")
	m.synced("web")
	e := endpoint("web", 1)
	m.write(store.EndpointKey("web", e.ID), putEndpoint(e), putEndpoint(endpoint("db", 2)))
	if m.Synced("db") || len(m.endpoints("db")) != 0 {
		t.Error("a network that is not followed was read")
	}
	m.Follow("db")
	m.synced("db")
	if got := m.endpoints("db"); len(got) != 1 {
		t.Errorf("endpoints of db: %v, want one", got)
	}
	m.Unfollow("web")
	m.Unfollow("web")
	if m.Synced("web") || len(m.endpoints("web")) != 0 {
		t.Error("a network that is not followed any more is still there")
	}
	if err := m.Wait(t.Context(), store.EndpointKey("web", e.ID), 1); !errors.Is(err, store.ErrInvalid) {
		t.Errorf("waiting for it: %v, want ErrInvalid", err)
	}
	m.Follow("web")
	m.synced("web")
	if got := m.endpoints("web"); len(got) != 1 {
		t.Errorf("endpoints of web, followed again: %v, want one", got)
	}
}

func TestUnfollowEndsAWait(t *testing.T) {
	m := newMirror(t)
	m.Follow("web")
	m.synced("web")
	done := make(chan error)
	go func() { done <- m.Wait(t.Context(), store.EndpointKey("web", "e"), 1000) }()
	time.Sleep(10 * time.Millisecond)
	m.Unfollow("web")
	select {
	case err := <-done:
		if !errors.Is(err, store.ErrInvalid) {
			t.Errorf("%v, want ErrInvalid", err)
		}
	case <-time.After(patience):
		t.Error("still waiting")
	}
}

func TestNothingIsSyncedBeforeTheStoreWasRead(t *testing.T) {
	mem := store.NewMemory()
	mem.SetAvailable(false)
	m := startMirror(t, mem, slog.New(slog.DiscardHandler))
	m.Follow("web")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err := m.WaitSynced(ctx, "web")
	if !errors.Is(err, store.ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v, want ErrUnavailable and the deadline", err)
	}
	if err := m.Wait(ctx, store.NodeKey("n"), 1); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("wait: %v, want ErrUnavailable", err)
	}
	mem.SetAvailable(true)
	m.synced("web")
	if got := m.changed(); !slices.Contains(got, "web") {
		t.Errorf("changed %v, want web: its consumer may have looked too early", got)
	}
}

// changed waits for a change and takes it.
func (m *mirrored) changed() []string {
	m.t.Helper()
	select {
	case <-m.Changes():
		return m.TakeChanged()
	case <-time.After(patience):
		m.t.Fatal("no change")
	}
	panic("unreachable")
}

func TestChangesNameTheNetworksConcerned(t *testing.T) {
	m := newMirror(t)
	m.Follow("web")
	m.Follow("db")
	m.put(store.NetworkKey("far"), store.Encode(network("far")))
	m.synced("web")
	m.synced("db")
	n := node("n1", "192.0.2.1")
	moved := node("n1", "192.0.2.2")
	restarted := moved
	restarted.Started = created.Add(time.Hour)
	e := endpoint("web", 1)
	for _, c := range []struct {
		name string
		ops  []store.Op
		want []string
	}{
		{"new node", []store.Op{store.Put(store.NodeKey("n1"), store.Encode(n))}, []string{"db", "web"}},
		{"moved node", []store.Op{store.Put(store.NodeKey("n1"), store.Encode(moved))}, []string{"db", "web"}},
		{"restarted node", []store.Op{store.Put(store.NodeKey("n1"), store.Encode(restarted))}, nil},
		{"alive", []store.Op{store.PutAlive(store.AliveKey("n1"), []byte("id"))}, nil},
		{"network", []store.Op{store.Put(store.NetworkKey("far"), store.Encode(network("far")))}, []string{"far"}},
		{"endpoint", []store.Op{putEndpoint(e)}, []string{"web"}},
		{"endpoint of another network", []store.Op{putEndpoint(endpoint("far", 1))}, nil},
		{"endpoint gone", []store.Op{store.Delete(store.EndpointKey("web", e.ID))}, []string{"web"}},
		{"node gone", []store.Op{store.Delete(store.NodeKey("n1"))}, []string{"db", "web"}},
	} {
		m.TakeChanged()
		revision := map[string]int64{"web": m.Revision("web"), "db": m.Revision("db"), "far": m.Revision("far")}
		rev, err := m.mem.Commit(t.Context(), nil, c.ops...)
		if err != nil {
			t.Fatal(err)
		}
		m.flush()
		if diff := cmp.Diff(c.want, m.TakeChanged(), cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%s: changed networks (-want +got):\n%s", c.name, diff)
		}
		for network, before := range revision {
			want := before
			if slices.Contains(c.want, network) || strings.Contains(c.name, "node") && c.want != nil {
				want = rev
			}
			if got := m.Revision(network); got != want {
				t.Errorf("%s: revision of %s is %d, want %d", c.name, network, got, want)
			}
		}
	}
}

// flush waits until every base watch and those of web and db have delivered what was committed before, by a change to
// each that is none of a network's.
func (m *mirrored) flush() {
	m.t.Helper()
	for _, key := range []string{"nodes/-", "alive/-", "networks/-", "pools/-", "endpoints/web/-", "endpoints/db/-"} {
		m.write(key, store.Put(key, []byte("no record")))
	}
}

func TestBadRecordLeavesTheLastGoodOne(t *testing.T) {
	var log strings.Builder
	var mu sync.Mutex
	m := startMirror(t, store.NewMemory(), slog.New(slog.NewTextHandler(locked{&mu, &log}, nil)))
	m.Follow("web")
	e := endpoint("web", 1)
	key := store.EndpointKey("web", e.ID)
	m.synced("web")
	m.write(key, putEndpoint(e))
	other := endpoint("web", 2)
	for name, value := range map[string]string{
		"no JSON":           "{",
		"later version":     `{"v":2,"r":{}}`,
		"invalid":           `{"v":1,"r":{}}`,
		"of another key":    string(store.Encode(other)),
		"of other networks": string(store.Encode(endpoint("db", 1))),
	} {
		m.put(key, []byte(value))
		if got := m.endpoints("web"); !slices.Equal(got, []string{e.ID}) {
			t.Errorf("%s: endpoints %v, want the last good one", name, got)
		}
		if err := m.Bad()[key]; !errors.Is(err, store.ErrRecord) {
			t.Errorf("%s: bad record %v, want ErrRecord", name, err)
		}
	}
	m.mem.Compact()
	m.put("endpoints/web/more", []byte("{")) // after the Reset
	if got := m.endpoints("web"); !slices.Equal(got, []string{e.ID}) {
		t.Errorf("after a Reset: endpoints %v, want the last good one", got)
	}
	mu.Lock()
	if n := strings.Count(log.String(), "key="+key); n != 5 {
		t.Errorf("%d complaints, want one for each of 5 revisions:\n%s", n, log.String())
	}
	mu.Unlock()
	m.write(key, putEndpoint(e), store.Delete("endpoints/web/more"))
	if bad := m.Bad(); len(bad) != 0 {
		t.Errorf("bad records after a good one: %v", bad)
	}
}

type locked struct {
	mu *sync.Mutex
	w  io.Writer
}

func (l locked) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(b)
}

func TestResetRemovesWhatIsGone(t *testing.T) {
	m := newMirror(t)
	m.Follow("web")
	m.synced("web")
	kept, gone := endpoint("web", 1), endpoint("web", 2)
	m.write(store.EndpointKey("web", kept.ID), putEndpoint(kept), putEndpoint(gone))
	m.put("endpoints/web/bad", []byte("{"))
	m.TakeChanged()
	m.mem.SetAvailable(false)
	done := make(chan error)
	go func() {
		_, err := m.mem.Commit(t.Context(), nil,
			store.Delete(store.EndpointKey("web", gone.ID)), store.Delete("endpoints/web/bad"))
		m.mem.Compact()
		done <- err
	}()
	m.mem.SetAvailable(true)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	last := endpoint("web", 3)
	m.write(store.EndpointKey("web", last.ID), putEndpoint(last))
	if got := m.endpoints("web"); !slices.Equal(got, []string{kept.ID, last.ID}) {
		t.Errorf("endpoints %v, want %s and %s", got, kept.ID, last.ID)
	}
	if bad := m.Bad(); len(bad) != 0 {
		t.Errorf("complaints about records that are gone: %v", bad)
	}
	if got := m.TakeChanged(); !slices.Contains(got, "web") {
		t.Errorf("changed %v, want web", got)
	}
}

func TestWaitShowsTheCallersOwnWrite(t *testing.T) {
	m := newMirror(t)
	m.Follow("web")
	m.synced("web")
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 50 {
				e := endpoint("web", w*50+i)
				m.write(store.EndpointKey("web", e.ID), putEndpoint(e))
				m.Read(func(r *store.Records) {
					if _, ok := r.Endpoints["web"][e.ID]; !ok {
						t.Errorf("%s is not there after Wait", e.ID)
					}
				})
			}
		})
	}
	wg.Wait()
}

func TestRunEndsWithItsContextAndCanRunAgain(t *testing.T) {
	mem := store.NewMemory()
	m := store.NewMirror(mem, slog.New(slog.DiscardHandler))
	m.Follow("web")
	for i := range 3 {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- m.Run(ctx) }()
		e := endpoint("web", i)
		rev, err := mem.Commit(t.Context(), nil, putEndpoint(e))
		if err == nil {
			err = m.Wait(t.Context(), store.EndpointKey("web", e.ID), rev)
		}
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v, want the context's error", err)
		}
	}
}
