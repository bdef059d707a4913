package guest

import (
	"errors"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// modulesDir is where Debian's package user-mode-linux has the modules of its kernel, by version.
const modulesDir = "/usr/lib/uml/modules"

// Init is the first process of a virtual node, whose root is the machine's own file system, read-only. It makes an
// ordinary host of the node, starts `agent serve` in it, and from then on only takes the exit status of orphans.
func Init() error {
	settings, err := ReadSettings(os.Getenv(SettingsVariable))
	if err != nil {
		return err
	}
	os.Clearenv()
	os.Setenv("PATH", settings.Path)
	if err := prepare(settings); err != nil {
		return err
	}
	server := exec.Command(os.Args[0], "serve", settings.Manage.Addr().String(), settings.Ready)
	server.Stdout, server.Stderr = os.Stdout, os.Stderr
	if err := server.Start(); err != nil {
		return err
	}
	for {
		if _, err := unix.Wait4(-1, nil, 0, nil); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for processes: %w", err) // the server has ended
		}
	}
}

// prepare does all that comes before the first command.
func prepare(s Settings) error {
	var uname unix.Utsname
	if err := unix.Uname(&uname); err != nil {
		return err
	}
	modules := filepath.Join(modulesDir, unix.ByteSliceToString(uname.Release[:]))
	for _, step := range []struct {
		what string
		do   func() error
	}{
		{"make the root writable", func() error { return overlayRoot(modules) }},
		{"mount file systems", mountAll},
		{"mount the directory shared with the machine", func() error { return share(s) }},
		{"choose the kernel's modules", func() error { return chooseModules(modules, s.Without) }},
		{"set the host name", func() error { return unix.Sethostname([]byte(s.Name)) }},
		{"configure the network", func() error { return configureNetwork(s) }},
		{"load modules", func() error { return loadModules(s.Modules) }},
	} {
		if err := step.do(); err != nil {
			return fmt.Errorf("%s: %w", step.what, err)
		}
	}
	return nil
}

// overlayRoot puts a file system in memory over the root, and makes that the root.
func overlayRoot(modules string) error {
	if err := mount("proc", "/proc", "proc", 0, ""); err != nil {
		return err
	}
	if err := insertModule(filepath.Join(modules, "kernel/fs/overlayfs/overlay.ko")); err != nil {
		return err
	}
	const memory = "/mnt" // any directory that is there
	if err := mount("tmpfs", memory, "tmpfs", 0, "mode=755"); err != nil {
		return err
	}
	for _, dir := range []string{"upper", "work", "root"} {
		if err := os.Mkdir(filepath.Join(memory, dir), 0o755); err != nil {
			return err
		}
	}
	root := filepath.Join(memory, "root")
	layers := fmt.Sprintf("lowerdir=/,upperdir=%s/upper,workdir=%s/work", memory, memory)
	if err := mount("overlay", root, "overlay", 0, layers); err != nil {
		return err
	}
	if err := os.Chdir(root); err != nil {
		return err
	}
	// pivot_root(2): with the old root put over the new one, no directory is needed for it.
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("detach the old root: %w", err)
	}
	return os.Chdir("/")
}

// mountAll mounts what an ordinary host has. Docker wants the mounts shared.
func mountAll() error {
	for _, m := range []struct{ kind, dir, options string }{
		{"proc", "/proc", ""},
		{"sysfs", "/sys", ""},
		{"devtmpfs", "/dev", ""},
		{"devpts", "/dev/pts", "mode=600,ptmxmode=666"},
		{"tmpfs", "/dev/shm", "mode=1777"},
		{"mqueue", "/dev/mqueue", ""},
		{"tmpfs", "/run", "mode=755"},
		{"tmpfs", "/run/lock", "mode=1777"},
		{"bpf", "/sys/fs/bpf", ""},
	} {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			return err
		}
		if err := mount(m.kind, m.dir, m.kind, 0, m.options); err != nil {
			return err
		}
	}
	if err := mountControlGroups("/sys/fs/cgroup"); err != nil {
		return err
	}
	if err := os.MkdirAll("/run/docker/plugins", 0o755); err != nil {
		return err
	}
	return mount("", "/", "", unix.MS_SHARED|unix.MS_REC, "")
}

// mountControlGroups mounts each controller's hierarchy, of version 1.
func mountControlGroups(dir string) error {
	if err := mount("tmpfs", dir, "tmpfs", 0, "mode=755"); err != nil {
		return err
	}
	table, err := os.ReadFile("/proc/cgroups")
	if err != nil {
		return err
	}
	hierarchies := []string{"none,name=systemd"}
	for line := range strings.Lines(string(table)) { // name, hierarchy, number of groups, enabled
		if f := strings.Fields(line); len(f) == 4 && f[0] != "#subsys_name" && f[3] == "1" {
			hierarchies = append(hierarchies, f[0])
		}
	}
	for _, options := range hierarchies {
		_, name, _ := strings.Cut(options, "=")
		if name == "" {
			name = options
		}
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			return err
		}
		if err := mount("cgroup", filepath.Join(dir, name), "cgroup", 0, options); err != nil {
			return err
		}
	}
	return nil
}

// share mounts the shared directory, and the node's disk where directories of it are to be the node's own.
func share(s Settings) error {
	if err := os.MkdirAll(s.Shared, 0o755); err != nil {
		return err
	}
	if err := mount("none", s.Shared, "hostfs", 0, s.Shared); err != nil {
		return err
	}
	const disk = "/run/disk"
	if err := os.Mkdir(disk, 0o755); err != nil {
		return err
	}
	if err := mount("/dev/ubda", disk, "ext4", unix.MS_NOATIME, ""); err != nil {
		return err
	}
	for _, dir := range s.Kept {
		from := filepath.Join(disk, filepath.Base(dir))
		if err := errors.Join(os.MkdirAll(from, 0o755), os.MkdirAll(dir, 0o755)); err != nil {
			return err
		}
		if err := mount(from, dir, "", unix.MS_BIND, ""); err != nil {
			return err
		}
	}
	return nil
}

func mount(source, dir, kind string, flags uintptr, options string) error {
	if err := unix.Mount(source, dir, kind, flags, options); err != nil {
		return fmt.Errorf("mount %s on %s: %w", kind, dir, err)
	}
	return nil
}

// chooseModules makes modprobe find the running kernel's modules and refuse those that the node is to be without. It
// also chooses the iptables that this kernel has: its nf_tables knows bridges only.
func chooseModules(modules string, without []string) error {
	dir := filepath.Join("/lib/modules", filepath.Base(modules))
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	if err := os.Symlink(modules, dir); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	var refused strings.Builder
	for _, name := range without {
		fmt.Fprintf(&refused, "install %s /bin/false\n", name) // modprobe.d(5)
	}
	if err := os.WriteFile("/etc/modprobe.d/lab.conf", []byte(refused.String()), 0o644); err != nil {
		return err
	}
	for _, name := range []string{"iptables", "ip6tables"} {
		for _, tool := range []string{"", "-save", "-restore"} {
			link := "/etc/alternatives/" + name + tool // update-alternatives(1)
			if err := os.Remove(link); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
			if err := os.Symlink("/usr/sbin/"+name+"-legacy"+tool, link); err != nil {
				return err
			}
		}
	}
	return nil
}

// insertModule loads one module that depends on no other.
func insertModule(name string) error {
	file, err := os.Open(name)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := unix.FinitModule(int(file.Fd()), "", 0); err != nil {
		return fmt.Errorf("load %s: %w", name, err)
	}
	return nil
}

// loadModules loads the modules, with what they depend on. What one kernel lacks is not an error here: a test that
// needs it will say so.
func loadModules(names []string) error {
	out, err := exec.Command("modprobe", append([]string{"--all"}, names...)...).CombinedOutput()
	if exit := new(exec.ExitError); errors.As(err, &exit) {
		log.Printf("modprobe: %s", out)
		return nil
	}
	return err
}
