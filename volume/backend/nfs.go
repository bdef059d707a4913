package backend

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/volume/mount"
	"github.com/netdriver/netdriver/volume/option"
)

const (
	// nfsPort is where NFS 4 is always served (RFC 7530 §3.1) and NFS 3 nearly always.
	nfsPort = "2049"
	// rpcbindPort tells where NFS 3 is served otherwise (RFC 1833 §2.2.1).
	rpcbindPort = "111"
)

// prepareNFS asks the server which versions it speaks and leaves those out that it does not. A server that takes
// connections and answers nothing is found out here, in seconds.
func (s *session) prepareNFS(ctx context.Context) (mount.Plan, error) {
	versions, err := s.nfsVersions(ctx)
	if err != nil {
		return mount.Plan{}, err
	}
	plan := mount.Plan{Next: []unix.Errno{unix.EPROTONOSUPPORT, unix.EINVAL, unix.ENOENT, unix.ECONNREFUSED}}
	for _, v := range versions {
		plan.Attempts = append(plan.Attempts, s.nfsAttempts(v)...)
	}
	return plan, nil
}

// nfsVersions returns those of the wanted versions that the server may speak.
func (s *session) nfsVersions(ctx context.Context) ([]string, error) {
	wanted := s.spec.Versions
	port := s.spec.Setting("port")
	if udp(s.spec) {
		return wanted, s.resolveOnly(ctx)
	}
	if port == "" {
		port = nfsPort
	}
	conn, err := s.connect(ctx, s.spec.Servers, port)
	if errors.Is(err, unix.ECONNREFUSED) && s.spec.Setting("port") == "" && slices.Contains(wanted, "3") {
		// It may serve version 3 elsewhere: its rpcbind knows, and the kernel asks that.
		conn, refused := s.connect(ctx, s.spec.Servers, rpcbindPort)
		if refused != nil {
			return nil, err
		}
		return []string{"3"}, conn.Close()
	}
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	low, high, err := nullCall(ctx, conn, nfsProgram, 4)
	if err != nil {
		return nil, fmt.Errorf("ask %s for its NFS versions: %w", conn.RemoteAddr(), err)
	}
	spoken := slices.DeleteFunc(slices.Clone(wanted), func(v string) bool {
		major := uint32(v[0] - '0')
		return major < low && low > 0 || major > high
	})
	if len(spoken) == 0 {
		return nil, &Failure{
			Backend: s.spec.Type, Server: s.where(),
			Cause:  fmt.Sprintf("it speaks NFS %d to %d, and version %s is wanted", low, high, strings.Join(wanted, ", ")),
			Remedy: "leave vers= out of -o o=", Err: unix.EPROTONOSUPPORT,
		}
	}
	return spoken, nil
}

func udp(spec option.Spec) bool { return strings.HasPrefix(spec.Setting("proto"), "udp") }

// resolveOnly finds the server's address without asking it.
func (s *session) resolveOnly(ctx context.Context) error {
	addrs, err := s.addresses(ctx, s.spec.Servers[0])
	if err == nil {
		s.server = addrs[0]
	}
	return err
}

// nfsAttempts are the ways to mount one version. mount(2) resolves no names (man 5 nfs: mount.nfs does), so it gets the
// address; the name stays in the table of mounts.
func (s *session) nfsAttempts(version string) []mount.Attempt {
	source := s.spec.Servers[0]
	if strings.Contains(source, ":") {
		source = "[" + source + "]"
	}
	data := append(s.spec.Data(), "addr="+s.server.String(), "vers="+version)
	a := mount.Attempt{
		Label: "NFS " + version, Source: source + ":" + s.spec.Path, FSType: "nfs4", Flags: s.spec.Flags,
		Data: strings.Join(data, ","),
	}
	if version != "3" {
		return []mount.Attempt{a}
	}
	a.FSType = "nfs"
	for _, key := range []string{"lock", "nolock", "local_lock"} {
		if slices.ContainsFunc(s.spec.Settings, func(x option.Setting) bool { return x.Key == key }) {
			return []mount.Attempt{a}
		}
	}
	// Locks of version 3 need rpc.statd on this node: without it the kernel refuses the mount with ECONNREFUSED.
	b := a
	b.Label, b.Data = "NFS 3, locks of this node only", a.Data+",nolock"
	return []mount.Attempt{a, b}
}

func (s *session) explainNFS(err error) (cause, remedy string) {
	f := mount.Failure{}
	if !errors.As(err, &f) || f.Step != "mount" && f.Step != "statfs" {
		return s.explainDial(err)
	}
	client := "this node"
	if s.client.IsValid() {
		client = "this node (" + s.client.String() + ")"
	}
	share := fmt.Sprintf("%s %s(rw,no_subtree_check)", s.spec.Path, s.client)
	if errors.Is(err, mount.ErrStale) {
		return "the mounted directory was made anew on the server",
			"stop the containers that use it, then start them again; if that does not help, run `exportfs -ra` there"
	}
	switch f.Errno {
	case unix.ENOENT:
		return "it exports no " + s.spec.Path + " to " + client,
			"look at `exportfs -v` on the server; a line such as \"" + share + "\" in /etc/exports allows it"
	case unix.EACCES, unix.EPERM:
		return "the export is not allowed for " + client, "add a line such as \"" + share + "\" to the server's /etc/exports " +
			"and run `exportfs -ra` there"
	case unix.ESTALE:
		return "the exported directory was made anew on the server", "run `exportfs -ra` there, then try again"
	case unix.EPROTONOSUPPORT:
		return "it speaks none of the wanted versions (" + strings.Join(s.spec.Versions, ", ") + ")",
			"leave vers= and proto= out of -o o=, or enable the version on the server"
	case unix.EINVAL:
		return "the kernel refuses the options " + strings.Join(s.spec.Data(), ","), "see `dmesg` for the one that it does not know"
	case unix.ECONNREFUSED:
		return "its NFS service is not running, or not registered with its rpcbind",
			"start it on the server, or name port= and mountport= in -o o="
	case unix.ENODEV:
		return "this node's kernel has no NFS client", "load it with `modprobe nfsv4`; on Debian the package nfs-common brings what it needs"
	case unix.EIO:
		return "it stopped answering", "check the server; without soft in -o o= the mount would have waited"
	}
	return "", ""
}

// explainDial explains what went wrong before the mount.
func (s *session) explainDial(err error) (cause, remedy string) {
	var op *net.OpError
	if errors.As(err, &op) && errors.Is(err, unix.ECONNREFUSED) {
		return "nothing serves NFS at " + op.Addr.String(), "start the server's NFS service, or name its port in -o o=port="
	}
	if errors.Is(err, errNoNFS) {
		return "what listens there is no NFS server", "check the address and port="
	}
	return "", ""
}
