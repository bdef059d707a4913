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
