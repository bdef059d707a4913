package ipam

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/netdriver/netdriver/store"
	"github.com/netdriver/netdriver/vxlan"
)

func TestLeaksAreTheOldLeasesThatNothingHasAndOnlyTheseAreFreed(t *testing.T) {
	s := store.NewMemory()
	subnet := netip.MustParsePrefix("10.10.0.0/24")
	old := time.Now().Add(-time.Hour)
	put := func(key string, value []byte) {
		t.Helper()
		if _, err := s.Commit(t.Context(), nil, store.Put(key, value)); err != nil {
			t.Fatal(err)
		}
	}
	lease := func(address, kind, node string, swarm bool, created time.Time) {
		t.Helper()
		a := netip.MustParseAddr(address)
		put(store.LeaseKey(subnet, a), store.Encode(store.Lease{Address: a, Kind: kind, Node: node, Swarm: swarm, Created: created}))
	}
	lease("10.10.0.1", store.LeaseGateway, "", false, old)
	lease("10.10.0.2", store.LeaseEndpoint, "n1", false, old)        // has an endpoint
	lease("10.10.0.3", store.LeaseEndpoint, "n1", false, old)        // leaked
	lease("10.10.0.4", store.LeaseEndpoint, "n1", false, time.Now()) // its container starts
	lease("10.10.0.5", store.LeaseEndpoint, "", true, old)           // a VIP
	lease("10.10.0.6", store.LeaseEndpoint, "", true, old)           // forgotten by the swarm
	mac, err := vxlan.ParseMAC("02:42:0a:0a:00:02")
	if err != nil {
		t.Fatal(err)
	}
	put(store.EndpointKey("web", "e1"), store.Encode(store.Endpoint{
		ID: "e1", Network: "web", Node: "n1", DockerID: "d1", IPv4: netip.MustParsePrefix("10.10.0.2/24"), MAC: mac,
		Phase: store.PhaseJoined, Created: old,
	}))
	put(store.ServiceKey("web", "s1"), store.Encode(store.Service{
		ID: "s1", Name: "api", Network: "web", VIPs: []netip.Addr{netip.MustParseAddr("10.10.0.5")},
	}))
	leaks, err := Leaks(t.Context(), s, time.Now().Add(-time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, l := range leaks {
		found = append(found, l.Address.String()+" in "+l.Subnet.String())
	}
	if diff := cmp.Diff([]string{"10.10.0.3 in 10.10.0.0/24", "10.10.0.6 in 10.10.0.0/24"}, found); diff != "" {
		t.Fatalf("leaks (-want +got):\n%s", diff)
	}
	lease("10.10.0.6", store.LeaseEndpoint, "n2", true, old) // a node has got it meanwhile
	freed, err := Free(t.Context(), s, leaks)
	if err != nil || len(freed) != 1 || freed[0].Address.String() != "10.10.0.3" {
		t.Errorf("freed %+v, error %v; want 10.10.0.3 only", freed, err)
	}
	if n, err := s.Count(t.Context(), store.PoolLeases(subnet)); err != nil || n != 5 {
		t.Errorf("%d leases are left, error %v; want 5", n, err)
	}
}
