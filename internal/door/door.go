// Package door is the managed plugin that a swarm needs, since Swarm accepts no other plugin for networks: a process
// that forwards Docker's calls to this node's daemon and waits for one that restarts. It holds nothing, so the daemon is
// upgraded like any other service of the host, and networks do not notice.
package door

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/docker/go-plugins-helpers/network"

	"github.com/netdriver/netdriver/internal/plugin"
)

// pause is the time between two attempts to reach the daemon.
const pause = 100 * time.Millisecond

// limits are times after which a call is answered with an error.
type limits struct {
	// patience is how long a call waits for a daemon to come back.
	patience time.Duration
	// deadline is how long a call may take in all.
	deadline time.Duration
}

// usual are the limits of use. moby waits 30 s for a managed plugin (`docker plugin enable --timeout`'s default) and then
// knows nothing; the server answers one second after the deadline at the latest. A restart of the daemon takes a second
// or two; one that comes after 20 s has the rest for the call itself.
func usual() limits { return limits{patience: 20 * time.Second, deadline: 26 * time.Second} }

// New returns the server that answers Docker: what never changes by itself, as Docker asks for it when it enables the
// plugin and the daemon need not run then, and everything else by the daemon behind the socket at path.
func New(path string, log *slog.Logger) *plugin.Server { return open(path, usual(), log) }

func open(path string, limits limits, log *slog.Logger) *plugin.Server {
	d := &door{limits: limits, log: log, http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		},
		// A connection that was kept may be the last daemon's; a new one to a unix socket costs microseconds.
		DisableKeepAlives: true,
	}}}
	return plugin.New(plugin.Config{
		Methods: plugin.Constants(network.GlobalScope), Forward: d.forward, Deadline: limits.deadline, Log: log,
	})
}

// door forwards calls to one socket.
type door struct {
	limits limits
	log    *slog.Logger
	http   *http.Client
}

// forward asks the daemon, and again when it was not there or died before it had answered. A call that died may have
// been executed in part or whole; it is repeated all the same, since every handler of the daemon understands a repeated
// call, and the daemon that could still be at work on the first is gone. Where a repeated call does leave something (a
// second pool or address, chosen while nobody named one), an error would leave the same: Docker knows of neither, and
// the daemon reclaims it. Docker's own repetition is worse, since it sends no body.
func (d *door) forward(ctx context.Context, method string, body []byte) (plugin.Answer, error) {
	end := time.Now().Add(d.limits.patience)
	for attempt := 1; ; attempt++ {
		answer, err := d.ask(ctx, method, body)
		switch {
		case err == nil:
			return answer, nil
		case ctx.Err() != nil:
			return plugin.Answer{}, fmt.Errorf("netdriver's daemon on this node has not answered %s within %s; see "+
				"`systemctl status netdriver` and its log, and run the command again: %w", method, d.limits.deadline, err)
		case time.Now().After(end):
			return plugin.Answer{}, fmt.Errorf("netdriver's daemon on this node has been away for %s; see `systemctl status "+
				"netdriver`, start it, and run the command again: %w", d.limits.patience, err)
		}
		if attempt == 1 {
			d.log.Warn("waiting for the daemon", "method", method, "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// ask sends a call once. An error means that there is no whole answer.
func (d *door) ask(ctx context.Context, method string, body []byte) (plugin.Answer, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://netdriver/"+method, bytes.NewReader(body))
	if err != nil {
		return plugin.Answer{}, err
	}
	req.Header.Set("Content-Type", plugin.ContentType)
	res, err := d.http.Do(req)
	if wrapped := (*url.Error)(nil); errors.As(err, &wrapped) {
		err = wrapped.Err // without the URL, which is none of a user's
	}
	if err != nil {
		return plugin.Answer{}, err
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	return plugin.Answer{Status: res.StatusCode, Body: bytes.TrimSpace(answer)}, err
}
