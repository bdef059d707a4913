package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/netdriver/netdriver/test/e2e/lab"
)

// network is the cluster network of the demo, subnet its addresses.
const (
	network = "my-net"
	subnet  = "10.10.0.0/24"
)

// storePort is etcd's registered client port.
const storePort = 2379

// hosts are the two Docker hosts of the demo.
type hosts struct {
	*show
	lab           *lab.Lab
	first, second *lab.Node
}

func newHosts(show *show, l *lab.Lab) *hosts {
	return &hosts{show: show, lab: l, first: l.Nodes[0], second: l.Nodes[1]}
}

// steps are the demo, in order.
func (h *hosts) steps() []step {
	return []step{
		{"two Docker hosts", h.startDocker},
		{"netdriver on both: the first holds the store, the second uses it over mutual TLS", h.startDaemons},
		{"one network over both hosts", h.createNetwork},
		{"a web server on each host", h.startContainers},
		{"ping and HTTP from one host's container to the other's", h.reach},
		{"what netdriver knows", h.inspect},
		{"clean up", h.remove},
	}
}

func (h *hosts) startDocker(ctx context.Context) error { return h.startDockers(ctx, h.lab) }

func (h *hosts) startDaemons(ctx context.Context) error {
	certificates, err := lab.Certificates(filepath.Join(h.lab.Dir, "tls"), h.first.Addr, h.second.Addr)
	if err != nil {
		return err
	}
	store := fmt.Sprintf("https://%s:%d", h.first.Addr, storePort)
	if err := h.startDaemon(ctx, h.first, lab.DaemonConfig{
		StoreListen: store, Certificate: certificates[h.first.Addr],
	}); err != nil {
		return err
	}
	return h.startDaemon(ctx, h.second, lab.DaemonConfig{
		Store: []string{store}, Certificate: certificates[h.second.Addr],
	})
}

func (h *hosts) startDaemon(ctx context.Context, n *lab.Node, config lab.DaemonConfig) error {
	h.command(n, config.Command(n))
	return n.StartDaemon(ctx, config)
}

func (h *hosts) createNetwork(ctx context.Context) error {
	for _, n := range h.lab.Nodes {
		_, err := h.exec(ctx, n, "docker", "network", "create",
			"-d", "custom-overlay", "--ipam-driver", "custom-overlay", "--subnet", subnet,
			"--opt", "network="+network, "--ipam-opt", "network="+network, network)
		if err != nil {
			return err
		}
	}
	return nil
}

func (h *hosts) startContainers(ctx context.Context) error {
	const serve = `echo "hello from $(hostname)" >/www/index.html; exec httpd -f -h /www`
	for _, n := range h.lab.Nodes {
		_, err := h.exec(ctx, n, "docker", "run", "--detach", "--name", "web", "--hostname", "web-"+n.Name,
			"--network", network, lab.Image, "sh", "-c", serve)
		if err != nil {
			return err
		}
	}
	return nil
}

func (h *hosts) reach(ctx context.Context) error {
	for _, pair := range [][2]*lab.Node{{h.first, h.second}, {h.second, h.first}} {
		from, to := pair[0], pair[1]
		format := "{{(index .NetworkSettings.Networks \"" + network + "\").IPAddress}}"
		addr, err := h.exec(ctx, to, "docker", "inspect", "--format", format, "web")
		if err != nil {
			return err
		}
		addr = strings.TrimSpace(addr)
		if _, err := h.exec(ctx, from, "docker", "exec", "web", "ping", "-c", "2", "-W", "2", addr); err != nil {
			return err
		}
		page, err := h.exec(ctx, from, "docker", "exec", "web", "timeout", "5", "wget", "-q", "-O", "-", "http://"+addr+"/")
		if err != nil {
			return err
		}
		if want := "hello from web-" + to.Name; strings.TrimSpace(page) != want {
			return fmt.Errorf("http://%s/ says %q, want %q", addr, page, want)
		}
	}
	return nil
}

func (h *hosts) inspect(ctx context.Context) error {
	text, err := h.exec(ctx, h.second, "netdriver", "inspect", network)
	if err != nil {
		return err
	}
	for _, n := range h.lab.Nodes {
		if !strings.Contains(text, n.Name) {
			return fmt.Errorf("netdriver inspect %s does not mention node %s", network, n.Name)
		}
	}
	return nil
}

// remove takes everything down as a user would; the lab then removes the hosts themselves.
func (h *hosts) remove(ctx context.Context) error {
	for _, n := range h.lab.Nodes {
		if _, err := h.exec(ctx, n, "docker", "rm", "--force", "web"); err != nil {
			return err
		}
		if _, err := h.exec(ctx, n, "docker", "network", "rm", network); err != nil {
			return err
		}
	}
	return nil
}
