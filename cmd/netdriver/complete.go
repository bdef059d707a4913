package main

import (
	"cmp"
	"context"

	"github.com/spf13/cobra"

	"github.com/netdriver/netdriver/diag"
	"github.com/netdriver/netdriver/internal/control"
)

// completion is what cobra asks for the words that may follow.
type completion = func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective)

// completing makes a completion of names that the daemon knows. Without a daemon there are none.
func (a app) completing(names func(ctx context.Context, c *control.Client, args []string) ([]string, error)) completion {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		client, err := a.client(cmd)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		found, err := names(cmd.Context(), client, args)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return found, cobra.ShellCompDirectiveNoFileComp
	}
}

// completeFlags lets the shell complete the values of flags that several verbs have.
func (a app) completeFlags(cmd *cobra.Command) {
	nodes := a.completeNodes()
	formats := func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return []string{"text", "json"}, cobra.ShellCompDirectiveNoFileComp
	}
	networks := func(cmd *cobra.Command, _ []string, word string) ([]string, cobra.ShellCompDirective) {
		return a.completeNetworks(cmd, nil, word)
	}
	for flag, f := range map[string]completion{"output": formats, "format": formats, "network": networks, "peer": nodes, "node": nodes} {
		if found := cmd.Flags().Lookup(flag); found != nil && cmd.Name() != "run" { // run's --node is a name to choose
			_ = cmd.RegisterFlagCompletionFunc(flag, f) // fails only if it is done twice
		}
	}
	for _, sub := range cmd.Commands() {
		a.completeFlags(sub)
	}
}

// completeNodes lets the shell complete the cluster's nodes.
func (a app) completeNodes() completion {
	return a.completing(func(ctx context.Context, c *control.Client, _ []string) (names []string, err error) {
		r, err := c.Nodes(ctx)
		for _, n := range r.Nodes {
			names = append(names, n.Name)
		}
		return names, err
	})
}

// completeContainers lets the shell complete what a trace may be from and to: containers of all networks.
func (a app) completeContainers() completion {
	return a.completing(func(ctx context.Context, c *control.Client, args []string) (names []string, err error) {
		all, err := c.Networks(ctx)
		if len(args) > 1 || err != nil {
			return nil, err
		}
		for _, n := range all.Networks {
			r, err := c.Network(ctx, n.Network)
			if err != nil {
				continue // it is gone
			}
			names = append(names, endpointNames(r)...)
		}
		return names, nil
	})
}

// completeEndpoints lets the shell complete a network, and then an endpoint of it.
func (a app) completeEndpoints() completion {
	return func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		if len(args) == 0 {
			return a.completeNetworks(cmd, args, word)
		}
		return a.completing(func(ctx context.Context, c *control.Client, args []string) ([]string, error) {
			if len(args) > 1 {
				return nil, nil
			}
			r, err := c.Network(ctx, args[0])
			return endpointNames(r), err
		})(cmd, args, word)
	}
}

func endpointNames(r diag.NetworkReport) (names []string) {
	for _, e := range r.Endpoints {
		names = append(names, cmp.Or(e.Task, e.Container, e.ID))
	}
	return names
}
