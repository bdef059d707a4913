package ipam

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/docker/go-plugins-helpers/ipam"
	"github.com/google/go-cmp/cmp"

	"github.com/netdriver/netdriver/store"
)

// swarmWeb is the pool of network web as a swarm's managers know it; web is the same pool as nodes know it.
const swarmWeb = GlobalSpace + "/10.10.0.0/24"

// lead is what a leader sends first, for each network.
func (n *node) lead(subnet string) string {
	n.t.Helper()
	id := n.swarmPool(subnet)
	n.s.BeginTerm([]netip.Prefix{prefix(subnet)}) // by AllocateNetwork
	return id
}

// swarmPool is what it sends of a network that is then refused.
func (n *node) swarmPool(subnet string) string {
	n.t.Helper()
	id := must[string](n.t)(n.requestPool(ipam.RequestPoolRequest{AddressSpace: GlobalSpace, Pool: subnet}))
	must[string](n.t)(n.gateway(id, ""))
	return id
}

// allocateNetwork does what the driver's AllocateNetwork does with the records: the swarm's claims end.
func (n *node) allocateNetwork(network, pool string) {
	n.t.Helper()
	ctx := context.Background()
	subnet := must[PoolID](n.t)(ParsePoolID(pool)).Subnet
	p, kv, err := get[store.Pool](ctx, n.mem, store.PoolKey(subnet))
	nw := store.Network{
		Name: network, Mode: store.ModeOverlay, VNI: 1 << 20, Port: 4789, MTU: 1450, Swarm: "s1", Subnets: []netip.Prefix{subnet},
	}
	p.Network, p.Claims = network, nil
	_, bad := n.mem.Commit(ctx, nil, store.Put(kv.Key, store.Encode(p)), store.Put(store.NetworkKey(network), store.Encode(nw)))
	if err := errors.Join(err, bad); err != nil {
		n.t.Fatal(err)
	}
}

// alive says in the store that a node's daemon runs, as the driver does.
func (n *node) alive() {
	n.t.Helper()
	if _, err := n.mem.Commit(context.Background(), nil, store.PutAlive(store.AliveKey(n.name), []byte(n.name))); err != nil {
		n.t.Fatal(err)
	}
}

// swarmed is two nodes, the first of which leads a swarm with network web, and both of which have a task in it.
func swarmed(t testing.TB) (n1, n2 *node) {
	mem := store.NewMemory()
	n1, n2 = newNode(t, mem, "n1"), newNode(t, mem, "n2")
	n1.allocateNetwork("web", n1.lead("10.10.0.0/24"))
	for _, n := range []*node{n1, n2} {
		n.alive()
		n.web("10.10.0.0/24")
	}
	return n1, n2
}

// held returns "ADDRESS swarm NODE ENDPOINT" of the leases that are not the gateway's.
func held(t testing.TB, mem *store.Memory) []string {
	t.Helper()
	out := []string{}
	for _, l := range records(t, mem) {
		if l.Kind == store.LeaseEndpoint {
			out = append(out, fmt.Sprintf("%s swarm=%v node=%s endpoint=%s", l.Address, l.Swarm, l.Node, l.Endpoint))
		}
	}
	return out
}

func wantHeld(t testing.TB, mem *store.Memory, want ...string) {
	t.Helper()
	if want == nil {
		want = []string{}
	}
	if diff := cmp.Diff(want, held(t, mem)); diff != "" {
		t.Errorf("leases (-want +got):\n%s", diff)
	}
}

func TestAnAddressIsFreeWhenBothTheSwarmAndTheNodeHaveReleasedIt(t *testing.T) {
	for what, order := range map[string][]string{
		"the node first, as Docker does": {web, swarmWeb}, "the swarm first": {swarmWeb, web},
		"repeated": {web, web, swarmWeb, swarmWeb, web},
	} {
		t.Run(what, func(t *testing.T) {
			n1, n2 := swarmed(t)
			a := must[string](t)(n1.address(swarmWeb, "", nil))
			wantHeld(t, n1.mem, "10.10.0.2 swarm=true node= endpoint=")
			if got, err := n2.run(web, a, 1); got != a || err != nil {
				t.Errorf("the node is answered %s, %v, want %s", got, err, a)
			}
			n2.attach(web, "10.10.0.2", "e1")
			n2.release(web, a) // too early: DeleteEndpoint was lost
			wantHeld(t, n1.mem, "10.10.0.2 swarm=true node=n2 endpoint=e1")
			n2.attach(web, "10.10.0.2", "")
			for i, pool := range order {
				map[string]*node{web: n2, swarmWeb: n1}[pool].release(pool, a)
				if i == 0 && len(held(t, n1.mem)) != 1 {
					t.Error("freed by the first of two")
				}
			}
			wantHeld(t, n1.mem)
		})
	}
}

func TestANewLeaderIsGrantedWhatLivesOnceAndAUsersSecondQuestionIsRefused(t *testing.T) {
	n1, n2 := swarmed(t)
	vip, task := must[string](t)(n1.address(swarmWeb, "", nil)), must[string](t)(n1.address(swarmWeb, "", nil))
	must[string](t)(n2.run(web, task, 1))
	n2.attach(web, "10.10.0.3", "e1")
	_, err := n1.address(swarmWeb, vip, nil)
	wantError(t, err, "10.10.0.2", "task or service of the swarm")
	for range 2 { // n2 leads, then n1 again
		for _, leader := range []*node{n2, n1} {
			leader.lead("10.10.0.0/24")
			for _, a := range []string{vip, task} {
				if got, err := leader.address(swarmWeb, a, nil); got != a || err != nil {
					t.Errorf("replay to %s: %s, %v, want %s", leader.name, got, err, a)
				}
				_, err := leader.address(swarmWeb, a, nil)
				wantError(t, err, a[:len(a)-3], "choose another")
			}
			_, err := leader.address(swarmWeb, "10.10.0.1", nil)
			wantError(t, err, "gateway")
		}
	}
	wantHeld(t, n1.mem, "10.10.0.2 swarm=true node= endpoint=", "10.10.0.3 swarm=true node=n2 endpoint=e1")
	n1.release(swarmWeb, vip)
	if _, err := n1.address(swarmWeb, vip, nil); err != nil {
		t.Errorf("a released address is refused: %v", err)
	}
}

func TestATwinNetworkThatIsRefusedMakesNobodyForgetWhatTheSwarmHas(t *testing.T) {
	n1, _ := swarmed(t)
	a := must[string](t)(n1.address(swarmWeb, "", nil))
	for range 3 { // at each event of the swarm
		n1.releasePool(n1.swarmPool("10.10.0.0/24"))
		_, err := n1.address(swarmWeb, a, nil)
		wantError(t, err, "10.10.0.2")
	}
}

func TestADaemonRestartedInTheMiddleOfATermGrantsRatherThanRefusesAReplay(t *testing.T) {
	n1, _ := swarmed(t)
	a := must[string](t)(n1.address(swarmWeb, "", nil))
	n1.lead("10.10.0.0/24")
	must[string](t)(n1.address(swarmWeb, a, nil)) // granted, but the daemon dies before Docker has the answer
	n1.restart()
	if got, err := n1.address(swarmWeb, a, nil); got != a || err != nil {
		t.Errorf("asked again: %s, %v, want %s", got, err, a)
	}
	_, err := n1.address(swarmWeb, a, nil)
	wantError(t, err, "10.10.0.2")
}

func TestANodesOwnLeaseNeverBlocksTheSwarm(t *testing.T) {
	n1, n2 := swarmed(t)
	must[string](t)(n2.run(web, "10.10.0.7", 1))
	n2.attach(web, "10.10.0.7", "e1") // of a task that the swarm knows of and n2's lease was the first to be written
	if _, err := n1.address(swarmWeb, "10.10.0.7", nil); err != nil {
		t.Error(err)
	}
	wantHeld(t, n1.mem, "10.10.0.7 swarm=true node=n2 endpoint=e1")
}

func TestANodeTakesOverTheAddressOfALostNodeAndNotThatOfALiveEndpoint(t *testing.T) {
	n1, n2 := swarmed(t)
	a := must[string](t)(n1.address(swarmWeb, "", nil))
	must[string](t)(n2.run(web, a, 1))
	n2.attach(web, "10.10.0.2", "e1")
	_, err := n1.run(web, a, 2)
	wantError(t, err, "endpoint e1 on node n2")
	n2.mem.DropAlive()
	if got, err := n1.run(web, a, 2); got != a || err != nil {
		t.Errorf("of a lost node: %s, %v, want %s", got, err, a)
	}
	wantHeld(t, n1.mem, "10.10.0.2 swarm=true node=n1 endpoint=")
	n2.alive() // it returns, and its engine has forgotten the task
	if freed := must[[]store.Lease](t)(n2.s.Reclaim(t.Context(), func(store.Lease) bool { return false })); len(freed) != 0 {
		t.Errorf("n2 freed %v, which is n1's", freed)
	}
}

func TestNoAddressOfTheSwarmAloneIsGivenToAnybodyElse(t *testing.T) {
	mem := store.NewMemory()
	n := newNode(t, mem, "n1")
	pool := n.lead("10.10.0.0/29")
	n.allocateNetwork("web", pool)
	local := n.web("10.10.0.0/29")
	for range 5 { // of six one is the gateway
		must[string](t)(n.address(pool, "", nil))
	}
	for what, id := range map[string]string{"the node": local, "the swarm": pool} {
		if a, err := n.address(id, "", nil); err == nil {
			t.Errorf("%s got %s", what, a)
		}
	}
	n.restart() // its view is read from the store
	if a, err := n.run(local, "", 1); err == nil {
		t.Errorf("after a restart: %s", a)
	}
	n.release(pool, "10.10.0.4")
	if a, err := n.run(local, "", 1); a != "10.10.0.4/29" || err != nil {
		t.Errorf("released: %s, %v", a, err)
	}
}

func TestOneGatewayServesBothAddressSpaces(t *testing.T) {
	n1, n2 := swarmed(t)
	for _, n := range []*node{n1, n2} {
		for _, pool := range []string{swarmWeb, web} {
			if got, err := n.gateway(pool, "10.10.0.1"); got != "10.10.0.1/24" || err != nil {
				t.Errorf("%s %s: %s, %v", n.name, pool, got, err)
			}
			n.release(pool, "10.10.0.1")
		}
	}
	if diff := cmp.Diff([]string{"10.10.0.1 gateway n1"}, leases(t, n1.mem)); diff != "" {
		t.Errorf("leases (-want +got):\n%s", diff)
	}
}

func TestReleasePoolNeverEndsAPoolOfASwarmNetworkNorItsLeases(t *testing.T) {
	n1, n2 := swarmed(t)
	a := must[string](t)(n1.address(swarmWeb, "", nil))
	n1.releasePool(swarmWeb) // what a leader sends that was refused a replay
	n2.releasePool(web)      // and a node whose last task has left
	n2.releasePool(swarmWeb)
	wantHeld(t, n1.mem, "10.10.0.2 swarm=true node= endpoint=")
	n1.lead("10.10.0.0/24")
	if got, err := n1.address(swarmWeb, a, nil); got != a || err != nil {
		t.Errorf("the next replay: %s, %v, want %s", got, err, a)
	}
	other := n1.lead("10.20.0.0/24") // the positive control: no network came of it
	n1.releasePool(other)
	if n, err := n1.mem.Count(t.Context(), store.PoolPrefix); n != 1 || err != nil {
		t.Errorf("%d pools, %v, want 1", n, err)
	}
}

// away is a store that cannot be reached until some moment, or one whose answer to the next commit is lost.
type away struct {
	store.Store
	until time.Time
	lost  *atomic.Bool
}

func (a away) unavailable() error {
	if time.Now().Before(a.until) {
		return fmt.Errorf("away: %w", store.ErrUnavailable)
	}
	return nil
}

func (a away) Get(ctx context.Context, key string) (store.KV, error) {
	if err := a.unavailable(); err != nil {
		return store.KV{}, err
	}
	return a.Store.Get(ctx, key)
}

func (a away) List(ctx context.Context, prefix string) ([]store.KV, int64, error) {
	if err := a.unavailable(); err != nil {
		return nil, 0, err
	}
	return a.Store.List(ctx, prefix)
}

func (a away) Commit(ctx context.Context, conds []store.Cond, ops ...store.Op) (int64, error) {
	if err := a.unavailable(); err != nil {
		return 0, err
	}
	revision, err := a.Store.Commit(ctx, conds, ops...)
	if err == nil && a.lost != nil && a.lost.Swap(false) {
		return 0, fmt.Errorf("answer lost: %w", store.ErrUnavailable)
	}
	return revision, err
}

func TestALeaderIsKeptWaitingForTheStoreAndANodeIsToldAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := store.NewMemory()
		n := newNode(t, mem, "n1")
		n.allocateNetwork("web", n.lead("10.10.0.0/24"))
		a := must[string](t)(n.address(swarmWeb, "", nil))
		absence := func(d time.Duration) {
			n.reach = func(s store.Store) store.Store { return away{Store: s, until: time.Now().Add(d)} }
			n.restart()
		}
		absence(20 * time.Second)
		n.lead("10.10.0.0/24")
		absence(20 * time.Second)
		if got, err := n.address(swarmWeb, a, nil); got != a || err != nil {
			t.Errorf("a replay while the store is away: %s, %v, want %s", got, err, a)
		}
		absence(20 * time.Second)
		n.release(swarmWeb, a)
		wantHeld(t, mem)
		absence(20 * time.Second)
		start := time.Now()
		_, err := n.run(web, "10.10.0.9", 1)
		wantError(t, err, "store", "try again")
		if took := time.Since(start); took > time.Second {
			t.Errorf("a node was kept waiting for %s", took)
		}
		absence(time.Hour)
		start = time.Now()
		_, err = n.address(swarmWeb, a, nil)
		wantError(t, err, "store")
		if took := time.Since(start); took > 25*time.Second {
			t.Errorf("a leader was kept waiting for %s", took)
		}
	})
}

func TestAnAnswerOfTheStoreThatIsLostLeaksNoAddressOfTheSwarm(t *testing.T) {
	n1, _ := swarmed(t)
	lost := &atomic.Bool{}
	n1.reach = func(s store.Store) store.Store { return away{Store: s, lost: lost} }
	n1.restart()
	lost.Store(true)
	a := must[string](t)(n1.address(swarmWeb, "", nil))
	if lost.Load() {
		t.Fatal("no answer was lost")
	}
	wantHeld(t, n1.mem, "10.10.0.2 swarm=true node= endpoint=")
	lost.Store(true)
	n1.release(swarmWeb, a)
	wantHeld(t, n1.mem)
}

func TestOrphansAreTheOldLeasesOfTheSwarmThatNobodyKnows(t *testing.T) {
	n1, n2 := swarmed(t)
	for range 4 {
		must[string](t)(n1.address(swarmWeb, "", nil))
	}
	must[string](t)(n2.run(web, "10.10.0.3", 1)) // a node uses it, whatever the swarm knows
	must[string](t)(n2.run(web, "10.10.0.9", 1)) // a node's own
	known := map[netip.Addr]bool{netip.MustParseAddr("10.10.0.4"): true}
	orphans := func(before time.Time) (addresses []string) {
		for _, l := range must[[]store.Lease](t)(Orphans(t.Context(), n1.mem, before, known)) {
			addresses = append(addresses, l.Address.String())
		}
		return addresses
	}
	if diff := cmp.Diff([]string{"10.10.0.2", "10.10.0.5"}, orphans(time.Now())); diff != "" {
		t.Errorf("orphans (-want +got):\n%s", diff)
	}
	if young := orphans(time.Now().Add(-time.Minute)); young != nil {
		t.Errorf("young ones: %v", young)
	}
}
