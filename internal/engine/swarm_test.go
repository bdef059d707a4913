package engine

import (
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// serveSwarm answers as an engine of 20.10 does; self is what a manager's says of its node, empty if it is no manager.
func serveSwarm(t *testing.T, self string) *Engine {
	t.Helper()
	answers := map[string]string{
		"/swarm":    `{"ID":"c1"}`,
		"/info":     `{"Swarm":{"NodeID":"n1","ControlAvailable":true,"Cluster":{"ID":"c1"}}}`,
		"/nodes/n1": self,
		"/services": `[{"ID":"s1","Spec":{"Name":"web"},"Endpoint":{"VirtualIPs":[{"NetworkID":"d1","Addr":"10.10.0.2/24"},` +
			`{"NetworkID":"ingress","Addr":"10.0.0.5/24"}]}},{"ID":"s2","Spec":{"Name":"dns"},"Endpoint":{"Spec":{"Mode":"dnsrr"}}}]`,
		"/tasks": `[{"ID":"t1","ServiceID":"s1","Slot":2,"NodeID":"n1","Status":{"State":"running"},"DesiredState":"running",` +
			`"NetworksAttachments":[{"Network":{"ID":"d1"},"Addresses":["10.10.0.3/24"]}]},` +
			`{"ID":"t2","ServiceID":"s1","NodeID":"n1","Status":{"State":"starting"},"DesiredState":"running"},` +
			`{"ID":"t3","ServiceID":"s1","Slot":1,"Status":{"State":"running"},"DesiredState":"remove"},` +
			`{"ID":"t4","Status":{"State":"running"},"DesiredState":"running"}]`,
	}
	return open(t, func(w http.ResponseWriter, r *http.Request) {
		if self == "" {
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprint(w, `{"message":"This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\"."}`)
			return
		}
		for path, answer := range answers {
			if strings.HasSuffix(r.URL.Path, path) {
				fmt.Fprint(w, answer)
				return
			}
		}
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, `{"message":"page not found"}`)
	})
}

const (
	selfLeader  = `{"ID":"n1","ManagerStatus":{"Leader":true}}`
	selfManager = `{"ID":"n1","ManagerStatus":{"Reachability":"reachable"}}`
)

func TestOnlyTheLeaderLeads(t *testing.T) {
	for self, want := range map[string]struct {
		leads      bool
		swarm, led string
	}{selfLeader: {true, "c1", "c1"}, selfManager: {false, "c1", ""}, "": {false, "", ""}} {
		e := serveSwarm(t, self)
		leads, id, err := e.Leads(t.Context())
		if leads != want.leads || id != want.led || err != nil {
			t.Errorf("%s: leads %v, swarm %q, error %v", self, leads, id, err)
		}
		if id, err := e.Swarm(t.Context()); id != want.swarm || err != nil {
			t.Errorf("%s: swarm %q, error %v", self, id, err)
		}
	}
}

func compareAddr(a, b netip.Addr) bool { return a == b }

func TestServicesHaveTheirVIPsByNetwork(t *testing.T) {
	got, err := serveSwarm(t, selfLeader).Services(t.Context())
	want := []Service{
		{ID: "s1", Name: "web", VIPs: map[string][]netip.Addr{
			"d1": {netip.MustParseAddr("10.10.0.2")}, "ingress": {netip.MustParseAddr("10.0.0.5")},
		}},
		{ID: "s2", Name: "dns", VIPs: map[string][]netip.Addr{}},
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(compareAddr)); diff != "" || err != nil {
		t.Errorf("error %v, services (-want +got):\n%s", err, diff)
	}
}

// The fake lists all tasks whatever is asked, as an engine does that does not know a filter's value.
func TestTasksAreToldByWhatTheSwarmWantsOfThem(t *testing.T) {
	e := serveSwarm(t, selfLeader)
	got, err := e.RunningTasks(t.Context())
	want := []Task{
		{ID: "t1", Service: "s1", Slot: "2", Running: true, Addresses: map[string][]netip.Addr{"d1": {netip.MustParseAddr("10.10.0.3")}}},
		{ID: "t2", Service: "s1", Slot: "n1", Addresses: map[string][]netip.Addr{}},
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(compareAddr)); diff != "" || err != nil {
		t.Errorf("running: error %v (-want +got):\n%s", err, diff)
	}
	got, err = e.EndingTasks(t.Context())
	want = []Task{{ID: "t3", Service: "s1", Slot: "1", Running: true, Addresses: map[string][]netip.Addr{}}}
	if diff := cmp.Diff(want, got, cmp.Comparer(compareAddr)); diff != "" || err != nil {
		t.Errorf("ending: error %v (-want +got):\n%s", err, diff)
	}
}

func TestAnEngineThatIsAwayHasNoOpinionOnTheSwarm(t *testing.T) {
	e, err := Open("unix:///nowhere/docker.sock")
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if _, _, err := e.Leads(t.Context()); err == nil {
		t.Error("Leads: no error")
	}
	if _, err := e.Services(t.Context()); err == nil {
		t.Error("Services: no error")
	}
	if _, err := e.RunningTasks(t.Context()); err == nil {
		t.Error("RunningTasks: no error")
	}
}

// GET /info, which tells a node's id, is slow; a node that is connected by the id that is known has no other.
func TestANodesIDCountsAsLongAsTheNodeIsReady(t *testing.T) {
	for state, renewed := range map[string]bool{"ready": true, "down": false} {
		e := serveSwarm(t, fmt.Sprintf(`{"ID":"n1","Status":{"State":%q},"ManagerStatus":{"Leader":true}}`, state))
		before := time.Now().Add(-placeEvery / 2)
		e.place.Store(&place{"c1", "n1", before})
		if leads, _, err := e.Leads(t.Context()); !leads || err != nil {
			t.Errorf("%s: leads %v, error %v", state, leads, err)
		}
		if got := e.place.Load().heard.After(before); got != renewed {
			t.Errorf("%s: renewed %v, want %v", state, got, renewed)
		}
	}
}
