package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netdriver/netdriver/store"
	"github.com/netdriver/netdriver/vxlan"
)

// failing is a store whose commits fail once left of them have succeeded.
type failing struct {
	store.Store
	left int
}

func (f *failing) Commit(ctx context.Context, conds []store.Cond, ops ...store.Op) (int64, error) {
	if f.left == 0 {
		return 0, fmt.Errorf("commit: %w", store.ErrUnavailable)
	}
	f.left--
	return f.Store.Commit(ctx, conds, ops...)
}

// meddling is a store in which somebody else does something right before the first commit that has conditions.
type meddling struct {
	store.Store
	meddle func()
}

func (m *meddling) Commit(ctx context.Context, conds []store.Cond, ops ...store.Op) (int64, error) {
	if f := m.meddle; f != nil && len(conds) > 0 && strings.HasPrefix(conds[0].Key, store.LeasePrefix) {
		m.meddle = nil
		f()
	}
	return m.Store.Commit(ctx, conds, ops...)
}

// keys returns the keys of all records.
func keys(t *testing.T, s store.Store) (out []string) {
	t.Helper()
	kvs, _, err := s.List(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	for _, kv := range kvs {
		out = append(out, kv.Key)
	}
	return out
}

func subnet(i int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 10, byte(i), 0}), 24)
}

// network writes a network with an endpoint of each of its nodes.
func network(t *testing.T, s store.Store, i int, name, swarm string, nodes ...string) {
	t.Helper()
	p := subnet(i)
	nw := store.Network{
		Name: name, Mode: store.ModeOverlay, VNI: vxlan.VNI(100 + i), Port: 4789, MTU: 1450, Subnets: []netip.Prefix{p}, Swarm: swarm,
	}
	pool := store.Pool{Subnet: p, Network: name}
	gateway := p.Addr().Next()
	reserved := store.Lease{Address: gateway, Kind: store.LeaseGateway, Node: "n1"}
	put(t, s,
		store.Put(store.VNIKey(nw.VNI), []byte(name)), store.Put(store.CursorKey(p), []byte(gateway.String())),
		store.Put(store.PoolKey(p), store.Encode(pool)),
		store.Put(store.LeaseKey(p, gateway), store.Encode(reserved)))
	addr := gateway
	for _, node := range nodes {
		addr = addr.Next()
		nw.Members = append(nw.Members, store.Member{Node: node, DockerID: "d-" + node})
		e := store.Endpoint{
			ID: "e" + node, Network: name, Node: node, MAC: vxlan.MACFor(addr), IPv4: netip.PrefixFrom(addr, 24),
		}
		put(t, s,
			store.Put(store.EndpointKey(name, e.ID), store.Encode(e)), store.Put(store.MACKey(name, e.MAC), []byte(e.ID)),
			store.Put(store.NameKey(name, e.ID), []byte("{}")),
			store.Put(store.LeaseKey(p, addr), store.Encode(store.Lease{
				Address: addr, Kind: store.LeaseEndpoint, Node: node, Endpoint: e.ID, Swarm: swarm != "",
			})))
	}
	put(t, s, store.Put(store.NetworkKey(name), store.Encode(nw)))
}

// populated is a store with nodes n1 and n2, which share a network, have one each, and are in a swarm's.
func populated(t *testing.T) *store.Memory {
	t.Helper()
	s := store.NewMemory()
	for _, node := range []string{"n1", "n2"} {
		put(t, s,
			store.Put(store.NodeKey(node), store.Encode(store.Node{Name: node, VTEP: loopback})),
			store.Put(store.StatusKey(node), []byte("{}")),
			store.Put(store.EngineKey(node), []byte("{}")), store.Put(store.VolumeUseKey(node), []byte("{}")),
			store.PutAlive(store.AliveKey(node), []byte("id")),
			store.Put(store.CertificateKey(node, "aa"+node), []byte("pem")),
			store.Put(store.CertificateKey(node, "bb"+node), []byte("pem")))
	}
	network(t, s, 1, "both", "", "n1", "n2")
	network(t, s, 2, "first", "", "n1")
	network(t, s, 3, "second", "", "n2")
	network(t, s, 4, "swarm", "s1", "n1")
	// Pools that were asked for: by n1 alone, and by both.
	put(t, s,
		store.Put(store.PoolKey(subnet(5)), store.Encode(store.Pool{Subnet: subnet(5), Claims: []store.Claim{{Node: "n1"}}})),
		store.Put(store.PoolKey(subnet(6)), store.Encode(store.Pool{
			Subnet: subnet(6), Claims: []store.Claim{{Node: "n1"}, {Node: "n2"}},
		})))
	return s
}

// forgotten is what populated has once n1 is gone.
func forgotten() []string {
	return []string{
		"alive/n2", "certificates/n2/aan2", "certificates/n2/bbn2", "cursors/10.10.1.0_24", "cursors/10.10.3.0_24",
		"cursors/10.10.4.0_24", "endpoints/both/en2", "endpoints/second/en2", "engines/n2",
		"leases/10.10.1.0_24/10.10.1.1", "leases/10.10.1.0_24/10.10.1.3", "leases/10.10.3.0_24/10.10.3.1",
		"leases/10.10.3.0_24/10.10.3.2", "leases/10.10.4.0_24/10.10.4.1", "leases/10.10.4.0_24/10.10.4.2",
		"macs/both/" + vxlan.MACFor(netip.MustParseAddr("10.10.1.3")).String(),
		"macs/second/" + vxlan.MACFor(netip.MustParseAddr("10.10.3.2")).String(),
		"names/both/en2", "names/second/en2", "networks/both", "networks/second", "networks/swarm", "nodes/n2",
		"pools/10.10.1.0_24", "pools/10.10.3.0_24", "pools/10.10.4.0_24", "pools/10.10.6.0_24",
		"revoked/aan1", "revoked/bbn1",
		"status/n2", "vnis/101", "vnis/103", "vnis/104", "volume-uses/n2",
	}
}

func TestARemovedNodeTakesAllOfItsOwnAndNothingOfOthers(t *testing.T) {
	t.Parallel()
	s := populated(t)
	if err := forget(t.Context(), s, "n1"); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(forgotten(), keys(t, s)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	both, err := s.Get(t.Context(), store.NetworkKey("both"))
	if err != nil {
		t.Fatal(err)
	}
	if nw, err := store.Decode[store.Network](both); err != nil || len(nw.Members) != 1 || nw.Members[0].Node != "n2" {
		t.Errorf("%+v, %v", nw.Members, err)
	}
	// What the swarm has of an address stays the swarm's.
	kv, err := s.Get(t.Context(), store.LeaseKey(subnet(4), netip.MustParseAddr("10.10.4.2")))
	if err != nil {
		t.Fatal(err)
	}
	if l, err := store.Decode[store.Lease](kv); err != nil || l.Node != "" || l.Endpoint != "" || !l.Swarm {
		t.Errorf("%+v, %v", l, err)
	}
}

func TestAnInterruptedRemovalIsFinishedByTheNext(t *testing.T) {
	t.Parallel()
	for n := 0; ; n++ {
		s := populated(t)
		err := forget(t.Context(), &failing{Store: s, left: n}, "n1")
		if err == nil {
			if n < 8 {
				t.Errorf("only %d commits: the test does not interrupt what it should", n)
			}
			return
		}
		if !errors.Is(err, store.ErrUnavailable) {
			t.Fatal(err)
		}
		if err := forget(t.Context(), s, "n1"); err != nil {
			t.Fatalf("after %d commits: %v", n, err)
		}
		if diff := cmp.Diff(forgotten(), keys(t, s)); diff != "" {
			t.Errorf("after %d commits, -want +got:\n%s", n, diff)
		}
	}
}

func TestALeaseThatTheSwarmGivesUpDuringTheRemovalGoes(t *testing.T) {
	t.Parallel()
	s := populated(t)
	gone := netip.MustParseAddr("10.10.4.2")
	key := store.LeaseKey(subnet(4), gone)
	m := &meddling{Store: s, meddle: func() {
		// The first lease that is changed is another one; this one has been read already.
		l := store.Lease{Address: gone, Kind: store.LeaseEndpoint, Node: "n1", Endpoint: "en1"}
		put(t, s, store.Put(key, store.Encode(l)))
	}}
	if err := forget(t.Context(), m, "n1"); err != nil || m.meddle != nil {
		t.Fatalf("%v, meddled %t", err, m.meddle == nil)
	}
	if _, err := s.Get(t.Context(), key); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("the lease stays: %v", err)
	}
}

func TestAPoolThatAnotherNodeHasAskedForOutlivesItsNetwork(t *testing.T) {
	t.Parallel()
	s := populated(t)
	put(t, s, store.Put(store.PoolKey(subnet(2)), store.Encode(store.Pool{
		Subnet: subnet(2), Network: "first", Claims: []store.Claim{{Node: "n1"}, {Node: "n2"}},
	})))
	if err := forget(t.Context(), s, "n1"); err != nil {
		t.Fatal(err)
	}
	kv, err := s.Get(t.Context(), store.PoolKey(subnet(2)))
	if err != nil {
		t.Fatal(err)
	}
	if p, err := store.Decode[store.Pool](kv); err != nil || p.Network != "" || len(p.Claims) != 1 ||
		p.Claims[0].Node != "n2" {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestContainersOfANodeAreCounted(t *testing.T) {
	t.Parallel()
	s := populated(t)
	for node, want := range map[string]int{"n1": 3, "n2": 2, "n3": 0} {
		if n, err := containers(t.Context(), s, node); err != nil || n != want {
			t.Errorf("%s: %d, %v; want %d", node, n, err, want)
		}
	}
}
