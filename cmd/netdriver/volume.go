package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/netdriver/netdriver/internal/config"
	"github.com/netdriver/netdriver/volume"
)

const volumeLong = `Look at volumes, change them, back them up.

Volumes are made by Docker:
  docker volume create -d custom-volume -o type=nfs -o o=addr=192.168.1.100,rw -o device=:/path/to/share nfs-data`

// volume is the group of verbs for volumes.
func (a app) volume() *cobra.Command {
	cmd := group(&cobra.Command{Use: "volume", Short: "Look at volumes, change them, back them up", Long: volumeLong})
	cmd.AddCommand(
		a.volumeList(), a.volumeInspect(), a.volumeCheck(), a.volumeAbort(), a.volumeUpdate(), a.volumeBackup(), a.volumeRestore(),
		a.volumeVerify(), a.volumeRemove(),
	)
	return cmd
}

// askVolumes gives a verb the flags of those that ask the daemon about volumes, and returns what it runs.
func (a app) askVolumes(
	cmd *cobra.Command, question func(context.Context, *volume.Client, []string) (answer, error),
) func(*cobra.Command, []string) error {
	output := cmd.Flags().String("format", "text", "`format`: text or json")
	config.AddFlags(cmd.Flags(), "run-dir")
	return func(cmd *cobra.Command, args []string) error {
		if *output != "text" && *output != "json" {
			return fmt.Errorf("--format %q: want text or json", *output)
		}
		client, err := a.volumeClient(cmd)
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), askDaemon)
		defer cancel()
		r, err := question(ctx, client, args)
		if err != nil {
			return err
		}
		if *output == "json" {
			return writeJSON(a.out, r.report)
		}
		_, err = fmt.Fprint(a.out, r.text(a.painter()))
		return err
	}
}

func (a app) volumeClient(cmd *cobra.Command) (*volume.Client, error) {
	cfg, err := config.Load(cmd.Flags(), a.environ, "run-dir")
	if err != nil {
		return nil, err
	}
	return volume.NewClient(volume.ControlPath(cfg.RunDir)), nil
}

func (a app) volumeList() *cobra.Command {
	cmd := &cobra.Command{Use: "ls", Short: "List the cluster's volumes", Args: cobra.NoArgs}
	cmd.RunE = a.askVolumes(cmd, func(ctx context.Context, c *volume.Client, _ []string) (answer, error) {
		list, err := c.List(ctx)
		return answer{report: list, text: func(p painter) string { return p.volumes(list) }}, err
	})
	return cmd
}

// volumesSchema names the version of the JSON of `netdriver volumes`.
const volumesSchema = "netdriver.volumes/v1"

// volumesReport lists the cluster's volumes.
type volumesReport struct {
	Schema  string          `json:"schema"`
	Volumes []volume.Report `json:"volumes"`
}

// volumesVerb is `volume ls` among the verbs that list: networks, nodes, volumes.
func (a app) volumesVerb() *cobra.Command {
	cmd := &cobra.Command{Use: "volumes", Short: "List the cluster's volumes, with their health on all nodes", Args: cobra.NoArgs}
	cmd.RunE = a.shows(cmd, func(ctx context.Context, runDir string, _ []string) (answer, error) {
		list, err := volume.NewClient(volume.ControlPath(runDir)).List(ctx)
		return answer{report: volumesReport{volumesSchema, list}, text: func(p painter) string { return p.volumes(list) }}, err
	})
	return cmd
}

// volumeReport makes a verb that answers with a volume's report.
func (a app) volumeReport(
	cmd *cobra.Command, question func(context.Context, *volume.Client, string) (volume.Report, error),
) *cobra.Command {
	cmd.Args, cmd.ValidArgsFunction = cobra.ExactArgs(1), a.completeVolumes
	cmd.RunE = a.askVolumes(cmd, func(ctx context.Context, c *volume.Client, args []string) (answer, error) {
		r, err := question(ctx, c, args[0])
		return answer{report: r, text: func(p painter) string { return p.volume(r) }}, err
	})
	return cmd
}

func (a app) volumeInspect() *cobra.Command {
	return a.volumeReport(&cobra.Command{
		Use: "inspect VOLUME", Short: "Show a volume, without asking its server",
	}, func(ctx context.Context, c *volume.Client, name string) (volume.Report, error) {
		return c.Inspect(ctx, name)
	})
}

func (a app) volumeCheck() *cobra.Command {
	return a.volumeReport(&cobra.Command{
		Use: "check VOLUME", Short: "Ask a volume's server: mount it for a moment if nobody on this node uses it",
	}, func(ctx context.Context, c *volume.Client, name string) (volume.Report, error) {
		return c.Check(ctx, name)
	})
}

func (a app) volumeAbort() *cobra.Command {
	cmd := &cobra.Command{
		Use: "abort VOLUME", Short: "Free what waits for a volume of GlusterFS or ceph-fuse that hangs on this node",
		Long: "End the FUSE connection of a volume that hangs on this node: whatever waits for it gets an error, so that its containers\n" +
			"can be stopped, which SIGKILL does not achieve. They keep a dead mount until then; the next user gets a new one.\n" +
			"What they had not yet written is lost.",
	}
	force := cmd.Flags().Bool("force", false, "also if its server answers")
	return a.volumeReport(cmd, func(ctx context.Context, c *volume.Client, name string) (volume.Report, error) {
		return c.Abort(ctx, name, *force)
	})
}

func (a app) volumeUpdate() *cobra.Command {
	var set, unset []string
	cmd := &cobra.Command{
		Use: "update VOLUME -o KEY=VALUE…", Short: "Change a volume's options",
		Long: "Change a volume's options on all nodes. A node that uses the volume goes on with the old ones until its last\n" +
			"container that uses it has ended.",
	}
	a.volumeReport(cmd, func(ctx context.Context, c *volume.Client, name string) (volume.Report, error) {
		r := volume.UpdateRequest{Name: name, Set: map[string]string{}, Unset: unset}
		for _, text := range set {
			key, value, ok := strings.Cut(text, "=")
			if !ok {
				return volume.Report{}, fmt.Errorf("-o %s: want KEY=VALUE", text)
			}
			r.Set[key] = value
		}
		if len(r.Set)+len(unset) == 0 {
			return volume.Report{}, fmt.Errorf("nothing to change: give -o KEY=VALUE or --unset KEY")
		}
		return c.Update(ctx, r)
	})
	cmd.Flags().StringArrayVarP(&set, "opt", "o", nil, "set an `option`, as docker volume create does")
	cmd.Flags().StringArrayVar(&unset, "unset", nil, "remove the option `KEY`")
	return cmd
}

// completeVolumes lets the shell complete volume names.
func (a app) completeVolumes(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	client, err := a.volumeClient(cmd)
	if err != nil || len(args) > 0 {
		return nil, cobra.ShellCompDirectiveDefault
	}
	list, err := client.List(cmd.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, v := range list {
		names = append(names, v.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
