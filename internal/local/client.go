// Package local is how commands reach the sockets that the daemon of this host serves for root.
package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"syscall"
)

// ErrNotRunning says that no daemon serves the socket.
var ErrNotRunning = errors.New("netdriver is not running on this host")

// Client asks the daemon behind one socket, over HTTP. It connects with each request.
type Client struct {
	path string
	http *http.Client
}

// NewClient returns a client of the socket at path.
func NewClient(path string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}
	return &Client{path, &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}}
}

// Path returns the socket's.
func (c *Client) Path() string { return c.path }

// Do sends a request and returns the answer, whatever its status; the caller closes its body. The error wraps
// ErrNotRunning if nobody serves the socket.
func (c *Client) Do(ctx context.Context, method, path string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://netdriver"+path, body)
	if err != nil {
		return nil, err
	}
	res, err := c.http.Do(req)
	if err != nil {
		return nil, c.explain(err)
	}
	return res, nil
}

// Ask is Do for an answer that is read whole. What is no 200 is an error with the reason that reason finds in it.
func (c *Client) Ask(
	ctx context.Context, method, path string, body io.Reader, reason func(answer []byte) string,
) ([]byte, error) {
	res, err := c.Do(ctx, method, path, body)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err != nil {
		return nil, fmt.Errorf("read the daemon's answer: %w", err)
	}
	if res.StatusCode == http.StatusOK {
		return answer, nil
	}
	if why := reason(answer); why != "" {
		return nil, errors.New(why)
	}
	return nil, fmt.Errorf("the daemon answered %s: %.200s", res.Status, answer)
}

// explain says what an error of the connection means.
func (c *Client) explain(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w (no socket %s): start it with `netdriver run`, or name its --run-dir", ErrNotRunning, c.path)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w (nobody serves %s): start it with `netdriver run`", ErrNotRunning, c.path)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("the daemon's socket %s is for root only: use sudo", c.path)
	}
	return fmt.Errorf("ask the daemon at %s: %w", c.path, err)
}
