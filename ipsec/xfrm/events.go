//go:build linux

package xfrm

import (
	"context"
	"errors"
	"os"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/internal/netlink"
	"github.com/netdriver/netdriver/ipsec"
)

const (
	// eventBuffer is the receive buffer for events, in bytes: 300 peers' changes are a thousand.
	eventBuffer = 8 << 20
	// eventBacklog is how many wait for a slow reader in this process.
	eventBacklog = 1024
)

// Events implements ipsec.Kernel. XFRM's group of acquisitions is not among what is subscribed to: as long as anybody
// listens there, a packet that lacks its SA makes the kernel keep a place for one with its SPI (XFRM_STATE_ACQ).
func (l *Linux) Events(ctx context.Context) (<-chan ipsec.Event, error) {
	var f *os.File
	err := netlink.In(l.ns, func() (err error) {
		f, err = netlink.Subscribe(unix.NETLINK_XFRM, eventBuffer,
			nl.XFRMNLGRP_EXPIRE, nl.XFRMNLGRP_SA, nl.XFRMNLGRP_POLICY)
		return err
	})
	if err != nil {
		return nil, err
	}
	out := make(chan ipsec.Event, eventBacklog)
	send := func(e ipsec.Event) {
		select {
		case out <- e:
		case <-ctx.Done():
		}
	}
	stop := context.AfterFunc(ctx, func() { f.Close() })
	go func() {
		defer close(out)
		defer stop()
		b := make([]byte, 1<<16)
		for ctx.Err() == nil {
			n, err := f.Read(b)
			switch {
			case errors.Is(err, unix.ENOBUFS):
				send(ipsec.Event{Kind: ipsec.Lost})
			case err != nil:
				return // closed
			default:
				netlink.Messages(b[:n], func(r netlink.Reply) {
					if e, ours := event(r); ours {
						send(e)
					}
				})
			}
		}
	}()
	return out, nil
}

// event reads one message of the kernel's.
func event(r netlink.Reply) (e ipsec.Event, ours bool) {
	switch r.Kind {
	case nl.XFRM_MSG_FLUSHSA:
		return ipsec.Event{Kind: ipsec.SAsFlushed}, true
	case nl.XFRM_MSG_FLUSHPOLICY:
		return ipsec.Event{Kind: ipsec.PoliciesFlushed}, true
	case nl.XFRM_MSG_NEWSA, nl.XFRM_MSG_UPDSA:
		return aboutSA(r.Body, false)
	case nl.XFRM_MSG_EXPIRE: // struct xfrm_user_expire begins with the SA
		return aboutSA(r.Body, true)
	case nl.XFRM_MSG_DELSA:
		return aboutSA(within(r.Body, nl.SizeofXfrmUsersaId, nl.XFRMA_SA), true)
	case nl.XFRM_MSG_NEWPOLICY, nl.XFRM_MSG_UPDPOLICY:
		return aboutPolicy(r.Body, false)
	case nl.XFRM_MSG_DELPOLICY:
		return aboutPolicy(within(r.Body, nl.SizeofXfrmUserpolicyId, nl.XFRMA_POLICY), true)
	case nl.XFRM_MSG_POLEXPIRE:
		return aboutPolicy(r.Body, true)
	}
	return e, false
}

// within returns the struct that a message about a removal has in an attribute.
func within(body []byte, size int, kind uint16) (out []byte) {
	if len(body) < size {
		return nil
	}
	netlink.Attrs(body[size:], func(k uint16, v []byte) {
		if k == kind {
			out = v
		}
	})
	return out
}

func aboutSA(body []byte, isGone bool) (ipsec.Event, bool) {
	if len(body) < nl.SizeofXfrmUsersaInfo {
		return ipsec.Event{}, false
	}
	info := nl.DeserializeXfrmUsersaInfo(body)
	if info.Reqid != ipsec.ReqID || info.Id.Proto != unix.IPPROTO_ESP {
		return ipsec.Event{}, false
	}
	id := ipsec.SAID{Dst: addrOf(info.Id.Daddr, info.Family), SPI: be32(info.Id.Spi)}
	return ipsec.Event{Kind: ipsec.SAChanged, SA: id, Gone: isGone}, true
}

func aboutPolicy(body []byte, isGone bool) (ipsec.Event, bool) {
	p, ours := parsePolicy(body)
	return ipsec.Event{Kind: ipsec.PolicyChanged, Policy: p.ID(), Gone: isGone}, ours
}
