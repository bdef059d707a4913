package install

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/netdriver/netdriver/internal/config"
)

// answerWithin is how long a started daemon may take to answer; systemd waits for its readiness before that.
const answerWithin = 30 * time.Second

// Systemd is the service manager of the host.
type Systemd interface {
	// Booted says whether systemd runs this host.
	Booted() bool
	// Control runs systemctl and returns what it says.
	Control(ctx context.Context, args ...string) (string, error)
}

// Systemctl is the real Systemd.
type Systemctl struct{}

// Booted implements Systemd (man sd_booted).
func (Systemctl) Booted() bool {
	info, err := os.Lstat("/run/systemd/system")
	return err == nil && info.IsDir()
}

// Control implements Systemd.
func (Systemctl) Control(ctx context.Context, args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, "systemctl", args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%w: %s", err, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.String(), nil
}

// unit is the service. What its lines are for:
//   - Before=docker.service: Docker finds the daemon when it starts containers at boot. It starts without it, too.
//   - Type=notify: started means that the sockets answer. The store need not: a cluster boots host by host.
//   - Restart=always without a limit, since a daemon that waits for its underlay or disk is to come up some day.
//   - KillMode=process: file systems in user space that serve volumes are children and outlive the daemon.
//   - TimeoutStopSec: calls of Docker's, which end within 27 s, are still answered.
//   - No RuntimeDirectory: the daemon makes its own, and it has to outlive the service, since RUN_DIR/netns holds the
//     networks of running containers.
//   - No setting that gives the service a mount namespace of its own (PrivateTmp, Protect*, ReadOnlyPaths, MountFlags):
//     the mounts that it makes have to be the host's.
//   - The capabilities are those of network devices, namespaces, eBPF, mounts, and files of any owner (volumes).
const unit = `# Written by "netdriver install", which overwrites changes: use "systemctl edit netdriver" for your own.
[Unit]
Description=netdriver, networks between Docker engines
Wants=network-online.target
After=network-online.target
Before=docker.service
StartLimitIntervalSec=0

[Service]
Type=notify
ExecStart=%s run%s
Restart=always
RestartSec=1
KillMode=process
TimeoutStartSec=120
TimeoutStopSec=40
LimitNOFILE=1048576
LimitMEMLOCK=infinity
TasksMax=infinity
OOMScoreAdjust=-500
CapabilityBoundingSet=CAP_NET_ADMIN CAP_NET_RAW CAP_NET_BIND_SERVICE CAP_SYS_ADMIN CAP_SYS_MODULE CAP_SYS_PTRACE \
 CAP_SYS_RESOURCE CAP_SYS_CHROOT CAP_BPF CAP_PERFMON CAP_IPC_LOCK CAP_KILL CAP_CHOWN CAP_FOWNER CAP_FSETID \
 CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_MKNOD CAP_SETFCAP CAP_SETUID CAP_SETGID
NoNewPrivileges=yes
LockPersonality=yes
RestrictRealtime=yes
SystemCallArchitectures=native

[Install]
WantedBy=multi-user.target
`

// unitText is the service's file for this host.
func (i *Installer) unitText() string {
	arguments := ""
	if i.cfg.File != config.DefaultFile {
		arguments = " --config " + i.cfg.File
	}
	return fmt.Sprintf(unit, i.program, arguments)
}

// state is what systemd knows of the service (man org.freedesktop.systemd1).
type state struct {
	enabled, active bool
	pid             string
}

// state asks systemd for the service; one that it has not heard of is neither enabled nor active.
func (i *Installer) state(ctx context.Context) (state, error) {
	out, err := i.cfg.Systemd.Control(ctx, "show", "--property=UnitFileState,ActiveState,MainPID", service)
	if err != nil {
		return state{}, err
	}
	var s state
	for line := range strings.Lines(out) {
		switch key, value, _ := strings.Cut(strings.TrimSpace(line), "="); key {
		case "UnitFileState":
			s.enabled = value == "enabled"
		case "ActiveState":
			s.active = value == "active" || value == "activating" || value == "reloading"
		case "MainPID":
			s.pid = value
		}
	}
	return s, nil
}

// planService returns the steps to a service that runs the program; changed says that the program or its settings will
// have changed by then.
func (i *Installer) planService(ctx context.Context, changed bool) ([]Step, error) {
	if !i.cfg.Systemd.Booted() {
		return []Step{note("no systemd on this host: have your own supervisor run `%s run` as root, before Docker, in the "+
			"host's mount namespace, and restart it when it ends; restart it after an upgrade", i.program)}, nil
	}
	have, err := i.state(ctx)
	if err != nil {
		return nil, err
	}
	if version, err := i.cfg.Answers(ctx, i.settings.RunDir); err == nil && !have.active {
		return nil, fmt.Errorf("netdriver %s runs on this host already, but not as the service: stop it first; its "+
			"networks and containers stay", version)
	}
	var steps []Step
	text, err := os.ReadFile(i.path(unitPath))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read the service: %w", err)
	}
	if want := i.unitText(); string(text) != want {
		changed = true
		steps = append(steps, Step{"write " + unitPath, func(context.Context) error {
			return replace(i.path(unitPath), strings.NewReader(want), 0o644)
		}}, i.systemctl("daemon-reload"))
	}
	if !have.enabled {
		steps = append(steps, i.systemctl("enable", service))
	}
	switch {
	case !have.active:
		steps = append(steps, i.systemctl("start", service), i.wait())
	case changed || i.outdated(have):
		steps = append(steps, i.systemctl("restart", service), i.wait())
	}
	return steps, nil
}

// outdated says whether the service's process runs another file than the program: one that has been replaced since.
func (i *Installer) outdated(s state) bool {
	exe, err := os.Readlink(i.path(filepath.Join("/proc", s.pid, "exe")))
	return err == nil && exe != i.program
}

func (i *Installer) systemctl(args ...string) Step {
	return Step{"systemctl " + strings.Join(args, " "), func(ctx context.Context) error {
		_, err := i.cfg.Systemd.Control(ctx, args...)
		return err
	}}
}

// wait is the step that waits until the daemon of this version answers.
func (i *Installer) wait() Step {
	return Step{"netdriver nodes", func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, answerWithin)
		defer cancel()
		for {
			version, err := i.cfg.Answers(ctx, i.settings.RunDir)
			if err == nil && version == i.cfg.Version {
				return nil
			}
			if err == nil {
				err = fmt.Errorf("version %s answers, want %s", version, i.cfg.Version)
			}
			select {
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
				return fmt.Errorf("%w; see `journalctl -u netdriver`", err)
			}
		}
	}}
}
