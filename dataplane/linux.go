//go:build linux

package dataplane

import (
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/dataplane/guard"
	"github.com/netdriver/netdriver/internal/netlink"
	"github.com/netdriver/netdriver/vxlan"
)

// Linux is the Kernel of this machine. Its netlink sockets are bound to the namespaces they work in, so that any thread
// can use them.
type Linux struct {
	log       *slog.Logger
	ours      int             // our namespace
	host      int             // the host's
	in        *netlink.Socket // for changes in our namespace
	read      *netlink.Socket // for reading there, so that a long read does not hold changes up
	hostLinks *netlink.Socket
	frames    int   // a packet socket in our namespace that receives nothing, for announcements
	hostID    int32 // the host's namespace as a number in ours, see IFLA_LINK_NETNSID

	closing   sync.Once
	closed    error
	balancing balancers
	balances  func() error // tries once
	// table is nil if the kernel cannot have it, for the reason unguarded.
	table *guard.Table
	// limits are ports by index; balancing.mu guards them.
	limits    map[int32]limited
	unguarded error

	nextIndex   atomic.Int32 // of the device made last; see run.addLink
	eventBuffer int          // receive buffer of Events, in bytes
}

// LinuxConfig is what OpenLinux needs to know.
type LinuxConfig struct {
	// RunDir holds the file netns, on which our namespace is bound: `nsenter --net=RunDir/netns` enters it. It is made
	// if missing. A reboot loses it with all networks; the death of the daemon does not.
	RunDir string
	// HostNetNS is the namespace of the underlay and of Docker; empty means the one this process was started in.
	HostNetNS string
	// Look: the namespace is there and is only read; nothing is made or set in it.
	Look bool
	Log  *slog.Logger
}

// OpenLinux makes or finds our network namespace and opens the sockets. Needs CAP_NET_ADMIN and CAP_SYS_ADMIN.
func OpenLinux(cfg LinuxConfig) (*Linux, error) {
	l := &Linux{log: cfg.Log, ours: -1, host: -1, frames: -1, eventBuffer: eventBuffer}
	l.balancing.all = map[vxlan.VNI]*balancer{}
	l.limits = map[int32]limited{}
	l.balances = sync.OnceValue(l.probeBalancing)
	// Far above what the kernel gives out by itself, and elsewhere than another daemon's.
	l.nextIndex.Store(1<<29 + rand.Int32N(1<<29))
	if err := l.open(cfg); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

func (l *Linux) open(cfg LinuxConfig) (err error) {
	if l.host, err = netlink.Namespace(cfg.HostNetNS); err != nil {
		return fmt.Errorf("find the host's: %w", err)
	}
	path := NamespaceIn(cfg.RunDir)
	if cfg.Look {
		l.ours, err = openBound(path)
	} else {
		l.ours, err = openNamespace(path, cfg.Log)
	}
	if err != nil {
		return err
	}
	if err := different(l.ours, l.host); err != nil {
		return fmt.Errorf("use network namespace %s: %w", path, err)
	}
	if err := netlink.In(l.ours, func() error { return l.prepare(cfg.Look) }); err != nil {
		return fmt.Errorf("prepare network namespace %s: %w", path, err)
	}
	if err := netlink.In(l.host, func() (err error) { l.hostLinks, err = openRoute(); return err }); err != nil {
		return err
	}
	l.table, err = guard.Open(l.ours)
	if errors.Is(err, guard.ErrUnsupported) {
		l.unguarded, err = err, nil
	}
	return err
}

// prepare runs in our namespace. It is done at every start, since a former daemon may have died half-way.
func (l *Linux) prepare(look bool) (err error) {
	if !look {
		if err := settings(); err != nil {
			return err
		}
	}
	if l.in, err = openRoute(); err != nil {
		return err
	}
	if l.read, err = openRoute(); err != nil {
		return err
	}
	// Protocol 0 receives nothing (man 7 packet).
	if l.frames, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
		return fmt.Errorf("open a packet socket: %w", err)
	}
	if look {
		l.hostID, err = nameNamespace(l.in, l.host)
		return err
	}
	if err := setUp(l.in, "lo"); err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	l.hostID, err = nameNamespace(l.in, l.host)
	return err
}

// setUp brings a device up.
func setUp(s *netlink.Socket, device string) error {
	return s.Query(unix.RTM_NEWLINK, 0, func(m *netlink.Message) {
		putLink(m, unix.AF_UNSPEC, 0, unix.IFF_UP, unix.IFF_UP)
		m.Text(unix.IFLA_IFNAME, device)
	}, nil)
}

// nameNamespace returns the number by which messages on s may call the other namespace, which it gets if it has none.
func nameNamespace(s *netlink.Socket, other int) (int32, error) {
	const chooseID = ^uint32(0) // NETNSA_NSID_NOT_ASSIGNED of linux/net_namespace.h: the kernel chooses
	err := s.Query(unix.RTM_NEWNSID, 0, func(m *netlink.Message) {
		m.Bytes(unix.AF_UNSPEC)
		m.U32(unix.NETNSA_NSID, chooseID)
		m.U32(unix.NETNSA_FD, uint32(other))
	}, nil)
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return 0, fmt.Errorf("give the host's namespace a number: %w", err)
	}
	id := int32(-1)
	err = s.Query(unix.RTM_GETNSID, 0, func(m *netlink.Message) {
		m.Bytes(unix.AF_UNSPEC)
		m.U32(unix.NETNSA_FD, uint32(other))
	}, func(body []byte) {
		netlink.Attrs(body[4:], func(kind uint16, v []byte) {
			if kind == unix.NETNSA_NSID {
				id = int32(u32(v))
			}
		})
	})
	if err == nil && id < 0 {
		err = errors.New("it has none")
	}
	if err != nil {
		return 0, fmt.Errorf("ask for the number of the host's namespace: %w", err)
	}
	return id, nil
}

// Close implements Kernel. Once is enough: afterwards the numbers of our descriptors are other files'.
func (l *Linux) Close() error {
	l.closing.Do(func() { l.closed = l.close() })
	return l.closed
}

func (l *Linux) close() error {
	var errs []error
	for _, s := range []*netlink.Socket{l.in, l.read, l.hostLinks} {
		if s != nil {
			errs = append(errs, s.Close())
		}
	}
	if l.table != nil {
		errs = append(errs, l.table.Close())
	}
	l.balancing.mu.Lock()
	defer l.balancing.mu.Unlock()
	for v, b := range l.balancing.all {
		delete(l.balancing.all, v)
		errs = append(errs, b.Close())
	}
	for _, fd := range []int{l.ours, l.host, l.frames} {
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
		}
	}
	return errors.Join(errs...)
}

var _ Kernel = (*Linux)(nil)
