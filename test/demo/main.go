// Command demo shows netdriver on Docker hosts that it makes on this machine: two plain ones with one network over
// both, a container on each, ping and HTTP across, and what netdriver says about it; or, with -swarm, three of a swarm with a
// service that is called by its name while the daemons are restarted. It prints every command as a user would type it,
// removes all it made, and ends with the line "demo: ok". It has to run as root.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/test/e2e/lab"
)

// limit is more than the demo takes on a slow machine; without one a hanging command would hang the demo.
const limit = 6 * time.Minute

func main() {
	binary := flag.String("binary", "bin/netdriver", "the netdriver `program` to show")
	swarm := flag.Bool("swarm", false, "show a swarm instead of two plain hosts")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if err := run(ctx, *binary, *swarm); err != nil {
		fmt.Fprintln(os.Stderr, "demo: FAILED:", err)
		os.Exit(1)
	}
	fmt.Println("demo: ok")
}

// run shows all the steps and cleans up after them, however they end.
func run(ctx context.Context, binary string, swarm bool) (err error) {
	binary, err = filepath.Abs(binary)
	if err != nil {
		return err
	}
	if _, err := os.Stat(binary); err != nil {
		return fmt.Errorf("%w (make build)", err)
	}
	// What an earlier, killed demo left.
	if _, err := lab.ReapAll(); err != nil {
		return err
	}
	nodes := 2
	if swarm {
		nodes = 3
	}
	l, err := lab.New(ctx, lab.Config{Nodes: nodes, Binary: binary})
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			l.KeepLogs()
			err = fmt.Errorf("%w\nlogs: %s", err, l.Logs())
		}
		err = errors.Join(err, l.Close())
	}()
	show := newShow(os.Stdout)
	if swarm {
		return show.run(ctx, newSwarm(show, l).steps())
	}
	return show.run(ctx, newHosts(show, l).steps())
}
