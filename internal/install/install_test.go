package install

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netdriver/netdriver/internal/config"
	"github.com/netdriver/netdriver/internal/plugin"
)

// fresh is what the first installation on a host does.
func fresh() []string {
	return []string{
		"install -m 755 SELF /usr/local/bin/netdriver",
		"edit /etc/netdriver/config.yaml: underlay=eth0",
		"write /etc/systemd/system/netdriver.service",
		"systemctl daemon-reload",
		"systemctl enable netdriver.service",
		"systemctl start netdriver.service",
		"netdriver nodes",
		"docker plugin create custom-overlay:latest",
		"docker plugin enable custom-overlay:latest",
	}
}

func same(t *testing.T, what string, want, got []string) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

// given returns cfg with one setting given.
func given(cfg Config) Config {
	cfg.Given = []config.Given{{Name: "underlay", Value: "eth0"}}
	return cfg
}

func TestASecondInstallationDoesNothing(t *testing.T) {
	h := newHost(t)
	v1 := given(h.program("v1"))
	same(t, "first", fresh(), install(t, v1, true))
	if !h.enabled || h.running != "v1" || !h.plugin.Enabled || h.read(config.DefaultFile) != "underlay: eth0\n" {
		t.Errorf("host %+v", h)
	}
	// As Docker would have it, which the fake does not read from the archive.
	fit(t, h, v1)
	same(t, "second", nil, install(t, v1, true))
}

// fit gives the host's plugin the configuration that it was made with.
func fit(t *testing.T, h *host, cfg Config) {
	t.Helper()
	i, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if h.plugin.Config, err = i.wantedPlugin(); err != nil {
		t.Fatal(err)
	}
}

func TestPlanningChangesNothing(t *testing.T) {
	h := newHost(t)
	before := h.files()
	i, err := New(given(h.program("v1")))
	if err != nil {
		t.Fatal(err)
	}
	steps, err := i.Plan(t.Context(), true)
	if err != nil || len(steps) != len(fresh()) {
		t.Errorf("%v, %v", commands(steps), err)
	}
	same(t, "files", before, h.files())
	if h.enabled || h.active || h.plugin != nil {
		t.Errorf("host %+v", h)
	}
}

func TestAnUpgradeReplacesTheDaemonAndLeavesThePluginAlone(t *testing.T) {
	h := newHost(t)
	v1 := h.program("v1")
	install(t, v1, true)
	fit(t, h, v1)
	h.add("my-net", PluginName, "swarm", "web")
	same(t, "upgrade", []string{
		"install -m 755 SELF /usr/local/bin/netdriver", "systemctl restart netdriver.service", "netdriver nodes",
	}, install(t, h.program("v2"), true))
	if h.running != "v2" {
		t.Errorf("version %s runs", h.running)
	}
}

func TestAPluginInUseThatDoesNotFitIsNotReplaced(t *testing.T) {
	h := newHost(t)
	install(t, h.program("v1"), true) // the fake's plugin has no configuration, so it does not fit
	h.add("my-net", PluginName, "swarm", "web")
	i, err := New(h.program("v1"))
	if err != nil {
		t.Fatal(err)
	}
	steps, err := i.Plan(t.Context(), true)
	if err != nil {
		t.Fatal(err)
	}
	same(t, "plan", []string{
		"docker plugin disable custom-overlay:latest", "docker plugin rm custom-overlay:latest",
		"docker plugin create custom-overlay:latest", "docker plugin enable custom-overlay:latest",
	}, commands(steps))
	err = Run(t.Context(), steps, func(Step) {})
	if err == nil || !strings.Contains(err.Error(), "while networks use it") || !h.plugin.Enabled {
		t.Errorf("error %v, plugin %+v", err, h.plugin)
	}
}

func TestAManagedPluginDoesNotHideThePlainOneOfNetworksThatExist(t *testing.T) {
	h := newHost(t)
	h.add("old", plugin.Name, "local")
	err := refused(t, h.program("v1"), func(i *Installer) ([]Step, error) { return i.Plan(t.Context(), true) })
	if !strings.Contains(err.Error(), "network old") {
		t.Error(err)
	}
	install(t, h.program("v1"), false)
}

func TestAChangedSettingRestartsTheDaemon(t *testing.T) {
	h := newHost(t)
	cfg := h.program("v1")
	install(t, cfg, false)
	cfg.Given = []config.Given{{Name: "log-level", Value: "debug"}}
	same(t, "steps", []string{
		"edit /etc/netdriver/config.yaml: log-level=debug", "systemctl restart netdriver.service", "netdriver nodes",
	}, install(t, cfg, false))
}

func TestABadSettingIsRefusedBeforeAnythingIsDone(t *testing.T) {
	h := newHost(t)
	before := h.files()
	cfg := h.program("v1")
	cfg.Given = []config.Given{{Name: "vxlan-port", Value: "0"}}
	err := refused(t, cfg, func(i *Installer) ([]Step, error) { return i.Plan(t.Context(), false) })
	if !errors.Is(err, config.ErrSetting) {
		t.Error(err)
	}
	same(t, "files", before, h.files())
}

func TestADaemonThatIsNotTheServiceIsNotFought(t *testing.T) {
	h := newHost(t)
	h.running = "v1"
	err := refused(t, h.program("v1"), func(i *Installer) ([]Step, error) { return i.Plan(t.Context(), false) })
	if !strings.Contains(err.Error(), "not as the service") {
		t.Error(err)
	}
}

func TestAProgramOfAPackageStaysWhereItIsAndIsRestartedWhenReplaced(t *testing.T) {
	h := newHost(t)
	cfg := h.program("v1")
	cfg.Self = "/usr/bin/netdriver"
	h.write(programPath, "program v1") // what the fake systemd starts
	install(t, cfg, false)
	if unit := h.read(unitPath); !strings.Contains(unit, "ExecStart=/usr/bin/netdriver run\n") {
		t.Error(unit)
	}
	exe := filepath.Join(h.root, "proc/7/exe")
	if err := os.MkdirAll(filepath.Dir(exe), 0o755); err != nil {
		t.Fatal(err)
	}
	for target, want := range map[string][]string{
		"/usr/bin/netdriver":           nil,
		"/usr/bin/netdriver (deleted)": {"systemctl restart netdriver.service", "netdriver nodes"}, // man 5 proc
	} {
		if err := os.Symlink(target, exe); err != nil {
			t.Fatal(err)
		}
		same(t, target, want, install(t, cfg, false))
		if err := os.Remove(exe); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAHostWithoutSystemdIsToldHowToRunTheDaemon(t *testing.T) {
	h := newHost(t)
	h.systemd = false
	got := install(t, h.program("v1"), false)
	if len(got) != 2 || !strings.Contains(got[1], "/usr/local/bin/netdriver run") {
		t.Error(got)
	}
}

// systemd-analyze finds misspelt settings, which systemd itself only logs.
func TestSystemdUnderstandsTheService(t *testing.T) {
	h := newHost(t)
	cfg := h.program("v1")
	cfg.File = "/etc/other.yaml"
	i, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{i.unitText(), strings.Replace(i.unitText(), "KillMode", "KilMode", 1)} {
		path := filepath.Join(t.TempDir(), service)
		text = strings.Replace(text, "ExecStart="+programPath, "ExecStart=/bin/true", 1)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		out, err := exec.CommandContext(t.Context(), "systemd-analyze", "verify", "--man=no", path).CombinedOutput()
		if good := !strings.Contains(text, "KilMode"); good != (err == nil && len(out) == 0) {
			t.Errorf("%v\n%s", err, out)
		}
	}
	if !strings.Contains(i.unitText(), "run --config /etc/other.yaml\n") {
		t.Error(i.unitText())
	}
}

// A mount namespace of the service's own would keep its mounts from Docker.
func TestTheServiceHasNoMountNamespaceOfItsOwn(t *testing.T) {
	for _, setting := range []string{
		"Private", "Protect", "Paths=", "MountFlags", "RootDirectory", "DynamicUser", "TemporaryFileSystem",
	} {
		for line := range strings.Lines(unit) {
			if strings.Contains(line, setting) {
				t.Errorf("%s", line)
			}
		}
	}
}

func TestAStepThatFailsEndsTheInstallationWithItsName(t *testing.T) {
	broken := errors.New("broken")
	fails := func(context.Context) error { return broken }
	var shown []string
	steps := []Step{note("first"), {"second", fails}, {"third", fails}}
	err := Run(t.Context(), steps, func(s Step) { shown = append(shown, s.Command) })
	if !errors.Is(err, broken) || !strings.HasPrefix(err.Error(), "second: ") {
		t.Error(err)
	}
	same(t, "shown", []string{"# first", "second"}, shown)
}
