package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/netdriver/netdriver/internal/door"
)

// runDir is where a node's daemon has its sockets, by default.
const runDir = "/run/netdriver"

// StartSwarm gives every node's dockerd netdriver's managed plugin, under a name with its tag, and makes one swarm of
// them, of which all are managers and the first is the leader.
func (l *Lab) StartSwarm(ctx context.Context, plugin string) error {
	if err := l.each(func(n *Node) error { return n.addPlugin(ctx, plugin) }); err != nil {
		return err
	}
	for _, n := range l.Nodes {
		// There is no registry, and no route to one: Docker would wait 20 s for each service and task.
		if _, err := n.Exec(ctx, "ip", "route", "replace", "unreachable", "default"); err != nil {
			return err
		}
	}
	first := l.Nodes[0]
	addr := first.Addr.String()
	if _, err := first.Docker(ctx, "swarm", "init", "--advertise-addr", addr, "--listen-addr", addr); err != nil {
		return err
	}
	token, err := first.Docker(ctx, "swarm", "join-token", "--quiet", "manager")
	if err != nil {
		return err
	}
	for _, n := range l.Nodes[1:] {
		if err := n.joinSwarm(ctx, strings.TrimSpace(token), addr+":2377"); err != nil {
			return err
		}
	}
	return nil
}

// swarmLimit is how long a node may take to become a part of a swarm.
const swarmLimit = 60 * time.Second

// joinSwarm makes the node one of a swarm's. Docker's command waits for 20 s, which is short for a busy virtual node.
func (n *Node) joinSwarm(ctx context.Context, token, manager string) error {
	_, err := n.Docker(ctx, "swarm", "join", "--token", token, "--advertise-addr", n.Addr.String(),
		"--listen-addr", n.Addr.String(), manager)
	for end := time.Now().Add(n.Patience(swarmLimit)); err != nil && time.Now().Before(end); {
		if !strings.Contains(err.Error(), "will continue in the background") {
			return err
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-time.After(time.Second):
		}
		if state, failed := n.Docker(ctx, "info", "--format", "{{.Swarm.LocalNodeState}}"); failed == nil &&
			strings.TrimSpace(state) == "active" {
			return nil
		}
	}
	return err
}

// addPlugin makes and enables the managed plugin, as `netdriver install --swarm` does on a host with systemd.
func (n *Node) addPlugin(ctx context.Context, name string) error {
	dir, file := filepath.Join(n.Dir, "plugin"), filepath.Join(n.Dir, "plugin.tar")
	err := errors.Join(os.MkdirAll(dir, 0o755), writePlugin(file, n.lab.config.Binary))
	for _, command := range [][]string{
		{"tar", "-xf", file, "-C", dir},
		{"docker", "plugin", "create", name, dir},
		{"docker", "plugin", "enable", name},
	} {
		if err == nil {
			_, err = n.Exec(ctx, command...)
		}
	}
	if err != nil {
		return fmt.Errorf("make plugin %s on %s: %w", name, n.Name, err)
	}
	return nil
}

// writePlugin writes what `docker plugin create` wants, as a tar file.
func writePlugin(name, binary string) error {
	config, err := door.Config(runDir)
	if err != nil {
		return err
	}
	program, err := os.Open(binary)
	if err != nil {
		return err
	}
	defer program.Close()
	info, err := program.Stat()
	if err != nil {
		return err
	}
	archive, err := os.Create(name)
	if err != nil {
		return err
	}
	return errors.Join(door.WriteArchive(archive, config, program, info.Size()), archive.Close())
}
