package door

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/netdriver/netdriver/internal/plugin"
)

// short are limits that a test has time for.
func short() limits {
	return limits{patience: 300 * time.Millisecond, deadline: 900 * time.Millisecond}
}

// newPath returns a path for a socket, short enough for one (man 7 unix: 107 bytes).
func newPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "door")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, plugin.SwarmSocket)
}

// startDaemon serves h at path until the test ends or stop is called.
func startDaemon(t *testing.T, path string, h http.HandlerFunc) (stop func()) {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: h}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	end := func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
		done <- http.ErrServerClosed
	}
	t.Cleanup(end)
	return end
}

// echo answers with the call and its content.
func echo(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	io.WriteString(w, r.URL.Path+string(body))
}

// call makes a call of Docker's at the door.
func call(path string, l limits, method, body string) (int, string) {
	w := httptest.NewRecorder()
	s := open(path, l, slog.New(slog.DiscardHandler))
	s.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/"+method, strings.NewReader(body)))
	return w.Code, strings.TrimSpace(w.Body.String())
}

func TestThePluginCanBeEnabledWithoutADaemon(t *testing.T) {
	path := newPath(t)
	for method, want := range map[string]string{
		"Plugin.Activate":                    `"NetworkDriver","IpamDriver"`,
		"NetworkDriver.GetCapabilities":      `"Scope":"global"`,
		"IpamDriver.GetCapabilities":         `"RequiresRequestReplay":true`,
		"IpamDriver.GetDefaultAddressSpaces": plugin.GlobalSpace,
	} {
		if status, body := call(path, short(), method, ""); status != 200 || !strings.Contains(body, want) {
			t.Errorf("%s: status %d, %s", method, status, body)
		}
	}
}

func TestTheDaemonsAnswerReachesDockerAsItIs(t *testing.T) {
	path := newPath(t)
	startDaemon(t, path, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/NetworkDriver.Join":
			w.WriteHeader(http.StatusInternalServerError)
			io.WriteString(w, `{"Err":"endpoint is unknown"}`+"\n")
		case "/NetworkDriver.Unknown":
			w.WriteHeader(http.StatusNotFound)
			io.WriteString(w, `{"Err":"no method"}`+"\n")
		default:
			echo(w, r)
		}
	})
	for _, c := range []struct {
		method, want string
		status       int
	}{
		{"IpamDriver.RequestPool", `/IpamDriver.RequestPool{"V6":true}`, 200},
		{"NetworkDriver.Join", `{"Err":"endpoint is unknown"}`, 500},
		{"NetworkDriver.Unknown", `{"Err":"no method"}`, 404}, // libnetwork takes that for "not implemented"
	} {
		if status, body := call(path, short(), c.method, `{"V6":true}`); status != c.status || body != c.want {
			t.Errorf("%s: status %d, %s; want %d, %s", c.method, status, body, c.status, c.want)
		}
	}
}

func TestACallWaitsForADaemonThatRestarts(t *testing.T) {
	path := newPath(t)
	stop := startDaemon(t, path, echo)
	if status, _ := call(path, usual(), "A.B", "{}"); status != 200 {
		t.Fatal("the daemon is not reached to begin with")
	}
	stop()
	done := make(chan int, 1)
	go func() {
		status, _ := call(path, usual(), "A.B", "{}")
		done <- status
	}()
	select {
	case status := <-done:
		t.Fatalf("status %d without a daemon", status)
	case <-time.After(3 * pause):
	}
	startDaemon(t, path, echo)
	if status := <-done; status != 200 {
		t.Errorf("status %d after the restart", status)
	}
}

// Docker repeats such a call without its content, which no daemon can answer.
func TestACallThatADyingDaemonCutIsRepeatedWithItsContent(t *testing.T) {
	path := newPath(t)
	var calls atomic.Int32
	startDaemon(t, path, func(w http.ResponseWriter, r *http.Request) {
		if calls.Add(1) == 1 {
			if _, err := io.ReadAll(r.Body); err != nil {
				t.Error(err)
			}
			panic(http.ErrAbortHandler)
		}
		echo(w, r)
	})
	status, body := call(path, usual(), "NetworkDriver.Join", `{"id":1}`)
	if status != 200 || body != `/NetworkDriver.Join{"id":1}` || calls.Load() != 2 {
		t.Errorf("status %d, %s after %d calls", status, body, calls.Load())
	}
}

func TestADaemonThatStaysAwayEndsTheCallWithTheRemedy(t *testing.T) {
	path := newPath(t)
	start := time.Now()
	status, body := call(path, short(), "NetworkDriver.Join", "{}")
	took := time.Since(start)
	if status != 500 || !strings.Contains(body, "systemctl status netdriver") || !strings.Contains(body, path) {
		t.Errorf("status %d, %s", status, body)
	}
	if took < short().patience || took > short().deadline {
		t.Errorf("after %s", took)
	}
}

func TestADaemonThatDoesNotAnswerEndsTheCallWithTheRemedy(t *testing.T) {
	path := newPath(t)
	startDaemon(t, path, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	status, body := call(path, short(), "NetworkDriver.Join", "{}")
	if status != 500 || !strings.Contains(body, "has not answered NetworkDriver.Join within 900ms") {
		t.Errorf("status %d, %s", status, body)
	}
}

// moby's own limit for a managed plugin is 30 s: what comes later reaches nobody.
func TestEveryCallEndsBeforeDockerGivesUp(t *testing.T) {
	if l := usual(); l.patience != 20*time.Second || l.deadline > 26*time.Second {
		t.Errorf("%+v", l)
	}
}

func TestADoorServesItsSocketUntilItIsStopped(t *testing.T) {
	path := newPath(t)
	listen := filepath.Join(filepath.Dir(path), "l")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- New(path, slog.New(slog.DiscardHandler)).Serve(ctx, listen) }()
	for range 1000 {
		if conn, err := net.Dial("unix", listen); err == nil {
			conn.Close()
			break
		}
		time.Sleep(time.Millisecond)
	}
	if _, err := os.Stat(listen); err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(listen); err == nil {
		t.Error("the socket is left behind")
	}
}
