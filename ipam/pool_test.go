package ipam

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/docker/go-plugins-helpers/ipam"
	"github.com/google/go-cmp/cmp"

	"github.com/netdriver/netdriver/store"
)

// twoNodes is a cluster of two hosts.
func twoNodes(t testing.TB) (n1, n2 *node) {
	mem := store.NewMemory()
	return newNode(t, mem, "n1"), newNode(t, mem, "n2")
}

// claimants returns the nodes that have a claim on a pool.
func (n *node) claimants(id string) []string {
	var out []string
	for _, c := range n.poolOf(id).Claims {
		out = append(out, c.Node)
	}
	return out
}

func TestBadPoolRequestsAreRefusedWithTheRemedy(t *testing.T) {
	n, _ := twoNodes(t)
	n.routes = []netip.Prefix{prefix("10.20.0.0/16")}
	must[string](t)(n.pool("10.10.0.0/24", "web"))
	req := func(pool, sub string, v6 bool, options ...string) ipam.RequestPoolRequest {
		r := ipam.RequestPoolRequest{AddressSpace: LocalSpace, Pool: pool, SubPool: sub, V6: v6, Options: map[string]string{}}
		for i := 0; i < len(options); i += 2 {
			r.Options[options[i]] = options[i+1]
		}
		return r
	}
	tests := []struct {
		name string
		req  ipam.RequestPoolRequest
		want []string
	}{
		{"no subnet", req("x", "", false), []string{`"x"`, "10.10.0.0/24"}},
		{"host bits", req("10.1.0.5/24", "", false), []string{"use 10.1.0.0/24"}},
		{"mapped IPv4", req("::ffff:10.1.0.0/120", "", true), []string{"want a network address"}},
		{"too small", req("10.1.0.0/31", "", false), []string{"/8 to /30"}},
		{"too large", req("10.0.0.0/7", "", false), []string{"/8 to /30"}},
		{"IPv6 too small", req("fd00::/127", "", true), []string{"/48 to /126"}},
		{"IPv6 too large", req("fd00::/47", "", true), []string{"/48 to /126"}},
		{"multicast", req("224.1.0.0/24", "", false), []string{"multicast", "use a private one"}},
		{"loopback", req("127.1.0.0/24", "", false), []string{"loopback"}},
		{"link-local", req("169.254.1.0/24", "", false), []string{"link-local"}},
		{"reserved", req("250.0.0.0/24", "", false), []string{"240.0.0.0/4"}},
		{"IPv6 link-local", req("fe80::/64", "", true), []string{"link-local"}},
		{"IPv6 multicast", req("ff02::/64", "", true), []string{"multicast"}},
		{"IPv6 loopback", req("::/64", "", true), []string{"loopback"}},
		{"IPv4 as IPv6", req("10.1.0.0/24", "", true), []string{"as an IPv6 one"}},
		{"IPv6 as IPv4", req("fd00::/64", "", false), []string{"as an IPv4 one"}},
		{"range alone", req("", "10.1.0.0/25", false), []string{"--subnet with --ip-range"}},
		{"range outside", req("10.1.0.0/24", "10.1.1.0/25", false), []string{"not inside"}},
		{"range larger", req("10.1.0.0/24", "10.1.0.0/23", false), []string{"not inside"}},
		{"range with host bits", req("10.1.0.0/24", "10.1.0.9/25", false), []string{"use 10.1.0.0/25"}},
		{"useless range", req("10.1.0.0/24", "10.1.0.255/32", false), []string{"no address"}},
		{"unknown option", req("10.1.0.0/24", "", false, "netwrok", "web"), []string{"netwrok", "network=NAME"}},
		{"bad name", req("10.1.0.0/24", "", false, "network", "a/b"), []string{"a/b", "letters"}},
		{"empty name", req("10.1.0.0/24", "", false, "network", ""), []string{"letters"}},
		{"two mistakes", req("10.1.0.5/24", "", false, "x", "y"), []string{"use 10.1.0.0/24", "x=y"}},
		{"other IPAM's space", ipam.RequestPoolRequest{AddressSpace: "LocalDefault"}, []string{"LocalDefault"}},
		{"no space", ipam.RequestPoolRequest{}, []string{"address space"}},
		{"other name", req("10.10.0.0/24", "", false, "network", "db"), []string{"web", "db"}},
		{"overlaps a pool", req("10.10.0.0/25", "", false), []string{"10.10.0.0/24", "network web"}},
		{"contains a pool", req("10.10.0.0/16", "", false), []string{"10.10.0.0/24", "network web"}},
		{"overlaps a route", req("10.20.5.0/24", "", false), []string{"10.20.0.0/16", "host n1"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := n.requestPool(test.req)
			wantError(t, err, test.want...)
		})
	}
	if all := must[[]entry](t)(n.s.pools(t.Context())); len(all) != 1 {
		t.Errorf("refused requests left pools: %v", all)
	}
	for _, good := range []ipam.RequestPoolRequest{
		req("10.1.0.0/24", "10.1.0.128/25", false, "network", "good", "com.docker.network.x", "y"),
		req("fd00::/64", "", true, "network", "good"), req("", "", false), req("", "", true),
	} {
		if _, err := n.requestPool(good); err != nil {
			t.Errorf("a good one is refused: %+v: %v", good, err)
		}
	}
}

func TestASubnetThatExistsIsJoined(t *testing.T) {
	n1, n2 := twoNodes(t)
	id := must[string](t)(n1.pool("10.10.0.0/24", ""))
	n1.createNetwork("web", id)
	if id != LocalSpace+"/10.10.0.0/24" {
		t.Errorf("pool id %s", id)
	}
	if got := must[string](t)(n2.pool("10.10.0.0/24", "")); got != id {
		t.Errorf("pool %s, want %s", got, id)
	}
	if diff := cmp.Diff([]string{"n2"}, n1.claimants(id)); diff != "" {
		t.Errorf("claims (-want +got):\n%s", diff)
	}
}

func TestANamedNetworkGivesItsPool(t *testing.T) {
	n1, n2 := twoNodes(t)
	pending := must[string](t)(n1.pool("10.10.0.0/24", "web"))
	if got, err := n2.pool("", "web"); got != pending || err != nil {
		t.Errorf("before the network exists: %s, %v, want %s", got, err, pending)
	}
	n1.createNetwork("web", pending)
	if got, err := n2.pool("", "web"); got != pending || err != nil {
		t.Errorf("afterwards: %s, %v, want %s", got, err, pending)
	}
	if got, err := n2.pool("", "db"); got == pending || err != nil {
		t.Errorf("another network gets %s, %v", got, err)
	}
	_, err := n2.pool("10.11.0.0/24", "web")
	wantError(t, err, "10.10.0.0/24", "10.11.0.0/24")
	_, err = n2.requestPool(ipam.RequestPoolRequest{AddressSpace: LocalSpace, V6: true, Options: map[string]string{"network": "web"}})
	wantError(t, err, "no IPv6 one", "without --ipv6")
}

func TestTheSameChosenPoolIsNeverGivenTwice(t *testing.T) {
	n1, n2 := twoNodes(t)
	n1.routes = []netip.Prefix{prefix("10.128.0.0/20")}
	first, second, third := must[string](t)(n1.pool("", "")), must[string](t)(n2.pool("", "")), must[string](t)(n1.pool("", ""))
	want := []string{LocalSpace + "/10.128.16.0/20", LocalSpace + "/10.128.0.0/20", LocalSpace + "/10.128.32.0/20"}
	if diff := cmp.Diff(want, []string{first, second, third}); diff != "" {
		t.Errorf("pools (-want +got):\n%s", diff)
	}
}

func TestOverlappingPoolsCannotBeMadeAtOnce(t *testing.T) {
	mem := store.NewMemory()
	const nodes = 8
	var wg sync.WaitGroup
	var mu sync.Mutex
	made := 0
	for i := range nodes {
		n := newNode(t, mem, fmt.Sprintf("n%d", i))
		wg.Go(func() {
			if _, err := n.pool(fmt.Sprintf("10.10.0.0/%d", 16+i), ""); err == nil {
				mu.Lock()
				defer mu.Unlock()
				made++
			}
		})
	}
	wg.Wait()
	if made != 1 {
		t.Errorf("%d overlapping pools were made, want 1", made)
	}
}

func TestHostsCreateManyNetworksAtOnce(t *testing.T) {
	mem := store.NewMemory()
	var wg sync.WaitGroup
	for i := range 6 {
		n := newNode(t, mem, fmt.Sprintf("n%d", i))
		wg.Go(func() {
			for range 5 {
				if _, err := n.pool("", ""); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if n, err := mem.Count(t.Context(), store.PoolPrefix); n != 30 || err != nil {
		t.Errorf("%d pools, %v, want 30", n, err)
	}
}

func TestARouteOfOneHostStopsOnlyThatHost(t *testing.T) {
	n1, n2 := twoNodes(t)
	id := n1.web("10.10.0.0/24")
	n2.routes = []netip.Prefix{prefix("10.10.0.0/25")}
	_, err := n2.pool("10.10.0.0/24", "web")
	wantError(t, err, "10.10.0.0/25", "host n2")
	n1.routes = n2.routes // a member that restarts keeps its network, whatever routes have come
	if got, err := n1.pool("10.10.0.0/24", "web"); got != id || err != nil {
		t.Errorf("a member is refused: %s, %v", got, err)
	}
}

func TestAMembersReplayChangesNothing(t *testing.T) {
	n, _ := twoNodes(t)
	id := n.web("10.10.0.0/24")
	before, kv, err := get[store.Pool](t.Context(), n.mem, store.PoolKey(prefix("10.10.0.0/24")))
	if err != nil {
		t.Fatal(err)
	}
	n.restart()
	for _, network := range []string{"web", ""} {
		if got, err := n.pool("10.10.0.0/24", network); got != id || err != nil {
			t.Errorf("replay: %s, %v", got, err)
		}
	}
	if got, err := n.gateway(id, before.Gateway.String()); got != "10.10.0.1/24" || err != nil {
		t.Errorf("gateway: %s, %v", got, err)
	}
	_, after, err := get[store.Pool](t.Context(), n.mem, store.PoolKey(prefix("10.10.0.0/24")))
	if err != nil || after.Modified != kv.Modified {
		t.Errorf("the pool was written again, %v", err)
	}
}

func TestAPoolGoesWithItsLastClaimAndNeverWithANetwork(t *testing.T) {
	n1, n2 := twoNodes(t)
	id := must[string](t)(n1.pool("10.10.0.0/24", ""))
	must[string](t)(n2.pool("10.10.0.0/24", ""))
	must[string](t)(n1.gateway(id, ""))
	must[string](t)(n1.run(id, "", 1))
	n1.releasePool(id)
	if diff := cmp.Diff([]string{"n2"}, n1.claimants(id)); diff != "" {
		t.Errorf("claims after n1's release (-want +got):\n%s", diff)
	}
	n1.releasePool(id) // n1 has no claim any more: nothing happens
	n2.releasePool(id)
	kvs, _, err := n1.mem.List(t.Context(), "")
	if err != nil || len(kvs) != 1 || kvs[0].Key != store.PoolGuard {
		t.Errorf("left: %v, %v, want only the guard", kvs, err)
	}

	n1.web("10.10.0.0/24")
	must[string](t)(n2.pool("10.10.0.0/24", "web"))
	n1.releasePool(id) // docker network rm: ReleasePool comes before DeleteNetwork
	n2.releasePool(id) // a creation that failed
	if p := n1.poolOf(id); p.Network != "web" || len(p.Claims) != 0 {
		t.Errorf("pool %+v", p)
	}
}

func TestUnknownReleasesAreNoErrors(t *testing.T) {
	n, _ := twoNodes(t)
	for _, method := range []string{"ReleasePool", "ReleaseAddress"} {
		for _, req := range []any{nil, struct{}{}, map[string]any{"PoolID": LocalSpace + "/10.99.0.0/24", "Address": "10.99.0.5"}} {
			if err := n.call(method, req, &struct{}{}); err != nil {
				t.Errorf("%s %v: %v", method, req, err)
			}
		}
		wantError(t, n.call(method, map[string]any{"PoolID": "rubbish", "Address": "10.0.0.1"}, &struct{}{}), "rubbish")
	}
}

func TestAPoolWhoseNetworkNeverCameIsGivenUp(t *testing.T) {
	n1, n2 := twoNodes(t)
	id := must[string](t)(n1.pool("10.10.0.0/24", "web"))
	expire := func() {
		t.Helper()
		for _, n := range []*node{n1, n2} {
			if err := n.s.ExpireClaims(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	n2.clock = 2 * claimTTL // another node's claims are not n2's business
	n1.clock = claimTTL - time.Minute
	expire()
	if diff := cmp.Diff([]string{"n1"}, n1.claimants(id)); diff != "" {
		t.Errorf("young claim (-want +got):\n%s", diff)
	}
	must[string](t)(n1.pool("10.10.0.0/24", "web")) // asked again: dated anew
	n1.clock = claimTTL + time.Minute
	expire()
	if len(n1.claimants(id)) != 1 {
		t.Error("a claim that was renewed two minutes ago expired")
	}
	n1.clock = 3 * claimTTL
	expire()
	if n, err := n1.mem.Count(context.Background(), store.PoolPrefix); n != 0 || err != nil {
		t.Errorf("%d pools left, %v", n, err)
	}
}

func TestAPoolRecordThatCannotBeReadBlocksOnlyItsAddresses(t *testing.T) {
	n, _ := twoNodes(t)
	newer := store.Put(store.PoolKey(prefix("10.10.0.0/24")), []byte(`{"v":99,"r":{}}`))
	if _, err := n.mem.Commit(t.Context(), nil, newer); err != nil {
		t.Fatal(err)
	}
	_, err := n.pool("10.10.0.0/24", "")
	wantError(t, err, "upgrade netdriver")
	_, err = n.pool("10.10.0.0/25", "")
	wantError(t, err, "10.10.0.0/24", "cannot read")
	if _, err := n.pool("10.11.0.0/24", ""); err != nil {
		t.Errorf("another subnet is refused: %v", err)
	}
}
