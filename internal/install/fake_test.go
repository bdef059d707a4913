package install

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types"
	"github.com/docker/docker/api/types/network"
)

// host is a pretended host: files below a directory, a systemd, a Docker engine, a kernel and perhaps a daemon.
type host struct {
	t    *testing.T
	root string
	// systemd is false on a host without.
	systemd, enabled, active bool
	// running is the version of the daemon, empty if none runs.
	running string
	plugin  *types.Plugin
	// networks are Docker's; dockerErr is what it answers to everything if it is not nil.
	networks  map[string]network.Inspect
	dockerErr error
	kernel    []string
	mounts    []string
}

func newHost(t *testing.T) *host {
	h := &host{t: t, root: t.TempDir(), systemd: true, networks: map[string]network.Inspect{}}
	h.write("/usr/bin/true", "another program")
	return h
}

func (h *host) write(path, text string) {
	h.t.Helper()
	path = filepath.Join(h.root, path)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) read(path string) string {
	h.t.Helper()
	text, err := os.ReadFile(filepath.Join(h.root, path))
	if err != nil {
		h.t.Fatal(err)
	}
	return string(text)
}

// files lists the host's files.
func (h *host) files() []string {
	var out []string
	err := filepath.WalkDir(h.root, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			out = append(out, strings.TrimPrefix(path, h.root))
		}
		return err
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return out
}

// program makes a program of that version, elsewhere than where it is to be installed.
func (h *host) program(version string) Config {
	self := filepath.Join(h.t.TempDir(), "netdriver")
	if err := os.WriteFile(self, []byte("program "+version), 0o755); err != nil {
		h.t.Fatal(err)
	}
	return Config{
		Self: self, Version: version, Root: h.root, Systemd: h, Docker: engine{h}, Kernel: h, Answers: h.answers,
		Mounts: h.mounted, Sockets: []string{"custom-overlay.sock"},
	}
}

func (h *host) answers(context.Context, string) (string, error) {
	if h.running == "" {
		return "", errors.New("nobody answers")
	}
	return h.running, nil
}

func (h *host) mounted(dir string) (points []string, err error) {
	for _, m := range h.mounts {
		if m = filepath.Join(h.root, m); strings.HasPrefix(m+"/", dir+"/") {
			points = append(points, m)
		}
	}
	return points, nil
}

func (h *host) Booted() bool { return h.systemd }

// Control is systemctl. It refuses what systemd would.
func (h *host) Control(_ context.Context, args ...string) (string, error) {
	command := strings.Join(args, " ")
	known := strings.Contains(strings.Join(h.files(), " "), unitPath)
	switch {
	case strings.HasPrefix(command, "show "):
		states := map[bool]string{true: "enabled", false: "disabled"}
		actives := map[bool]string{true: "active", false: "inactive"}
		return fmt.Sprintf("UnitFileState=%s\nActiveState=%s\nMainPID=7\n", states[h.enabled], actives[h.active]), nil
	case command == "daemon-reload":
		return "", nil
	case !known:
		return "", fmt.Errorf("Unit %s not found", service)
	case command == "enable "+service:
		h.enabled = true
	case command == "start "+service, command == "restart "+service:
		h.active, h.running = true, strings.TrimPrefix(h.read(programPath), "program ")
		h.write("/run/netdriver/lock", "7")
		h.write("/run/docker/plugins/custom-overlay.sock", "")
		h.write("/var/lib/netdriver/node-id", "x")
		h.kernel = []string{"namespace", "network my-net"}
	case command == "disable --now "+service:
		h.enabled, h.active, h.running = false, false, ""
	default:
		h.t.Errorf("systemctl %s", command)
	}
	return "", nil
}

func (h *host) Present(context.Context, string) ([]string, error) { return h.kernel, nil }

func (h *host) Remove(context.Context, string) error {
	if h.running != "" {
		h.t.Error("the kernel's objects are removed while the daemon, which would make them again, runs")
	}
	h.kernel = nil
	return nil
}

// engine is the host's Docker.
type engine struct{ *host }

func (e engine) PluginInspectWithRaw(context.Context, string) (*types.Plugin, []byte, error) {
	if e.dockerErr == nil && e.plugin == nil {
		return nil, nil, errdefs.ErrNotFound
	}
	return e.plugin, nil, e.dockerErr
}

func (e engine) PluginCreate(_ context.Context, archive io.Reader, o types.PluginCreateOptions) error {
	if _, err := io.Copy(io.Discard, archive); err != nil {
		return err
	}
	if e.plugin != nil {
		return errors.New("plugin already exists")
	}
	e.host.plugin = &types.Plugin{Name: o.RepoName}
	return nil
}

func (e engine) PluginEnable(context.Context, string, types.PluginEnableOptions) error {
	e.plugin.Enabled = true
	return e.dockerErr
}

func (e engine) PluginDisable(_ context.Context, _ string, o types.PluginDisableOptions) error {
	for _, n := range e.networks {
		if n.Driver == PluginName && !o.Force {
			return errors.New("plugin is in use")
		}
	}
	e.plugin.Enabled = false
	return nil
}

func (e engine) PluginRemove(context.Context, string, types.PluginRemoveOptions) error {
	if e.plugin.Enabled {
		return errors.New("plugin is enabled")
	}
	e.host.plugin = nil
	return nil
}

func (e engine) NetworkList(context.Context, network.ListOptions) (list []network.Summary, err error) {
	for _, n := range e.networks {
		n.Containers = nil // as Docker does
		list = append(list, n)
	}
	slices.SortFunc(list, func(a, b network.Summary) int { return strings.Compare(a.Name, b.Name) })
	return list, e.dockerErr
}

func (e engine) NetworkInspect(_ context.Context, id string, _ network.InspectOptions) (network.Inspect, error) {
	return e.networks[id], e.dockerErr
}

func (e engine) NetworkDisconnect(_ context.Context, id, container string, _ bool) error {
	delete(e.networks[id].Containers, container)
	return nil
}

func (e engine) NetworkRemove(_ context.Context, id string) error {
	if len(e.networks[id].Containers) > 0 || e.running == "" {
		return errors.New("network has active endpoints, or no driver")
	}
	delete(e.networks, id)
	return nil
}

// add gives Docker a network with containers.
func (h *host) add(name, driver, scope string, containers ...string) {
	n := network.Inspect{ID: "id-" + name, Name: name, Driver: driver, Scope: scope}
	n.Containers = map[string]network.EndpointResource{}
	for _, c := range containers {
		n.Containers["id-"+c] = network.EndpointResource{Name: c}
	}
	h.networks[n.ID] = n
}

// commands are steps as a user sees them.
func commands(steps []Step) (out []string) {
	for _, s := range steps {
		out = append(out, s.Command)
	}
	return out
}

// install plans, runs and returns what was done.
func install(t *testing.T, cfg Config, swarm bool) []string {
	t.Helper()
	return do(t, cfg, func(i *Installer) ([]Step, error) { return i.Plan(t.Context(), swarm) })
}

// uninstall does the same for a removal.
func uninstall(t *testing.T, cfg Config, r Removal) []string {
	t.Helper()
	return do(t, cfg, func(i *Installer) ([]Step, error) { return i.PlanRemoval(t.Context(), r) })
}

func do(t *testing.T, cfg Config, plan func(*Installer) ([]Step, error)) []string {
	t.Helper()
	i, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	steps, err := plan(i)
	if err != nil {
		t.Fatal(err)
	}
	var ran []Step
	if err := Run(t.Context(), steps, func(s Step) { ran = append(ran, s) }); err != nil {
		t.Fatal(err)
	}
	out := commands(ran)
	for i := range out {
		out[i] = strings.ReplaceAll(out[i], cfg.Self, "SELF")
	}
	return out
}

// refused plans what must be refused, and returns why.
func refused(t *testing.T, cfg Config, plan func(*Installer) ([]Step, error)) error {
	t.Helper()
	i, err := New(cfg)
	if err == nil {
		var steps []Step
		if steps, err = plan(i); err == nil {
			t.Fatalf("not refused: %v", commands(steps))
		}
	}
	return err
}
