package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/dataplane"
	"github.com/netdriver/netdriver/dataplane/firewall"
)

// remains is what the daemon leaves in the kernel when it ends: the namespace with its networks, and rules in the host's
// packet filter.
type remains struct{}

// netns is where the data plane binds its namespace.
func (remains) netns(runDir string) string { return dataplane.NamespaceIn(runDir) }

// Present implements install.Kernel.
func (r remains) Present(ctx context.Context, runDir string) ([]string, error) {
	present, err := firewall.Left(ctx, "")
	if err != nil {
		return nil, err
	}
	// Looking at the data plane makes the namespace, so it is not looked at unless there is one.
	if bound, err := mountinfo.Mounted(r.netns(runDir)); err != nil || !bound {
		return present, ignoreAbsent(err)
	}
	present = append(present, "namespace "+r.netns(runDir))
	err = withPlane(runDir, func(p *dataplane.Plane) error {
		networks, err := p.Present(ctx)
		for _, n := range networks {
			present = append(present, "network "+n.Name)
		}
		return err
	})
	return present, err
}

// Remove implements install.Kernel. The networks go by the data plane's own removal, which finds the interfaces in the
// host's namespace too; the namespace goes when nothing is bound to it any more.
func (r remains) Remove(ctx context.Context, runDir string) error {
	if bound, err := mountinfo.Mounted(r.netns(runDir)); err != nil || !bound {
		return errors.Join(ignoreAbsent(err), firewall.Purge(ctx, ""))
	}
	err := withPlane(runDir, func(p *dataplane.Plane) error {
		networks, err := p.Present(ctx)
		errs := []error{err}
		for _, n := range networks {
			errs = append(errs, p.Remove(ctx, n.VNI))
		}
		return errors.Join(errs...)
	})
	if unmount := unix.Unmount(r.netns(runDir), unix.MNT_DETACH); unmount != nil {
		err = errors.Join(err, fmt.Errorf("unmount %s: %w", r.netns(runDir), unmount))
	}
	return errors.Join(err, firewall.Purge(ctx, ""))
}

func ignoreAbsent(err error) error {
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

func withPlane(runDir string, f func(*dataplane.Plane) error) error {
	log := slog.New(slog.DiscardHandler)
	kernel, err := dataplane.OpenLinux(dataplane.LinuxConfig{RunDir: runDir, Log: log})
	if err != nil {
		return err
	}
	return errors.Join(f(dataplane.NewPlane(kernel, log)), kernel.Close())
}
