//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/netdriver/netdriver/test/e2e/lab"
)

// shared is the cluster that most tests use. It starts with the first test that asks for it, so that a run of
// other tests does not wait for it.
var shared sharedCluster

func TestMain(m *testing.M) {
	reaped, err := lab.ReapAll()
	for _, dir := range reaped {
		fmt.Println("removed what a killed run had left:", dir)
	}
	code := 1
	if err == nil {
		code = m.Run()
		err = shared.close(code != 0)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "FAIL:", err)
		code = 1
	}
	os.Exit(code)
}

// A cluster is a lab whose nodes run dockerd and netdriver: the first holds the store, the others use it over
// mutual TLS.
type cluster struct {
	*lab.Lab
	certificates map[netip.Addr]*lab.Certificate
}

// storePort is etcd's registered client port.
const storePort = 2379

// newCluster starts dockerd, with live-restore, and netdriver on every node of a new lab.
func newCluster(ctx context.Context, config lab.Config) (*cluster, error) {
	binary, err := filepath.Abs("../../bin/netdriver")
	if err != nil {
		return nil, err
	}
	config.Binary = binary
	l, err := lab.New(ctx, config)
	if err != nil {
		return nil, err
	}
	c := &cluster{Lab: l}
	if err := c.start(ctx); err != nil {
		l.KeepLogs()
		l.Close()
		return nil, fmt.Errorf("%w\nlogs: %s", err, l.Logs())
	}
	return c, nil
}

func (c *cluster) start(ctx context.Context) error {
	if err := c.certify(); err != nil {
		return err
	}
	for _, n := range c.Nodes {
		if err := n.StartDaemon(ctx, c.daemonConfig(n)); err != nil {
			return err
		}
	}
	return c.StartDocker(ctx, dockerArgs()...)
}

// certify makes the nodes' certificates.
func (c *cluster) certify() (err error) {
	var addrs []netip.Addr
	for _, n := range c.Nodes {
		addrs = append(addrs, n.Addr)
	}
	c.certificates, err = lab.Certificates(filepath.Join(c.Dir, "tls"), addrs...)
	return err
}

// daemonConfig is what node n's netdriver is started with.
func (c *cluster) daemonConfig(n *lab.Node) lab.DaemonConfig {
	url := fmt.Sprintf("https://%s", netip.AddrPortFrom(c.Nodes[0].Addr, storePort))
	config := lab.DaemonConfig{Certificate: c.certificates[n.Addr], Args: []string{"--log-level", "debug"}}
	if n == c.Nodes[0] {
		config.StoreListen = url
	} else {
		config.Store = []string{url}
	}
	return config
}

// dockerArgs are added to the command line of each dockerd of a cluster.
func dockerArgs() []string { return []string{"--live-restore"} }

// A sharedCluster is made once and closed once.
type sharedCluster struct {
	once sync.Once
	made *cluster
	err  error
}

// hosts returns the shared cluster's; a failed start fails every test that asks.
func hosts(t *testing.T) *cluster {
	t.Helper()
	shared.once.Do(func() { shared.made, shared.err = newCluster(context.Background(), lab.Config{Nodes: 3}) })
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.made
}

// ownCluster makes a cluster for one test, like ownLab.
func ownCluster(t *testing.T, config lab.Config) *cluster {
	t.Helper()
	c, err := newCluster(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	closeAtEnd(t, c.Lab)
	return c
}

// close removes the cluster, if there is one; the logs of a failed run stay.
func (s *sharedCluster) close(failed bool) error {
	if s.made == nil {
		return nil
	}
	if failed {
		s.made.KeepLogs()
		fmt.Printf("%slogs: %s\n", s.made.Tails(), s.made.Logs())
	}
	return s.made.Close()
}

// networkName is the name of the running test's network: its own name, as Docker and netdriver allow it.
func networkName(t *testing.T) string {
	name := strings.ToLower(strings.TrimPrefix(t.Name(), "Test"))
	name = strings.NewReplacer("/", "-", "_", "-", " ", "-").Replace(name)
	return name[:min(len(name), 40)]
}
