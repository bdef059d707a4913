package lab

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/netdriver/netdriver/test/e2e/lab/guest"
)

// slowness is how much longer than elsewhere things may take in a virtual node: its instructions are emulated.
const slowness = 4

// Patience is how long something may take in this node that takes at most the limit in a namespace node.
func (n *Node) Patience(limit time.Duration) time.Duration {
	if n.virtual() {
		return slowness * limit
	}
	return limit
}

// containerdSocket is where a virtual node's containerd listens, its default.
const containerdSocket = "/run/containerd/containerd.sock"

// containerdConfig leaves out what dockerd does not use: each plugin costs time at the start.
const containerdConfig = `version = 2
root = %q
disabled_plugins = [
  "io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt", "io.containerd.internal.v1.tracing",
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.tracing.processor.v1.otlp",
]
`

// startContainerd starts a virtual node's containerd, unless it runs. On a host with systemd it is a service of its
// own as well; one that dockerd starts itself has 15 s to answer, which is not enough here (moby's
// libcontainerd/supervisor/remote_daemon.go: startupTimeout).
func (n *Node) startContainerd() error {
	if !n.virtual() || n.containerd != nil && !n.containerd.ended() {
		return nil
	}
	config := filepath.Join(n.Dir, "containerd.toml")
	text := fmt.Sprintf(containerdConfig, filepath.Join(n.Dir, "docker", "containerd", "daemon"))
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		return err
	}
	p, err := n.start("containerd", nil, "containerd", "--config", config)
	n.containerd = p
	return err
}

// engineArgs are what dockerd is told because its node is a virtual one: where its containerd is, and to listen for the
// docker command outside.
func (n *Node) engineArgs() []string {
	_, inside := manage()
	engine := netip.AddrPortFrom(inside.Addr(), guest.EnginePort)
	return []string{"--containerd", containerdSocket, "--host", "tcp://" + engine.String(), "--tls=false"}
}
