package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/docker/docker/client"
	"github.com/spf13/cobra"

	"github.com/netdriver/netdriver/internal/config"
	"github.com/netdriver/netdriver/internal/control"
	"github.com/netdriver/netdriver/internal/install"
	"github.com/netdriver/netdriver/volume"
)

const installLong = `Set netdriver up on this host: the program in /usr/local/bin, the settings given here in the
configuration file, a service of systemd that is started now and at boot and, with --swarm, Docker's managed plugin
` + install.PluginName + `.

Run it again with another program to upgrade, or with other settings to change them: what is as it should be is left
alone, the daemon is restarted if it has to be, and networks and containers go on meanwhile.`

const uninstallLong = `Take netdriver off this host: the managed plugin, Docker's networks of ours, the service, all that
is ours in the kernel, and the program. The node's identity, the embedded store, local volumes and the settings stay,
unless --purge is given.

It is refused while containers use our networks. A node of a cluster should leave it before.`

// install is the verb that puts netdriver on a host.
func (a app) install() *cobra.Command {
	cmd := &cobra.Command{Use: "install", Short: "Set netdriver up on this host", Long: installLong, Args: cobra.NoArgs}
	swarm := cmd.Flags().Bool("swarm", false, "also make Docker's managed plugin "+install.PluginName)
	a.change(cmd, func(ctx context.Context, i *install.Installer) ([]install.Step, error) { return i.Plan(ctx, *swarm) })
	return cmd
}

// uninstall is the verb that takes it off again.
func (a app) uninstall() *cobra.Command {
	cmd := &cobra.Command{
		Use: "uninstall", Short: "Take netdriver off this host", Long: uninstallLong, Args: cobra.NoArgs,
	}
	var r install.Removal
	cmd.Flags().BoolVar(&r.Force, "force", false, "also while containers use our networks, which cuts them off")
	cmd.Flags().BoolVar(&r.Purge, "purge", false,
		"also the node's identity, the embedded store, local volumes and the settings")
	a.change(cmd, func(ctx context.Context, i *install.Installer) ([]install.Step, error) { return i.PlanRemoval(ctx, r) })
	return cmd
}

// change makes cmd a verb that changes this host in the steps that plan returns, or only says them with --dry-run.
func (a app) change(cmd *cobra.Command, plan func(context.Context, *install.Installer) ([]install.Step, error)) {
	dry := cmd.Flags().Bool("dry-run", false, "say what would be done and do nothing")
	config.AddFlags(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		i, closing, err := a.installer(cmd)
		if err != nil {
			return err
		}
		defer closing()
		steps, err := plan(cmd.Context(), i)
		if err != nil {
			return err
		}
		show := func(s install.Step) { fmt.Fprintln(a.out, s.Command) }
		if *dry {
			for _, s := range steps {
				show(s)
			}
			return nil
		}
		if err := install.Run(cmd.Context(), steps, show); err != nil {
			return err
		}
		if len(steps) == 0 {
			fmt.Fprintln(a.out, "nothing to do")
		}
		return nil
	}
}

// installer makes an Installer of this host and of what the command line gives.
func (a app) installer(cmd *cobra.Command) (i *install.Installer, closing func(), err error) {
	given, err := config.Gather(cmd.Flags(), a.environ)
	if err != nil {
		return nil, nil, err
	}
	file, err := cmd.Flags().GetString("config")
	if err == nil && file != "" {
		file, err = filepath.Abs(file)
	}
	if err != nil {
		return nil, nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, nil, fmt.Errorf("find this program's file: %w", err)
	}
	cfg, err := config.Load(cmd.Flags(), a.environ, "docker-host")
	if err != nil {
		return nil, nil, err
	}
	docker, err := client.NewClientWithOpts(client.WithHost(cfg.DockerHost), client.WithAPIVersionNegotiation())
	if err != nil {
		return nil, nil, fmt.Errorf("docker engine %s: %w", cfg.DockerHost, err)
	}
	i, err = install.New(install.Config{
		Self: self, Version: version(), File: file, Given: given, Systemd: install.Systemctl{}, Docker: docker,
		Kernel: remains{}, Mounts: install.Mounted, Answers: answers,
		Sockets: []string{pluginSocket, volume.Socket},
	})
	return i, func() { docker.Close() }, err
}

// answers asks the daemon with a run directory for its version.
func answers(ctx context.Context, runDir string) (string, error) {
	h, err := control.NewClient(control.SocketPath(runDir)).Health(ctx)
	return h.Version, err
}
