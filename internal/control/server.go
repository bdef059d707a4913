package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/netdriver/netdriver/diag"
	"github.com/netdriver/netdriver/store"
)

const (
	// headerTimeout is what a client may take to send its request; reportTimeout bounds a report: diag needs 3 s without a
	// store, more with very many networks.
	headerTimeout = 5 * time.Second
	reportTimeout = 20 * time.Second
	// maxPath is the longest path of a unix socket in bytes: sun_path has 108 with the final zero (man 7 unix).
	maxPath = 107
)

// Reporter makes the reports; *diag.Diagnosis is the real one.
type Reporter interface {
	Network(ctx context.Context, name string) (diag.NetworkReport, error)
	Networks(ctx context.Context) (diag.NetworksReport, error)
	Nodes(ctx context.Context) (diag.NodesReport, error)
	Health(ctx context.Context) diag.Health
	Check(ctx context.Context, peer string) (diag.CheckReport, error)
	Trace(ctx context.Context, a diag.Ask) (diag.Trace, error)
	Diff(ctx context.Context, network string) (diag.DiffReport, error)
	Traffic(ctx context.Context, node string) (diag.Traffic, error)
}

// Server answers on the local socket.
type Server struct {
	mux *http.ServeMux
	log *slog.Logger
}

// NewServer makes a Server of a Reporter.
func NewServer(r Reporter, log *slog.Logger) *Server {
	s := &Server{http.NewServeMux(), log}
	handle(
		s,
		"/v1/networks",
		func(ctx context.Context, _ *http.Request) (diag.NetworksReport, error) { return r.Networks(ctx) },
	)
	handle(s, "/v1/networks/{name}", func(ctx context.Context, req *http.Request) (diag.NetworkReport, error) {
		return r.Network(ctx, req.PathValue("name"))
	})
	handle(s, "/v1/nodes", func(ctx context.Context, _ *http.Request) (diag.NodesReport, error) { return r.Nodes(ctx) })
	handle(s, "/v1/health", func(ctx context.Context, _ *http.Request) (diag.Health, error) { return r.Health(ctx), nil })
	handle(s, "/v1/check", func(ctx context.Context, req *http.Request) (diag.CheckReport, error) {
		return r.Check(ctx, req.FormValue("peer"))
	})
	handle(s, "/v1/trace", func(ctx context.Context, req *http.Request) (diag.Trace, error) {
		return r.Trace(ctx, diag.Ask{
			Source: req.FormValue("from"), Destination: req.FormValue("to"), Network: req.FormValue("network"),
		})
	})
	handle(s, "/v1/diff", func(ctx context.Context, req *http.Request) (diag.DiffReport, error) {
		return r.Diff(ctx, req.FormValue("network"))
	})
	handle(s, "/v1/traffic", func(ctx context.Context, req *http.Request) (diag.Traffic, error) {
		return r.Traffic(ctx, req.FormValue("node"))
	})
	s.mux.HandleFunc("/", func(w http.ResponseWriter, req *http.Request) {
		s.write(
			w,
			http.StatusNotFound,
			failure{fmt.Sprintf("no report %s: there are GET /v1/networks, /v1/networks/NAME, /v1/nodes, /v1/health, /v1/check, /v1/trace, /v1/diff, /v1/traffic",
				req.URL.Path)},
		)
	})
	return s
}

// Handle gives a part of the paths to another handler, which changes things: who can use the socket may do so.
func (s *Server) Handle(path string, h http.Handler) { s.mux.Handle(path, h) }

// handle answers GET requests for a path with a report.
func handle[R any](s *Server, path string, report func(context.Context, *http.Request) (R, error)) {
	s.mux.HandleFunc("GET "+path, func(w http.ResponseWriter, req *http.Request) {
		ctx, cancel := context.WithTimeout(req.Context(), reportTimeout)
		defer cancel()
		r, err := report(ctx, req)
		if err != nil {
			s.write(w, status(err), failure{err.Error()})
			return
		}
		s.write(w, http.StatusOK, r)
	})
}

func status(err error) int {
	switch {
	case errors.Is(err, diag.ErrNoNetwork), errors.Is(err, diag.ErrNoSource), errors.Is(err, diag.ErrNoNode):
		return http.StatusNotFound
	case errors.Is(err, store.ErrUnavailable):
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

func (s *Server) write(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(body); err != nil {
		s.log.Debug("the client has gone", "error", err)
	}
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.mux.ServeHTTP(w, r) }

// Serve answers on a unix socket that only root can use, until ctx ends; the error is nil then. It replaces what is at
// path: the caller holds the run directory's lock, so no other daemon serves there.
func (s *Server) Serve(ctx context.Context, path string) error {
	if len(path) > maxPath {
		return fmt.Errorf("local socket: the path %s has %d bytes, the kernel allows %d; choose a shorter --run-dir",
			path, len(path), maxPath)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("local socket: %w", err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("local socket: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return fmt.Errorf("local socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return fmt.Errorf("local socket: %w", errors.Join(err, l.Close()))
	}
	srv := &http.Server{
		Handler: s, ReadHeaderTimeout: headerTimeout, ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() }) // a report that is being made has no use any more
	defer stop()
	if err := srv.Serve(l); err != nil && ctx.Err() == nil {
		return fmt.Errorf("local socket %s: %w", path, err)
	}
	return nil
}
