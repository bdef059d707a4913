package swarm

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
)

// manager is an engine as a manager answers.
type manager struct {
	mu       sync.Mutex
	leads    bool
	down     bool
	services []engine.Service
	running  []engine.Task
	ending   []engine.Task
	// asked is how often tasks were asked for.
	asked int
}

var errDown = errors.New("docker is away")

func (m *manager) answer() error {
	if m.down {
		return errDown
	}
	return nil
}

func (m *manager) Leads(context.Context) (bool, string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.leads, "swarm1", m.answer()
}

func (m *manager) Services(context.Context) ([]engine.Service, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.services, m.answer()
}

func (m *manager) RunningTasks(context.Context) ([]engine.Task, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.asked++
	return m.running, m.answer()
}

func (m *manager) EndingTasks(context.Context) ([]engine.Task, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ending, m.answer()
}

func (m *manager) Wake(context.Context) <-chan struct{} { return nil }

// change changes what the manager answers.
func (m *manager) change(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f()
}

// lab is a leader with a running publisher, on a store that has the network web (Docker's d1) of swarm1 and the network
// other (d2) of another swarm.
type lab struct {
	*manager
	t   *testing.T
	mem *store.Memory
}

func start(t *testing.T) *lab {
	l := &lab{&manager{leads: true}, t, store.NewMemory()}
	l.put(store.NetworkKey("web"), store.Encode(store.Network{
		Name: "web", Mode: store.ModeOverlay, VNI: 9, Port: 4789, MTU: 1450, Swarm: "d1", SwarmCluster: "swarm1",
	}))
	l.put(store.NetworkKey("other"), store.Encode(store.Network{
		Name: "other", Mode: store.ModeOverlay, VNI: 10, Port: 4789, MTU: 1450, Swarm: "d2", SwarmCluster: "swarm2",
	}))
	log := slog.New(slog.DiscardHandler)
	mirror := store.NewMirror(l.mem, log)
	p := New(Config{Store: l.mem, Mirror: mirror, Docker: l.manager, Log: log})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { mirror.Run(ctx) })
	wg.Go(func() { p.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	return l
}

func (l *lab) put(key string, value []byte) {
	l.t.Helper()
	if _, err := l.mem.Commit(l.t.Context(), nil, store.Put(key, value)); err != nil {
		l.t.Fatal(err)
	}
}

// published returns the services of a network, by id.
func (l *lab) published(network string) map[string]store.Service {
	l.t.Helper()
	kvs, _, err := l.mem.List(l.t.Context(), store.NetworkServices(network))
	if err != nil {
		l.t.Fatal(err)
	}
	out := map[string]store.Service{}
	for _, kv := range kvs {
		s, err := store.Decode[store.Service](kv)
		if err != nil {
			l.t.Fatal(err)
		}
		out[s.ID] = s
	}
	return out
}

// within waits for d in the test's own time.
func within(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func addrs(as ...string) (out []netip.Addr) {
	for _, a := range as {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func service(id, dockerID, vip string) engine.Service {
	return engine.Service{ID: id, Name: "name-" + id, VIPs: map[string][]netip.Addr{dockerID: addrs(vip)}}
}

// task is the nth task of a service in d1.
func task(service string, n int, running bool) engine.Task {
	return engine.Task{
		ID: fmt.Sprintf("t%d", n), Service: service, Slot: fmt.Sprint(n), Running: running,
		Addresses: map[string][]netip.Addr{"d1": addrs(fmt.Sprintf("10.10.0.%d", 10+n))},
	}
}

func backend(n int, draining bool) store.Backend {
	return store.Backend{
		Task: fmt.Sprintf("t%d", n), Name: fmt.Sprintf("name-s1.%d", n), Addresses: addrs(fmt.Sprintf("10.10.0.%d", 10+n)),
		Draining: draining,
	}
}

func (l *lab) expect(when string, want map[string]store.Service) {
	l.t.Helper()
	if diff := cmp.Diff(want, l.published("web"), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		l.t.Errorf("%s (-want +got):\n%s", when, diff)
	}
}

func web(backends ...store.Backend) map[string]store.Service {
	return map[string]store.Service{"s1": {ID: "s1", Name: "name-s1", Network: "web", VIPs: addrs("10.10.0.2"), Backends: backends}}
}

func TestTheLeaderPublishesVIPsAndHealthyTasks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := start(t)
		l.change(func() {
			l.services = []engine.Service{service("s1", "d1", "10.10.0.2"), service("s2", "ingress", "10.0.0.9")}
			l.running = []engine.Task{task("s1", 1, true), task("s1", 2, false)}
		})
		within(5 * time.Second)
		l.expect("one of two tasks is healthy", web(backend(1, false)))
	})
}

// A second is what the issue allows between the manager's knowledge and the last packet.
func TestATaskThatEndsIsPublishedWithinASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := start(t)
		l.change(func() {
			l.services = []engine.Service{service("s1", "d1", "10.10.0.2")}
			l.running = []engine.Task{task("s1", 1, true), task("s1", 2, true)}
		})
		within(time.Minute)
		l.expect("both run", web(backend(1, false), backend(2, false)))
		l.change(func() {
			l.running, l.ending = []engine.Task{task("s1", 2, true)}, []engine.Task{task("s1", 1, true), task("s1", 3, false)}
		})
		within(time.Second)
		l.expect("one is to end and still runs", web(backend(1, true), backend(2, false)))
		l.change(func() { l.ending = []engine.Task{task("s1", 1, false), task("s1", 3, false)} })
		within(time.Second)
		l.expect("it has ended", web(backend(2, false)))
		l.change(func() { l.services, l.running = nil, nil })
		within(time.Second)
		l.expect("the service is removed", map[string]store.Service{})
	})
}

func TestAServiceWithoutVIPIsPublishedWithItsTasks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := start(t)
		l.change(func() {
			l.services = []engine.Service{{ID: "s1", Name: "name-s1"}}
			l.running = []engine.Task{task("s1", 1, true)}
		})
		within(5 * time.Second)
		want := web(backend(1, false))
		s := want["s1"]
		s.VIPs = nil
		want["s1"] = s
		l.expect("endpoint mode dnsrr", want)
	})
}

// The list of a swarm's tasks is long, and costs its leader as much each time.
func TestTasksOfServicesWithoutVIPAreAskedForSeldom(t *testing.T) {
	for vip, most := range map[string]int{"": 4, "10.10.0.2": 60} {
		synctest.Test(t, func(t *testing.T) {
			l := start(t)
			within(time.Minute)
			l.change(func() {
				l.asked, l.services = 0, []engine.Service{{ID: "s1", Name: "name-s1"}}
				if vip != "" {
					l.services[0] = service("s1", "d1", vip)
				}
			})
			for n := range 10 {
				l.change(func() { l.running = append(l.running, task("s1", n, true)) })
				within(time.Second)
			}
			l.change(func() {
				if least := most / 3; l.asked < least || l.asked > most {
					t.Errorf("virtual address %q: asked %d times in 10 s, want %d to %d", vip, l.asked, least, most)
				}
			})
		})
	}
}

// An engine that cannot answer, or does not lead any more, knows nothing: that is not the same as knowing of no service.
func TestWhatIsPublishedStaysWhileNobodyLeads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := start(t)
		l.change(func() {
			l.services = []engine.Service{service("s1", "d1", "10.10.0.2")}
			l.running = []engine.Task{task("s1", 1, true)}
		})
		within(5 * time.Second)
		for what, change := range map[string]func(){
			"Docker is away":  func() { l.down, l.services, l.running = true, nil, nil },
			"another manager": func() { l.down, l.leads = false, false },
		} {
			l.change(change)
			within(time.Minute)
			l.expect(what, web(backend(1, false)))
		}
	})
}

func TestServicesOfAnotherSwarmOnTheSameStoreAreLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := start(t)
		foreign := store.Service{ID: "x1", Name: "x", Network: "other", VIPs: addrs("10.20.0.2")}
		l.put(store.ServiceKey("other", "x1"), store.Encode(foreign))
		stale := store.Service{ID: "x2", Name: "x", Network: "web", VIPs: addrs("10.10.0.9")}
		l.put(store.ServiceKey("web", "x2"), store.Encode(stale))
		within(time.Minute)
		l.expect("a stale record of this swarm is removed", map[string]store.Service{})
		if got := l.published("other"); len(got) != 1 {
			t.Errorf("the other swarm's services are %v", got)
		}
	})
}
