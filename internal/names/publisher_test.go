package names

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/netdriver/netdriver/internal/engine"
	"github.com/netdriver/netdriver/store"
	"github.com/netdriver/netdriver/vxlan"
)

// host is an engine with some containers and networks.
type host struct {
	mu         sync.Mutex
	down       bool
	containers []engine.Container
	networks   map[string]string
	role       string
	questions  int
	wake       chan struct{}
}

var errDown = errors.New("docker is away")

func (h *host) answer() error {
	h.questions++
	if h.down {
		return errDown
	}
	return nil
}

func (h *host) Containers(context.Context) ([]engine.Container, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.containers, h.answer()
}

func (h *host) NetworkName(_ context.Context, dockerID string) (string, bool, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	name, known := h.networks[dockerID]
	return name, known, h.answer()
}

func (h *host) Self(context.Context) (string, string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return "20.10.24", h.role, h.answer()
}

func (h *host) Wake(context.Context) <-chan struct{} { return h.wake }

// change changes what the engine answers, and tells of it like an event.
func (h *host) change(f func()) {
	h.mu.Lock()
	f()
	h.mu.Unlock()
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

func (h *host) asked() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.questions
}

// counting is a store that counts transactions.
type counting struct {
	*store.Memory
	mu      sync.Mutex
	commits int
}

func (c *counting) Commit(ctx context.Context, conds []store.Cond, ops ...store.Op) (int64, error) {
	c.mu.Lock()
	c.commits++
	c.mu.Unlock()
	return c.Memory.Commit(ctx, conds, ops...)
}

func (c *counting) written() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.commits
}

// lab is node n1 with a running publisher, on a store that has the network web: Docker's d1 on n1, d2 on n2.
type lab struct {
	*host
	t   *testing.T
	mem *counting
}

func start(t *testing.T, nw store.Network) *lab {
	t.Helper()
	l := &lab{&host{wake: make(chan struct{}, 1), networks: map[string]string{"d1": "my-net"}}, t, &counting{Memory: store.NewMemory()}}
	l.put(store.NodeKey("n1"), store.Encode(store.Node{Name: "n1", ID: "i1", VTEP: netip.MustParseAddr("192.0.2.1")}))
	nw.Name, nw.Mode, nw.VNI, nw.Port, nw.MTU = "web", store.ModeOverlay, 9, 4789, 1450
	if nw.Members == nil && nw.Swarm == "" {
		nw.Members = []store.Member{{Node: "n1", DockerID: "d1"}}
	}
	l.put(store.NetworkKey("web"), store.Encode(nw))
	return l
}

// run runs a publisher until the returned function is called, or the test ends.
func (l *lab) run() (stop func()) {
	log := slog.New(slog.DiscardHandler)
	mirror := store.NewMirror(l.mem, log)
	mirror.Follow("web")
	balances := func() error { return errors.New("no eBPF") }
	p := New(Config{Store: l.mem, Mirror: mirror, Docker: l.host, Node: "n1", Balances: balances, Log: log})
	ctx, cancel := context.WithCancel(l.t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { mirror.Run(ctx) })
	wg.Go(func() { p.Run(ctx) })
	stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	l.t.Cleanup(stop)
	return stop
}

func (l *lab) put(key string, value []byte) {
	l.t.Helper()
	if _, err := l.mem.Memory.Commit(l.t.Context(), nil, store.Put(key, value)); err != nil {
		l.t.Fatal(err)
	}
}

// endpoint writes the record of the nth endpoint, on a node.
func (l *lab) endpoint(n int, node string) {
	l.t.Helper()
	a := netip.AddrFrom4([4]byte{10, 10, byte(n >> 8), byte(n)})
	e := store.Endpoint{
		ID: fmt.Sprintf("e%d", n), Network: "web", Node: node, IPv4: netip.PrefixFrom(a, 16), MAC: vxlan.MACFor(a),
		Phase: store.PhaseJoined,
	}
	l.put(store.EndpointKey("web", e.ID), store.Encode(e))
}

// names returns the containers' names by endpoint, as any node reads them.
func (l *lab) names() map[string]string {
	l.t.Helper()
	kvs, _, err := l.mem.List(l.t.Context(), store.NetworkNames("web"))
	if err != nil {
		l.t.Fatal(err)
	}
	out := map[string]string{}
	for _, kv := range kvs {
		n, err := store.Decode[store.Name](kv)
		if err != nil {
			l.t.Fatal(err)
		}
		out[n.Endpoint] = n.Container
	}
	return out
}

func (l *lab) expect(when string, want map[string]string) {
	l.t.Helper()
	if diff := cmp.Diff(want, l.names()); diff != "" {
		l.t.Errorf("%s (-want +got):\n%s", when, diff)
	}
}

func (l *lab) record() store.Network {
	l.t.Helper()
	kv, err := l.mem.Get(l.t.Context(), store.NetworkKey("web"))
	if err != nil {
		l.t.Fatal(err)
	}
	nw, err := store.Decode[store.Network](kv)
	if err != nil {
		l.t.Fatal(err)
	}
	return nw
}

// within waits for d in the test's own time.
func within(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func container(n int, name string) engine.Container {
	return engine.Container{ID: fmt.Sprintf("c%d", n), Name: name, Endpoints: []string{"other", fmt.Sprintf("e%d", n)}}
}

func TestAContainersNameIsPublishedWithinTwoSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := start(t, store.Network{})
		l.run()
		within(time.Minute)
		l.endpoint(1, "n1")
		l.endpoint(2, "n2")
		task := engine.Container{ID: "c1", Name: "web.1.x", Service: "web", Task: "web.1.x", Endpoints: []string{"e1"}}
		l.change(func() { l.containers = []engine.Container{task, container(2, "not-ours")} })
		within(2 * time.Second)
		l.expect("one endpoint is ours", map[string]string{"e1": "web.1.x"})
		kv, err := l.mem.Get(t.Context(), store.NameKey("web", "e1"))
		if err != nil {
			t.Fatal(err)
		}
		want := store.Name{Network: "web", Endpoint: "e1", Container: "web.1.x", ContainerID: "c1", Service: "web", Task: "web.1.x"}
		if got, err := store.Decode[store.Name](kv); got != want || err != nil {
			t.Errorf("published %+v, error %v, want %+v", got, err, want)
		}
	})
}

// Docker lists a container when it has started, which is after its endpoint exists and perhaps after the last event.
func TestANameThatDockerDoesNotKnowYetIsAskedForAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := start(t, store.Network{})
		l.run()
		within(time.Minute)
		l.endpoint(1, "n1")
		l.change(func() {})
		within(time.Second)
		l.mu.Lock()
		l.containers = []engine.Container{container(1, "late")}
		l.mu.Unlock()
		within(3 * time.Second)
		l.expect("it has started meanwhile", map[string]string{"e1": "late"})
	})
}

// Every health check of a container is an event.
func TestEventsThatConcernNoEndpointAskDockerNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := start(t, store.Network{})
		l.endpoint(1, "n1")
		l.containers = []engine.Container{container(1, "a")}
		l.run()
		within(2 * time.Second)
		l.expect("at the start", map[string]string{"e1": "a"})
		before := l.asked()
		for range 100 {
			l.change(func() {})
			within(100 * time.Millisecond)
		}
		if n := l.asked() - before; n > 2 {
			t.Errorf("%d questions for 100 events in 10 s, want at most a round look at containers and role", n)
		}
	})
}

func TestAnEndpointThatDockerNeverNamesIsAskedForEverMoreSeldom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := start(t, store.Network{})
		l.endpoint(1, "n1")
		l.run()
		within(time.Minute)
		before := l.asked()
		for range 60 {
			l.change(func() {})
			within(time.Second)
		}
		if n := l.asked() - before; n > 12 {
			t.Errorf("%d questions in a minute", n)
		}
	})
}

func TestManyNamesAreFewTransactions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := start(t, store.Network{})
		l.run()
		within(time.Minute)
		before := l.mem.written()
		for n := range 500 {
			l.endpoint(n+1, "n1")
			l.change(func() { l.containers = append(l.containers, container(n+1, fmt.Sprintf("c%d", n))) })
			time.Sleep(20 * time.Millisecond)
		}
		within(2 * time.Second)
		if n := len(l.names()); n != 500 {
			t.Errorf("%d names, want 500", n)
		}
		if n := l.mem.written() - before; n > 20 {
			t.Errorf("%d transactions for 500 names in 10 s", n)
		}
	})
}

// An endpoint that goes takes its name along; one published afterwards would stay for ever.
func TestAnEndpointThatHasGoneGetsNoNameAndHoldsUpNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := start(t, store.Network{})
		p := New(Config{Store: l.mem, Node: "n1", Log: slog.New(slog.DiscardHandler)})
		p.published = map[string]store.Name{}
		local := map[string]store.Endpoint{}
		for n := range 9 {
			id := fmt.Sprintf("e%d", n)
			local[store.NameKey("web", id)] = store.Endpoint{ID: id, Network: "web"}
			l.containers = append(l.containers, container(n, "name-"+id))
			if n != 4 {
				l.endpoint(n, "n1")
			}
		}
		if _, err := p.write(t.Context(), found(local, l.containers)); err != nil {
			t.Fatal(err)
		}
		got := l.names()
		if _, there := got["e4"]; there || len(got) != 8 {
			t.Errorf("published %v, want all but e4", got)
		}
	})
}

func TestARenamedContainerIsShownByItsNewName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := start(t, store.Network{})
		l.endpoint(1, "n1")
		l.containers = []engine.Container{container(1, "old")}
		l.run()
		within(time.Minute)
		l.expect("before", map[string]string{"e1": "old"})
		l.change(func() { l.containers = []engine.Container{container(1, "new")} })
		within(lookEvery + time.Second)
		l.expect("after", map[string]string{"e1": "new"})
	})
}

func TestARestartedDaemonWritesNothingThatIsThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := start(t, store.Network{})
		l.endpoint(1, "n1")
		l.containers = []engine.Container{container(1, "a")}
		stop := l.run()
		within(3 * time.Second)
		stop()
		before := l.mem.written()
		l.run()
		within(3 * time.Second)
		if n := l.mem.written() - before; n != 1 { // what the node is goes with the daemon that said it
			t.Errorf("%d transactions after a restart, want the engine's record only", n)
		}
	})
}

func TestWithoutStoreOrEngineWhatIsPublishedStaysAndTheRestFollows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := start(t, store.Network{})
		l.endpoint(1, "n1")
		l.containers = []engine.Container{container(1, "a")}
		l.run()
		within(time.Second)
		l.endpoint(2, "n1")
		l.mem.SetAvailable(false)
		l.change(func() { l.containers = append(l.containers, container(2, "b")) })
		within(time.Minute)
		l.mem.SetAvailable(true)
		l.change(func() { l.down = true })
		within(time.Minute)
		l.expect("the engine is away", map[string]string{"e1": "a"})
		l.change(func() { l.down = false })
		within(lookEvery + time.Second)
		l.expect("all is back", map[string]string{"e1": "a", "e2": "b"})
	})
}

func TestDockersNameOfANetworkIsPublished(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		members := []store.Member{{Node: "n1", DockerID: "d1"}, {Node: "n2", DockerID: "d1"}}
		plain := start(t, store.Network{Members: members})
		plain.run()
		within(3 * time.Second)
		if m := plain.record().Members; m[0].Name != "my-net" || m[1].Name != "" {
			t.Errorf("members %+v, want n1's own named by n1", m)
		}
		swarm := start(t, store.Network{Swarm: "d1", Members: members})
		swarm.run()
		within(3 * time.Second)
		nw := swarm.record()
		if diff := cmp.Diff(map[string]string{"d1": "my-net"}, nw.DockerNames()); diff != "" || nw.SwarmName != "my-net" {
			t.Errorf("swarm network: name %q, names (-want +got):\n%s", nw.SwarmName, diff)
		}
	})
}

// A manager knows the networks of its swarm that have no place on it; a worker does not, and must not keep asking.
func TestASwarmNetworkWithoutMembersIsNamedByAManager(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		manager := start(t, store.Network{Swarm: "d1"})
		manager.run()
		within(lookEvery + time.Second)
		if nw := manager.record(); nw.SwarmName != "my-net" {
			t.Errorf("network %+v", nw)
		}
		worker := start(t, store.Network{Swarm: "d1"})
		worker.networks = nil
		worker.run()
		for range 60 {
			worker.change(func() {})
			within(time.Second)
		}
		if n := worker.asked(); n > 10 {
			t.Errorf("a worker asked %d questions in a minute", n)
		}
	})
}

func TestWhatANodesEngineAndKernelAreIsPublished(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := start(t, store.Network{})
		l.role = store.RoleManager
		l.run()
		within(time.Second)
		l.change(func() { l.role = store.RoleLeader })
		within(lookEvery + time.Second)
		kv, err := l.mem.Get(t.Context(), store.EngineKey("n1"))
		if err != nil {
			t.Fatal(err)
		}
		want := store.Engine{Node: "n1", Version: "20.10.24", Role: store.RoleLeader, Unbalanced: "no eBPF"}
		if got, err := store.Decode[store.Engine](kv); got != want || err != nil {
			t.Errorf("published %+v, error %v, want %+v", got, err, want)
		}
	})
}
