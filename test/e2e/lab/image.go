package lab

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Image is the name of the image that every dockerd of a lab has: busybox, with all its commands.
const Image = "lab"

// busyboxPath is where Debian's busybox-static has its one file. Statically linked, it needs no other.
const busyboxPath = "/bin/busybox"

// writeImage makes the root file system of the image as a tar file in the lab's directory.
func (l *Lab) writeImage() (name string, err error) {
	name = filepath.Join(l.Dir, "image.tar")
	busybox, err := os.ReadFile(busyboxPath)
	if err != nil {
		return "", fmt.Errorf("%w (Debian package busybox-static)", err)
	}
	list, err := exec.Command(busyboxPath, "--list").Output()
	if err != nil {
		return "", fmt.Errorf("%s --list: %w", busyboxPath, err)
	}
	file, err := os.Create(name)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	archive := tar.NewWriter(file)
	for _, dir := range []string{"bin/", "etc/", "tmp/", "www/", "root/"} {
		if err := archive.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755}); err != nil {
			return "", err
		}
	}
	if err := writeFile(archive, "bin/busybox", 0o755, busybox); err != nil {
		return "", err
	}
	for _, applet := range strings.Fields(string(list)) {
		link := &tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + applet, Linkname: "busybox", Mode: 0o777}
		if applet == "busybox" {
			continue
		}
		if err := archive.WriteHeader(link); err != nil {
			return "", err
		}
	}
	// Without these two, some commands cannot say or look up who they are.
	if err := writeFile(archive, "etc/passwd", 0o644, []byte("root:x:0:0:root:/root:/bin/sh\n")); err != nil {
		return "", err
	}
	if err := writeFile(archive, "etc/group", 0o644, []byte("root:x:0:\n")); err != nil {
		return "", err
	}
	return name, archive.Close()
}

func writeFile(archive *tar.Writer, name string, mode int64, content []byte) error {
	header := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(content))}
	if err := archive.WriteHeader(header); err != nil {
		return err
	}
	_, err := archive.Write(content)
	return err
}

// importImage gives the node's dockerd the image, unless it still has it from before.
func (n *Node) importImage(ctx context.Context, file string) error {
	if _, err := n.Docker(ctx, "image", "inspect", Image); err == nil {
		return nil
	}
	_, err := n.Docker(ctx, "import", file, Image)
	return err
}
