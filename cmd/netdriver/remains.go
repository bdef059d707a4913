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
	"github.com/netdriver/netdriver/dataplane/lan"
	"github.com/netdriver/netdriver/ipsec"
	"github.com/netdriver/netdriver/ipsec/xfrm"
)

// remains is what the daemon leaves in the kernel when it ends: the namespace with its networks, rules in the host's packet
// filter, and the SAs and policies of encrypted networks.
type remains struct{}

// netns is where the data plane binds its namespace.
func (remains) netns(runDir string) string { return dataplane.NamespaceIn(runDir) }

// Present implements install.Kernel.
func (r remains) Present(ctx context.Context, runDir string) ([]string, error) {
	present, err := firewall.Left(ctx, "")
	if err != nil {
		return nil, err
	}
	left, err := leftIPsec(ctx)
	if err != nil {
		return nil, err
	}
	present = append(present, left...)
	host, err := hostNetworks(ctx)
	if err != nil {
		return nil, err
	}
	present = append(present, host...)
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
	if err := removeHostNetworks(ctx); err != nil {
		return err
	}
	if bound, err := mountinfo.Mounted(r.netns(runDir)); err != nil || !bound {
		return errors.Join(ignoreAbsent(err), purgeIPsec(ctx), firewall.Purge(ctx, ""))
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
	return errors.Join(err, purgeIPsec(ctx), firewall.Purge(ctx, ""))
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

// withIPsec calls f with what the kernel has of encrypted networks; a kernel without IPsec has nothing.
func withIPsec(ctx context.Context, f func(ipsec.Kernel, ipsec.State) error) error {
	kernel, err := xfrm.Open("")
	if errors.Is(err, ipsec.ErrUnsupported) {
		return nil
	}
	if err != nil {
		return err
	}
	have, err := kernel.Read(ctx)
	if err == nil {
		err = f(kernel, have)
	}
	return errors.Join(err, kernel.Close())
}

func leftIPsec(ctx context.Context) (left []string, err error) {
	err = withIPsec(ctx, func(_ ipsec.Kernel, have ipsec.State) error {
		if len(have.SAs)+len(have.Policies) > 0 {
			left = append(left, fmt.Sprintf("%d SAs and %d policies of IPsec", len(have.SAs), len(have.Policies)))
		}
		return nil
	})
	return left, err
}

// purgeIPsec removes all of it, the blocking policies last. The networks have gone before.
func purgeIPsec(ctx context.Context) error {
	return withIPsec(ctx, func(kernel ipsec.Kernel, have ipsec.State) error {
		return kernel.Run(ctx, ipsec.Plan(have, ipsec.State{}), nil)
	})
}

// hostNetworks lists what is left of the host's own networks. What containers have goes with them.
func hostNetworks(ctx context.Context) (present []string, err error) {
	err = withHostPlane(func(k lan.Kernel, _ *lan.Plane) error {
		networks, err := k.Present(ctx)
		for _, n := range networks {
			if n.Name != "" {
				present = append(present, "network "+n.Name)
			}
			if n.VLAN.Device != "" {
				present = append(present, "VLAN interface "+n.VLAN.Device)
			}
		}
		return err
	})
	return present, err
}

func removeHostNetworks(ctx context.Context) error {
	return withHostPlane(func(_ lan.Kernel, p *lan.Plane) error {
		return p.Sweep(ctx, func(string) bool { return false }, nil)
	})
}

func withHostPlane(f func(lan.Kernel, *lan.Plane) error) error {
	kernel, err := lan.OpenLinux("")
	if err != nil {
		return err
	}
	return errors.Join(f(kernel, lan.NewPlane(kernel, slog.New(slog.DiscardHandler))), kernel.Close())
}
