//go:build linux

package guard

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// The parts of nfnetlink_log's interface that are used (linux/netfilter/nfnetlink_log.h).
const (
	nfulnlPacket, nfulnlConfig = 0, 1
	nfulaCfgCmd, nfulaCfgMode  = 1, 2
	nfulnlBind, nfulnlCopy     = 1, 2
	nfulaPhysIn, nfulaPhysOut  = 6, 7
	nfulaIn, nfulaOut          = 4, 5
	nfulaPayload               = 9
	nfulaPrefix                = 10
	nfulaHeader                = 16
)

// Refusals calls f with some of the frames that are dropped, a few per second at most, until ctx ends. It returns ErrSilent
// at once if the kernel cannot tell.
func (t *Table) Refusals(ctx context.Context, f func(Refusal)) error {
	if t.silent {
		return ErrSilent
	}
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: t.ns})
	if err != nil {
		return fmt.Errorf("hear of dropped frames: %w", err)
	}
	defer context.AfterFunc(ctx, func() { c.Close() })()
	const whole = 0xffff
	mode := append(binary.BigEndian.AppendUint32(nil, whole), nfulnlCopy, 0)
	for _, a := range []netlink.Attribute{{Type: nfulaCfgCmd, Data: []byte{nfulnlBind}}, {Type: nfulaCfgMode, Data: mode}} {
		b, err := netlink.MarshalAttributes([]netlink.Attribute{a})
		if err != nil {
			return err
		}
		group := binary.BigEndian.AppendUint16([]byte{unix.AF_UNSPEC, unix.NFNETLINK_V0}, LogGroup)
		_, err = c.Execute(netlink.Message{
			Header: netlink.Header{Type: unix.NFNL_SUBSYS_ULOG<<8 | nfulnlConfig, Flags: netlink.Request | netlink.Acknowledge},
			Data:   append(group, b...),
		})
		if err != nil {
			return fmt.Errorf("hear of dropped frames: %w; another program has group %d of netdriver's namespace", err, LogGroup)
		}
	}
	for ctx.Err() == nil {
		messages, err := c.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS):
		case err != nil:
			return fmt.Errorf("hear of dropped frames: %w", err)
		}
		for _, m := range messages {
			if a, err := attributes(m); err == nil && m.Header.Type == unix.NFNL_SUBSYS_ULOG<<8|nfulnlPacket {
				f(refusal(a))
			}
		}
	}
	return nil
}

// refusal reads one message.
func refusal(a *netlink.AttributeDecoder) (r Refusal) {
	var in, out, physIn, physOut uint32
	for a.Next() {
		switch a.Type() {
		case nfulaPrefix:
			r.Kind = a.String()
		case nfulaIn:
			in = a.Uint32()
		case nfulaOut:
			out = a.Uint32()
		case nfulaPhysIn:
			physIn = a.Uint32()
		case nfulaPhysOut:
			physOut = a.Uint32()
		case nfulaHeader:
			if h := a.Bytes(); len(h) >= 14 {
				copy(r.MAC[:], h[6:])
				r.ethertype = binary.BigEndian.Uint16(h[12:])
			}
		case nfulaPayload:
			r.parse(a.Bytes())
		}
	}
	// At a port of a bridge the device is the bridge, and the physical one the port.
	r.Port = cmp.Or(physIn, in)
	if r.Kind == prefixDenied {
		r.Port = cmp.Or(physOut, out)
	}
	return r
}

// parse reads the beginning of a packet as far as it is understood.
func (r *Refusal) parse(b []byte) {
	switch {
	case len(b) >= 20 && b[0]>>4 == 4:
		r.From, r.To, r.Proto = slice(b[12:16]), slice(b[16:20]), b[9]
		r.ports(b[min(len(b), int(b[0]&15)*4):])
	case len(b) >= 40 && b[0]>>4 == 6:
		r.From, r.To, r.Proto = slice(b[8:24]), slice(b[24:40]), b[6]
		r.ports(b[40:])
	case len(b) >= 28 && b[0] == 0 && b[1] == 1: // ARP
		r.From, r.To, r.ARP = slice(b[14:18]), slice(b[24:28]), true
	}
}

func (r *Refusal) ports(b []byte) {
	if len(b) >= 4 && (r.Proto == unix.IPPROTO_TCP || r.Proto == unix.IPPROTO_UDP) {
		r.ToPort = binary.BigEndian.Uint16(b[2:])
	}
}

func slice(b []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(b)
	return a
}
