// Package backend knows the servers that volumes are on: how each kind is reached and mounted, and what its errors mean.
package backend

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/volume/mount"
	"github.com/netdriver/netdriver/volume/option"
)

// preflight bounds what is tried before a mount: resolving the server's name, connecting, and a first question.
const preflight = 3 * time.Second

// Host is this node, as backends use it.
type Host struct {
	// Data has the directories of local volumes, Logs what FUSE daemons write, Tunnels which TLS tunnels run.
	Data, Logs, Tunnels string
	// Tunnel is the command line of a TLS tunnel's process, which ends in tunnel.Main.
	Tunnel []string
	// Resolve returns a host name's addresses; Dial connects. The system's, if nil.
	Resolve func(ctx context.Context, host string) ([]netip.Addr, error)
	Dial    func(ctx context.Context, network, address string) (net.Conn, error)
}

// Failure is why a volume cannot be used: which backend and server, the cause, and what the user can do.
type Failure struct {
	Backend option.Type
	Server  string
	Cause   string
	Remedy  string
	// Err is what the system said.
	Err error
}

func (f *Failure) Error() string {
	return fmt.Sprintf("%s %s: %s: %s (%v)", f.Backend, f.Server, f.Cause, f.Remedy, f.Err)
}

func (f *Failure) Unwrap() error { return f.Err }

// session is one mount of one volume.
type session struct {
	host Host
	name string
	spec option.Spec
	// server is the address that answered, client this node's address in that connection.
	server, client netip.Addr
}

// Volume returns how to mount a volume of a spec, and what makes an error of that understandable.
func (h Host) Volume(name string, spec option.Spec) (v mount.Volume, explain func(error) error) {
	if h.Resolve == nil {
		h.Resolve = func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		}
	}
	if h.Dial == nil {
		h.Dial = (&net.Dialer{}).DialContext
	}
	spec.Backup = option.Backup{}
	s := &session{host: h, name: name, spec: spec}
	v = mount.Volume{Name: name, Server: Server(name, spec), Options: fmt.Sprintf("%+v", spec)}
	var cause func(error) (string, string)
	switch spec.Type {
	case option.NFS:
		v.Prepare, cause = s.prepareNFS, s.explainNFS
	case option.GlusterFS:
		v.Prepare, cause = s.prepareGluster, s.explainGluster
	case option.CephFS:
		v.Prepare, cause = s.prepareCeph, s.explainCeph
	case option.EFS:
		v.Prepare, cause = s.prepareEFS, s.explainEFS
	default:
		v.Prepare, cause = s.prepareLocal, s.explainLocal
	}
	prepare := v.Prepare
	v.Prepare = func(ctx context.Context) (mount.Plan, error) {
		ctx, cancel := context.WithTimeout(ctx, preflight)
		defer cancel()
		p, err := prepare(ctx)
		p.Subdir, p.Mode = spec.Subdir.Name, spec.Subdir.Mode
		p.UID, p.GID = int(spec.Subdir.UID), int(spec.Subdir.GID)
		return p, err
	}
	return v, func(err error) error { return s.explain(err, cause) }
}

// Server names what a volume depends on: volumes of one server share a lane, and only those.
func Server(name string, spec option.Spec) string {
	switch spec.Type {
	case option.Local:
		return "this node:" + name
	case option.GlusterFS:
		return strings.Join(spec.Servers, ",") + ":" + spec.Volume // its bricks are servers of its own
	}
	return strings.Join(spec.Servers, ",")
}

// explain makes a Failure of an error, unless it says all that is needed already.
func (s *session) explain(err error, cause func(error) (string, string)) error {
	var known *Failure
	if err == nil || errors.As(err, &known) {
		return err
	}
	what, remedy := cause(err)
	if what == "" {
		what, remedy = general(err)
	}
	return &Failure{Backend: s.spec.Type, Server: s.where(), Cause: what, Remedy: remedy, Err: err}
}

func (s *session) where() string {
	at := strings.Join(s.spec.Servers, ",")
	if s.server.IsValid() && s.server.String() != at {
		at += " (" + s.server.String() + ")"
	}
	switch {
	case s.spec.Type == option.Local:
		return "volume " + s.name
	case s.spec.Type == option.GlusterFS:
		return "volume " + s.spec.Volume + " at " + at
	}
	return "server " + at + ", path " + s.spec.Path
}

// general explains what means the same for every server.
func general(err error) (cause, remedy string) {
	var resolve *net.DNSError
	step := ""
	if f := (mount.Failure{}); errors.As(err, &f) {
		step = f.Step
	}
	is := func(errs ...error) bool {
		for _, e := range errs {
			if errors.Is(err, e) {
				return true
			}
		}
		return false
	}
	switch {
	case errors.As(err, &resolve):
		return "its name has no address here", "check the name, and this node's resolver (/etc/resolv.conf, /etc/hosts)"
	case strings.HasPrefix(step, "make subdir") && is(unix.EACCES, unix.EPERM):
		return "the server does not let root make the directory (root_squash)",
			"make it on the server, or export with no_root_squash"
	case strings.HasPrefix(step, "make subdir") && is(unix.EROFS):
		return "the directory is missing and the volume is read-only", "make it on the server"
	case is(mount.ErrStale) && is(unix.ENOTCONN):
		return "its client process on this node has died", "stop the containers that use it, then start them again"
	case is(mount.ErrStale):
		return "the server does not know the mounted directory any more",
			"stop the containers that use it, then start them again"
	case is(unix.EHOSTUNREACH, unix.ENETUNREACH, unix.EHOSTDOWN):
		return "there is no way to it from this node", "check its address, this node's routes, and that it is switched on"
	case is(unix.ECONNREFUSED):
		return "it is up and refuses the connection", "start its service, or check the port"
	case is(mount.ErrDeadline, unix.ETIMEDOUT, context.DeadlineExceeded):
		return "it does not answer", "check that it is up and that no firewall drops packets between this node and it"
	case is(unix.ENODEV):
		return "this node's kernel has no client for it", "install and load the kernel's module"
	case is(unix.ENOENT):
		return "the path is not there", "check its spelling"
	}
	return "it cannot be mounted", "see what the system said"
}

// connect resolves the servers and connects to the first address that takes a connection. What it fails with is the
// first address's error: the others are alternatives.
func (s *session) connect(ctx context.Context, servers []string, port string) (net.Conn, error) {
	var first error
	for _, server := range servers {
		addrs, err := s.addresses(ctx, server)
		for _, a := range addrs {
			var conn net.Conn
			if conn, err = s.dial(ctx, a, port, len(servers)+len(addrs) > 2); err == nil {
				s.server = a
				if local, ok := conn.LocalAddr().(*net.TCPAddr); ok {
					s.client = local.AddrPort().Addr().Unmap()
				}
				return conn, nil
			}
		}
		if first == nil {
			first = err
		}
	}
	return nil, first
}

// dial connects to one address. With alternatives left it does not spend all the time on the first.
func (s *session) dial(ctx context.Context, a netip.Addr, port string, alternatives bool) (net.Conn, error) {
	if alternatives {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, preflight/3)
		defer cancel()
	}
	conn, err := s.host.Dial(ctx, "tcp", net.JoinHostPort(a.String(), port))
	if err != nil {
		s.server = a
	}
	return conn, err
}

func (s *session) addresses(ctx context.Context, server string) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(server); err == nil {
		return []netip.Addr{a}, nil
	}
	addrs, err := s.host.Resolve(ctx, server)
	if err == nil && len(addrs) == 0 {
		err = &net.DNSError{Err: "no address", Name: server, IsNotFound: true}
	}
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
	}
	return addrs, err
}
