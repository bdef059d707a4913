package lab

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// dockerLimit is how long dockerd may take to answer or to stop. It gives its own containers 10 s to stop.
const dockerLimit = 60 * time.Second

// dockerSocket is where dockerd listens in every node, Docker's default.
const dockerSocket = "/run/docker.sock"

// StartDocker starts the node's dockerd and waits until it answers. The arguments are added to its command line.
func (n *Node) StartDocker(ctx context.Context, args ...string) error {
	if n.docker != nil && !n.docker.ended() {
		return fmt.Errorf("start dockerd on %s: it is running", n.Name)
	}
	// An empty configuration of its own keeps the machine's /etc/docker/daemon.json out.
	config := filepath.Join(n.Dir, "daemon.json")
	if err := os.WriteFile(config, []byte("{}\n"), 0o644); err != nil {
		return fmt.Errorf("start dockerd on %s: %w", n.Name, err)
	}
	command := []string{"dockerd",
		"--config-file", config,
		"--data-root", filepath.Join(n.Dir, "docker"),
		"--host", "unix://" + dockerSocket,
		"--exec-opt", "native.cgroupdriver=cgroupfs",
	}
	if n.virtual() {
		command = append(command, n.engineArgs()...)
	} else {
		// Managed plugins, unlike containers, get control groups below dockerd's own.
		join := []string{"bash", "-c", joinScript + `exec "$@"`, n.lab.cgroup + "/" + n.Name + "-dockerd"}
		command = slices.Concat(join, command, []string{"--cgroup-parent", "/" + n.lab.cgroup + "/" + n.Name})
	}
	if err := n.startContainerd(); err != nil {
		return fmt.Errorf("start containerd on %s: %w", n.Name, err)
	}
	p, err := n.start("dockerd", nil, append(command, args...)...)
	if err != nil {
		return fmt.Errorf("start dockerd on %s: %w", n.Name, err)
	}
	n.docker = p
	answers := func(ctx context.Context) error {
		connection, err := n.Dial(ctx, dockerSocket)
		if err != nil {
			return err
		}
		connection.Close()
		_, err = n.Docker(ctx, "info", "--format", "{{.ServerVersion}}")
		return err
	}
	if err := p.waitFor(ctx, n.Patience(dockerLimit), answers); err != nil {
		return fmt.Errorf("start dockerd on %s: %w", n.Name, err)
	}
	return nil
}

// StopDocker sends a signal to dockerd and waits for its end. SIGKILL leaves containers running, as does any
// signal with dockerd's --live-restore.
func (n *Node) StopDocker(signal syscall.Signal) error {
	if n.docker == nil {
		return fmt.Errorf("stop dockerd on %s: it was not started", n.Name)
	}
	if err := n.docker.stop(signal, n.Patience(dockerLimit)); err != nil {
		return fmt.Errorf("stop dockerd on %s: %w", n.Name, err)
	}
	// After a SIGKILL the old socket file would look like a dockerd that does not answer.
	if _, err := n.Exec(context.Background(), "rm", "-f", dockerSocket); err != nil {
		return fmt.Errorf("stop dockerd on %s: %w", n.Name, err)
	}
	return nil
}

// Docker runs the docker command against the node's dockerd and returns its standard output.
func (n *Node) Docker(ctx context.Context, args ...string) (string, error) {
	return n.Exec(ctx, append([]string{"docker"}, args...)...)
}

// InContainer prepares a command in a container's network namespace with the node's programs. Unlike `docker exec`
// it does not depend on a running dockerd once it has been prepared.
func (n *Node) InContainer(ctx context.Context, container string, args ...string) (*exec.Cmd, error) {
	pid, err := n.Docker(ctx, "inspect", "--format", "{{.State.Pid}}", container)
	if err != nil {
		return nil, err
	}
	return n.command(ctx, append([]string{"nsenter", "--net", "--target", strings.TrimSpace(pid)}, args...)...), nil
}
