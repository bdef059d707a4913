package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/moby/sys/mountinfo"

	"github.com/netdriver/netdriver/volume"
)

// held is a volume that is mounted for this command.
type held struct {
	volume.HoldResponse
	root *os.Root
	drop func() error
}

// hold has the daemon mount a volume for this command, and makes sure that the command sees it: in another mount namespace
// it would find an empty directory, which a backup must not take for the data.
func hold(ctx context.Context, client *volume.Client, name string) (held, error) {
	r, err := client.Hold(ctx, name, os.Getpid())
	if err != nil {
		return held{}, err
	}
	h := held{HoldResponse: r}
	h.drop = func() error {
		var errs []error
		if h.root != nil {
			errs = append(errs, h.root.Close()) // an open file would keep the mount busy
		}
		// Also after the user has pressed Ctrl-C.
		return errors.Join(append(errs, client.Drop(context.WithoutCancel(ctx), name, os.Getpid()))...)
	}
	mounted, err := mountinfo.Mounted(r.Path)
	if err == nil && !mounted {
		err = fmt.Errorf("volume %s: this command does not see the daemon's mounts: run it on the host itself, outside of "+
			"containers and private mount namespaces", name)
	}
	if err == nil {
		h.root, err = os.OpenRoot(r.Path)
	}
	if err != nil {
		return held{}, errors.Join(err, h.drop())
	}
	return h, nil
}
