// Command netdriver is the daemon that gives Docker overlay networks, and the verbs that look at them. It only wires:
// what it does is in the packages beside it.
package main

import (
	"context"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	a := app{environ: os.Environ(), out: os.Stdout, err: os.Stderr}
	code := a.execute(ctx, os.Args[1:])
	stop()
	os.Exit(code)
}
