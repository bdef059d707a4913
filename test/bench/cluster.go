package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"

	"github.com/netdriver/netdriver/test/e2e/lab"
)

// storeURL is where the first node serves its embedded store to the others, at etcd's usual port.
func storeURL(n *lab.Node) string { return fmt.Sprintf("https://%s", netip.AddrPortFrom(n.Addr, 2379)) }

// withCluster is withDaemons where there is no Docker engine: f plays its part.
func withCluster(ctx context.Context, b *bench, nodes int, f func(*lab.Lab) ([]Result, error)) ([]Result, error) {
	return withDaemons(ctx, b, lab.Config{Nodes: nodes}, []string{"--docker-host", ""}, f)
}

// withDaemons makes nodes that each run the real daemon, the first with the embedded store, the others as its clients
// over mutual TLS, calls f and removes all of it.
func withDaemons(
	ctx context.Context, b *bench, config lab.Config, args []string, f func(*lab.Lab) ([]Result, error),
) (results []Result, err error) {
	dir, err := os.MkdirTemp(b.dir, "lab-")
	if err != nil {
		return nil, err
	}
	config.Binary, config.Dir = b.binary, dir
	l, err := lab.New(ctx, config)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			l.KeepLogs()
			err = fmt.Errorf("%w (logs in %s)", err, l.Logs())
		}
		if failed := l.Close(); failed != nil && err == nil {
			err = fmt.Errorf("remove the nodes: %w", failed)
		}
	}()
	if err := startDaemons(ctx, l, args); err != nil {
		return nil, err
	}
	return f(l)
}

func startDaemons(ctx context.Context, l *lab.Lab, args []string) error {
	var addrs []netip.Addr
	for _, n := range l.Nodes {
		addrs = append(addrs, n.Addr)
	}
	certificates, err := lab.Certificates(filepath.Join(l.Dir, "tls"), addrs...)
	if err != nil {
		return fmt.Errorf("make certificates: %w", err)
	}
	for i, n := range l.Nodes {
		config := lab.DaemonConfig{Certificate: certificates[n.Addr], Args: args}
		if i == 0 {
			config.StoreListen = storeURL(n)
		} else {
			config.Store = []string{storeURL(l.Nodes[0])}
		}
		if err := n.StartDaemon(ctx, config); err != nil {
			return err
		}
	}
	return nil
}

// engineOf plays dockerd on a node.
func engineOf(n *lab.Node) *engine { return engineAt(n, "/run/docker/plugins/custom-overlay.sock") }

// engineAt makes calls at a socket in a node.
func engineAt(n *lab.Node, socket string) *engine {
	return newEngine(func(ctx context.Context) (net.Conn, error) { return n.Dial(ctx, socket) })
}

// virtually runs benchmarks of a table in a node with a kernel of its own.
func virtually(ctx context.Context, b *bench, kernel lab.Kernel, table, names string) (results []Result, err error) {
	dir, err := os.MkdirTemp(b.dir, "lab-")
	if err != nil {
		return nil, err
	}
	l, err := lab.New(ctx, lab.Config{Nodes: 1, Virtual: true, Kernel: kernel, Dir: dir})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	out, err := l.Nodes[0].Exec(ctx, program, "-json", "-table", table, "-run", names, "-rounds", strconv.Itoa(b.rounds), "-binary", b.binary)
	if err != nil {
		return nil, err
	}
	return results, json.Unmarshal([]byte(out), &results)
}
