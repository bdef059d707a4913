package install

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/docker/docker/api/types/network"

	"github.com/netdriver/netdriver/internal/config"
	"github.com/netdriver/netdriver/internal/plugin"
)

// ErrInUse says that containers use networks of ours.
var ErrInUse = errors.New("containers use netdriver's networks")

// Removal says how thorough PlanRemoval is.
type Removal struct {
	// Force cuts containers off that use our networks, and goes on without a Docker engine that answers.
	Force bool
	// Purge removes what a later installation would find again: the settings, the node's identity, the embedded store,
	// and the data of local volumes.
	Purge bool
}

// PlanRemoval returns the steps that take netdriver off this host. The error wraps ErrInUse if containers use our
// networks and r does not force it.
func (i *Installer) PlanRemoval(ctx context.Context, r Removal) ([]Step, error) {
	if err := i.checkVolumes(); err != nil {
		return nil, err
	}
	docker, err := i.planDockerRemoval(ctx, r.Force)
	if err != nil {
		return nil, err
	}
	service, err := i.planServiceRemoval(ctx)
	if err != nil {
		return nil, err
	}
	kernel, err := i.planKernelRemoval(ctx)
	if err != nil {
		return nil, err
	}
	files, err := i.planFileRemoval(r.Purge)
	return slices.Concat(docker, service, kernel, files), err
}

// checkVolumes refuses a host on which volumes are mounted: what is in them must not be taken for ours.
func (i *Installer) checkVolumes() error {
	mounts, err := i.cfg.Mounts(i.path(filepath.Join(i.settings.RunDir, "volumes")))
	if err != nil {
		return err
	}
	if len(mounts) > 0 {
		return fmt.Errorf("%w or volumes: %s is mounted; stop the containers that use it, or unmount it", ErrInUse, mounts[0])
	}
	return nil
}

// planDockerRemoval returns the steps that remove our networks while the daemon still runs, which gives the node's part
// of them back to the cluster, and then the managed plugin.
func (i *Installer) planDockerRemoval(ctx context.Context, force bool) ([]Step, error) {
	networks, err := i.networks(ctx)
	if err != nil && force {
		return []Step{note("Docker is not asked, its networks of ours and the plugin stay: %v", err)}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot find out whether containers use netdriver's networks: %w; start Docker, or use "+
			"--force", err)
	}
	var steps []Step
	var used []string
	for _, n := range networks {
		for id, c := range n.Containers {
			used = append(used, c.Name+" in "+n.Name)
			steps = append(steps, Step{
				"docker network disconnect --force " + n.Name + " " + c.Name,
				func(ctx context.Context) error { return i.cfg.Docker.NetworkDisconnect(ctx, n.ID, id, true) },
			})
		}
		if n.Scope == "swarm" {
			continue // it is the whole swarm's
		}
		steps = append(steps, Step{"docker network rm " + n.Name, func(ctx context.Context) error {
			return i.cfg.Docker.NetworkRemove(ctx, n.ID)
		}})
	}
	if len(used) > 0 && !force {
		slices.Sort(used)
		return nil, fmt.Errorf("%w: %s; stop them, drain the node, or use --force", ErrInUse, strings.Join(used, ", "))
	}
	managed, err := i.managed(ctx)
	if err == nil && managed != nil {
		steps = append(steps, i.removePlugin(managed, force)...)
	}
	return steps, err
}

// networks returns Docker's networks of ours, with their containers on this host.
func (i *Installer) networks(ctx context.Context) ([]network.Inspect, error) {
	list, err := i.cfg.Docker.NetworkList(ctx, network.ListOptions{})
	if err != nil {
		return nil, err
	}
	var ours []network.Inspect
	for _, n := range list {
		if n.Driver != plugin.Name && n.Driver != PluginName {
			continue
		}
		full, err := i.cfg.Docker.NetworkInspect(ctx, n.ID, network.InspectOptions{})
		if err != nil {
			return nil, err
		}
		ours = append(ours, full)
	}
	return ours, nil
}

func (i *Installer) planServiceRemoval(ctx context.Context) ([]Step, error) {
	if !i.cfg.Systemd.Booted() {
		if version, err := i.cfg.Answers(ctx, i.settings.RunDir); err == nil {
			return nil, fmt.Errorf("netdriver %s runs on this host: stop it first, since it would make again what is "+
				"removed", version)
		}
		return nil, nil
	}
	have, err := i.state(ctx)
	if err != nil {
		return nil, err
	}
	var steps []Step
	if have.enabled || have.active {
		steps = append(steps, i.systemctl("disable", "--now", service))
	}
	if exists(i.path(unitPath)) {
		steps = append(steps, i.remove(unitPath), i.systemctl("daemon-reload"))
	}
	return steps, nil
}

func (i *Installer) planKernelRemoval(ctx context.Context) ([]Step, error) {
	present, err := i.cfg.Kernel.Present(ctx, i.settings.RunDir)
	if err != nil || len(present) == 0 {
		return nil, err
	}
	return []Step{{"remove from the kernel: " + strings.Join(present, ", "), func(ctx context.Context) error {
		return i.cfg.Kernel.Remove(ctx, i.settings.RunDir)
	}}}, nil
}

func (i *Installer) planFileRemoval(purge bool) (steps []Step, err error) {
	var paths []string
	for _, name := range i.cfg.Sockets {
		paths = append(paths, filepath.Join(i.settings.SocketDir, name))
	}
	paths = append(paths, i.settings.RunDir)
	if i.program == programPath {
		paths = append(paths, programPath)
	} else {
		steps = append(steps, note("%s stays: remove it the way it was installed", i.program))
	}
	settings := i.cfg.File
	if settings == config.DefaultFile {
		settings = filepath.Dir(settings)
	}
	if kept := []string{i.settings.DataDir, settings}; purge {
		paths = append(paths, kept...)
	} else if kept = slices.DeleteFunc(kept, func(p string) bool { return !exists(i.path(p)) }); len(kept) > 0 {
		steps = append(steps, note("%s: kept; --purge removes it", strings.Join(kept, ", ")))
	}
	for _, p := range paths {
		if exists(i.path(p)) {
			steps = append(steps, i.remove(p))
		}
	}
	return steps, nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// remove is the step that removes a file or a directory with all in it. Nothing mounted in it is touched: that could be
// somebody's volume.
func (i *Installer) remove(path string) Step {
	return Step{"rm -r " + path, func(context.Context) error {
		mounts, err := i.cfg.Mounts(i.path(path))
		if err != nil {
			return err
		}
		if len(mounts) > 0 {
			return fmt.Errorf("%s is mounted there: unmount it first", mounts[0])
		}
		return os.RemoveAll(i.path(path))
	}}
}
