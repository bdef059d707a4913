package main

import (
	"fmt"
	"os"

	"github.com/docker/docker/client"
	"github.com/spf13/cobra"

	"github.com/netdriver/netdriver/internal/config"
	"github.com/netdriver/netdriver/internal/install"
)

// install is the verb that puts netdriver on a host.
func (a app) install() *cobra.Command {
	cmd := &cobra.Command{Use: "install", Short: "Set netdriver up on this host", Args: cobra.NoArgs}
	dry := cmd.Flags().Bool("dry-run", false, "say what would be done and do nothing")
	swarm := cmd.Flags().Bool("swarm", false, "also make Docker's managed plugin "+install.PluginName)
	config.AddFlags(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := config.Load(cmd.Flags(), a.environ)
		if err != nil {
			return err
		}
		self, err := os.Executable()
		if err != nil {
			return err
		}
		docker, err := client.NewClientWithOpts(client.WithHost(cfg.DockerHost), client.WithAPIVersionNegotiation())
		if err != nil {
			return fmt.Errorf("docker engine %s: %w", cfg.DockerHost, err)
		}
		defer docker.Close()
		steps, err := install.New(install.Config{Self: self, RunDir: cfg.RunDir, Docker: docker}).Plan(cmd.Context(), *swarm)
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
		return install.Run(cmd.Context(), steps, show)
	}
	return cmd
}
