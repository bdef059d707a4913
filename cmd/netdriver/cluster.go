package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"

	"github.com/netdriver/netdriver/internal/cluster"
	"github.com/netdriver/netdriver/internal/config"
	"github.com/netdriver/netdriver/internal/control"
)

// changeDaemon is what a change of the cluster may take, the daemon's new start included.
const changeDaemon = 90 * time.Second

func (a app) cluster() *cobra.Command {
	cmd := group(&cobra.Command{
		Use: "cluster", Short: "Make, join and look after a cluster of nodes",
		Long: "A cluster is nodes that share one store. The first makes it with `init`, the others join it with a token:" +
			"\n\n" +
			"  netdriver cluster init      on the first node\n" +
			"  netdriver cluster token     there; prints a token\n" +
			"  netdriver cluster join TOKEN   on each other node\n\n" +
			"The store has one member until there are three nodes, then three, or five if asked for. All connections use\n" +
			"certificates of the cluster's own authority.",
	})
	cmd.AddCommand(
		a.clusterInit(), a.clusterToken(), a.clusterJoin(), a.clusterLeave(), a.clusterRemove(), a.clusterMembers(),
		a.clusterStatus(), a.clusterBackup(), a.clusterRestore(),
	)
	return cmd
}

// changes makes a verb that asks the daemon to change the cluster.
func (a app) changes(cmd *cobra.Command, f func(context.Context, *control.Client, []string) error) *cobra.Command {
	config.AddFlags(cmd.Flags(), "run-dir")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		client, err := a.client(cmd)
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), changeDaemon)
		defer cancel()
		return f(ctx, client, args)
	}
	return cmd
}

func (a app) clusterInit() *cobra.Command {
	var q cluster.InitRequest
	cmd := &cobra.Command{
		Use: "init", Short: "Make this node the first of a cluster that others can join", Args: cobra.NoArgs,
		Long: "Make this node the first of a cluster that others can join. Its networks and containers stay as they are.",
	}
	address := cmd.Flags().String("address", "",
		"this node's `address` that others reach it at (default: that of its underlay)")
	cmd.Flags().IntVar(&q.Size, "members", cluster.DefaultSize,
		"`number` of members of the store once there are that many nodes: 1, 3 or 5")
	q.Ports = cluster.DefaultPorts()
	cmd.Flags().Uint16Var(&q.Ports.Store, "store-port", q.Ports.Store, "TCP `port` of the store for nodes")
	cmd.Flags().Uint16Var(&q.Ports.Peer, "peer-port", q.Ports.Peer, "TCP `port` of the store for its members")
	cmd.Flags().Uint16Var(&q.Ports.Join, "join-port", q.Ports.Join, "TCP `port` for nodes that join")
	return a.changes(cmd, func(ctx context.Context, c *control.Client, _ []string) error {
		if *address != "" {
			var err error
			if q.Address, err = netip.ParseAddr(*address); err != nil {
				return fmt.Errorf("--address %q: %w", *address, err)
			}
		}
		return a.reopen(ctx, c, "init", q, "This node is the first of a cluster. Let others join:\n\n  netdriver cluster token\n")
	})
}

// reopen has the daemon change its part in a cluster, waits until it answers again with another store, and says so.
func (a app) reopen(ctx context.Context, c *control.Client, verb string, question any, text string) error {
	if err := c.Change(ctx, "/v1/cluster/"+verb, question, &cluster.Done{}); err != nil {
		return err
	}
	for {
		// The old part may answer for a moment; it is about to end.
		select {
		case <-ctx.Done():
			return errors.New("the daemon does not answer yet: see its log")
		case <-time.After(500 * time.Millisecond):
		}
		if h, err := c.Health(ctx); err == nil && h.Store == "" {
			_, err := fmt.Fprint(a.out, text)
			return err
		}
	}
}

func (a app) clusterToken() *cobra.Command {
	var q cluster.TokenRequest
	cmd := &cobra.Command{
		Use: "token", Short: "Print a token with which nodes can join", Args: cobra.NoArgs,
		Long: "Print a token with which nodes can join until it expires. Whoever has it can join: give it away like a " +
			"password.",
	}
	cmd.Flags().DurationVar(&q.Life, "ttl", cluster.DefaultTokenLife, "how long it is valid, up to 720h")
	cmd.Flags().BoolVar(&q.Revoke, "revoke", false, "print none; make all earlier ones invalid")
	return a.changes(cmd, func(ctx context.Context, c *control.Client, _ []string) error {
		var r cluster.TokenAnswer
		err := c.Change(ctx, "/v1/cluster/token", q, &r)
		switch {
		case err != nil:
		case q.Revoke:
			_, err = fmt.Fprintf(a.out, "%d tokens revoked\n", r.Revoked)
		default:
			_, err = fmt.Fprintln(a.out, r.Token)
		}
		return err
	})
}

func (a app) clusterJoin() *cobra.Command {
	var q cluster.JoinRequest
	cmd := &cobra.Command{
		Use: "join TOKEN", Short: "Make this node a part of a cluster", Args: cobra.ExactArgs(1),
		Long: "Make this node a part of a cluster, with a token of `netdriver cluster token`. TOKEN - is read from " +
			"standard input.",
	}
	cmd.Flags().BoolVar(&q.Force, "force", false, "give up networks that only this node knows")
	return a.changes(cmd, func(ctx context.Context, c *control.Client, args []string) error {
		q.Token = args[0]
		if q.Token == "-" {
			text, err := io.ReadAll(io.LimitReader(os.Stdin, 64<<10))
			if err != nil {
				return err
			}
			q.Token = string(text)
		}
		return a.reopen(ctx, c, "join", q, "This node has joined the cluster.\n")
	})
}

func (a app) clusterLeave() *cobra.Command {
	var q cluster.LeaveRequest
	cmd := &cobra.Command{
		Use: "leave", Short: "Take this node out of its cluster", Args: cobra.NoArgs,
		Long: "Take this node out of its cluster. It has a store of its own afterwards.",
	}
	cmd.Flags().BoolVar(&q.Force, "force", false,
		"even with containers in networks of the cluster, which lose their addresses")
	return a.changes(cmd, func(ctx context.Context, c *control.Client, _ []string) error {
		return a.reopen(ctx, c, "leave", q, "This node has left the cluster.\n")
	})
}

func (a app) clusterRemove() *cobra.Command {
	var q cluster.LeaveRequest
	cmd := &cobra.Command{
		Use: "remove NODE", Short: "Take another node, such as a lost one, out of the cluster", Args: cobra.ExactArgs(1),
		ValidArgsFunction: a.completeNodes(),
		Long: "Take another node out of the cluster: its addresses are free, its certificate is refused, and its\n" +
			"member of the store is replaced by another node's.",
	}
	cmd.Flags().BoolVar(&q.Force, "force", false, "even if it is alive")
	return a.changes(cmd, func(ctx context.Context, c *control.Client, args []string) error {
		q.Node = args[0]
		if err := c.Change(ctx, "/v1/cluster/remove", q, &cluster.Done{}); err != nil {
			return err
		}
		_, err := fmt.Fprintf(a.out, "Node %s is not in the cluster any more.\n", q.Node)
		return err
	})
}

func (a app) clusterMembers() *cobra.Command {
	cmd := &cobra.Command{
		Use: "members NUMBER", Short: "Set how many members the store is to have: 1, 3 or 5", Args: cobra.ExactArgs(1),
		Long: "Set how many members the store is to have, once there are that many nodes. A larger number is reached\n" +
			"by itself; for a smaller one, let members leave.",
	}
	return a.changes(cmd, func(ctx context.Context, c *control.Client, args []string) error {
		n, err := strconv.Atoi(args[0])
		if err != nil {
			return fmt.Errorf("number of members %q: want 1, 3 or 5", args[0])
		}
		if err := c.Change(ctx, "/v1/cluster/size", cluster.SizeRequest{Size: n}, &cluster.Done{}); err != nil {
			return err
		}
		_, err = fmt.Fprintf(a.out, "The store is to have %d members once there are that many nodes.\n", n)
		return err
	})
}

func (a app) clusterStatus() *cobra.Command {
	cmd := &cobra.Command{
		Use: "status", Short: "Show members, clients and certificates", Args: judged(cobra.NoArgs),
		Long: "Show members, clients and certificates. Exit status 0: every member answers; 1: one does not,\n" +
			"or a certificate ends within 30 days; 3: it cannot be told.",
	}
	cmd.RunE = a.ask(cmd, func(ctx context.Context, c *control.Client, _ []string) (answer, error) {
		var r cluster.Report
		if err := c.Change(ctx, "/v1/cluster/status", cluster.Done{}, &r); err != nil {
			return answer{}, err
		}
		return answer{report: r, text: func(p painter) string { return p.cluster(r) }, code: clusterExit(r, time.Now())}, nil
	})
	return cmd
}

func (a app) clusterBackup() *cobra.Command {
	cmd := &cobra.Command{
		Use: "backup FILE", Short: "Write all records of the store to a file", Args: cobra.ExactArgs(1),
		Long: "Write all records of the store, of one moment, to a file; - is standard output. It has no secrets,\n" +
			"and can be restored into any store.",
	}
	return a.changes(cmd, func(ctx context.Context, c *control.Client, args []string) error {
		if args[0] == "-" {
			return c.Stream(ctx, "/v1/cluster/backup", a.out)
		}
		f, err := renameio.NewPendingFile(args[0], renameio.WithTempDir(filepath.Dir(args[0])))
		if err != nil {
			return err
		}
		defer f.Cleanup() //nolint:errcheck // nothing is left once it has its name
		if err := c.Stream(ctx, "/v1/cluster/backup", f); err != nil {
			return err
		}
		return f.CloseAtomicallyReplace()
	})
}

func (a app) clusterRestore() *cobra.Command {
	cmd := &cobra.Command{
		Use: "restore FILE", Short: "Make the store have what a backup has", Args: cobra.ExactArgs(1),
		Long: "Make the store have what a backup has; - is standard input. All of it is checked before anything is written.",
	}
	force := cmd.Flags().Bool("force", false, "replace the networks that the store has")
	return a.changes(cmd, func(ctx context.Context, c *control.Client, args []string) error {
		var from io.Reader = os.Stdin
		if args[0] != "-" {
			f, err := os.Open(args[0])
			if err != nil {
				return err
			}
			defer f.Close()
			from = f
		}
		var r cluster.RestoreAnswer
		if err := c.Change(ctx, fmt.Sprintf("/v1/cluster/restore?force=%t", *force), from, &r); err != nil {
			return err
		}
		_, err := fmt.Fprintf(a.out, "%d records restored.\n", r.Records)
		return err
	})
}
