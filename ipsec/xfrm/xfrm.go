//go:build linux

// Package xfrm is Linux's ipsec.Kernel: SAs and policies by netlink (linux/xfrm.h), in bulk. It touches nothing but SAs with
// ipsec.ReqID and policies with our two priorities.
package xfrm

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/internal/netlink"
	"github.com/netdriver/netdriver/ipsec"
)

// Linux is the Kernel of a network namespace, that of the underlay.
type Linux struct {
	ns   int
	nl   *netlink.Socket // for changes
	read *netlink.Socket // so that a long reading does not hold changes up

	closing sync.Once
	closed  error
}

var _ ipsec.Kernel = (*Linux)(nil)

// Open opens the kernel of a network namespace, given by its file; empty is the process's own. The error wraps
// ipsec.ErrUnsupported if the kernel has no XFRM. Needs CAP_NET_ADMIN.
func Open(ns string) (*Linux, error) {
	fd, err := netlink.Namespace(ns)
	if err != nil {
		return nil, err
	}
	l := &Linux{ns: fd}
	err = netlink.In(fd, func() (err error) {
		if l.nl, err = netlink.Open(unix.NETLINK_XFRM); err != nil {
			return err
		}
		l.read, err = netlink.Open(unix.NETLINK_XFRM)
		return err
	})
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		err = fmt.Errorf("%w: it has no XFRM interface: load the module xfrm_user (CONFIG_XFRM_USER)", ipsec.ErrUnsupported)
	}
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// Close implements ipsec.Kernel.
func (l *Linux) Close() error {
	l.closing.Do(func() {
		errs := []error{unix.Close(l.ns)}
		for _, s := range []*netlink.Socket{l.nl, l.read} {
			if s != nil {
				errs = append(errs, s.Close())
			}
		}
		l.closed = errors.Join(errs...)
	})
	return l.closed
}

// readAttempts is how often a reading is tried that a change interrupts.
const readAttempts = 20

// Read implements ipsec.Kernel.
func (l *Linux) Read(context.Context) (ipsec.State, error) {
	var s ipsec.State
	err := l.dump(nl.XFRM_MSG_GETSA, "SAs", func() { s.SAs = nil }, func(body []byte) {
		if c, ours := parseSA(body); ours {
			s.SAs = append(s.SAs, c.SA)
		}
	})
	if err != nil {
		return ipsec.State{}, err
	}
	err = l.dump(nl.XFRM_MSG_GETPOLICY, "policies", func() { s.Policies = nil }, func(body []byte) {
		if p, ours := parsePolicy(body); ours {
			s.Policies = append(s.Policies, p)
		}
	})
	return s.Sorted(), err
}

// dump lists everything of a kind. begin is called before each attempt.
func (l *Linux) dump(kind uint16, what string, begin func(), got func(body []byte)) error {
	for range readAttempts {
		begin()
		err := l.read.Query(kind, unix.NLM_F_DUMP, func(*netlink.Message) {}, got)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("list IPsec %s: %w", what, err)
		}
		return nil
	}
	return fmt.Errorf("list IPsec %s: they do not stop changing", what)
}
