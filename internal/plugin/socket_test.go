package plugin

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// client returns an HTTP client that reaches the socket at path, whatever the URL's host.
func client(t *testing.T, path string) *http.Client {
	t.Helper()
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// ask sends one call over the socket and returns the answer.
func ask(c *http.Client, method string) (string, error) {
	res, err := c.Post("http://plugin/"+method, ContentType, strings.NewReader("{}"))
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return string(b), err
}

// serve runs s on path until the returned function is called, which returns what Serve did.
func serve(t *testing.T, s *Server, path string) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, path) }()
	t.Cleanup(cancel)
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		conn, err := net.Dial("unix", path)
		if err == nil {
			conn.Close()
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the socket does not answer: %v", err)
		}
	}
	return func() error {
		cancel()
		return <-done
	}
}

func TestSocketIsForRootOnlyAndGoesWithTheServer(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "docker", "plugins")
	path := filepath.Join(dir, "custom.sock")
	stop := serve(t, kitchen(Config{}), path)
	for file, want := range map[string]os.FileMode{path: os.ModeSocket | 0o600, dir: os.ModeDir | 0o755} {
		info, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode() != want {
			t.Errorf("%s has mode %s, want %s", file, info.Mode(), want)
		}
	}
	if got, err := ask(client(t, path), "Kitchen.Echo"); err != nil || !strings.Contains(got, "Count") {
		t.Errorf("answer %q, %v", got, err)
	}
	if err := stop(); err != nil {
		t.Errorf("end: %v", err)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestStaleSocketIsReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "custom.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	stop := serve(t, kitchen(Config{}), path)
	if _, err := ask(client(t, path), "Kitchen.Echo"); err != nil {
		t.Error(err)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

func TestSocketOfALiveProcessIsLeftAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "custom.sock")
	stop := serve(t, kitchen(Config{}), path)
	err := kitchen(Config{}).Serve(t.Context(), path)
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("process %d (", os.Getpid())) {
		t.Errorf("error %v, want one that names process %d", err, os.Getpid())
	}
	if _, err := ask(client(t, path), "Kitchen.Echo"); err != nil {
		t.Errorf("the first server does not answer any more: %v", err)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

func TestUnusablePathIsRefused(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		file:                               "no socket",
		filepath.Join(file, "custom.sock"): "not a directory",
		filepath.Join(dir, strings.Repeat("x", 4000)): "at most 107",
	} {
		if err := kitchen(Config{}).Serve(t.Context(), path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.100s: %v, want %q", path, err, want)
		}
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "precious" {
		t.Errorf("the file is %q now, %v", b, err)
	}
}

// A daemon that starts before the old one has ended must keep its socket.
func TestSuccessorsSocketIsNotRemoved(t *testing.T) {
	path := filepath.Join(t.TempDir(), "custom.sock")
	stop := serve(t, kitchen(Config{}), path)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	stopSuccessor := serve(t, kitchen(Config{}), path)
	if err := stop(); err != nil {
		t.Error(err)
	}
	if _, err := ask(client(t, path), "Kitchen.Echo"); err != nil {
		t.Error(err)
	}
	if err := stopSuccessor(); err != nil {
		t.Error(err)
	}
}

func TestRunningCallIsAnsweredWhenTheServerEnds(t *testing.T) {
	path := filepath.Join(t.TempDir(), "custom.sock")
	running, finish := make(chan struct{}), make(chan struct{})
	s := kitchen(Config{Methods: []Method{Call("Slow.Cook", func(ctx context.Context, _ *Empty) (order, error) {
		close(running)
		<-finish
		return order{Name: "stew"}, ctx.Err()
	})}})
	stop := serve(t, s, path)
	answer := make(chan string, 1)
	go func() {
		got, err := ask(client(t, path), "Slow.Cook")
		answer <- fmt.Sprint(got, err)
	}()
	<-running
	ended := make(chan error, 1)
	go func() { ended <- stop() }()
	select {
	case err := <-ended:
		t.Errorf("the server ended before its call: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	close(finish)
	if got := <-answer; !strings.Contains(got, "stew") {
		t.Errorf("answer %q", got)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
