package volume

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"

	"github.com/netdriver/netdriver/internal/local"
	"github.com/netdriver/netdriver/internal/plugin"
	"github.com/netdriver/netdriver/store"
)

// Client asks the daemon of this node about volumes.
type Client struct{ socket *local.Client }

// NewClient returns a client of the socket at path. It connects with each request.
func NewClient(path string) *Client { return &Client{local.NewClient(path)} }

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

// Abort ends the volume's FUSE connection on this node, with force also if its server answers.
func (c *Client) Abort(ctx context.Context, name string, force bool) (Report, error) {
	return post[Report](ctx, c, "Abort", AbortRequest{name, force})
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

// Backed tells how a backup went.
func (c *Client) Backed(ctx context.Context, b store.VolumeBackup) error {
	_, err := post[plugin.Empty](ctx, c, "Backed", b)
	return err
}

func post[R any](ctx context.Context, c *Client, method string, request any) (R, error) {
	var r R
	body, err := json.Marshal(request)
	if err != nil {
		return r, err
	}
	text, err := c.socket.Ask(ctx, http.MethodPost, "/Volumes."+method, bytes.NewReader(body), func(answer []byte) string {
		var f plugin.Failure
		_ = json.Unmarshal(answer, &f) // what is none has no reason
		return f.Err
	})
	if err != nil {
		return r, err
	}
	return r, json.Unmarshal(text, &r)
}
