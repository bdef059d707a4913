package engine

import (
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func TestAllListenersHaveOneStreamAndHearOfItsReturn(t *testing.T) {
	var streams, open atomic.Int32
	events, cut := make(chan struct{}), make(chan struct{})
	e := openServer(t, &streams, &open, events, cut)
	first, second, opened := e.Wake(t.Context()), e.Wake(t.Context()), e.Opened(t.Context())
	hears := func(when string, want bool, tells ...<-chan struct{}) {
		t.Helper()
		for i, tell := range tells {
			wait := 5 * time.Second
			if !want {
				wait = 50 * time.Millisecond
			}
			select {
			case <-tell:
				if !want {
					t.Errorf("%s: listener %d is told", when, i)
				}
			case <-time.After(wait):
				if want {
					t.Errorf("%s: listener %d is not told", when, i)
				}
			}
		}
	}
	settled := func() { // what was told of the stream itself is heard
		for open.Load() == 0 {
			time.Sleep(time.Millisecond)
		}
		for _, tell := range []<-chan struct{}{first, second, opened} {
			select {
			case <-tell:
			default:
			}
		}
	}
	hears("at first", true, first, second, opened)
	settled()
	events <- struct{}{}
	hears("an event", true, first, second)
	hears("an event", false, opened)
	if n := streams.Load(); n != 1 {
		t.Errorf("%d streams for three listeners", n)
	}
	cut <- struct{}{}
	hears("a new stream", true, first, second, opened)
}

// openServer is an engine with a stream of events that can be cut.
func openServer(t *testing.T, streams, opened *atomic.Int32, events, cut <-chan struct{}) *Engine {
	return open(t, func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasSuffix(r.URL.Path, "/events") {
			return
		}
		streams.Add(1)
		w.(http.Flusher).Flush()
		opened.Add(1)
		defer opened.Add(-1)
		for {
			select {
			case <-events:
				fmt.Fprintln(w, `{"Type":"container","Action":"start"}`)
				w.(http.Flusher).Flush()
			case <-cut:
				return
			case <-r.Context().Done():
				return
			}
		}
	})
}

// GET /version starts processes on the engine's host.
func TestTheVersionIsAskedOncePerStream(t *testing.T) {
	var asked, streams atomic.Int32
	cut := make(chan struct{})
	e := open(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasSuffix(r.URL.Path, "/version"):
			asked.Add(1)
			fmt.Fprint(w, `{"Version":"20.10.24"}`)
		case strings.HasSuffix(r.URL.Path, "/events"):
			w.(http.Flusher).Flush()
			streams.Add(1)
			select {
			case <-cut:
			case <-r.Context().Done():
			}
		default:
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprint(w, `{"message":"This node is not a swarm manager."}`)
		}
	})
	ask := func(stream, want int32) {
		t.Helper()
		for streams.Load() < stream {
			time.Sleep(time.Millisecond)
		}
		for range 3 {
			if v, err := e.serverVersion(t.Context()); v != "20.10.24" || err != nil {
				t.Errorf("version %q, error %v", v, err)
			}
		}
		if n := asked.Load(); n != want {
			t.Errorf("stream %d: the version was asked for %d times in all, want %d", stream, n, want)
		}
	}
	ask(0, 3) // nobody would hear of a restart
	e.Wake(t.Context())
	ask(1, 4)
	cut <- struct{}{}
	ask(2, 5)
}
