package page

import (
	"bytes"
	"compress/gzip"
	"context"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strings"
	"sync"
	"time"
)

const (
	// fresh is the least time for which an answer is given again; rest how many times as long as it took to make. So pages that
	// are open keep the daemon busy for at most a fifth of a CPU per report, however many they are.
	fresh = time.Second
	rest  = 4
	// small is the size in bytes up to which an answer is not packed.
	small = 4 << 10
	// atOnce is how many different reports are made side by side.
	atOnce = 4
)

// shared asks each question once for all who ask it at the same time.
type shared struct {
	reports http.Handler
	log     *slog.Logger
	now     func() time.Time

	mu      sync.Mutex
	asking  int
	answers map[string]*answer
}

func share(reports http.Handler, log *slog.Logger) *shared {
	return &shared{reports: reports, log: log, now: time.Now, answers: map[string]*answer{}}
}

// ServeHTTP implements http.Handler.
func (s *shared) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a := s.answer(question(r))
	if a == nil {
		w.Header().Set("Retry-After", "1")
		http.Error(w, "too many reports are being made: ask again in a second", http.StatusServiceUnavailable)
		return
	}
	select {
	case <-a.made:
	case <-r.Context().Done():
		return
	}
	body := a.body.Bytes()
	w.Header().Set("Content-Type", a.header.Get("Content-Type"))
	w.Header().Set("Vary", "Accept-Encoding")
	if a.packed != nil && strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
		w.Header().Set("Content-Encoding", "gzip")
		body = a.packed
	}
	w.WriteHeader(a.status)
	_, _ = w.Write(body) // the browser has gone
}

// answer returns the answer to a question, which may still be made; nil if too many are.
func (s *shared) answer(question string) *answer {
	s.mu.Lock()
	defer s.mu.Unlock()
	for q, a := range s.answers {
		if !a.until.IsZero() && s.now().After(a.until) {
			delete(s.answers, q)
		}
	}
	if a := s.answers[question]; a != nil {
		return a
	}
	if s.asking == atOnce {
		return nil
	}
	s.asking++
	a := &answer{header: http.Header{}, status: http.StatusOK, made: make(chan struct{})}
	s.answers[question] = a
	go s.ask(question, a)
	return a
}

// ask makes an answer. It is not bound to who asked first: others may wait for it.
func (s *shared) ask(question string, a *answer) {
	begin := s.now()
	defer func() {
		if p := recover(); p != nil { // package http does so for its own goroutines: one bad report must not end a daemon
			s.log.Error("a report for the page could not be made", "question", question, "error", p, "stack", string(debug.Stack()))
			a.status, a.packed = http.StatusInternalServerError, nil
			a.body.Reset()
			a.body.WriteString("the report could not be made: the daemon's log says why")
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.asking--
		a.until = s.now().Add(max(fresh, rest*s.now().Sub(begin)))
		close(a.made)
	}()
	r, err := http.NewRequestWithContext(context.Background(), http.MethodGet, question, http.NoBody)
	if err != nil {
		a.WriteHeader(http.StatusBadRequest)
		return
	}
	s.reports.ServeHTTP(a, r)
	a.pack()
}

// answer is a report as it was made. It implements http.ResponseWriter.
type answer struct {
	status int
	header http.Header
	body   bytes.Buffer
	// packed is the body by gzip; nil if it is small.
	packed []byte
	made   chan struct{}
	// until when it is given again; zero while it is made.
	until time.Time
}

// pack makes the answer fit for slow ways, such as tunnels: reports of many nodes have megabytes, a tenth of it packed.
func (a *answer) pack() {
	if a.body.Len() < small {
		return
	}
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	if err != nil {
		return
	}
	if _, err := z.Write(a.body.Bytes()); err == nil && z.Close() == nil {
		a.packed = b.Bytes()
	}
}

func (a *answer) Header() http.Header                  { return a.header }
func (a *answer) WriteHeader(status int)               { a.status = status }
func (a *answer) Write(text []byte) (n int, err error) { return a.body.Write(text) }
