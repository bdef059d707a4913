package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// pluginSocket is where a node's netdriver answers dockerd, in its default socket directory.
const pluginSocket = "/run/docker/plugins/custom-overlay.sock"

// daemonLimit is how long netdriver may take to answer or to stop.
const daemonLimit = 30 * time.Second

// DaemonConfig is what `netdriver run` is told beyond what the lab knows itself (the node's address and data
// directory). Its zero value is a host on its own, with the embedded store.
type DaemonConfig struct {
	// Binary runs instead of the lab's, for example an older version.
	Binary string
	// Store are the URLs of a store elsewhere; none means the embedded one.
	Store []string
	// StoreListen is the URL at which the embedded store serves other nodes.
	StoreListen string
	// Certificate for mutual TLS with the store, in both roles.
	Certificate *Certificate
	// Args and Env are added to the command line and the environment.
	Args, Env []string
}

// Command is the command line for node n.
func (c DaemonConfig) Command(n *Node) []string {
	binary := c.Binary
	if binary == "" {
		binary = filepath.Base(n.lab.config.Binary) // found through PATH, see Node.env
	}
	args := []string{binary, "run", "--underlay", n.Addr.String(), "--data-dir", filepath.Join(n.Dir, "netdriver")}
	if len(c.Store) > 0 {
		args = append(args, "--store", strings.Join(c.Store, ","))
	}
	if c.StoreListen != "" {
		args = append(args, "--store-listen", c.StoreListen)
	}
	if c.Certificate != nil {
		args = append(args, "--store-ca", c.Certificate.CA, "--store-cert", c.Certificate.Cert,
			"--store-key", c.Certificate.Key)
	}
	return append(args, c.Args...)
}

// StartDaemon starts the node's netdriver and waits until its plugin socket answers.
func (n *Node) StartDaemon(ctx context.Context, config DaemonConfig) error {
	if n.daemon != nil && !n.daemon.ended() {
		return fmt.Errorf("start netdriver on %s: it is running", n.Name)
	}
	if config.Binary == "" && n.lab.config.Binary == "" {
		return fmt.Errorf("start netdriver on %s: the lab was made without Config.Binary", n.Name)
	}
	p, err := n.start("netdriver", config.Env, config.Command(n)...)
	if err != nil {
		return fmt.Errorf("start netdriver on %s: %w", n.Name, err)
	}
	n.daemon = p
	activate := func(ctx context.Context) error { return n.activate(ctx) }
	if err := p.waitFor(ctx, n.Patience(daemonLimit), activate); err != nil {
		return fmt.Errorf("start netdriver on %s: %w", n.Name, err)
	}
	return nil
}

// activate makes the first call that dockerd makes to a plugin.
func (n *Node) activate(ctx context.Context) error {
	_, err := n.Call(ctx, pluginSocket, "Plugin.Activate", nil)
	return err
}

// Call makes one of dockerd's calls at a socket in the node, with a request that becomes JSON, and returns the answer.
func (n *Node) Call(ctx context.Context, socket, method string, request any) ([]byte, error) {
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return n.Dial(ctx, socket)
	}}
	defer transport.CloseIdleConnections()
	var body []byte
	if request != nil {
		var err error
		if body, err = json.Marshal(request); err != nil {
			return nil, err
		}
	}
	post, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://plugin/"+method, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	response, err := (&http.Client{Transport: transport}).Do(post)
	if err != nil {
		return nil, fmt.Errorf("on %s: %s: %w", n.Name, method, err)
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("on %s: %s: %s: %s", n.Name, method, response.Status, answer)
	}
	return answer, err
}

// DaemonPID is the process id of the node's netdriver, as seen from outside the node; 0 when it does not run.
func (n *Node) DaemonPID() int {
	if n.daemon == nil || n.daemon.ended() {
		return 0
	}
	return n.daemon.pid
}

// KillDaemon ends netdriver as a crash would: SIGKILL.
func (n *Node) KillDaemon() error { return n.endDaemon(unix.SIGKILL) }

// StopDaemon asks netdriver to end: SIGTERM.
func (n *Node) StopDaemon() error { return n.endDaemon(unix.SIGTERM) }

func (n *Node) endDaemon(signal unix.Signal) error {
	if n.daemon == nil {
		return errors.New("stop netdriver on " + n.Name + ": it was not started")
	}
	if err := n.daemon.stop(signal, n.Patience(daemonLimit)); err != nil {
		return fmt.Errorf("stop netdriver on %s: %w", n.Name, err)
	}
	return nil
}

// WaitForDaemon waits until the node's netdriver has ended by itself and returns an error unless it ended well.
func (n *Node) WaitForDaemon(ctx context.Context) error {
	select {
	case <-n.daemon.done:
		return n.daemon.err
	case <-ctx.Done():
		return ctx.Err()
	}
}
