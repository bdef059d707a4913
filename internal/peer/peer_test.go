package peer

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/netdriver/netdriver/diag"
	"github.com/netdriver/netdriver/store"
	"github.com/netdriver/netdriver/test/e2e/lab"
)

var here = netip.MustParseAddr("127.0.0.1")

// certificate makes an authority of its own with a certificate for this host.
func certificate(t *testing.T) Files {
	t.Helper()
	all, err := lab.Certificates(filepath.Join(t.TempDir(), "tls"), here)
	if err != nil {
		t.Fatal(err)
	}
	c := all[here]
	return Files{CA: c.CA, Cert: c.Cert, Key: c.Key}
}

// serve runs a node's server until the test ends.
func serve(t *testing.T, files Files, refused bool) Client {
	t.Helper()
	return serveWith(t, files, Server{Refused: func(context.Context, string) (bool, error) { return refused, nil }})
}

// serveWith is serve for a server with parts of its own.
func serveWith(t *testing.T, files Files, s Server) Client {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := netip.MustParseAddrPort(l.Addr().String())
	l.Close()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	s.Address, s.Files, s.Witness, s.Log = at, files, diag.Witness{Node: "n2", RunDir: t.TempDir()}, slog.New(slog.DiscardHandler)
	go func() { defer close(done); _ = s.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if c, err := net.Dial("tcp", at.String()); err == nil {
			c.Close()
			return Client{Files: files, Port: at.Port()}
		}
	}
	t.Fatal("nobody listens")
	return Client{}
}

func ask(t *testing.T, c Client, q diag.Question) (diag.Testimony, int, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	ready := 0
	a, err := c.Testify(ctx, store.Node{Name: "n2", VTEP: here}, q, func() error { ready++; return nil })
	return a, ready, err
}

func TestANodeAnswersWhoHasACertificateOfTheClusterOnceAllAreLooking(t *testing.T) {
	c := serve(t, certificate(t), false)
	a, ready, err := ask(t, c, diag.Question{Network: "web", VNI: 7, MTU: 1450, Millis: 10})
	if err != nil || a.Node != "n2" || ready != 1 {
		t.Fatalf("answer %+v, ready %d times, error %v", a, ready, err)
	}
	if len(a.Faults) != 1 || !strings.Contains(a.Faults[0].Cause, "namespace") {
		t.Errorf("faults %+v; a host without netdriver's namespace lacks it", a.Faults)
	}
}

func TestStrangersAndRevokedCertificatesAreNotAnswered(t *testing.T) {
	mine := certificate(t)
	c := serve(t, mine, false)
	stranger := certificate(t)
	stranger.CA = mine.CA // it believes the node, and the node does not believe it
	if a, ready, err := ask(t, Client{stranger, c.Port}, diag.Question{Millis: 10}); err == nil || ready != 0 {
		t.Errorf("a stranger was answered: %+v", a)
	}
	if a, ready, err := ask(t, serve(t, mine, true), diag.Question{Millis: 10}); err == nil || ready != 0 {
		t.Errorf("a revoked certificate was answered: %+v", a)
	}
}

func TestAQuestionThatCostsTooMuchIsRefusedWithTheReason(t *testing.T) {
	c := serve(t, certificate(t), false)
	_, ready, err := ask(t, c, diag.Question{Millis: 60_000})
	if err == nil || ready != 0 || !strings.Contains(err.Error(), "impossible question") {
		t.Errorf("ready %d, error %v", ready, err)
	}
	_, _, err = ask(t, c, diag.Question{Send: []diag.Flight{{Sizes: make([]int, 1000)}}})
	if err == nil {
		t.Error("1000 probes were sent")
	}
}

func TestWhoGivesUpIsNotWaitedFor(t *testing.T) {
	c := serve(t, certificate(t), false)
	gone := errors.New("another node cannot be asked")
	_, err := c.Testify(t.Context(), store.Node{Name: "n2", VTEP: here}, diag.Question{Millis: 10}, func() error { return gone })
	if !errors.Is(err, gone) {
		t.Errorf("error %v", err)
	}
	if _, _, err := ask(t, c, diag.Question{Millis: 10}); err != nil {
		t.Errorf("the next question: %v", err)
	}
}

func TestANodeTellsItsCountersToOthersOfTheCluster(t *testing.T) {
	files := certificate(t)
	want := diag.Traffic{Node: "n2", Networks: []diag.NetworkTraffic{{Network: "web", Peers: diag.Flow{Sent: 1, SentBytes: 2, Received: 3, ReceivedBytes: 4}}}}
	failed := false
	c := serveWith(t, files, Server{
		Refused: func(context.Context, string) (bool, error) { return false, nil },
		Traffic: func(context.Context) (diag.Traffic, error) {
			if failed {
				return diag.Traffic{}, errors.New("no namespace")
			}
			return want, nil
		},
	})
	node := store.Node{Name: "n2", VTEP: here}
	got, err := c.Traffic(t.Context(), node)
	if err != nil || len(got.Networks) != 1 || got.Networks[0].Peers != want.Networks[0].Peers {
		t.Errorf("traffic %+v, error %v", got, err)
	}
	failed = true
	if _, err := c.Traffic(t.Context(), node); err == nil || !strings.Contains(err.Error(), "no namespace") {
		t.Errorf("error %v, want the node's", err)
	}
	stranger := certificate(t)
	stranger.CA = files.CA
	if _, err := (Client{stranger, c.Port}).Traffic(t.Context(), node); err == nil {
		t.Error("a stranger was answered")
	}
	if _, err := serve(t, files, false).Traffic(t.Context(), node); err == nil || !strings.Contains(err.Error(), "another version") {
		t.Errorf("a node that does not know the question: error %v", err)
	}
}
