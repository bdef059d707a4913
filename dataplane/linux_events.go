//go:build linux

package dataplane

import (
	"context"
	"errors"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/internal/netlink"
)

// eventBuffer is the receive buffer for events, in bytes: our own 30,000 additions for 10,000 endpoints cause as many
// events, of about 1 KB each as the kernel counts.
const eventBuffer = 64 << 20

// eventBacklog is the number of events that wait for a slow reader in this process.
const eventBacklog = 1024

// Events implements Kernel.
func (l *Linux) Events(ctx context.Context) (<-chan Event, error) {
	var f *os.File
	err := netlink.In(l.ours, func() (err error) {
		f, err = netlink.Subscribe(unix.NETLINK_ROUTE, l.eventBuffer, unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH)
		return err
	})
	if err != nil {
		return nil, err
	}
	out := make(chan Event, eventBacklog)
	w := watcher{kernel: l, send: func(e Event) {
		select {
		case out <- e:
		case <-ctx.Done():
		}
	}}
	if err := w.look(); err != nil { // after subscribing, so that nothing is missed in between
		return nil, errors.Join(err, f.Close())
	}
	stop := context.AfterFunc(ctx, func() { f.Close() })
	var senders sync.WaitGroup
	senders.Go(func() { w.kernel.watchPrograms(ctx, w.send) })
	senders.Go(func() { defer stop(); w.follow(ctx, f) })
	senders.Go(func() { w.kernel.watchTable(ctx, w.send) })
	go func() { senders.Wait(); close(out) }()
	return out, nil
}

// watcher turns the kernel's messages into events about our devices.
type watcher struct {
	kernel *Linux
	owners map[int32]owner
	send   func(Event)
}

// look lists our devices anew.
func (w *watcher) look() (err error) {
	_, w.owners, err = w.kernel.devices(w.kernel.read)
	return err
}

func (w *watcher) follow(ctx context.Context, f *os.File) {
	b := make([]byte, 1<<16)
	for ctx.Err() == nil {
		n, err := f.Read(b)
		switch {
		case errors.Is(err, unix.ENOBUFS):
			if err := w.look(); err != nil {
				w.kernel.log.Error("kernel events end", "error", err)
				return
			}
			w.send(Event{Lost: true})
		case err != nil:
			return // closed
		default:
			netlink.Messages(b[:n], w.take)
		}
	}
}

func (w *watcher) take(r netlink.Reply) {
	switch r.Kind {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		w.link(r.Body, r.Kind == unix.RTM_DELLINK)
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		w.entry(parseEntry(r.Body), r.Kind == unix.RTM_DELNEIGH)
	}
}

func (w *watcher) link(body []byte, deleted bool) {
	d := parseLink(body)
	was, known := w.owners[d.index]
	if len(body) > 0 && body[0] == unix.AF_BRIDGE { // about the bridge port alone
		if known && was.name != BridgeName(was.vni) {
			w.send(Event{VNI: was.vni, Device: was.name, FlagsOnly: true, Enslaved: !deleted && d.flagsAsSet(was)})
		}
		return
	}
	o, ours := ownerOf(d.name, d.alias)
	if deleted || !ours {
		delete(w.owners, d.index)
		if known {
			w.send(Event{VNI: was.vni, Device: was.name, Deleted: true})
		}
		return
	}
	w.owners[d.index] = o
	e := Event{VNI: o.vni, Device: d.name, MTU: d.mtu, Up: d.up}
	e.Enslaved = d.master != 0 && w.owners[d.master].vni == o.vni && d.flagsAsSet(o)
	w.send(e)
}

func (w *watcher) entry(e entry, deleted bool) {
	o, known := w.owners[e.index]
	if !known {
		return
	}
	// An entry that is no longer as we make such things counts as gone.
	v := Event{VNI: o.vni, Deleted: deleted || !e.ours()}
	if e.family == unix.AF_BRIDGE {
		if e.vlan || !e.master && !e.dst.IsValid() {
			return // of no effect, or of a device's own address list
		}
		v.FDB = e.fdb(o)
	} else {
		if !e.dst.IsValid() || o.name != BridgeName(o.vni) {
			return
		}
		v.Neighbour = Neighbour{e.dst, e.mac}
	}
	w.send(v)
}
