package etcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/netdriver/netdriver/store"
)

const (
	// quota is the largest size of the database file in bytes; etcd refuses writes beyond it. Ten thousand endpoints
	// with their leases and claims take about 10 MiB.
	quota = 512 << 20
	// retention is how many revisions of the past are kept. Watches that are further behind get a Reset.
	retention = 10_000
	// snapshotCount is how many entries of raft's log stay in memory until a snapshot; a single member has nobody to
	// send them to. etcd's 10,000 cost several megabytes.
	snapshotCount, catchUp = 2000, 100
	// defragment is the free space in the file, in MiB, from which on a start gives it back.
	defragment = 64
	// member is the name of the single member.
	member = "netdriver"
	// maxSocketPath is sizeof(sun_path) without its final zero (man 7 unix).
	maxSocketPath = 107
	// grace is what running calls get to end when the store is closed.
	grace = 100 * time.Millisecond
)

// EmbedConfig says where an embedded store keeps its data and where it listens.
type EmbedConfig struct {
	// DataDir gets a directory etcd with the database.
	DataDir string
	// RunDir gets a directory etcd with sockets that only the owner of the process may use.
	RunDir string
	// Listen are further URLs for other nodes, https://ADDRESS:PORT. They need Cert, Key and CA.
	Listen []string
	// Cert and Key are the server's certificate, CA signs the clients'; PEM files. Cert and Key are read again for each
	// connection.
	Cert, Key, CA string
	// Plain allows http:// in Listen: whoever reaches such an address can read and change everything.
	Plain bool
	// Member makes the store one member of several; nil: it is the only one.
	Member *Member
	Log    *slog.Logger
}

// Member is one member of a store that several nodes have together. Members talk to each other with the certificate and
// authority of EmbedConfig.
type Member struct {
	// Name is the node's.
	Name string
	// Dir is the name of the member's directory in DataDir.
	Dir string
	// Peer is the URL, https://ADDRESS:PORT, at which the other members reach it.
	Peer string
	// Initial has the names and peer URLs of all members when it was added, itself included: NAME=URL,NAME=URL. It is
	// empty for the first one, which has the data of a store with one member.
	Initial string
	// CRL is a DER file with the certificates that are refused; it is read for each connection.
	CRL string
}

// Server is an etcd with one member inside this process.
type Server struct {
	etcd     *embed.Etcd
	endpoint string
	locks    []*os.File
	closing  atomic.Bool

	mu   sync.Mutex
	grpc []*grpc.Server
}

// Embed starts a store and returns when it answers, or with an error when ctx ends before that.
func Embed(ctx context.Context, cfg EmbedConfig) (_ *Server, err error) {
	ec, endpoint, err := cfg.etcd()
	if err != nil {
		return nil, fmt.Errorf("embedded store: %w", err)
	}
	s := &Server{endpoint: endpoint}
	ec.ServiceRegister = s.serving
	ec.ZapLoggerBuilder = embed.NewZapLoggerBuilder(logger(cfg.Log, &s.closing))
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	dirs := []string{ec.Dir, filepath.Join(cfg.RunDir, "etcd")}
	for _, dir := range slices.Compact(dirs) { // they may be one
		if err := s.lock(dir); err != nil {
			return nil, fmt.Errorf("embedded store: %w", err)
		}
	}
	if s.etcd, err = embed.StartEtcd(ec); err != nil {
		return nil, fmt.Errorf("embedded store in %s: %w", ec.Dir, err)
	}
	select {
	case <-s.etcd.Server.ReadyNotify():
		return s, s.announce(ctx, cfg.Member)
	case err := <-s.etcd.Err():
		return nil, fmt.Errorf("embedded store in %s: %w", ec.Dir, err)
	case <-ctx.Done():
		return nil, fmt.Errorf("embedded store in %s: not ready: %w", ec.Dir, ctx.Err())
	}
}

// Endpoint is the URL of the local socket, for Config.Endpoints.
func (s *Server) Endpoint() string { return s.endpoint }

// Failed delivers the error when the store stops by itself.
func (s *Server) Failed() <-chan error { return s.etcd.Err() }

// serving remembers a server that etcd has made, for Close.
func (s *Server) serving(g *grpc.Server) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.grpc = append(s.grpc, g)
}

// Close stops the store. Everything that was committed is on the disk. etcd itself would give running watches seven
// seconds to end, which they never do; here all calls get the grace time.
func (s *Server) Close() {
	s.closing.Store(true)
	if s.etcd != nil {
		end := time.AfterFunc(grace, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			for _, g := range s.grpc {
				g.Stop()
			}
		})
		s.etcd.Close()
		end.Stop()
	}
	for _, f := range s.locks {
		f.Close() // ends the lock, too
	}
}

// lock makes dir and takes it for this process. A second etcd would wait for the database without a word, and take
// the sockets away from the first.
func (s *Server) lock(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return fmt.Errorf("%s is in use by another netdriver (%w); stop it or give this one other directories", dir, err)
	}
	s.locks = append(s.locks, f)
	return nil
}

// etcd returns etcd's own configuration and the URL of the local socket.
func (cfg EmbedConfig) etcd() (*embed.Config, string, error) {
	client, err := cfg.socket("client")
	if err != nil {
		return nil, "", err
	}
	// Nobody talks to the peer of a single member, but etcd wants to listen: on a socket, which no other daemon of the
	// machine can be in the way of. HTTP (health, metrics) has its own, so that the others speak gRPC without a detour.
	peer, err := cfg.socket("peer")
	if err != nil {
		return nil, "", err
	}
	http, err := cfg.socket("http")
	if err != nil {
		return nil, "", err
	}
	listen, err := cfg.listen()
	if err != nil {
		return nil, "", err
	}
	ec := embed.NewConfig()
	ec.Name, ec.Dir = member, filepath.Join(cfg.DataDir, "etcd")
	ec.ListenClientUrls = append([]url.URL{client}, listen...)
	ec.AdvertiseClientUrls = ec.ListenClientUrls
	ec.ListenPeerUrls, ec.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	ec.ListenClientHttpUrls = []url.URL{http}
	ec.InitialCluster = ec.InitialClusterFromName(member)
	ec.InitialClusterToken = "netdriver"
	ec.ClientTLSInfo.CertFile, ec.ClientTLSInfo.KeyFile = cfg.Cert, cfg.Key
	ec.ClientTLSInfo.TrustedCAFile, ec.ClientTLSInfo.ClientCertAuth = cfg.CA, cfg.CA != ""
	limits(ec)
	if cfg.Member != nil {
		err = cfg.Member.apply(ec, cfg)
	}
	return ec, client.String(), err
}

// limits keeps the store small: it shares the daemon's memory.
func limits(ec *embed.Config) {
	ec.QuotaBackendBytes = quota
	ec.MaxTxnOps = store.MaxOps
	ec.AutoCompactionMode = embed.CompactorModeRevision
	ec.AutoCompactionRetention = strconv.Itoa(retention)
	ec.SnapshotCount, ec.SnapshotCatchUpEntries = snapshotCount, catchUp
	ec.BackendFreelistType = "map"
	ec.BootstrapDefragThresholdMegabytes = defragment
	ec.MaxSnapFiles, ec.MaxWalFiles = 2, 2
	ec.EnableGRPCGateway = false
	ec.AuthToken = "" // there are no users with passwords, only certificates
}

// socket returns the URL of one socket in RunDir.
func (cfg EmbedConfig) socket(name string) (url.URL, error) {
	path, err := filepath.Abs(filepath.Join(cfg.RunDir, "etcd", name+".sock"))
	if err != nil {
		return url.URL{}, err
	}
	if len(path) > maxSocketPath {
		return url.URL{}, fmt.Errorf(
			"the path of socket %s has %d bytes, the kernel allows %d; choose a shorter run directory",
			path, len(path), maxSocketPath)
	}
	return url.URL{Scheme: "unix", Path: path}, nil
}

// listen checks the URLs for other nodes.
func (cfg EmbedConfig) listen() ([]url.URL, error) {
	var urls []url.URL
	for _, s := range cfg.Listen {
		u, err := url.Parse(s)
		if err != nil {
			return nil, err
		}
		switch {
		case u.Scheme == "https" && (cfg.Cert == "" || cfg.Key == "" || cfg.CA == ""):
			return nil, fmt.Errorf("%s needs a certificate, its key and the authority of the clients", s)
		case u.Scheme == "http" && !cfg.Plain:
			return nil, fmt.Errorf("%s would let anyone who reaches it change the cluster; use https, or ask for plain http", s)
		case u.Scheme != "https" && u.Scheme != "http":
			return nil, errors.New(s + ": want https://ADDRESS:PORT")
		}
		urls = append(urls, *u)
	}
	return urls, nil
}
