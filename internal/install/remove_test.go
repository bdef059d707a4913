package install

import (
	"errors"
	"strings"
	"testing"

	"github.com/netdriver/netdriver/internal/plugin"
)

func TestRemovalLeavesTheHostAsItWas(t *testing.T) {
	h := newHost(t)
	before := h.files()
	cfg := given(h.program("v1"))
	install(t, cfg, true)
	h.add("my-net", plugin.Name, "local")
	h.add("swarm-net", PluginName, "swarm") // the swarm's, so it stays, and Docker must be forced to let the plugin go
	h.add("other", "bridge", "local", "web")
	same(t, "removal", []string{
		"docker network rm my-net",
		"docker plugin disable custom-overlay:latest",
		"docker plugin rm custom-overlay:latest",
		"systemctl disable --now netdriver.service",
		"rm -r /etc/systemd/system/netdriver.service",
		"systemctl daemon-reload",
		"remove from the kernel: namespace, network my-net",
		"rm -r /run/docker/plugins/custom-overlay.sock",
		"rm -r /run/netdriver",
		"rm -r /usr/local/bin/netdriver",
		"rm -r /var/lib/netdriver",
		"rm -r /etc/netdriver",
	}, uninstall(t, cfg, Removal{Purge: true, Force: true}))
	same(t, "files", before, h.files())
	if h.plugin != nil || len(h.networks) != 2 || h.kernel != nil || h.enabled || h.running != "" {
		t.Errorf("host %+v", h)
	}
	same(t, "second removal", nil, uninstall(t, cfg, Removal{Purge: true}))
}

func TestWhatAnotherInstallationNeedsIsKeptUnlessPurged(t *testing.T) {
	h := newHost(t)
	cfg := given(h.program("v1"))
	install(t, cfg, false)
	got := uninstall(t, cfg, Removal{})
	if !strings.Contains(strings.Join(got, "\n"), "# /var/lib/netdriver, /etc/netdriver: kept; --purge removes it") {
		t.Error(got)
	}
	h.read("/var/lib/netdriver/node-id")
	h.read("/etc/netdriver/config.yaml")
}

func TestRemovalIsRefusedWhileContainersUseOurNetworks(t *testing.T) {
	h := newHost(t)
	cfg := h.program("v1")
	install(t, cfg, false)
	h.add("my-net", plugin.Name, "local", "web", "db")
	err := refused(t, cfg, func(i *Installer) ([]Step, error) { return i.PlanRemoval(t.Context(), Removal{}) })
	if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "db in my-net, web in my-net") {
		t.Error(err)
	}
	if h.running == "" {
		t.Error("the daemon was stopped")
	}
	uninstall(t, cfg, Removal{Force: true})
	if len(h.networks) != 0 {
		t.Errorf("networks %v", h.networks)
	}
}

func TestRemovalWithoutAnAnswerOfDockersNeedsForce(t *testing.T) {
	h := newHost(t)
	cfg := h.program("v1")
	install(t, cfg, false)
	h.dockerErr = errors.New("no engine")
	err := refused(t, cfg, func(i *Installer) ([]Step, error) { return i.PlanRemoval(t.Context(), Removal{}) })
	if !strings.Contains(err.Error(), "--force") {
		t.Error(err)
	}
	if got := uninstall(t, cfg, Removal{Force: true}); !strings.HasPrefix(got[0], "# Docker is not asked") {
		t.Error(got)
	}
}

func TestRemovalWithoutSystemdWantsTheDaemonStopped(t *testing.T) {
	h := newHost(t)
	h.systemd = false
	cfg := h.program("v1")
	install(t, cfg, false)
	h.running = "v1"
	err := refused(t, cfg, func(i *Installer) ([]Step, error) { return i.PlanRemoval(t.Context(), Removal{}) })
	if !strings.Contains(err.Error(), "stop it first") {
		t.Error(err)
	}
	h.running = ""
	uninstall(t, cfg, Removal{})
}

// A volume's content must never be taken for something of ours.
func TestRemovalIsRefusedWhileVolumesAreMounted(t *testing.T) {
	h := newHost(t)
	cfg := h.program("v1")
	install(t, cfg, false)
	h.write("/run/netdriver/volumes/data/keep", "me")
	h.mounts = []string{"/run/netdriver/volumes/data"}
	for _, force := range []bool{false, true} {
		err := refused(t, cfg, func(i *Installer) ([]Step, error) {
			return i.PlanRemoval(t.Context(), Removal{Force: force, Purge: true})
		})
		if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), h.mounts[0]) {
			t.Error(err)
		}
	}
	i, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := i.remove("/run/netdriver").run(t.Context()); err == nil {
		t.Error("a mounted volume was removed")
	}
	h.read("/run/netdriver/volumes/data/keep")
	h.mounts = nil
	uninstall(t, cfg, Removal{})
}
