package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"runtime/debug"
	"slices"
	"strings"
	"time"
)

const (
	// DefaultDeadline is how long a call may take. moby gives up after 30 s (pkg/plugins/client.go) and then knows
	// nothing; an answer before that tells its user why.
	DefaultDeadline = 25 * time.Second
	// StoreTimeout bounds what a call waits for the store: a user who waits for `docker run` should know after a third of
	// moby's 30 s.
	StoreTimeout = 10 * time.Second
	// SwarmTimeout does so for a call of a swarm's leader, which is better late than refused: after one refused replay it
	// gives up the network and starts no task in it any more, without a word to its user.
	SwarmTimeout = 22 * time.Second
	// grace is what a call has to end by itself, with an error of its own, after its context has ended.
	grace = time.Second
	// maxBody is the size in bytes from which a request is refused. Docker's largest, with every port published, stays
	// far below.
	maxBody = 1 << 20
)

// errPanic is what the caller hears of a panic; the log has the rest.
var errPanic = errors.New("internal error of netdriver; its log has the details")

// Config is what a Server is made of.
type Config struct {
	// Methods are the calls that are answered; the interfaces that Plugin.Activate announces follow from their names.
	Methods []Method
	Log     *slog.Logger
	// Observe is told of each call of one of the methods; may be nil.
	Observe func(method string, err error, took time.Duration)
	// Deadline ends the context of each call, DefaultDeadline if 0.
	Deadline time.Duration
	// Forward answers calls that are none of the methods; without it they are a 404, which libnetwork takes for "not
	// implemented".
	Forward func(ctx context.Context, method string, body []byte) (Answer, error)
}

// Answer is what another server said to a call.
type Answer struct {
	// Status is that of HTTP.
	Status int
	Body   []byte
}

// Server answers Docker's calls.
type Server struct {
	cfg     Config
	methods map[string]Method // by URL path
}

// New makes a Server. Two methods of one name are a mistake of the program, so it panics.
func New(cfg Config) *Server {
	if cfg.Deadline == 0 {
		cfg.Deadline = DefaultDeadline
	}
	if cfg.Observe == nil {
		cfg.Observe = func(string, error, time.Duration) {}
	}
	s := &Server{cfg: cfg, methods: make(map[string]Method, len(cfg.Methods)+1)}
	for _, m := range append(slices.Clone(cfg.Methods), activate(cfg.Methods)) {
		if _, ok := s.methods["/"+m.name]; ok {
			panic("plugin: two methods " + m.name)
		}
		s.methods["/"+m.name] = m
	}
	return s
}

// activate makes the method by which Docker learns what a plugin is.
func activate(methods []Method) Method {
	implements := []string{}
	for _, m := range methods {
		if !slices.Contains(implements, m.service()) {
			implements = append(implements, m.service())
		}
	}
	return Call("Plugin.Activate", func(context.Context, *Empty) (activation, error) {
		return activation{implements}, nil
	})
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	m, ok := s.methods[r.URL.Path]
	name := strings.TrimPrefix(r.URL.Path, "/")
	if !ok && s.cfg.Forward != nil {
		m, ok = Method{name, func(ctx context.Context, body []byte) (any, error) { return s.cfg.Forward(ctx, name, body) }}, true
	}
	if !ok {
		s.fail(w, http.StatusNotFound, fmt.Errorf("no method %q", name))
		return
	}
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		s.fail(w, http.StatusMethodNotAllowed, fmt.Errorf("%s: method %s is not allowed, use POST", m.name, r.Method))
		return
	}
	start := time.Now()
	status, answer, err := s.handle(w, r, m)
	took := time.Since(start)
	s.cfg.Observe(m.name, err, took)
	if err != nil {
		s.cfg.Log.Warn("call failed", "method", m.name, "took", took, "error", err)
		s.fail(w, status, err)
		return
	}
	s.cfg.Log.Debug("call", "method", m.name, "took", took)
	s.write(w, status, answer)
}

// handle reads the body and calls the method; it returns the status and either the encoded answer or an error.
func (s *Server) handle(w http.ResponseWriter, r *http.Request, m Method) (int, []byte, error) {
	body, err := s.read(w, r)
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		return http.StatusRequestEntityTooLarge, nil, fmt.Errorf("%s: the request has more than %d bytes",
			m.name, tooLarge.Limit)
	}
	if err != nil {
		return http.StatusBadRequest, nil, fmt.Errorf("%s: read the request: %w", m.name, err)
	}
	answer, err := s.call(r.Context(), m, body)
	if errors.Is(err, errBody) {
		return http.StatusBadRequest, nil, err
	}
	if err != nil {
		return http.StatusInternalServerError, nil, err
	}
	if a, ok := answer.(Answer); ok {
		return a.Status, a.Body, nil
	}
	b, err := json.Marshal(answer)
	if err != nil {
		return http.StatusInternalServerError, nil, fmt.Errorf("%s: encode the answer: %w", m.name, err)
	}
	return http.StatusOK, b, nil
}

// read returns the body. A client that sends only a part of it has as long as a call has.
func (s *Server) read(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	conn := http.NewResponseController(w)
	// An error means that the writer is none of net/http's server and has no deadlines.
	if err := conn.SetReadDeadline(time.Now().Add(s.cfg.Deadline)); err == nil {
		defer conn.SetReadDeadline(time.Time{})
	}
	return io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
}

// result is how a call ended.
type result struct {
	answer any
	err    error
}

// call runs a method until it returns, or until its deadline and grace have passed: then the method is left to itself.
// A client that hangs up does not end the call, since a finished call is understood by the next one, also by a repeated
// one.
func (s *Server) call(ctx context.Context, m Method, body []byte) (any, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.Deadline)
	done := make(chan result, 1)
	go func() {
		defer cancel()
		done <- s.protect(ctx, m, body)
	}()
	select {
	case r := <-done:
		return r.answer, r.err
	case <-time.After(s.cfg.Deadline + grace):
		return nil, fmt.Errorf("%s has not ended within %s: %w; try again",
			m.name, s.cfg.Deadline, context.DeadlineExceeded)
	}
}

// protect runs a method and turns a panic into an error.
func (s *Server) protect(ctx context.Context, m Method, body []byte) (r result) {
	defer func() {
		if p := recover(); p != nil {
			s.cfg.Log.Error("panic", "method", m.name, "panic", p, "stack", string(debug.Stack()))
			r = result{err: fmt.Errorf("%s: %w", m.name, errPanic)}
		}
	}()
	answer, err := m.call(ctx, body)
	return result{answer, err}
}

func (s *Server) fail(w http.ResponseWriter, status int, err error) {
	b, encodeErr := json.Marshal(Failure{err.Error()})
	if encodeErr != nil {
		panic(encodeErr) // a string: cannot happen
	}
	s.write(w, status, b)
}

func (s *Server) write(w http.ResponseWriter, status int, body []byte) {
	w.Header().Set("Content-Type", ContentType)
	w.WriteHeader(status)
	if _, err := w.Write(append(body, '\n')); err != nil {
		s.cfg.Log.Debug("the caller has gone", "error", err)
	}
}
