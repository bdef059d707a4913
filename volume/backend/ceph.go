package backend

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/volume/mount"
	"github.com/netdriver/netdriver/volume/option"
)

// The monitors' ports: of the first protocol, and of the second that ms_mode asks for (Ceph documentation, "Messenger v2").
const cephPort1, cephPort2 = "6789", "3300"

// prepareCeph connects to a monitor. The kernel's client is tried first, then ceph-fuse.
func (s *session) prepareCeph(ctx context.Context) (mount.Plan, error) {
	if s.spec.SecretFile != "" {
		if _, err := os.Stat(s.spec.SecretFile); err != nil {
			return mount.Plan{}, err
		}
	}
	monitors, err := s.monitors(ctx)
	if err != nil {
		return mount.Plan{}, err
	}
	if err := os.MkdirAll(s.host.Logs, 0o700); err != nil {
		return mount.Plan{}, err
	}
	plan := mount.Plan{
		Attempts: []mount.Attempt{s.cephKernel(monitors)},
		Next:     []unix.Errno{unix.ENODEV, unix.EPROTONOSUPPORT},
	}
	if program, err := exec.LookPath("ceph-fuse"); err == nil {
		plan.Attempts = append(plan.Attempts, s.cephFUSE(program, monitors))
	}
	return plan, nil
}

// monitors returns the addresses of all monitors, after one has taken a connection.
func (s *session) monitors(ctx context.Context) ([]netip.AddrPort, error) {
	port := cephPort1
	if mode := s.spec.Setting("ms_mode"); mode != "" && mode != "legacy" {
		port = cephPort2
	}
	var out []netip.AddrPort
	var first error
	answered := false
	for _, m := range s.spec.Servers {
		host, own, err := net.SplitHostPort(m)
		if err != nil { // no port; an IPv6 address has no brackets then
			host, own = m, port
		}
		addrs, err := s.addresses(ctx, host)
		for _, a := range addrs {
			at, parseErr := netip.ParseAddrPort(net.JoinHostPort(a.String(), own))
			if parseErr != nil {
				return nil, parseErr
			}
			out = append(out, at)
			if answered {
				continue
			}
			if err = s.greet(ctx, a, own); err == nil {
				s.server, answered = a, true
			}
		}
		if first == nil {
			first = err
		}
	}
	if !answered {
		return nil, first
	}
	return out, nil
}

// greet waits for what a monitor says first, in both of its protocols ("ceph v027", "ceph v2"): the connection alone is
// taken by its kernel, also for a monitor that is frozen.
func (s *session) greet(ctx context.Context, a netip.Addr, port string) error {
	alternatives := len(s.spec.Servers) > 1
	conn, err := s.dial(ctx, a, port, alternatives)
	if err != nil {
		return err
	}
	defer conn.Close()
	if alternatives {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, preflight/3)
		defer cancel()
	}
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetReadDeadline(deadline); err != nil {
			return err
		}
	}
	if _, err := io.ReadFull(conn, make([]byte, len("ceph v"))); err != nil {
		s.server = a
		return fmt.Errorf("wait for the greeting of %s: %w", conn.RemoteAddr(), silence(ctx, err))
	}
	return nil
}

func (s *session) cephKernel(monitors []netip.AddrPort) mount.Attempt {
	var hosts []string
	for _, m := range monitors {
		hosts = append(hosts, m.String())
	}
	data := slices.Clone(s.spec.Settings)
	for i := range data {
		if data[i].Key == "fs" { // the kernel's older name for it, which newer ones know as well
			data[i].Key = "mds_namespace"
		}
	}
	if s.spec.User != "" {
		data = append(data, option.Setting{Key: "name", Value: s.spec.User})
	}
	if s.spec.Setting("mount_timeout") == "" {
		data = append(data, option.Setting{Key: "mount_timeout", Value: "5"})
	}
	return mount.Attempt{
		Label: "CephFS", Source: strings.Join(hosts, ",") + ":" + s.spec.Path, FSType: "ceph", Flags: s.spec.Flags,
		Data: strings.Join(option.Spec{Settings: data}.Data(), ","), SecretFile: s.spec.SecretFile,
	}
}

func (s *session) cephFUSE(program string, monitors []netip.AddrPort) mount.Attempt {
	var hosts []string
	for _, m := range monitors {
		hosts = append(hosts, m.String())
	}
	command := []string{
		program, "-c", "/dev/null", "--no-mon-config", "-m", strings.Join(hosts, ","), "--client_mountpoint=" + s.spec.Path,
		"--client_mount_timeout=5", "--log_file=" + s.cephLog(), "--err_to_stderr=false", "--admin_socket=",
	}
	if s.spec.User != "" {
		command = append(command, "-n", "client."+s.spec.User, "--keyfile", s.spec.SecretFile)
	} else {
		command = append(command, "-n", "client.admin", "--auth_client_required=none")
	}
	if fs := s.spec.Setting("fs") + s.spec.Setting("mds_namespace"); fs != "" {
		command = append(command, "--client_fs="+fs)
	}
	if s.spec.ReadOnly() {
		command = append(command, "-o", "ro")
	}
	return mount.Attempt{Label: "CephFS in user space", Command: append(command, mount.Placeholder)}
}

// cephLog is where ceph-fuse writes.
func (s *session) cephLog() string { return filepath.Join(s.host.Logs, "cephfs-"+s.name+".log") }

// cephFUSEStatus finds the system's number in what ceph-fuse says: "ceph mount failed with (13) Permission denied".
var cephFUSEStatus = regexp.MustCompile(`failed with \(([0-9]+)\)`)

// cephErrno returns the system's number of an error, also of one that ceph-fuse tells in words.
func cephErrno(err error) unix.Errno {
	f := mount.Failure{}
	if !errors.As(err, &f) || f.Step != "ceph-fuse" {
		errno, _ := mount.Refused(err)
		return errno
	}
	n := 0
	if m := cephFUSEStatus.FindStringSubmatch(f.Text); m != nil {
		n, _ = strconv.Atoi(m[1])
	}
	return unix.Errno(n)
}

func (s *session) explainCeph(err error) (cause, remedy string) {
	f := mount.Failure{}
	var path *os.PathError
	errno := cephErrno(err)
	if errors.As(err, &f) && strings.HasPrefix(f.Step, "make subdir") {
		return "", ""
	}
	switch {
	case errors.As(err, &path) || errors.As(err, &f) && f.Step == "read the secret":
		return "this node has no readable file " + s.spec.SecretFile, "put the key of client." + s.spec.User + " there, and nothing else"
	case errors.Is(err, unix.ENODEV):
		return "this node has neither the kernel's CephFS client nor ceph-fuse", "load it with `modprobe ceph`, or install ceph-fuse"
	case errno == unix.ENOENT:
		return "the file system has no " + s.spec.Path, "make it, or check the spelling of device="
	case errno == unix.EACCES, errno == unix.EPERM:
		return fmt.Sprintf("client.%s may not use %s, or its key is another", s.spec.User, s.spec.Path),
			"look at `ceph auth get client." + s.spec.User + "`"
	case errno == unix.EHOSTUNREACH && f.Step == "mount": // of the kernel's client, for both
		return fmt.Sprintf("its monitors are there, but no metadata server is up, or client.%s may not use the file system, or its key "+
			"is another", s.spec.User), "look at `ceph fs status` and at `ceph auth get client." + s.spec.User + "`"
	case errno == unix.EIO, errno == unix.ETIMEDOUT, f.Step == "ceph-fuse":
		return "its monitors are there, and no metadata server serves the file system", "look at `ceph fs status`"
	}
	return "", ""
}
