package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/test/e2e/lab/guest"
)

// rootModules are those that a kernel needs to reach the machine's file system and its own devices; it finds all others
// there.
func rootModules() []string {
	return []string{"virtio_pci", "virtio_net", "virtio_blk", "9pnet_virtio", "9p", "overlay"}
}

// kernelVersion is that of the Debian kernel on this machine, the last one if there are several.
func kernelVersion() (string, error) {
	images, err := filepath.Glob("/boot/vmlinuz-*-amd64")
	if err != nil {
		return "", err
	}
	for _, image := range slices.Backward(images) {
		version := strings.TrimPrefix(image, "/boot/vmlinuz-")
		if _, err := os.Stat(filepath.Join("/lib/modules", version, "modules.dep")); err == nil {
			return version, nil
		}
	}
	return "", errors.New("no kernel with modules in /boot: install Debian's linux-image-amd64")
}

// packedRoot is the archive that the kernels of virtual nodes unpack into their first file system (the kernel's
// Documentation/filesystems/ramfs-rootfs-initramfs.rst).
func (l *Lab) packedRoot() string { return filepath.Join(l.Dir, "initramfs.cpio") }

// packRoot makes that archive: the agent as the first process, a console for it, and the modules in the order in which
// they are loaded.
func (l *Lab) packRoot(ctx context.Context) error {
	version, err := kernelVersion()
	if err != nil {
		return err
	}
	dir := filepath.Join(l.Dir, "initramfs")
	modules := filepath.Join(dir, guest.FirstModules)
	if err := errors.Join(os.MkdirAll(modules, 0o755), os.MkdirAll(filepath.Join(dir, "dev"), 0o755)); err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := unix.Mknod(filepath.Join(dir, "dev", "console"), unix.S_IFCHR|0o600, int(unix.Mkdev(5, 1))); err != nil {
		return fmt.Errorf("make the console's node: %w", err)
	}
	if err := os.Link(l.agent(), filepath.Join(dir, "init")); err != nil {
		return err
	}
	files, err := moduleFiles(ctx, version, rootModules())
	if err != nil {
		return err
	}
	for i, file := range files {
		text, err := os.ReadFile(file)
		if err == nil {
			err = os.WriteFile(filepath.Join(modules, fmt.Sprintf("%02d-%s", i, filepath.Base(file))), text, 0o644)
		}
		if err != nil {
			return err
		}
	}
	const pack = `cd "$0" && find . | cpio --quiet --create --format=newc >"$1"`
	if out, err := exec.CommandContext(ctx, "sh", "-c", pack, dir, l.packedRoot()).CombinedOutput(); err != nil {
		return fmt.Errorf("pack %s: %w: %s", l.packedRoot(), err, out)
	}
	return nil
}

// moduleFiles are the files of modules and of what they depend on, in the order in which they are to be loaded.
func moduleFiles(ctx context.Context, version string, names []string) ([]string, error) {
	var files []string
	for _, name := range names {
		out, err := exec.CommandContext(ctx, "modprobe", "--set-version", version, "--show-depends", name).Output()
		if err != nil {
			return nil, fmt.Errorf("find module %s of kernel %s: %w", name, version, err)
		}
		for line := range strings.Lines(string(out)) {
			file, isFile := strings.CutPrefix(strings.TrimSpace(line), "insmod ")
			if file = strings.TrimSpace(file); isFile && !slices.Contains(files, file) {
				files = append(files, file)
			}
		}
	}
	return files, nil
}
