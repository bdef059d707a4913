//go:build linux

package firewall

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/internal/netlink"
)

// peek sees whether the old iptables' tables have changed, without starting a program: it reads them as iptables itself
// does (linux/netfilter_ipv4/ip_tables.h), with getsockopt, and leaves the counters out.
type peek struct {
	fds  [2]int // IPv4, IPv6
	seed maphash.Seed
}

// Of linux/netfilter_ipv4/ip_tables.h and ip6_tables.h, which have the same numbers.
const (
	soGetInfo    = 64 // IPT_SO_GET_INFO, IPT_BASE_CTL
	soGetEntries = 65
	tableName    = 32
	infoSize     = tableName + 4 + 5*4 + 5*4 + 4 + 4
	entriesSize  = tableName + 8 // struct ipt_get_entries before the entries, with padding
)

// layout of struct ipt_entry and ip6t_entry: where next_offset, comefrom and the counters are.
type layout struct{ next, from, counters int }

func openPeek(ns int) (*peek, error) {
	p := &peek{fds: [2]int{-1, -1}, seed: maphash.MakeSeed()}
	err := netlink.In(ns, func() error {
		for i, domain := range []int{unix.AF_INET, unix.AF_INET6} {
			fd, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
			if err != nil {
				return fmt.Errorf("open a raw socket to read iptables' tables: %w", err)
			}
			p.fds[i] = fd
		}
		return nil
	})
	if err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

func (p *peek) close() {
	for _, fd := range p.fds {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

// look returns a number that is another one after any change.
func (p *peek) look() uint64 {
	var h maphash.Hash
	h.SetSeed(p.seed)
	for i, at := range []layout{{90, 92, 96}, {142, 144, 152}} {
		level := [2]int{unix.SOL_IP, unix.SOL_IPV6}[i]
		for _, table := range []string{"mangle", "nat", "filter"} {
			b, err := entries(p.fds[i], level, table)
			if err != nil { // no such table, for example
				h.WriteString(err.Error())
				continue
			}
			hashEntries(&h, b, at)
		}
	}
	return h.Sum64()
}

func hashEntries(h *maphash.Hash, b []byte, at layout) {
	for len(b) > at.counters+16 {
		size := int(binary.NativeEndian.Uint16(b[at.next:]))
		if size < at.counters+16 || size > len(b) {
			return
		}
		clear(b[at.from : at.from+4])
		clear(b[at.counters : at.counters+16])
		h.Write(b[:size])
		b = b[size:]
	}
}

// entries reads one table.
func entries(fd, level int, table string) ([]byte, error) {
	for range readAttempts {
		info := make([]byte, infoSize)
		copy(info, table)
		if err := getsockopt(fd, level, soGetInfo, info); err != nil {
			return nil, err
		}
		size := binary.NativeEndian.Uint32(info[infoSize-4:])
		b := make([]byte, entriesSize+int(size))
		copy(b, table)
		binary.NativeEndian.PutUint32(b[tableName:], size)
		err := getsockopt(fd, level, soGetEntries, b)
		if errors.Is(err, unix.EAGAIN) { // it has another size by now
			continue
		}
		return b[entriesSize:], err
	}
	return nil, unix.EAGAIN
}

func getsockopt(fd, level, name int, b []byte) error {
	size := uint32(len(b))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name),
		uintptr(unsafe.Pointer(&b[0])), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}
