//go:build linux

package dataplane

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/dataplane/discovery"
)

// announce sends the announcements of a run on their bridges, which pass them on to the containers.
func (r *run) announce() {
	for _, op := range r.news {
		if r.failed.dependsOn(op) {
			continue
		}
		bridge, err := r.find(op, op.Device)
		if err == nil {
			to := &unix.SockaddrLinklayer{Ifindex: int(bridge)}
			err = unix.Sendto(r.l.frames, discovery.Announcement(op.Address, op.MAC), 0, to)
		}
		if err != nil {
			r.fail(op, fmt.Errorf("send on %s: %w", op.Device, err))
		}
	}
}
