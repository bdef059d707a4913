package engine

import (
	"cmp"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/netdriver/netdriver/store"
)

// containersJSON is what 20.10.24 answered to GET /containers/json on a node with a task, a container that another one is
// linked to, and one whose labels lie; shortened.
const containersJSON = `[
{"Id":"c1","Names":["/web.1.x81"],"Labels":{"com.docker.swarm.node.id":"n","com.docker.swarm.service.id":"s1",
  "com.docker.swarm.service.name":"web","com.docker.swarm.task":"","com.docker.swarm.task.id":"x81",
  "com.docker.swarm.task.name":"web.1.x81"},"State":"running","HostConfig":{"NetworkMode":"default"},
  "NetworkSettings":{"Networks":{"ingress":{"NetworkID":"d9","EndpointID":"e9"},"my-net":{"NetworkID":"d1","EndpointID":"e1"}}}},
{"Id":"c2","Names":["/other/alias","/db"],"Labels":{},"State":"running",
  "NetworkSettings":{"Networks":{"my-net":{"NetworkID":"d1","EndpointID":"e2"}}}},
{"Id":"c3","Names":["/host"],"Labels":{"com.docker.swarm.service.name":"\u001b[31mred"},"State":"paused",
  "NetworkSettings":{"Networks":{"host":{"NetworkID":"d0","EndpointID":""}}}}]`

// serveNames answers as an engine of 20.10 does, and refuses what an engine refuses: other methods, unknown networks, and a
// list of containers that have ended, which may be thousands.
func serveNames(t *testing.T, info, self string) *Engine {
	t.Helper()
	version := regexp.MustCompile(`^/v1\.[0-9]+`)
	return open(t, func(w http.ResponseWriter, r *http.Request) {
		path := version.ReplaceAllString(r.URL.Path, "")
		switch {
		case r.Method != http.MethodGet || r.URL.Query().Get("all") != "":
			http.Error(w, `{"message":"page not found"}`, http.StatusNotFound)
		case path == "/containers/json":
			fmt.Fprint(w, containersJSON)
		case path == "/info":
			fmt.Fprint(w, info)
		case path == "/networks/d1":
			fmt.Fprint(w, `{"Name":"my-net","Id":"d1"}`)
		case path == "/version":
			fmt.Fprint(w, `{"Version":"20.10.24"}`)
		case path == "/nodes/n1" && self != "":
			fmt.Fprint(w, self)
		case path == "/swarm" && self != "":
			fmt.Fprint(w, `{"ID":"c1"}`)
		case path == "/nodes/self": // a word of the command docker, not of the API
			http.Error(w, `{"message":"node self not found"}`, http.StatusNotFound)
		case path == "/nodes/n1" || path == "/swarm":
			http.Error(w, `{"message":"This node is not a swarm manager."}`, http.StatusServiceUnavailable)
		default:
			http.Error(w, `{"message":"network not found"}`, http.StatusNotFound)
		}
	})
}

func TestContainersHaveTheirNamesServicesAndEndpoints(t *testing.T) {
	got, err := serveNames(t, `{}`, ``).Containers(t.Context())
	for _, c := range got {
		slices.Sort(c.Endpoints)
	}
	slices.SortFunc(got, func(a, b Container) int { return cmp.Compare(a.ID, b.ID) })
	want := []Container{
		{ID: "c1", Name: "web.1.x81", Service: "web", Task: "web.1.x81", Endpoints: []string{"e1", "e9"}},
		{ID: "c2", Name: "db", Endpoints: []string{"e2"}},
		{ID: "c3", Name: "host"}, // what its label says is no name
	}
	if diff := gocmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("error %v, containers (-want +got):\n%s", err, diff)
	}
}

func TestANetworkHasItsNameOrIsNotKnown(t *testing.T) {
	e := serveNames(t, `{}`, ``)
	if name, known, err := e.NetworkName(t.Context(), "d1"); name != "my-net" || !known || err != nil {
		t.Errorf("d1: name %q, known %v, error %v", name, known, err)
	}
	if name, known, err := e.NetworkName(t.Context(), "d2"); name != "" || known || err != nil {
		t.Errorf("d2: name %q, known %v, error %v", name, known, err)
	}
}

func TestTheEngineTellsItsRole(t *testing.T) {
	for _, c := range []struct{ info, self, want string }{
		{`{"Swarm":{"LocalNodeState":"inactive"}}`, ``, ""},
		{`{"Swarm":{"LocalNodeState":"active"}}`, ``, store.RoleWorker},
		{`{"Swarm":{"LocalNodeState":"active","ControlAvailable":true}}`, ``, store.RoleManager}, // without a quorum
		{`{"Swarm":{"NodeID":"n1"}}`, `{"ID":"n1","ManagerStatus":{"Leader":true}}`, store.RoleLeader},
		{`{"Swarm":{"NodeID":"n1"}}`, `{"ID":"n1","ManagerStatus":{}}`, store.RoleManager},
	} {
		version, role, err := serveNames(t, c.info, c.self).Self(t.Context())
		if version != "20.10.24" || role != c.want || err != nil {
			t.Errorf("%+v: version %s, role %q, error %v", c, version, role, err)
		}
	}
}

func TestAnEngineThatIsAwayNamesNothing(t *testing.T) {
	e, err := Open("unix:///nowhere/docker.sock")
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if _, err := e.Containers(t.Context()); err == nil {
		t.Error("Containers: no error")
	}
	if _, _, err := e.NetworkName(t.Context(), "d1"); err == nil {
		t.Error("NetworkName: no error")
	}
	if _, _, err := e.Self(t.Context()); err == nil {
		t.Error("Self: no error")
	}
}
