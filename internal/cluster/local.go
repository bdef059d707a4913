package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/netip"
	"strconv"
	"time"
)

// changeTimeout bounds a change of the cluster that is asked for on the local socket.
const changeTimeout = time.Minute

// The questions of the verbs, on the daemon's local socket: POST /v1/cluster/VERB.
type (
	// InitRequest is for Init; what is zero is chosen.
	InitRequest struct {
		Address netip.Addr `json:"address,omitzero"`
		Ports   Ports      `json:"ports"`
		Size    int        `json:"size"`
	}
	// TokenRequest is for Token, or for RevokeTokens.
	TokenRequest struct {
		Life   time.Duration `json:"life"`
		Revoke bool          `json:"revoke"`
	}
	// TokenAnswer has the token as users copy it, or how many were revoked.
	TokenAnswer struct {
		Token   string    `json:"token,omitempty"`
		Expires time.Time `json:"expires,omitzero"`
		Revoked int64     `json:"revoked,omitempty"`
	}
	// JoinRequest is for Join.
	JoinRequest struct {
		Token string `json:"token"`
		Force bool   `json:"force"`
	}
	// LeaveRequest is for Leave and, with a node, for Remove.
	LeaveRequest struct {
		Node  string `json:"node,omitempty"`
		Force bool   `json:"force"`
	}
	// SizeRequest is for Resize.
	SizeRequest struct {
		Size int `json:"size"`
	}
	// RestoreAnswer says how many records were written.
	RestoreAnswer struct {
		Records int `json:"records"`
	}
	// Done is the answer of what has nothing to say.
	Done struct{}
)

// Handler answers the verbs.
func (c *Cluster) Handler() http.Handler {
	mux := http.NewServeMux()
	change(c, mux, "init", func(ctx context.Context, q InitRequest) (Done, error) {
		return Done{}, c.Init(ctx, q.Address, q.Ports, q.Size)
	})
	verb(mux, "token", func(ctx context.Context, q TokenRequest) (TokenAnswer, error) {
		if q.Revoke {
			n, err := c.RevokeTokens(ctx)
			return TokenAnswer{Revoked: n}, err
		}
		t, err := c.Token(ctx, q.Life)
		return TokenAnswer{Token: t.String(), Expires: t.Expires}, err
	})
	change(c, mux, "join", func(ctx context.Context, q JoinRequest) (Done, error) {
		return Done{}, c.Join(ctx, q.Token, q.Force)
	})
	change(c, mux, "leave", func(ctx context.Context, q LeaveRequest) (Done, error) {
		return Done{}, c.Leave(ctx, q.Force)
	})
	verb(mux, "remove", func(ctx context.Context, q LeaveRequest) (Done, error) {
		return Done{}, c.Remove(ctx, q.Node, q.Force)
	})
	verb(mux, "size", func(ctx context.Context, q SizeRequest) (Done, error) { return Done{}, c.Resize(ctx, q.Size) })
	verb(mux, "status", func(ctx context.Context, _ Done) (Report, error) { return c.Status(ctx) })
	mux.HandleFunc("POST /v1/cluster/backup", func(w http.ResponseWriter, r *http.Request) {
		// What cannot be written whole has no end, and is no backup.
		if err := Backup(r.Context(), c.cfg.Client, c.cfg.Node.Name, c.cfg.Now(), w); err != nil {
			c.cfg.Log.Warn("cannot write a backup", "error", err)
			panic(http.ErrAbortHandler)
		}
	})
	mux.HandleFunc("POST /v1/cluster/restore", func(w http.ResponseWriter, r *http.Request) {
		n, err := Restore(r.Context(), c.cfg.Client, r.Body, r.URL.Query().Get("force") == "true")
		reply(w, RestoreAnswer{n}, err)
	})
	return mux
}

func verb[Q, A any](mux *http.ServeMux, name string, f func(context.Context, Q) (A, error)) {
	mux.HandleFunc("POST /v1/cluster/"+name, func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), changeTimeout)
		defer cancel()
		var q Q
		if err := json.NewDecoder(r.Body).Decode(&q); err != nil && !errors.Is(err, io.EOF) {
			reply(w, Done{}, err)
			return
		}
		a, err := f(ctx, q)
		reply(w, a, err)
	})
}

// change is a verb after which the daemon has to begin anew, once it has answered.
func change[Q any](c *Cluster, mux *http.ServeMux, name string, f func(context.Context, Q) (Done, error)) {
	done := false
	inner := http.NewServeMux()
	verb(inner, name, func(ctx context.Context, q Q) (Done, error) {
		d, err := f(ctx, q)
		done = err == nil
		return d, err
	})
	mux.HandleFunc("POST /v1/cluster/"+name, func(w http.ResponseWriter, r *http.Request) {
		c.changing.Lock()
		defer c.changing.Unlock()
		done = false
		inner.ServeHTTP(w, r)
		if done {
			_ = http.NewResponseController(w).Flush() // who asked has gone
			c.restart()
		}
	})
}

// reply writes an answer, or an error as package control does. It is whole once it is flushed, since its length is
// said.
func reply(w http.ResponseWriter, answer any, err error) {
	status := http.StatusOK
	if err != nil {
		status, answer = http.StatusConflict, map[string]string{"error": err.Error()}
	}
	text, err := json.Marshal(answer)
	if err != nil {
		panic(http.ErrAbortHandler) // only plain fields: cannot happen
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(text)))
	w.WriteHeader(status)
	_, _ = w.Write(text) // who asked has gone
}
