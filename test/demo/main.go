// Command demo shows netdriver on two Docker hosts that it makes on this machine: one network over both, a container
// on each, ping and HTTP across, and what netdriver says about it. It prints every command as a user would type it,
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
)

// limit is more than the demo takes on a slow machine; without one a hanging command would hang the demo.
const limit = 3 * time.Minute

func main() {
	binary := flag.String("binary", "bin/netdriver", "the netdriver `program` to show")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if err := run(ctx, *binary); err != nil {
		fmt.Fprintln(os.Stderr, "demo: FAILED:", err)
		os.Exit(1)
	}
	fmt.Println("demo: ok")
}

// run shows all the steps and cleans up after them, however they end.
func run(ctx context.Context, binary string) (err error) {
	binary, err = filepath.Abs(binary)
	if err != nil {
		return err
	}
	if _, err := os.Stat(binary); err != nil {
		return fmt.Errorf("%w (make build)", err)
	}
	show := newShow(os.Stdout)
	hosts, err := newHosts(ctx, show, binary)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			hosts.lab.KeepLogs()
			err = fmt.Errorf("%w\nlogs: %s", err, hosts.lab.Logs())
		}
		err = errors.Join(err, hosts.lab.Close())
	}()
	return show.run(ctx, hosts.steps())
}
