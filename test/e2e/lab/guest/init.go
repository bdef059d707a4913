package guest

import (
	"errors"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// The tags of what the machine shares with a node (9p): all its files, read-only, and Settings.Shared.
const (
	MachineTag = "machine"
	SharedTag  = "lab"
)

// FirstModules is the directory of the modules that are loaded in the order of their names, before there is a root.
const FirstModules = "modules"

// Init is the first process of a virtual node, which the kernel starts from a file system in memory. It makes an
// ordinary host of the node, starts `agent serve` in it, and from then on only takes the exit status of orphans.
func Init() error {
	settings, err := findRoot(os.Getenv(SettingsVariable))
	if err != nil {
		return err
	}
	os.Clearenv()
	os.Setenv("PATH", settings.Path)
	if err := prepare(settings); err != nil {
		return err
	}
	server := exec.Command("/proc/self/exe", "serve", settings.Manage.Addr().String(), settings.Ready)
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
	for _, step := range []struct {
		what string
		do   func() error
	}{
		{"mount file systems", mountAll},
		{"mount the directory shared with the machine", func() error { return share(s) }},
		{"choose the kernel's modules", func() error { return chooseModules(s.Without) }},
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

// findRoot makes the machine's file system the node's root, below one in memory that takes what is written. It returns
// the settings, which are in a file there.
func findRoot(settingsFile string) (Settings, error) {
	if err := insertModules("/" + FirstModules); err != nil {
		return Settings{}, err
	}
	const machine, memory = "/machine", "/memory"
	root, upper, work := memory+"/root", memory+"/upper", memory+"/work"
	if err := errors.Join(os.Mkdir(machine, 0o755), os.Mkdir(memory, 0o755)); err != nil {
		return Settings{}, err
	}
	// Nothing of the machine's that a node reads changes while it runs, so all may be cached.
	if err := mount(MachineTag, machine, "9p", unix.MS_RDONLY, share9p+",cache=loose"); err != nil {
		return Settings{}, err
	}
	settings, err := ReadSettings(machine + settingsFile)
	if err != nil {
		return Settings{}, err
	}
	if err := mount("tmpfs", memory, "tmpfs", 0, "mode=755"); err != nil {
		return Settings{}, err
	}
	for _, dir := range []string{root, upper, work} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return Settings{}, err
		}
	}
	layers := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", machine, upper, work)
	if err := mount("overlay", root, "overlay", 0, layers); err != nil {
		return Settings{}, err
	}
	return settings, enter(root)
}

// enter makes a directory the root. The first file system itself can neither be left by pivot_root(2) nor be unmounted,
// so the new one is put over it.
func enter(root string) error {
	if err := os.Chdir(root); err != nil {
		return err
	}
	if err := mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return err
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("chroot: %w", err)
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
		{"cgroup2", "/sys/fs/cgroup", ""},
	} {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			return err
		}
		if err := mount(m.kind, m.dir, m.kind, 0, m.options); err != nil {
			return err
		}
	}
	if err := os.MkdirAll("/run/docker/plugins", 0o755); err != nil {
		return err
	}
	return mount("", "/", "", unix.MS_SHARED|unix.MS_REC, "")
}

// share9p are the options of both mounts of the machine's files: frames as large as QEMU takes them.
const share9p = "trans=virtio,version=9p2000.L,msize=512000"

// share mounts the shared directory, and the node's disk where directories of it are to be the node's own.
func share(s Settings) error {
	if err := os.MkdirAll(s.Shared, 0o755); err != nil {
		return err
	}
	// Programs in it need mmap; nothing else is cached, since both sides write.
	if err := mount(SharedTag, s.Shared, "9p", 0, share9p+",cache=mmap"); err != nil {
		return err
	}
	const disk = "/run/disk"
	if err := os.Mkdir(disk, 0o755); err != nil {
		return err
	}
	if err := mount("/dev/vda", disk, "ext4", unix.MS_NOATIME, ""); err != nil {
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

// chooseModules makes modprobe refuse the modules that the node is to be without. A node without nf_tables gets the
// iptables that needs none.
func chooseModules(without []string) error {
	var refused strings.Builder
	for _, name := range without {
		fmt.Fprintf(&refused, "install %s /bin/false\n", name) // modprobe.d(5)
	}
	if err := os.WriteFile("/etc/modprobe.d/lab.conf", []byte(refused.String()), 0o644); err != nil {
		return err
	}
	if !slices.Contains(without, "nf_tables") {
		return nil
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

// insertModules loads the modules in a directory by their names.
func insertModules(dir string) error {
	files, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, file := range files {
		if err := insertModule(filepath.Join(dir, file.Name())); err != nil {
			return err
		}
	}
	return nil
}

// insertModule loads one module, after those that it depends on.
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
