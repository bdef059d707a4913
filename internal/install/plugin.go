package install

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types"
	"github.com/docker/docker/api/types/network"

	"github.com/netdriver/netdriver/internal/door"
	"github.com/netdriver/netdriver/internal/plugin"
)

const (
	// PluginName is the managed plugin's. Docker has its networks name the tag, too: -d custom-overlay:latest.
	PluginName = plugin.Name + ":latest"
	// enableTimeout is how long Docker waits for each call to the plugin, in seconds: that of `docker plugin enable`.
	// Docker forgets another one when its daemon restarts.
	enableTimeout = 30
)

// Docker is what the installation needs of the Docker engine; moby's client is the real one.
type Docker interface {
	PluginInspectWithRaw(ctx context.Context, name string) (*types.Plugin, []byte, error)
	PluginCreate(ctx context.Context, archive io.Reader, options types.PluginCreateOptions) error
	PluginEnable(ctx context.Context, name string, options types.PluginEnableOptions) error
	PluginDisable(ctx context.Context, name string, options types.PluginDisableOptions) error
	PluginRemove(ctx context.Context, name string, options types.PluginRemoveOptions) error
	NetworkList(ctx context.Context, options network.ListOptions) ([]network.Summary, error)
	NetworkInspect(ctx context.Context, id string, options network.InspectOptions) (network.Inspect, error)
	NetworkDisconnect(ctx context.Context, id, container string, force bool) error
	NetworkRemove(ctx context.Context, id string) error
}

// managed returns the managed plugin as Docker has it, or nil.
func (i *Installer) managed(ctx context.Context) (*types.Plugin, error) {
	p, _, err := i.cfg.Docker.PluginInspectWithRaw(ctx, PluginName)
	if errdefs.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("ask Docker for plugin %s: %w", PluginName, err)
	}
	return p, nil
}

// planPlugin returns the steps to a managed plugin that fits the daemon. One that fits is left alone, whatever version
// of netdriver it was made from: it only forwards.
func (i *Installer) planPlugin(ctx context.Context) ([]Step, error) {
	want, err := i.wantedPlugin()
	if err != nil {
		return nil, err
	}
	have, err := i.managed(ctx)
	if err != nil {
		return nil, err
	}
	if have == nil {
		if err := i.checkPlain(ctx); err != nil {
			return nil, err
		}
	}
	var steps []Step
	if have != nil && !door.Fits(have.Config, want) {
		steps = append(steps, i.removePlugin(have, false)...)
		have = nil
	}
	if have == nil {
		steps = append(steps, Step{"docker plugin create " + PluginName, func(ctx context.Context) error {
			return i.createPlugin(ctx, want)
		}})
	}
	if have == nil || !have.Enabled {
		steps = append(steps, Step{"docker plugin enable " + PluginName, func(ctx context.Context) error {
			return i.cfg.Docker.PluginEnable(ctx, PluginName, types.PluginEnableOptions{Timeout: enableTimeout})
		}})
	}
	return steps, nil
}

// wantedPlugin is the configuration of a plugin that fits the daemon.
func (i *Installer) wantedPlugin() (types.PluginConfig, error) { return door.Config(i.settings.RunDir) }

// checkPlain refuses a host that has networks of the plain plugin: a managed plugin hides a plain one of the same name
// (plugin.Store.Get of moby asks for managed ones first), so Docker would not find their driver any more.
func (i *Installer) checkPlain(ctx context.Context) error {
	networks, err := i.networks(ctx)
	if err != nil {
		return fmt.Errorf("ask Docker for its networks: %w", err)
	}
	for _, n := range networks {
		if n.Driver == plugin.Name {
			return fmt.Errorf("network %s is one of plain engines (-d %s), and Docker would not find its driver beside the "+
				"managed plugin %s: remove it with `docker network rm` first", n.Name, plugin.Name, PluginName)
		}
	}
	return nil
}

// createPlugin makes the plugin of this very program.
func (i *Installer) createPlugin(ctx context.Context, config types.PluginConfig) error {
	binary, err := os.Open(i.cfg.Self)
	if err != nil {
		return err
	}
	defer binary.Close()
	info, err := binary.Stat()
	if err != nil {
		return err
	}
	r, w := io.Pipe()
	go func() { w.CloseWithError(door.WriteArchive(w, config, binary, info.Size())) }()
	defer r.Close()
	return i.cfg.Docker.PluginCreate(ctx, r, types.PluginCreateOptions{RepoName: PluginName})
}

// removePlugin returns the steps that remove the plugin. Docker refuses to disable one that a network uses.
func (i *Installer) removePlugin(have *types.Plugin, force bool) (steps []Step) {
	if have.Enabled {
		steps = append(steps, Step{"docker plugin disable " + PluginName, func(ctx context.Context) error {
			err := i.cfg.Docker.PluginDisable(ctx, PluginName, types.PluginDisableOptions{Force: force})
			if err != nil {
				err = errors.Join(err, errors.New("the plugin cannot be replaced or removed while networks use it: remove "+
					"them first (docker network ls --filter driver="+PluginName+")"))
			}
			return err
		}})
	}
	return append(steps, Step{"docker plugin rm " + PluginName, func(ctx context.Context) error {
		return i.cfg.Docker.PluginRemove(ctx, PluginName, types.PluginRemoveOptions{Force: force})
	}})
}
