package volume

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"syscall"

	"github.com/netdriver/netdriver/internal/plugin"
)

// Client asks the daemon of this node about volumes.
type Client struct {
	path string
	http *http.Client
}

// NewClient returns a client of the socket at path. It connects with each request.
func NewClient(path string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}
	return &Client{path, &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}}
}

// List returns what the node knows of all volumes.
func (c *Client) List(ctx context.Context) ([]Report, error) {
	r, err := post[ListResponse](ctx, c, "List", plugin.Empty{})
	return r.Volumes, err
}

// Inspect returns what the node knows of one volume.
func (c *Client) Inspect(ctx context.Context, name string) (Report, error) {
	return post[Report](ctx, c, "Inspect", NameRequest{name})
}

// Check asks the volume's server.
func (c *Client) Check(ctx context.Context, name string) (Report, error) {
	return post[Report](ctx, c, "Check", NameRequest{name})
}

// Update changes options.
func (c *Client) Update(ctx context.Context, r UpdateRequest) (Report, error) {
	return post[Report](ctx, c, "Update", r)
}

// Remove removes the volume's record.
func (c *Client) Remove(ctx context.Context, name string) error {
	_, err := post[plugin.Empty](ctx, c, "Remove", NameRequest{name})
	return err
}

// Hold mounts a volume for the process pid; Drop gives it back.
func (c *Client) Hold(ctx context.Context, name string, pid int) (HoldResponse, error) {
	return post[HoldResponse](ctx, c, "Hold", HoldRequest{name, pid})
}

// Drop gives back what Hold gave.
func (c *Client) Drop(ctx context.Context, name string, pid int) error {
	_, err := post[plugin.Empty](ctx, c, "Drop", HoldRequest{name, pid})
	return err
}

func post[R any](ctx context.Context, c *Client, method string, request any) (R, error) {
	var r R
	body, err := json.Marshal(request)
	if err != nil {
		return r, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://netdriver/Volumes."+method, bytes.NewReader(body))
	if err != nil {
		return r, err
	}
	res, err := c.http.Do(req)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return r, fmt.Errorf("netdriver is not running on this node (socket %s): start it with `netdriver run`, or name its "+
			"--run-dir", c.path)
	case errors.Is(err, fs.ErrPermission):
		return r, fmt.Errorf("the daemon's socket %s is for root only: use sudo", c.path)
	case err != nil:
		return r, fmt.Errorf("ask the daemon at %s: %w", c.path, err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		return r, fmt.Errorf("read the daemon's answer: %w", err)
	}
	if res.StatusCode != http.StatusOK {
		var f plugin.Failure
		if json.Unmarshal(text, &f) != nil || f.Err == "" {
			return r, fmt.Errorf("the daemon answered %s: %.200s", res.Status, text)
		}
		return r, errors.New(f.Err)
	}
	return r, json.Unmarshal(text, &r)
}
