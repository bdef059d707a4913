package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/internal/config"
	"github.com/netdriver/netdriver/internal/plugin"
	"github.com/netdriver/netdriver/store"
	"github.com/netdriver/netdriver/volume"
	"github.com/netdriver/netdriver/volume/mount"
	"github.com/netdriver/netdriver/volume/tunnel"
)

// volumeChild is the verb of the processes that mount: see package volume/mount.
const volumeChild = "volume-child"

// volumeTunnel is the verb of the processes that carry NFS through TLS: see package volume/tunnel.
const volumeTunnel = "volume-tunnel"

// volumeRetry is the pause after which volumes are tried again when their journal could not be read.
const volumeRetry = 10 * time.Second

// volumes are the daemon's parts that serve volumes.
func volumes(
	cfg config.Config, s store.Store, engine volume.Docker, observe func(string, error, time.Duration), log *slog.Logger,
) ([]part, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program's own file: %w", err)
	}
	d, err := volume.New(volume.Config{
		Store: s, Node: cfg.Node, Dir: filepath.Join(cfg.DataDir, "volumes"), Mounts: filepath.Join(cfg.RunDir, "volumes"),
		Mounter: mount.NewProcesses(self, volumeChild), Tunnel: []string{self, volumeTunnel}, Docker: engine, Log: log,
		Backup: func(ctx context.Context, name, to string, keep int) error {
			return scheduledBackup(ctx, self, cfg.RunDir, name, to, keep)
		},
	})
	if err != nil {
		return nil, err
	}
	docker := plugin.New(plugin.Config{Methods: d.Methods(), Log: log, Observe: observe})
	verbs := plugin.New(plugin.Config{Methods: d.ControlMethods(), Log: log})
	recovered := make(chan struct{})
	// after runs f once the last daemon's mounts are this one's.
	after := func(f func(context.Context) error) func(context.Context) error {
		return func(ctx context.Context) error {
			select {
			case <-recovered:
				return f(ctx)
			case <-ctx.Done():
				return nil
			}
		}
	}
	return []part{
		{"volumes' recovery", func(ctx context.Context) error { return recoverVolumes(ctx, d, recovered, log) }},
		{"volumes", after(d.Run)},
		{"volume plugin", after(func(ctx context.Context) error {
			return docker.Serve(ctx, filepath.Join(cfg.SocketDir, volume.Socket))
		})},
		{"volumes' local socket", after(func(ctx context.Context) error {
			return verbs.Serve(ctx, volume.ControlPath(cfg.RunDir))
		})},
	}, nil
}

// scheduledBackup backs a volume up by a process of its own: it may need much memory, and its reads may wait for a server.
func scheduledBackup(ctx context.Context, self, runDir, name, to string, keep int) error {
	cmd := exec.CommandContext(ctx, self, "volume", "backup", name, "--output", volumeOutput+to, "--keep", strconv.Itoa(keep),
		"--run-dir", runDir)
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	said, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, bytes.TrimSpace(said))
	}
	return nil
}

// recoverVolumes tries until the journal can be read: networks do not wait for it.
func recoverVolumes(ctx context.Context, d *volume.Driver, recovered chan<- struct{}, log *slog.Logger) error {
	for {
		err := d.Recover(ctx)
		if err == nil {
			close(recovered)
			<-ctx.Done()
			return nil
		}
		log.Error("volumes are not served", "error", err, "retry", volumeRetry)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(volumeRetry):
		}
	}
}

// volumeChildVerb is what such a process runs.
func (a app) volumeChildVerb() *cobra.Command {
	return &cobra.Command{
		Use: volumeChild, Short: "Mount for the daemon", Args: cobra.NoArgs, Hidden: true,
		RunE: func(*cobra.Command, []string) error {
			if code := mount.Child(os.Stdin, a.out); code != 0 {
				return status{code, errors.New("no task could be done")}
			}
			return nil
		},
	}
}

// volumeTunnelVerb is what such a process runs.
func (a app) volumeTunnelVerb() *cobra.Command {
	return &cobra.Command{
		Use: volumeTunnel, Short: "Carry NFS through TLS for the daemon", Args: cobra.NoArgs, Hidden: true,
		RunE: func(*cobra.Command, []string) error {
			if code := tunnel.Main(os.Stdin, a.out); code != 0 {
				return status{code, errors.New("the tunnel could not be opened")}
			}
			return nil
		},
	}
}
