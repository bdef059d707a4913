//go:build linux

package guard

import (
	"context"
	"errors"
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

const (
	// groupTables is NFNLGRP_NFTABLES of linux/netfilter/nfnetlink.h.
	groupTables = 7
	// followBuffer is the receive buffer in bytes: our own 10,000 elements cause as many messages.
	followBuffer = 16 << 20
)

// Follow calls changed whenever somebody else has changed the table, or may have, until ctx ends.
func (t *Table) Follow(ctx context.Context, changed func()) error {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: t.ns, Groups: 1 << (groupTables - 1)})
	if err != nil {
		return fmt.Errorf("follow changes of nftables: %w", err)
	}
	defer context.AfterFunc(ctx, func() { c.Close() })()
	if raw, err := c.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { // if it is refused, more events are lost, which we hear of
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, followBuffer)
		})
	}
	changed() // whatever happened before we listened
	for ctx.Err() == nil {
		messages, err := c.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS):
			changed()
		case err != nil:
			return fmt.Errorf("follow changes of nftables: %w", err)
		case t.foreign(messages):
			changed()
		}
	}
	return nil
}

// foreign says whether one of the messages is about our table and was caused by somebody else.
func (t *Table) foreign(messages []netlink.Message) bool {
	for _, m := range messages {
		if len(m.Data) < 4 || m.Data[0] != unix.NFPROTO_BRIDGE || t.ours(m.Header.PID) {
			continue
		}
		a, err := attributes(m)
		if err != nil {
			continue
		}
		for a.Next() {
			// Of tables, chains, rules, sets, elements and objects alike the first attribute is the table's name.
			if a.Type() == unix.NFTA_TABLE_NAME && a.String() == tableName {
				return true
			}
		}
	}
	return false
}

func (t *Table) ours(port uint32) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.ports[port]
}
