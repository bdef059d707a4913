package main

import (
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"testing"
	"time"
)

func TestSystemdHearsThatTheDaemonIsReadyWhenItsSocketsAnswer(t *testing.T) {
	dir := newDir(t)
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer notify.Close()
	t.Setenv("NOTIFY_SOCKET", filepath.Join(dir, "notify"))
	heard := func(within time.Duration) string {
		if err := notify.SetReadDeadline(time.Now().Add(within)); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 100)
		n, err := notify.Read(b)
		if err != nil {
			return ""
		}
		return string(b[:n])
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	first, second := filepath.Join(dir, "first"), filepath.Join(dir, "second")
	go func() { done <- announce(ctx, first, second) }()
	for _, path := range []string{first, second} {
		if said := heard(50 * time.Millisecond); said != "" {
			t.Errorf("%q before %s is served", said, path)
		}
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
	}
	if said := heard(5 * time.Second); said != "READY=1" {
		t.Errorf("systemd heard %q", said)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if said := heard(50 * time.Millisecond); said != "" {
		t.Errorf("systemd heard %q, though the daemon may begin anew", said)
	}
	stopping(slog.New(slog.DiscardHandler))
	if said := heard(5 * time.Second); said != "STOPPING=1" {
		t.Errorf("systemd heard %q at the end", said)
	}
}
