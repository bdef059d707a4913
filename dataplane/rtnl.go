//go:build linux

package dataplane

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/internal/netlink"
)

// putLink appends a struct ifinfomsg (linux/rtnetlink.h).
func putLink(m *netlink.Message, family uint8, index int32, flags, change uint32) {
	b := make([]byte, unix.SizeofIfInfomsg)
	b[0] = family
	binary.NativeEndian.PutUint32(b[4:], uint32(index))
	binary.NativeEndian.PutUint32(b[8:], flags)
	binary.NativeEndian.PutUint32(b[12:], change)
	m.Bytes(b...)
}

// putNeigh appends a struct ndmsg (linux/neighbour.h).
func putNeigh(m *netlink.Message, family uint8, index int32, state uint16, flags uint8) {
	b := make([]byte, unix.SizeofNdMsg)
	b[0] = family
	binary.NativeEndian.PutUint32(b[4:], uint32(index))
	binary.NativeEndian.PutUint16(b[8:], state)
	b[10] = flags
	m.Bytes(b...)
}

// openRoute opens a route netlink socket in the calling thread's namespace.
func openRoute() (*netlink.Socket, error) { return netlink.Open(unix.NETLINK_ROUTE) }
