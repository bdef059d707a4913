package plugin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// order is the request and the answer of the tests' methods.
type order struct {
	Name    string
	Count   int
	Options map[string]any
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// kitchen serves methods of two interfaces: one that echoes, one that fails, one that panics.
func kitchen(cfg Config) *Server {
	cfg.Methods = append(cfg.Methods,
		Call("Kitchen.Echo", func(_ context.Context, o *order) (*order, error) { return o, nil }),
		Call("Kitchen.Burn", func(context.Context, *order) (*order, error) { return nil, errors.New("the pan is hot; wait") }),
		Call("Cellar.Fall", func(context.Context, *Empty) (Empty, error) { panic("dark") }),
	)
	if cfg.Log == nil {
		cfg.Log = quiet()
	}
	return New(cfg)
}

// post sends one request to s and returns the status and the body without its last newline.
func post(s *Server, method, path, body string) (int, string) {
	w := httptest.NewRecorder()
	s.ServeHTTP(w, httptest.NewRequest(method, path, strings.NewReader(body)))
	return w.Code, strings.TrimSuffix(w.Body.String(), "\n")
}

func TestEveryRequestIsAnsweredOrRefusedWithAReason(t *testing.T) {
	huge := `{"Name":"` + strings.Repeat("x", maxBody) + `"}`
	tests := []struct {
		name, method, path, body string
		status                   int
		// want is the body; of a refusal only what it must contain.
		want string
	}{
		{"good", "POST", "/Kitchen.Echo", `{"Name":"soup","Count":2}`, 200, `{"Name":"soup","Count":2,"Options":null}`},
		{"unknown field", "POST", "/Kitchen.Echo", `{"Count":2,"New":[1]}`, 200, `{"Name":"","Count":2,"Options":null}`},
		{"null option", "POST", "/Kitchen.Echo", `{"Options":{"a":null}}`, 200, `{"Name":"","Count":0,"Options":{"a":null}}`},
		{"null options", "POST", "/Kitchen.Echo", `{"Options":null}`, 200, `{"Name":"","Count":0,"Options":null}`},
		{"null body", "POST", "/Kitchen.Echo", "null\n", 200, `{"Name":"","Count":0,"Options":null}`},
		{"repeated without its content", "POST", "/Kitchen.Echo", " \n", 400, "run the command again"},
		{"activation", "POST", "/Plugin.Activate", "", 200, `{"Implements":["Kitchen","Cellar"]}`},
		{"error of the method", "POST", "/Kitchen.Burn", "{}", 500, "the pan is hot; wait"},
		{"panic", "POST", "/Cellar.Fall", "{}", 500, "log has the details"},
		{"no JSON", "POST", "/Kitchen.Echo", "hello", 400, "malformed request for Kitchen.Echo"},
		{"half JSON", "POST", "/Kitchen.Echo", `{"Name":`, 400, "unexpected end"},
		{"something behind", "POST", "/Kitchen.Echo", `{"Count":2}{}`, 400, "after top-level value"},
		{"wrong type", "POST", "/Kitchen.Echo", `{"Count":"two"}`, 400, "cannot unmarshal string"},
		{"number too large", "POST", "/Kitchen.Echo", `{"Count":1e99}`, 400, "cannot unmarshal number"},
		{"list for an object", "POST", "/Kitchen.Echo", `[]`, 400, "cannot unmarshal array"},
		{"deep", "POST", "/Kitchen.Echo", `{"Options":` + strings.Repeat("[", 20000), 400, "exceeded max depth"},
		{"huge", "POST", "/Kitchen.Echo", huge, 413, "more than 1048576 bytes"},
		{"GET", "GET", "/Kitchen.Echo", "", 405, "use POST"},
		{"unknown method", "POST", "/Kitchen.Eat", "{}", 404, "Kitchen.Eat"},
		{"unclean path", "POST", "//Kitchen.Echo", "{}", 404, "no method"},
	}
	s := kitchen(Config{})
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			status, body := post(s, test.method, test.path, test.body)
			if status != test.status {
				t.Errorf("status %d, want %d: %.200s", status, test.status, body)
			}
			if status == http.StatusOK {
				if body != test.want {
					t.Errorf("answer %s, want %s", body, test.want)
				}
				return
			}
			var f Failure
			if err := json.Unmarshal([]byte(body), &f); err != nil || !strings.Contains(f.Err, test.want) {
				t.Errorf("answer %.200q, want Err with %q", body, test.want)
			}
		})
	}
}

func TestAnswersHaveDockersContentType(t *testing.T) {
	for _, path := range []string{"/Kitchen.Echo", "/Kitchen.Burn", "/unknown"} {
		w := httptest.NewRecorder()
		kitchen(Config{}).ServeHTTP(w, httptest.NewRequest("POST", path, nil))
		if got := w.Header().Get("Content-Type"); got != "application/vnd.docker.plugins.v1.1+json" {
			t.Errorf("%s: content type %q", path, got)
		}
	}
}

func TestMethodThatOverrunsIsAnsweredBeforeDockerGivesUp(t *testing.T) {
	const dockerGivesUp = 30 * time.Second
	forever := make(chan struct{})
	methods := []Method{
		Call("Slow.Polite", func(ctx context.Context, _ *Empty) (Empty, error) {
			<-ctx.Done()
			return Empty{}, errors.New("the store is away")
		}),
		Call("Slow.Deaf", func(context.Context, *Empty) (Empty, error) {
			<-forever
			return Empty{}, nil
		}),
	}
	for path, want := range map[string]string{"/Slow.Polite": "the store is away", "/Slow.Deaf": "has not ended within 25s"} {
		synctest.Test(t, func(t *testing.T) {
			forever = make(chan struct{})
			defer close(forever)
			start := time.Now()
			status, body := post(kitchen(Config{Methods: methods}), "POST", path, "")
			if took := time.Since(start); status != 500 || took < DefaultDeadline || took > dockerGivesUp-3*time.Second {
				t.Errorf("%s: status %d after %s", path, status, took)
			}
			if !strings.Contains(body, want) {
				t.Errorf("%s: %s, want %q", path, body, want)
			}
		})
	}
}

func TestCallerThatHangsUpDoesNotCancelTheCall(t *testing.T) {
	ctx, hangUp := context.WithCancel(t.Context())
	var seen error
	s := kitchen(Config{Methods: []Method{Call("Patient.Wait", func(ctx context.Context, _ *Empty) (Empty, error) {
		hangUp()
		seen = ctx.Err()
		return Empty{}, nil
	})}})
	r := httptest.NewRequest("POST", "/Patient.Wait", nil).WithContext(ctx)
	s.ServeHTTP(httptest.NewRecorder(), r)
	if seen != nil {
		t.Errorf("the call's context ended with the caller: %v", seen)
	}
}

func TestCallsAreObservedAndLogged(t *testing.T) {
	type seen struct {
		Method string
		Failed bool
	}
	var got []seen
	var log bytes.Buffer
	s := kitchen(Config{
		Log:     slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Observe: func(method string, err error, _ time.Duration) { got = append(got, seen{method, err != nil}) },
	})
	for _, path := range []string{"/Kitchen.Echo", "/Kitchen.Burn", "/Cellar.Fall", "/unknown"} {
		post(s, "POST", path, "{}")
	}
	post(s, "POST", "/Kitchen.Echo", "[")
	want := []seen{{"Kitchen.Echo", false}, {"Kitchen.Burn", true}, {"Cellar.Fall", true}, {"Kitchen.Echo", true}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("observed (-want +got):\n%s", diff)
	}
	for _, line := range []string{
		"level=DEBUG msg=call method=Kitchen.Echo", `level=WARN msg="call failed" method=Kitchen.Burn`, "the pan is hot",
		"level=ERROR msg=panic method=Cellar.Fall panic=dark", "server_test.go",
	} {
		if !strings.Contains(log.String(), line) {
			t.Errorf("the log lacks %q:\n%s", line, &log)
		}
	}
}

func TestTwoMethodsOfOneNameAreRefused(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("accepted")
		}
	}()
	echo := Call("Kitchen.Echo", func(_ context.Context, o *order) (*order, error) { return o, nil })
	kitchen(Config{Methods: []Method{echo}})
}
