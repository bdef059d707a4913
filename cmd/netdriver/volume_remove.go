package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/netdriver/netdriver/internal/config"
	"github.com/netdriver/netdriver/volume"
)

// volumeRemove removes a volume, with its data if that is asked for by name.
func (a app) volumeRemove() *cobra.Command {
	cmd := &cobra.Command{
		Use: "rm VOLUME", Short: "Remove a volume from the cluster; its data stays unless --purge",
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeVolumes,
	}
	purge := cmd.Flags().Bool("purge", false, "delete everything in the volume first, also on its server")
	config.AddFlags(cmd.Flags(), "run-dir")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		client, err := a.volumeClient(cmd)
		if err != nil {
			return err
		}
		if *purge {
			if err := purgeVolume(cmd, client, args[0]); err != nil {
				return err
			}
		}
		return client.Remove(cmd.Context(), args[0])
	}
	return cmd
}

// purgeVolume deletes what is in a volume that nobody uses.
func purgeVolume(cmd *cobra.Command, client *volume.Client, name string) (err error) {
	ctx := cmd.Context()
	r, err := client.Inspect(ctx, name)
	if err != nil {
		return err
	}
	if len(r.Users) > 0 || len(r.References) > 0 {
		return fmt.Errorf("purge volume %s: it is in use: stop the containers that use it first", name)
	}
	h, err := hold(ctx, client, name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.drop()) }()
	if err := emptyRoot(h.root); err != nil {
		return fmt.Errorf("purge volume %s: %w", name, err)
	}
	return nil
}

// emptyRoot deletes what is in a directory, and follows no link out of it.
func emptyRoot(root *os.Root) error {
	dir, err := root.Open(".")
	if err != nil {
		return err
	}
	names, err := dir.Readdirnames(-1)
	errs := []error{err, dir.Close()}
	for _, name := range names {
		errs = append(errs, root.RemoveAll(name))
	}
	return errors.Join(errs...)
}
