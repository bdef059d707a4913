package door

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/docker/api/types"

	"github.com/netdriver/netdriver/internal/plugin"
)

const (
	// Protocol is the version of what a door and the daemon expect of each other: the calls of Docker's plugin protocol
	// over SwarmSocket, and plugin.Constants. A door of another version has to be replaced, which needs a swarm without
	// networks of ours, so it changes for the gravest reasons only.
	Protocol = 1
	// Listen is the socket in the plugin: Docker binds the directory there and looks for the interface's socket in it
	// (defaultPluginRuntimeDestination of moby plugin/v2).
	Listen = "/run/docker/plugins/" + socket

	socket = "netdriver.sock"
	// program is the path of the binary in the plugin.
	program = "netdriver"
	// host is where the plugin sees a part of the host's file system.
	host = "/host"
)

// Config returns the plugin's configuration (https://docs.docker.com/engine/extend/config) for a daemon with that run
// directory. The plugin needs no capability beyond Docker's defaults and no network.
//
// It binds not the run directory itself but its topmost parent, such as /run: a plugin whose mount's source is missing
// cannot be enabled, and Docker starts plugins at boot before there is a daemon that makes its run directory; a daemon
// that makes it anew would not be seen either.
func Config(runDir string) (types.PluginConfig, error) {
	resolved, err := resolve(runDir)
	if err != nil {
		return types.PluginConfig{}, fmt.Errorf("find run directory %s for the managed plugin: %w", runDir, err)
	}
	top, rest, _ := strings.Cut(strings.TrimPrefix(resolved, "/"), "/")
	if top == "" {
		return types.PluginConfig{}, fmt.Errorf("run directory %s is the root of the host: choose another", runDir)
	}
	source := "/" + top
	protocol := strconv.Itoa(Protocol)
	return types.PluginConfig{
		Description:   "Forwards Docker's calls to the netdriver daemon of this node",
		Documentation: "docs/swarm.md of netdriver",
		Entrypoint:    []string{"/" + program, "door"},
		WorkDir:       "/",
		Args: types.PluginConfigArgs{
			Name: "args", Description: "where the daemon's socket is", Settable: []string{"value"},
			Value: []string{"--daemon", filepath.Join(host, rest, plugin.SwarmSocket)},
		},
		Env: []types.PluginEnv{{
			Name: "DOOR_PROTOCOL", Description: "what door and daemon expect of each other", Value: &protocol,
		}},
		Interface: types.PluginConfigInterface{Socket: socket, Types: []types.PluginInterfaceType{
			{Prefix: "docker", Capability: "networkdriver", Version: "1.0"},
			{Prefix: "docker", Capability: "ipamdriver", Version: "1.0"},
		}},
		Network: types.PluginConfigNetwork{Type: "none"},
		Mounts: []types.PluginMount{{
			// Connecting to a socket needs no right to write to the file system that it lies in.
			Name: "run", Description: "a parent of the daemon's run directory", Type: "bind", Source: &source,
			Destination: host, Options: []string{"rbind", "ro", "rslave"}, Settable: []string{"source"},
		}},
	}, nil
}

// resolve follows the symbolic links of the part of path that exists: in the plugin they would lead nowhere.
func resolve(path string) (string, error) {
	resolved, err := filepath.EvalSymlinks(path)
	if !errors.Is(err, fs.ErrNotExist) || path == "/" {
		return resolved, err
	}
	parent, err := resolve(filepath.Dir(path))
	return filepath.Join(parent, filepath.Base(path)), err
}

// WriteArchive writes what `docker plugin create` sends: the configuration, and a root file system that is the binary
// alone, of size bytes. Equal input gives equal bytes, so Docker sees a plugin that it has already.
func WriteArchive(w io.Writer, config types.PluginConfig, binary io.Reader, size int64) error {
	text, err := json.Marshal(config)
	if err != nil {
		return fmt.Errorf("encode the plugin's configuration: %w", err)
	}
	archive := tar.NewWriter(w)
	for _, f := range []struct {
		tar.Header
		content io.Reader
	}{
		{tar.Header{Name: "config.json", Mode: 0o644, Size: int64(len(text))}, strings.NewReader(string(text))},
		{tar.Header{Name: "rootfs/" + program, Mode: 0o755, Size: size}, binary},
	} {
		if err := archive.WriteHeader(&f.Header); err != nil {
			return fmt.Errorf("write %s to the plugin's archive: %w", f.Name, err)
		}
		if _, err := io.Copy(archive, f.content); err != nil {
			return fmt.Errorf("write %s to the plugin's archive: %w", f.Name, err)
		}
	}
	return archive.Close()
}

// Fits says whether a plugin that has config does what one with want would: the same protocol, and the same way to the
// daemon.
func Fits(config, want types.PluginConfig) bool {
	way := func(c types.PluginConfig) (way []string) {
		way = slices.Concat(c.Entrypoint, c.Args.Value, []string{c.Interface.Socket})
		for _, e := range c.Env {
			way = append(way, e.Name, value(e.Value))
		}
		for _, m := range c.Mounts {
			way = append(way, value(m.Source), m.Destination)
		}
		return way
	}
	return slices.Equal(way(config), way(want))
}

func value(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}
