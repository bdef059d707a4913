package engine

import (
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
)

// containers are an engine's that can be paused, stopped and started, as strict as Docker.
type containers struct {
	mu    sync.Mutex
	state map[string]string
	// stuck cannot be paused or stopped.
	stuck string
	// query is what containers of any state were asked for with; asked are other questions; plugins is what is answered.
	query, plugins string
	asked          []string
}

func (c *containers) serve(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	path := regexp.MustCompile(`^/v1\.[0-9]+`).ReplaceAllString(r.URL.Path, "")
	if path == "/containers/json" && r.URL.Query().Get("all") == "1" {
		c.query = r.URL.Query().Get("filters")
		fmt.Fprint(w, `[{"Id":"a","State":"created"}]`)
		return
	}
	if path == "/info" || path == "/volumes" {
		c.asked = append(c.asked, path)
		fmt.Fprintf(w, `{"Plugins":{"Volume":%s}}`, c.plugins)
		return
	}
	if path == "/containers/json" && strings.Contains(r.URL.Query().Get("filters"), `"volume":{"data":true}`) {
		fmt.Fprintf(w, `[{"Id":"a","Names":["/one"],"State":%q},{"Id":"b","Names":["/two"],"State":%q}]`, c.state["a"], c.state["b"])
		return
	}
	var id, do string
	if _, err := fmt.Sscanf(strings.ReplaceAll(path, "/", " "), " containers %s %s", &id, &do); err != nil || r.Method != http.MethodPost {
		http.Error(w, `{"message":"page not found"}`, http.StatusNotFound)
		return
	}
	step := map[string][2]string{
		"pause": {"running", "paused"}, "unpause": {"paused", "running"}, "stop": {"running", "exited"}, "start": {"exited", "running"},
	}[do]
	if c.state[id] != step[0] || id == c.stuck {
		http.Error(w, `{"message":"not now"}`, http.StatusConflict)
		return
	}
	c.state[id] = step[1]
	w.WriteHeader(http.StatusNoContent)
}

func TestUsersOfAVolumeAreSuspendedAndGoOnAsTheyWere(t *testing.T) {
	for _, stop := range []bool{false, true} {
		c := &containers{state: map[string]string{"a": "running", "b": "running"}}
		e := open(t, c.serve)
		users, err := e.UsersOf(t.Context(), "data")
		if err != nil || len(users) != 2 || users[0].Name != "one" {
			t.Fatal(users, err)
		}
		resume, err := e.Suspend(t.Context(), users, stop)
		if err != nil || c.state["a"] == "running" || c.state["b"] == "running" {
			t.Errorf("stop %t: suspended %v, error %v", stop, c.state, err)
		}
		if err := resume(t.Context()); err != nil || c.state["a"] != "running" || c.state["b"] != "running" {
			t.Errorf("stop %t: resumed %v, error %v", stop, c.state, err)
		}
		// The second cannot be suspended: the first goes on.
		c.stuck = "b"
		if _, err := e.Suspend(t.Context(), users, stop); err == nil || !strings.Contains(err.Error(), "two") || c.state["a"] != "running" {
			t.Errorf("stop %t: half suspended %v, error %v", stop, c.state, err)
		}
	}
}

func TestAContainerThatWasPausedBeforeStaysPaused(t *testing.T) {
	c := &containers{state: map[string]string{"a": "paused", "b": "running"}}
	e := open(t, c.serve)
	users, err := e.UsersOf(t.Context(), "data")
	if err != nil {
		t.Fatal(err)
	}
	resume, err := e.Suspend(t.Context(), users, false)
	if err == nil {
		err = resume(t.Context())
	}
	if diff := gocmp.Diff(map[string]string{"a": "paused", "b": "running"}, c.state); err != nil || diff != "" {
		t.Errorf("error %v (-want +got):\n%s", err, diff)
	}
}

func TestWhoHasAVolumeIncludesContainersThatAreAboutToRun(t *testing.T) {
	c := &containers{}
	e := open(t, c.serve)
	n, err := e.Holders(t.Context(), "data")
	if err != nil || n != 1 {
		t.Errorf("%d holders, error %v", n, err)
	}
	for _, want := range []string{`"data":true`, `"created":true`, `"running":true`, `"paused":true`, `"restarting":true`} {
		if !strings.Contains(c.query, want) {
			t.Errorf("the question lacks %s: %s", want, c.query)
		}
	}
	if strings.Contains(c.query, "exited") {
		t.Errorf("containers that have ended are asked for: %s", c.query)
	}
}

func TestDockerLooksForAVolumePluginOnlyIfItDoesNotKnowIt(t *testing.T) {
	for plugins, want := range map[string][]string{
		`["custom-volume","local"]`: {"/info"}, `["local"]`: {"/info", "/volumes"},
	} {
		c := &containers{plugins: plugins}
		if err := open(t, c.serve).Activate(t.Context(), "custom-volume"); err != nil {
			t.Fatal(err)
		}
		if diff := gocmp.Diff(want, c.asked); diff != "" {
			t.Errorf("knows %s (-want +got):\n%s", plugins, diff)
		}
	}
}
