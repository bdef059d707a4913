package engine

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
)

// serve answers as moby's API does (docs: Engine API, NetworkInspect) for one network d1.
func serve(t *testing.T) *Engine {
	return open(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasSuffix(r.URL.Path, "/networks/d1"):
			fmt.Fprint(w, `{"Id":"d1","Containers":{"c1":{"EndpointID":"e1"},"ep-e2":{"EndpointID":"e2"}}}`)
		case strings.HasSuffix(r.URL.Path, "/networks/broken"):
			w.WriteHeader(http.StatusInternalServerError)
			fmt.Fprint(w, `{"message":"no"}`)
		default:
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprint(w, `{"message":"network not found"}`)
		}
	})
}

// open returns the engine behind an API of 20.10 that answers as f does.
func open(t *testing.T, f http.HandlerFunc) *Engine {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Api-Version", "1.41")
		w.Header().Set("Content-Type", "application/json")
		if !strings.HasSuffix(r.URL.Path, "/_ping") {
			f(w, r)
		}
	}))
	t.Cleanup(srv.Close)
	e, err := Open("tcp://" + srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return e
}

func TestEndpointsOfANetworkAreListed(t *testing.T) {
	ids, known, err := serve(t).Endpoints(t.Context(), "d1")
	if slices.Sort(ids); err != nil || !known || !slices.Equal(ids, []string{"e1", "e2"}) {
		t.Errorf("got %v, known %v, error %v", ids, known, err)
	}
}

func TestANetworkThatDockerDoesNotHaveIsNotKnown(t *testing.T) {
	if _, known, err := serve(t).Endpoints(t.Context(), "other"); known || err != nil {
		t.Errorf("known %v, error %v", known, err)
	}
}

// An engine that fails must not be mistaken for one that has lost everything.
func TestAFailingEngineIsAnErrorAndNotAnUnknownNetwork(t *testing.T) {
	if _, _, err := serve(t).Endpoints(t.Context(), "broken"); err == nil {
		t.Error("no error")
	}
	e, err := Open("unix:///nowhere/docker.sock")
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if _, _, err := e.Endpoints(t.Context(), "d1"); err == nil {
		t.Error("no error from an engine that is away")
	}
}

func TestBridgesHaveTheirNamesOrThoseThatDockerGives(t *testing.T) {
	e := open(t, func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasSuffix(r.URL.Path, "/networks") || r.URL.Query().Get("filters") != `{"driver":{"bridge":true}}` {
			http.Error(w, `{"message":"page not found"}`, http.StatusNotFound)
			return
		}
		fmt.Fprint(w, `[{"Name":"mine","Id":"0123456789abcdef","Options":{"com.docker.network.bridge.name":"shop0"}},`+
			`{"Name":"plain","Id":"fedcba9876543210","Options":{}}]`)
	})
	got, err := e.Bridges(t.Context())
	if want := []string{"br-fedcba987654", "shop0"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
}
