package ipam

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/docker/go-plugins-helpers/ipam"
	"github.com/google/go-cmp/cmp"

	"github.com/netdriver/netdriver/internal/plugin"
	"github.com/netdriver/netdriver/store"
)

func TestTheFirstGatewayRequestFixesIt(t *testing.T) {
	for asked, want := range map[string]string{"": "10.10.0.1/24", "10.10.0.254": "10.10.0.254/24", "10.10.0.9/24": "10.10.0.9/24"} {
		n1, n2 := twoNodes(t)
		id := must[string](t)(n1.pool("10.10.0.0/24", "web"))
		for _, n := range []*node{n1, n2, n1} {
			if got, err := n.gateway(id, asked); got != want || err != nil {
				t.Errorf("asked for %q: %s, %v, want %s", asked, got, err, want)
			}
		}
		if got, err := n2.gateway(id, ""); got != want || err != nil {
			t.Errorf("any: %s, %v, want %s", got, err, want)
		}
		_, err := n2.gateway(id, "10.10.0.77")
		wantError(t, err, want[:len(want)-3], "10.10.0.77")
	}
}

func TestAGatewayMustBeFreeAndUsable(t *testing.T) {
	n, _ := twoNodes(t)
	id := must[string](t)(n.pool("10.10.0.0/24", ""))
	must[string](t)(n.run(id, "10.10.0.1", 1))
	n.attach(id, "10.10.0.1", "e1")
	for address, want := range map[string]string{
		"10.10.0.0": "cannot be used", "10.10.0.255": "cannot be used", "10.11.0.1": "not in subnet", "x": "10.10.0.5",
		"10.10.0.1": "held by endpoint e1", "fd00::1": "not in subnet",
	} {
		_, err := n.gateway(id, address)
		wantError(t, err, want)
	}
	if got, err := n.gateway(id, ""); got != "10.10.0.2/24" || err != nil {
		t.Errorf("the first free one: %s, %v", got, err)
	}
}

func TestBadAddressRequestsAreRefusedWithTheRemedy(t *testing.T) {
	n, _ := twoNodes(t)
	id := n.web("10.10.0.0/24")
	mac := func(s string) map[string]string {
		return map[string]string{"com.docker.network.endpoint.macaddress": s}
	}
	for what, c := range map[string]struct {
		pool, address string
		options       map[string]string
		want          []string
	}{
		"no pool":        {"", "", nil, []string{"pool id"}},
		"unknown pool":   {LocalSpace + "/10.99.0.0/24", "", mac("02:42:00:00:00:01"), []string{"10.99.0.0/24", "docker network rm"}},
		"unknown pool 2": {LocalSpace + "/10.99.0.0/24", "10.99.0.5", nil, []string{"10.99.0.0/24", "docker network rm"}},
		"unknown pool 3": {LocalSpace + "/10.99.0.0/24", "", map[string]string{"RequestAddressType": "com.docker.network.gateway"}, []string{"10.99.0.0/24"}},
		"no address":     {id, "ten", nil, []string{`"ten"`}},
		"zone":           {id, "fe80::1%eth0", nil, []string{"fe80::1%eth0"}},
		"outside":        {id, "10.10.1.5", nil, []string{"10.10.1.5", "10.10.0.0/24"}},
		"network":        {id, "10.10.0.0", nil, []string{"10.10.0.1 to 10.10.0.254"}},
		"broadcast":      {id, "10.10.0.255", nil, []string{"10.10.0.1 to 10.10.0.254"}},
		"bad MAC":        {id, "", mac("zz"), []string{`"zz"`}},
		"multicast MAC":  {id, "", mac("01:00:5e:00:00:01"), []string{"unicast"}},
		"the gateway":    {id, "10.10.0.1", mac("02:42:00:00:00:01"), []string{"gateway"}},
	} {
		t.Run(what, func(t *testing.T) {
			_, err := n.address(c.pool, c.address, c.options)
			wantError(t, err, c.want...)
		})
	}
	if diff := cmp.Diff([]string{"10.10.0.1 gateway n1"}, leases(t, n.mem)); diff != "" {
		t.Errorf("refused requests changed the leases (-want +got):\n%s", diff)
	}
	for _, good := range []string{"10.10.0.5", "10.10.0.6/24", "::ffff:10.10.0.7", ""} {
		if _, err := n.address(id, good, mac("02:42:00:00:00:01")); err != nil {
			t.Errorf("%q is refused: %v", good, err)
		}
	}
}

func TestAFreedAddressIsNotReusedAtOnce(t *testing.T) {
	n1, n2 := twoNodes(t)
	id := n1.web("10.10.0.0/28")
	n2.web("10.10.0.0/28")
	last := ""
	for i := range 12 { // 13 are free: all others come first
		n := []*node{n1, n2}[i%2]
		n.caughtUp(id)
		got := must[string](t)(n.run(id, "", i))
		if want := fmt.Sprintf("10.10.0.%d/28", 2+i); got != want {
			t.Errorf("%s behind %s, want %s", got, last, want)
		}
		n.release(id, got)
		last = got
	}
	n1.restart() // the cursor is the cluster's, not the process'
	if got := must[string](t)(n1.run(id, "", 1)); got != "10.10.0.14/28" {
		t.Errorf("after a restart: %s", got)
	}
	if got := must[string](t)(n1.run(id, "", 2)); got != "10.10.0.2/28" {
		t.Errorf("at the end it goes round: %s", got)
	}
}

func TestTwoNodesAtOnceNeverGetTheSameAddress(t *testing.T) {
	n1, n2 := twoNodes(t)
	id := n1.web("10.10.0.0/22")
	n2.web("10.10.0.0/22")
	const each = 4
	var mu sync.Mutex
	var got []string
	var wg sync.WaitGroup
	for i := range each * 2 {
		n := []*node{n1, n2}[i%2]
		wg.Go(func() {
			for j := range 100 {
				a, err := n.run(id, "", i*100+j)
				if err != nil {
					t.Error(err)
					continue
				}
				mu.Lock()
				got = append(got, a)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	slices.Sort(got)
	if distinct := len(slices.Compact(slices.Clone(got))); len(got) != 800 || distinct != 800 {
		t.Errorf("%d addresses, %d distinct, want 800", len(got), distinct)
	}
}

func TestTwoNodesThatAskForOneAddressAtOnceDoNotBothGetIt(t *testing.T) {
	n1, n2 := twoNodes(t)
	id := n1.web("10.10.0.0/24")
	n2.web("10.10.0.0/24")
	for i := range 50 {
		var errs [2]error
		var wg sync.WaitGroup
		for j, n := range []*node{n1, n2} {
			wg.Go(func() { _, errs[j] = n.run(id, fmt.Sprintf("10.10.0.%d", 10+i), 10*i+j) })
		}
		wg.Wait()
		if (errs[0] == nil) == (errs[1] == nil) {
			t.Errorf("address %d: %v and %v, want one to fail", i, errs[0], errs[1])
		}
	}
}

func TestARangeSteersOnlyWhatIsChosen(t *testing.T) {
	n, _ := twoNodes(t)
	n.web("10.10.0.0/24")
	id := must[string](t)(n.requestPool(ipam.RequestPoolRequest{AddressSpace: LocalSpace, Pool: "10.10.0.0/24", SubPool: "10.10.0.128/30"}))
	for _, want := range []string{"10.10.0.128/24", "10.10.0.129/24", "10.10.0.130/24", "10.10.0.131/24"} {
		if got, err := n.run(id, "", 1); got != want || err != nil {
			t.Errorf("%s, %v, want %s", got, err, want)
		}
	}
	_, err := n.run(id, "", 1)
	wantError(t, err, "range 10.10.0.128/30", "all its 4 addresses", "4 are held by endpoints and 1 reserved", "--ip-range")
	if got, err := n.run(id, "10.10.0.7", 1); got != "10.10.0.7/24" || err != nil {
		t.Errorf("outside the range on request: %s, %v", got, err)
	}
}

func TestAFullPoolSaysSoWithNumbers(t *testing.T) {
	n, _ := twoNodes(t)
	id := must[string](t)(n.pool("10.10.0.0/29", "web"))
	must[string](t)(n.gateway(id, ""))
	must[string](t)(n.replay(id, "10.10.0.3"))
	n.createNetwork("web", id)
	var got []string
	for i := range 4 {
		got = append(got, must[string](t)(n.run(id, "", i)))
	}
	if diff := cmp.Diff([]string{"10.10.0.2/29", "10.10.0.4/29", "10.10.0.5/29", "10.10.0.6/29"}, got); diff != "" {
		t.Errorf("addresses (-want +got):\n%s", diff)
	}
	_, err := n.run(id, "", 9)
	wantError(t, err, "10.10.0.0/29 is full", "6 addresses", "4 are held by endpoints and 2 reserved", "larger --subnet")
	n.release(id, "10.10.0.4")
	if got, err := n.run(id, "", 9); got != "10.10.0.4/29" || err != nil {
		t.Errorf("after a release: %s, %v", got, err)
	}
}

// The store is asked before a pool is called full: a copy that is behind must not refuse what is free.
func TestAViewThatIsBehindDoesNotCallAPoolFull(t *testing.T) {
	n, _ := twoNodes(t)
	id := n.web("10.10.0.0/29")
	n.caughtUp(id)
	v := n.s.follow(prefix("10.10.0.0/29"))
	v.mu.Lock()
	for i := range 7 {
		v.used.add(netip.AddrFrom4([4]byte{10, 10, 0, byte(i)}))
	}
	v.mu.Unlock()
	if got, err := n.run(id, "", 1); got != "10.10.0.2/29" || err != nil {
		t.Errorf("%s, %v", got, err)
	}
}

func TestAuxAddressesAreKeptFromContainersAndSharedByNodes(t *testing.T) {
	n1, n2 := twoNodes(t)
	id := must[string](t)(n1.pool("10.10.0.0/29", "web"))
	must[string](t)(n1.gateway(id, ""))
	must[string](t)(n1.replay(id, "10.10.0.2"))
	n1.createNetwork("web", id)
	must[string](t)(n2.pool("10.10.0.0/29", "web"))
	if got, err := n2.replay(id, "10.10.0.2"); got != "10.10.0.2/29" || err != nil {
		t.Errorf("the other node's --aux-address: %s, %v", got, err)
	}
	_, err := n1.run(id, "10.10.0.2", 1)
	wantError(t, err, "10.10.0.2", "--aux-address", "choose another")
	if got := must[string](t)(n1.run(id, "", 1)); got != "10.10.0.3/29" {
		t.Errorf("the first container gets %s", got)
	}
	n1.release(id, "10.10.0.2")
	n1.release(id, "10.10.0.1")
	want := []string{"10.10.0.1 gateway n1", "10.10.0.2 aux n1", "10.10.0.3 endpoint n1"}
	if diff := cmp.Diff(want, leases(t, n1.mem)); diff != "" {
		t.Errorf("leases (-want +got):\n%s", diff)
	}
}

func TestAnAddressIsGrantedToItsHolderAndRefusedToOthersWithItsName(t *testing.T) {
	n1, n2 := twoNodes(t)
	id := n1.web("10.10.0.0/24")
	n2.web("10.10.0.0/24")
	must[string](t)(n1.run(id, "10.10.0.5", 1))
	again := func(what string) {
		t.Helper()
		if got, err := n1.run(id, "10.10.0.5", 1); got != "10.10.0.5/24" || err != nil {
			t.Errorf("%s, the same MAC: %s, %v", what, got, err)
		}
		if got, err := n1.replay(id, "10.10.0.5"); got != "10.10.0.5/24" || err != nil {
			t.Errorf("%s, the replay: %s, %v", what, got, err)
		}
	}
	again("before its endpoint")
	_, err := n1.run(id, "10.10.0.5", 2)
	wantError(t, err, "starts or ends on node n1", "try again in 30s")

	n1.attach(id, "10.10.0.5", "3f2a91c0ffee3f2a91c0ffee")
	again("with its endpoint")
	held := []string{"10.10.0.5", "endpoint 3f2a91c0ffee on node n1", "choose another or remove that container"}
	n1.clock, n2.clock = time.Hour, time.Hour
	_, err = n1.run(id, "10.10.0.5", 2)
	wantError(t, err, held...)
	_, err = n2.run(id, "10.10.0.5", 1)
	wantError(t, err, held...)
	_, err = n2.replay(id, "10.10.0.5")
	wantError(t, err, held...)
}

func TestAnAddressThatNoEndpointCameForIsTakenOver(t *testing.T) {
	n1, n2 := twoNodes(t)
	id := n1.web("10.10.0.0/24")
	n2.web("10.10.0.0/24")
	must[string](t)(n1.run(id, "10.10.0.5", 1))
	n1.clock, n2.clock = starting+time.Second, starting+time.Second
	_, err := n2.run(id, "10.10.0.5", 2)
	wantError(t, err, "on node n1")
	if _, err := n1.run(id, "10.10.0.5", 2); err != nil {
		t.Error(err)
	}
	l, _, err := get[store.Lease](t.Context(), n1.mem, store.LeaseKey(prefix("10.10.0.0/24"), addr("10.10.0.5")))
	if err != nil || l.MAC != macN(2) {
		t.Errorf("lease %+v, %v", l, err)
	}
	if _, err := n1.run(id, "10.10.0.5", 3); err == nil {
		t.Error("it is taken over again at once")
	}
}

func TestOnlyTheOwnersReleaseFreesAnAddressAndNotBeforeItsEndpointIsGone(t *testing.T) {
	n1, n2 := twoNodes(t)
	id := n1.web("10.10.0.0/24")
	n2.web("10.10.0.0/24")
	a := must[string](t)(n1.run(id, "", 1))
	held := func(what string, want ...string) {
		t.Helper()
		if diff := cmp.Diff(append([]string{"10.10.0.1 gateway n1"}, want...), leases(t, n1.mem)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
	}
	n2.release(id, a)
	held("another node's release", "10.10.0.2 endpoint n1")
	n1.attach(id, a, "e1")
	n1.release(id, a)
	held("a release without DeleteEndpoint", "10.10.0.2 endpoint n1")
	n1.attach(id, a, "")
	n1.release(id, a)
	held("a release after DeleteEndpoint")
	n1.release(id, a)
	held("a second release")
}

func TestDualStackLeasesOneOfEachFamily(t *testing.T) {
	n, _ := twoNodes(t)
	v4, v6 := must[string](t)(n.pool("10.10.0.0/24", "web")), must[string](t)(n.pool("fd10::/64", "web"))
	var got []string
	for _, id := range []string{v4, v6} {
		got = append(got, must[string](t)(n.gateway(id, "")))
	}
	n.createNetwork("web", v4, v6)
	for i := range 2 {
		for _, id := range []string{v4, v6} {
			got = append(got, must[string](t)(n.run(id, "", i)))
		}
	}
	want := []string{"10.10.0.1/24", "fd10::1/64", "10.10.0.2/24", "fd10::2/64", "10.10.0.3/24", "fd10::3/64"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("addresses (-want +got):\n%s", diff)
	}
	if got, err := n.run(v6, "fd10::ff:5", 9); got != "fd10::ff:5/64" || err != nil {
		t.Errorf("--ip6: %s, %v", got, err)
	}
}

func TestAStoreThatIsAwayMakesCallsFailInTimeAndItsReturnHeals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, store.NewMemory(), "n1")
		id := n.web("10.10.0.0/24")
		n.mem.SetAvailable(false)
		calls := map[string]func() error{
			"pool":    func() error { _, err := n.pool("10.10.0.0/24", "web"); return err },
			"address": func() error { _, err := n.run(id, "10.10.0.5", 1); return err },
			"choose":  func() error { _, err := n.run(id, "", 1); return err },
			"gateway": func() error { _, err := n.gateway(id, ""); return err },
			"release": func() error {
				return n.call("ReleaseAddress", ipam.ReleaseAddressRequest{PoolID: id, Address: "10.10.0.5"}, nil)
			},
			"no pool":  func() error { return n.call("ReleasePool", ipam.ReleasePoolRequest{PoolID: id}, nil) },
			"new view": func() error { _, err := n.run(LocalSpace+"/10.11.0.0/24", "", 1); return err },
		}
		for what, call := range calls {
			start := time.Now()
			err := call()
			wantError(t, err, "store", "existing traffic goes on", "try again")
			if took := time.Since(start); took > plugin.StoreTimeout {
				t.Errorf("%s fails after %s", what, took)
			}
		}
		n.mem.SetAvailable(true)
		if got, err := n.run(id, "", 1); got != "10.10.0.2/24" || err != nil {
			t.Errorf("after its return: %s, %v", got, err)
		}
		n.stop()
	})
}

func TestTheJanitorsCallsFailWhileTheStoreIsAway(t *testing.T) {
	n, _ := twoNodes(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	n.mem.SetAvailable(false)
	defer n.mem.SetAvailable(true)
	for what, f := range map[string]func() error{
		"reclaim": func() error { _, err := n.s.Reclaim(ctx, func(store.Lease) bool { return false }); return err },
		"expire":  func() error { return n.s.ExpireClaims(ctx) },
	} {
		if err := f(); !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestReclaimFreesWhatIsNotAliveAndNothingElse(t *testing.T) {
	n1, n2 := twoNodes(t)
	id := n1.web("10.10.0.0/24")
	n2.web("10.10.0.0/24")
	for i, n := range []*node{n1, n1, n2} {
		a := must[string](t)(n.run(id, "", i))
		n.attach(id, a, fmt.Sprintf("e%d", i))
	}
	must[string](t)(n1.run(id, "10.10.0.50", 9))
	n1.restart()
	n1.caughtUp(id)
	freed, err := n1.s.Reclaim(t.Context(), func(l store.Lease) bool { return l.Endpoint == "e0" })
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, l := range freed {
		got = append(got, l.Address.String())
	}
	slices.Sort(got)
	if diff := cmp.Diff([]string{"10.10.0.3", "10.10.0.50"}, got); diff != "" {
		t.Errorf("freed (-want +got):\n%s", diff)
	}
	want := []string{"10.10.0.1 gateway n1", "10.10.0.2 endpoint n1", "10.10.0.4 endpoint n2"}
	if diff := cmp.Diff(want, leases(t, n1.mem)); diff != "" {
		t.Errorf("leases (-want +got):\n%s", diff)
	}
}

func TestReclaimFindsLeasesLeftInNetworksOfOthers(t *testing.T) {
	n1, n2 := twoNodes(t)
	id := n2.web("10.10.0.0/24")
	must[string](t)(n1.run(id, "10.10.0.50", 9)) // n1 is no member
	n1.restart()
	freed, err := n1.s.Reclaim(t.Context(), func(store.Lease) bool { return false })
	if err != nil || len(freed) != 1 || freed[0].Address != addr("10.10.0.50") {
		t.Errorf("freed %v, %v", freed, err)
	}
	if len(n1.s.views) != 0 {
		t.Error("a pool is followed without need")
	}
}

func TestABadLeaseRecordKeepsItsAddressInUse(t *testing.T) {
	n, _ := twoNodes(t)
	id := n.web("10.10.0.0/29")
	bad := []store.Op{
		store.Put(store.LeaseKey(prefix("10.10.0.0/29"), addr("10.10.0.2")), []byte("rubbish")),
		store.Put(store.PoolLeases(prefix("10.10.0.0/29"))+"no-address", nil),
	}
	if _, err := n.mem.Commit(t.Context(), nil, bad...); err != nil {
		t.Fatal(err)
	}
	if got, err := n.run(id, "", 1); got != "10.10.0.3/29" || err != nil {
		t.Errorf("%s, %v", got, err)
	}
	_, err := n.run(id, "10.10.0.2", 1)
	wantError(t, err, "bad record leases/10.10.0.0_29/10.10.0.2")
}

func TestAddressesAreAnsweredWithTheSubnetsLength(t *testing.T) {
	n, _ := twoNodes(t)
	id := n.web("10.10.0.0/20")
	for _, a := range []string{"", "10.10.3.3", "10.10.4.4/32"} {
		if got := must[string](t)(n.run(id, a, 1)); !strings.HasSuffix(got, "/20") {
			t.Errorf("%q: %s", a, got)
		}
	}
}
