package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"time"

	systemd "github.com/coreos/go-systemd/v22/daemon"
)

// announce tells systemd, if that started this process, that the daemon is ready as soon as it serves the sockets
// (man sd_notify). The store need not answer for that: the hosts of a cluster boot in any
// order, and Docker waits for the service.
func announce(ctx context.Context, sockets ...string) error {
	for _, path := range sockets {
		for !served(ctx, path) {
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(10 * time.Millisecond):
			}
		}
	}
	if _, err := systemd.SdNotify(false, systemd.SdNotifyReady); err != nil {
		return fmt.Errorf("tell systemd that the daemon is ready: %w", err)
	}
	<-ctx.Done()
	return nil
}

// stopping tells systemd that the daemon ends.
func stopping(log *slog.Logger) {
	if _, err := systemd.SdNotify(false, systemd.SdNotifyStopping); err != nil {
		log.Warn("cannot tell systemd that the daemon ends", "error", err)
	}
}

// served says whether somebody accepts connections at a socket.
func served(ctx context.Context, path string) bool {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}
