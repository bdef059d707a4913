package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/netdriver/netdriver/diag"
	"github.com/netdriver/netdriver/internal/local"
)

// ErrNotRunning says that no daemon serves the socket.
var ErrNotRunning = local.ErrNotRunning

// Client asks the daemon of this host.
type Client struct{ socket *local.Client }

// NewClient returns a client of the socket at path. It connects with each request.
func NewClient(path string) *Client { return &Client{local.NewClient(path)} }

// ErrHangs says that the socket is served by a daemon that does not answer.
var ErrHangs = errors.New("the daemon of this host hangs: it takes connections and answers nothing")

// wake is how long a daemon may take to say anything at all.
const wake = 2 * time.Second

// Awake returns nil if a daemon answers; the error wraps ErrNotRunning or ErrHangs.
func (c *Client) Awake(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, wake)
	defer cancel()
	_, err := c.ask(ctx, http.MethodGet, "/", nil)
	switch {
	case errors.Is(err, ErrNotRunning):
		return err
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return ErrHangs
	}
	return nil // whatever it says of that path
}

// Network returns the report on one network. Like those of all methods, the error wraps ErrNotRunning if nobody serves
// the socket, or is the daemon's text.
func (c *Client) Network(ctx context.Context, name string) (diag.NetworkReport, error) {
	return get[diag.NetworkReport](ctx, c, "/v1/networks/"+url.PathEscape(name))
}

// Networks returns the summary of all networks.
func (c *Client) Networks(ctx context.Context) (diag.NetworksReport, error) {
	return get[diag.NetworksReport](ctx, c, "/v1/networks")
}

// Nodes returns the cluster's nodes.
func (c *Client) Nodes(ctx context.Context) (diag.NodesReport, error) {
	return get[diag.NodesReport](ctx, c, "/v1/nodes")
}

// Health returns the daemon's own state.
func (c *Client) Health(ctx context.Context) (diag.Health, error) {
	return get[diag.Health](ctx, c, "/v1/health")
}

// Check returns what is found on this node; an empty peer means all of them.
func (c *Client) Check(ctx context.Context, peer string) (diag.CheckReport, error) {
	return get[diag.CheckReport](ctx, c, "/v1/check?"+url.Values{"peer": {peer}}.Encode())
}

// Trace returns the way from one endpoint to another.
func (c *Client) Trace(ctx context.Context, a diag.Ask) (diag.Trace, error) {
	q := url.Values{"from": {a.Source}, "to": {a.Destination}, "network": {a.Network}}
	return get[diag.Trace](ctx, c, "/v1/trace?"+q.Encode())
}

// Diff returns what the kernel lacks of one network, or of all if network is empty.
func (c *Client) Diff(ctx context.Context, network string) (diag.DiffReport, error) {
	return get[diag.DiffReport](ctx, c, "/v1/diff?"+url.Values{"network": {network}}.Encode())
}

// Change asks the daemon to change something, and reads its answer into answer. A question of type io.Reader is sent as it
// is.
func (c *Client) Change(ctx context.Context, path string, question, answer any) error {
	body, ok := question.(io.Reader)
	if !ok {
		text, err := json.Marshal(question)
		if err != nil {
			return err
		}
		body = bytes.NewReader(text)
	}
	text, err := c.ask(ctx, http.MethodPost, path, body)
	if err != nil {
		return err
	}
	return json.Unmarshal(text, answer)
}

// Stream writes the daemon's answer to a question as it comes; what is cut off is an error.
func (c *Client) Stream(ctx context.Context, path string, w io.Writer) error {
	res, err := c.socket.Do(ctx, http.MethodPost, path, http.NoBody)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("the daemon answered %s", res.Status)
	}
	if _, err := io.Copy(w, res.Body); err != nil {
		return fmt.Errorf("read the daemon's answer: %w; its log says why it stopped", err)
	}
	return nil
}

// ask returns the daemon's answer.
func (c *Client) ask(ctx context.Context, method, path string, question io.Reader) ([]byte, error) {
	return c.socket.Ask(ctx, method, path, question, func(answer []byte) string {
		var f failure
		_ = json.Unmarshal(answer, &f) // what is none has no reason
		return f.Error
	})
}

func get[R any](ctx context.Context, c *Client, path string) (R, error) {
	var r R
	body, err := c.ask(ctx, http.MethodGet, path, nil)
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(body, &r); err != nil {
		return r, fmt.Errorf(
			"the daemon's answer to %s cannot be read; is it of another version than this command? %w",
			path,
			err,
		)
	}
	return r, nil
}
