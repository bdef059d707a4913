package backend

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/volume/mount"
	"github.com/netdriver/netdriver/volume/option"
	"github.com/netdriver/netdriver/volume/tunnel"
)

// tunnelStart is what a tunnel's process may take to start.
const tunnelStart = 5 * time.Second

// errNoTLS says that a server has taken a connection and said nothing to the first message of TLS: it is frozen, or waits for
// something else.
var errNoTLS = errors.New("no answer to TLS")

// prepareEFS mounts an EFS file system as what it is, an NFS 4.1 server, through TLS unless the user wants none. The
// handshake is made here first: a certificate that is refused would otherwise show as a mount that hangs.
func (s *session) prepareEFS(ctx context.Context) (mount.Plan, error) {
	if !s.spec.TLS {
		return s.prepareNFS(ctx)
	}
	cfg := tunnel.Config{Name: s.spec.Servers[0], CAFile: s.spec.CAFile}
	client, err := cfg.TLS()
	if err != nil {
		return mount.Plan{}, err
	}
	port := nfsPort
	if own := s.spec.Setting("port"); own != "" {
		port = own
	}
	conn, err := s.connect(ctx, s.spec.Servers, port)
	if err != nil {
		return mount.Plan{}, err
	}
	defer conn.Close()
	secure := tls.Client(conn, client)
	if err := secure.HandshakeContext(ctx); err != nil {
		if err = silence(ctx, err); errors.Is(err, context.DeadlineExceeded) {
			err = fmt.Errorf("%w: %w", errNoTLS, err)
		}
		return mount.Plan{}, err
	}
	if _, _, err := nullCall(ctx, secure, nfsProgram, 4); err != nil {
		return mount.Plan{}, fmt.Errorf("ask %s through TLS for NFS: %w", conn.RemoteAddr(), err)
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return mount.Plan{}, err
	}
	cfg.Server = netip.AddrPortFrom(s.server, uint16(number))
	// Starting a process is this node's affair: it has time of its own.
	starting, cancel := context.WithTimeout(context.WithoutCancel(ctx), tunnelStart)
	defer cancel()
	local, err := tunnel.Open(starting, s.host.Tunnels, s.host.Tunnel, cfg)
	if err != nil {
		return mount.Plan{}, err
	}
	return mount.Plan{Attempts: []mount.Attempt{s.throughTunnel(local)}, Next: []unix.Errno{}}, nil
}

// throughTunnel is the attempt that mounts by the loopback's port.
func (s *session) throughTunnel(port uint16) mount.Attempt {
	inner := *s
	inner.server = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	inner.spec.Settings = []option.Setting{{Key: "port", Value: fmt.Sprint(port)}}
	for _, x := range s.spec.Settings {
		if x.Key != "port" {
			inner.spec.Settings = append(inner.spec.Settings, x)
		}
	}
	a := inner.nfsAttempts(s.spec.Versions[0])[0]
	a.Label += " through TLS"
	return a
}

func (s *session) explainEFS(err error) (cause, remedy string) {
	var authority x509.UnknownAuthorityError
	var host x509.HostnameError
	var invalid x509.CertificateInvalidError
	var record tls.RecordHeaderError
	var path *os.PathError
	switch {
	case errors.As(err, &authority):
		return "its certificate is signed by nobody that this node trusts", "name the CA's file with -o cafile=, or install it on the node"
	case errors.As(err, &host):
		return "its certificate is for another name", "use the name in it: with -o addr=NAME, or without addr= the file system's own"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "its certificate has expired, or this node's clock is wrong", "renew it on the server; check `timedatectl` here"
	case errors.Is(err, errNoTLS):
		return "it takes the connection and does not answer to TLS", "check that it is up; if it does not speak TLS there, add " +
			"-o tls=false in a network that you trust, or name the TLS port with -o o=port="
	case errors.As(err, &record):
		return "it does not speak TLS there", "add -o tls=false in a network that you trust, or name the TLS port with -o o=port="
	case errors.As(err, &path) && path.Path == s.spec.CAFile && s.spec.CAFile != "":
		return "this node has no readable file " + s.spec.CAFile, "put the CA's certificate there"
	}
	return s.explainNFS(err)
}
